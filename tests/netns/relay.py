"""
A path that corrupts trains, as some hypervisors do: between two nodes, each with this as its peer.

    python relay.py ADDRESS PORT ONE OTHER

Datagrams from the address ONE go to OTHER and back, at the same PORT. The last byte of each
datagram that arrived in a train is changed; single datagrams pass unchanged. Checksums are correct
either way, so no local test shows the damage.
"""

import socket
import struct
import sys
from collections.abc import Iterator

_UDP_GRO, _SO_RCVBUFFORCE = 104, 33
_BUFFER = 8 << 20  # bytes


def main(address: str, port: int, one: str, other: str) -> None:
    ends = {one: other, other: one}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, 1)
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        sock.bind((address, port))
        print("ready", flush=True)
        while True:
            data, control, _, source = sock.recvmsg(65_535, socket.CMSG_SPACE(4))
            for datagram in received(data, control):
                sock.sendto(datagram, (ends[source[0]], port))


def received(data: bytes, control: list[tuple[int, int, bytes]]) -> Iterator[bytes]:
    """The datagrams of one receive, damaged where they are a train."""
    size = next((struct.unpack("i", value)[0] for *_, value in control), 0)
    if not 0 < size < len(data):
        yield data
        return
    for start in range(0, len(data), size):
        datagram = data[start : start + size]
        yield datagram[:-1] + bytes([datagram[-1] ^ 0xFF])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
