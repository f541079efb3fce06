"""
A program with an overlay of its own: it greets every client that connects through it.

    python embed.py 10.244.1.0/24 192.0.2.2=10.244.2.0/24     (as root, on 192.0.2.1)
    nc 10.244.1.0 7007                                        (on 192.0.2.2, where
        "tunnel up --subnet 10.244.2.0/24 --peer 192.0.2.1=10.244.1.0/24" runs)

The device, its address and the kernel routes are removed when the program ends.
"""

import asyncio
import sys
from contextlib import suppress

from tunnel import Peer, Tunnel, TunnelError


async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(f"hello {writer.get_extra_info('peername')[0]}\n".encode())
    await writer.drain()
    writer.close()


async def main(subnet: str, *peers: str) -> None:
    async with Tunnel(subnets=[subnet]) as tunnel:
        print(tunnel.describe(), flush=True)
        # Peers can be added and removed at any time without interrupting the others.
        for text in peers:
            await tunnel.add_peer(Peer.parse(text))
        address = str(tunnel.config.addresses[0].ip)
        try:
            async with await asyncio.start_server(greet, address, 7007):
                await tunnel.wait_closed()
        finally:
            for endpoint, peer in tunnel.stats.peers.items():
                print(f"{endpoint}: {peer.inbound.packets} in, {peer.outbound.packets} out")
            print(f"drops: {tunnel.stats.drops}")


if __name__ == "__main__":
    try:
        with suppress(KeyboardInterrupt):
            asyncio.run(main(*sys.argv[1:]))
    except TunnelError as error:
        sys.exit(str(error))
