"""
An overlay without a device: the program itself sends and receives the packets inside.

It needs no privileges. Here both nodes run in one process and use loopback; usually each is a
program on a host of its own.
"""

import asyncio
import struct
from ipaddress import IPv6Address

from tunnel import Peer, Tunnel

LEFT, RIGHT = "fd00:1::1", "fd00:2::1"


def packet(source: str, destination: str, *, text: bytes) -> bytes:
    """Returns an IPv6 packet with protocol 253, which is for experiments (RFC 3692)."""
    header = struct.pack("!IHBB", 6 << 28, len(text), 253, 64)
    return header + IPv6Address(source).packed + IPv6Address(destination).packed + text


async def main() -> None:
    left = Tunnel(
        device=None,
        local="127.0.0.1",
        port=18472,
        subnets=["fd00:1::/64"],
        peers=[Peer("127.0.0.1:28472", ["fd00:2::/64"])],
    )
    right = Tunnel(
        device=None,
        local="127.0.0.1",
        port=28472,
        subnets=["fd00:2::/64"],
        peers=[Peer("127.0.0.1:18472", ["fd00:1::/64"])],
    )
    async with left, right:
        await left.send(packet(LEFT, RIGHT, text=b"are you there?"))
        async for received in right:
            print(f"right got {received[40:].decode()!r}")
            break
        await right.send(packet(RIGHT, LEFT, text=b"yes"))
        print(f"left got {(await left.receive())[40:].decode()!r}")


if __name__ == "__main__":
    asyncio.run(main())
