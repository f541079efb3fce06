"""
Many requests to the kernel's routing at once: dozens in one system call (rtnetlink(7)).

A thousand peers are a thousand routes, paths and neighbour entries, and each costs pyroute2 half a
millisecond to spell. Here a request is two structs, and is carried out while it is sent: when the
call returns, the answers are there.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence

_AT_ONCE = 64  # requests; their answers fit a receive buffer of any size that is usual
_LARGEST_ANSWERS = 1 << 18  # bytes in one read
_SOL_NETLINK, _CAP_ACK = 270, 10  # a refusal does not repeat what it refuses

_REQUEST, ACK = 0x1, 0x4
_ERROR = 2  # NLMSG_ERROR; an acknowledgement is one without an error
_HEADER, _ATTRIBUTE, _ERRNO = struct.Struct("=IHHII"), struct.Struct("=HH"), struct.Struct("=i")


class RouteBatch:
    """One netlink socket, of the network namespace in which it was opened."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
            socket.NETLINK_ROUTE,
        )
        self._socket.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
        self._socket.bind((0, 0))
        self._busy = asyncio.Lock()

    def close(self) -> None:
        self._socket.close()

    async def request(
        self, kind: int, requests: Sequence[bytes], *, flags: int = ACK
    ) -> list[bytes | int]:
        """
        Body of each answer, or the errno with which the kernel refused; 0 for what it was told
        and has done. Packets have their turn in between.
        """
        answers: list[bytes | int] = []
        async with self._busy:
            for first in range(0, len(requests), _AT_ONCE):
                answers += self._send_batch(kind, requests[first : first + _AT_ONCE], flags=flags)
                await asyncio.sleep(0)
        return answers

    def _send_batch(self, kind: int, bodies: Sequence[bytes], *, flags: int) -> list[bytes | int]:
        self._socket.send(
            b"".join(
                _HEADER.pack(_HEADER.size + len(body), kind, flags | _REQUEST, number, 0) + body
                for number, body in enumerate(bodies)
            )
        )
        # What is not answered, because memory ran out, was refused.
        answers: list[bytes | int] = [errno.ENOBUFS] * len(bodies)
        heard = 0
        while heard < len(bodies):
            try:
                messages = self._socket.recv(_LARGEST_ANSWERS)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                continue
            for number, answer in _read(messages):
                answers[number] = answer
                heard += 1
        return answers


def _read(messages: bytes) -> Iterator[tuple[int, bytes | int]]:
    while len(messages) >= _HEADER.size:
        size, kind, _, number, _ = _HEADER.unpack_from(messages)
        body = messages[_HEADER.size : size]
        yield number, -_ERRNO.unpack_from(body)[0] if kind == _ERROR else body
        messages = messages[(size + 3) & ~3 :]


def put(attributes: Mapping[int, bytes]) -> bytes:
    """Attributes as the kernel wants them, each aligned to 4 bytes."""
    return b"".join(
        _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)
        for kind, value in attributes.items()
    )


def parse(attributes: bytes) -> dict[int, bytes]:
    """Attributes by their kinds."""
    found = {}
    while len(attributes) >= _ATTRIBUTE.size:
        size, kind = _ATTRIBUTE.unpack_from(attributes)
        found[kind] = attributes[_ATTRIBUTE.size : size]
        attributes = attributes[max(size + 3 & ~3, _ATTRIBUTE.size) :]
    return found
