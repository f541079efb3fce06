"""
Requests to the kernel's routing subsystem, and its answers (netlink(7), rtnetlink(7)).

    bodies  ->  64 messages in one send  ->  the kernel carries them out  ->  an answer for each
    a filter  ->  one dump request  ->  answers in pieces, decoded while packets have their turn

A message is two structs here, made and read by hand: a thousand peers are a thousand routes, paths
and neighbour entries, and a library for every kind of message takes half a millisecond for each.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TypeVar

from tunnel.errors import DeviceError

TIME_LIMIT = 5.0
"""Seconds to wait for an answer. The kernel answers before the request returns, so one that takes
longer does not come."""

REQUEST, MULTI, ACK, DUMP = 0x1, 0x2, 0x4, 0x300
REPLACE, EXCL, CREATE = 0x100, 0x200, 0x400
"""Flags of messages: NLM_F_* (linux/netlink.h)."""

_AT_ONCE = 64  # requests in one send; their answers fit a receive buffer of any usual size
_DECODED_AT_ONCE = 128  # messages of a dump: a third of a millisecond
_LARGEST_ANSWER = 1 << 18  # bytes in one read
_SOL_NETLINK, _CAP_ACK, _GET_STRICT_CHK = 270, 10, 12
_ERROR, _DONE = 2, 3  # NLMSG_ERROR, which is an acknowledgement without an error; NLMSG_DONE
_HEADER, _ATTRIBUTE, _ERRNO = struct.Struct("=IHHII"), struct.Struct("=HH"), struct.Struct("=i")

T = TypeVar("T")


class NetlinkSocket:
    """
    One socket, of the network namespace in which it was opened. It serves one request at a time.

    Raises:
        DeviceError: The socket cannot be opened.
    """

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK,
                socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
                socket.NETLINK_ROUTE,
            )
            # A refusal does not repeat what it refuses; a dump's filter is obeyed or refused.
            self._socket.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
            self._socket.setsockopt(_SOL_NETLINK, _GET_STRICT_CHK, 1)
            self._socket.bind((0, 0))
        except OSError as error:
            raise _failed("open a netlink socket", error) from error
        self.port: int = self._socket.getsockname()[0]
        """The number that the kernel's notifications give for the cause of a change."""
        self._sequence = 0
        self._unfinished = False
        self._busy = asyncio.Lock()
        self._waiting: asyncio.Future[None] | None = None

    def close(self) -> None:
        """Closes the socket; a request that waits for its answer fails at once."""
        self._stop_waiting()
        self._socket.close()

    async def request(
        self, kind: int, bodies: Sequence[bytes], *, flags: int = ACK
    ) -> list[bytes | int]:
        """
        Sends a message for each body, all of one kind, and returns for each the body of the answer,
        or the errno of the kernel's refusal, 0 for an acknowledgement.

        Other tasks run between batches. If cancelled, any of the requests may have been carried
        out.

        Raises:
            DeviceError: The socket is closed or fails, or an answer does not come in time.
        """
        answers: list[bytes | int] = []
        async with self._busy:
            await self._finish_dump()
            for first in range(0, len(bodies), _AT_ONCE):
                batch = bodies[first : first + _AT_ONCE]
                answers += await self._request_batch(kind, batch, flags=flags)
                await asyncio.sleep(0)
        return answers

    async def dump(
        self, kind: int, body: bytes, decode: Callable[[bytes], T | None], *, flags: int = 0
    ) -> list[T]:
        """
        Returns what `decode` returns for each message of a dump, except None.

        Other tasks run while it is decoded. When the table changes meanwhile, an entry may be
        duplicated or missing, as in every dump. If cancelled, nothing changes.

        Raises:
            DeviceError: As of :meth:`request`; or the kernel refuses the filter in `body`.
        """
        found: list[T] = []
        async with self._busy:
            await self._finish_dump()
            number = self._send(kind, [body], flags=flags | DUMP)
            self._unfinished = True
            while self._unfinished:
                messages = _split(await self._receive())
                while piece := list(islice(messages, _DECODED_AT_ONCE)):
                    for answer_kind, sequence, answer in piece:
                        if sequence != number:
                            continue
                        if answer_kind in (_ERROR, _DONE):
                            self._unfinished = False
                            _check_dump(answer)
                        elif (one := decode(answer)) is not None:
                            found.append(one)
                    await asyncio.sleep(0)
        return found

    async def _request_batch(
        self, kind: int, bodies: Sequence[bytes], *, flags: int
    ) -> list[bytes | int]:
        first = self._send(kind, bodies, flags=flags)
        # The kernel may have no memory for an answer: a request without one counts as refused.
        answers: dict[int, bytes | int] = dict.fromkeys(
            range(first, first + len(bodies)), errno.ENOBUFS
        )
        missing, lost = set(answers), False
        while missing:
            try:
                received = await self._receive(wait=not lost)
            except _AnswersLostError:
                lost = True
                continue
            if not received:
                break
            for answer_kind, number, body in _split(received):
                if number in missing:
                    missing.remove(number)
                    refused = answer_kind == _ERROR
                    answers[number] = -_ERRNO.unpack_from(body)[0] if refused else body
        return list(answers.values())

    async def _finish_dump(self) -> None:
        """Reads the rest of a dump that was cancelled: until then the kernel starts no other."""
        try:
            while self._unfinished:
                kinds = {kind for kind, _, _ in _split(await self._receive())}
                self._unfinished = not kinds & {_ERROR, _DONE}
                await asyncio.sleep(0)
        except DeviceError:  # its end was lost
            self._unfinished = False

    def _send(self, kind: int, bodies: Sequence[bytes], *, flags: int) -> int:
        """Returns the sequence number of the first message; the others follow it."""
        first = self._sequence = self._sequence % (1 << 31) + 1
        self._sequence += len(bodies)
        messages = b"".join(
            _HEADER.pack(_HEADER.size + len(body), kind, flags | REQUEST, number, 0) + body
            for number, body in enumerate(bodies, first)
        )
        try:
            self._socket.send(messages)
        except OSError as error:
            raise _failed("send to the kernel", error) from error
        return first

    async def _receive(self, *, wait: bool = True) -> bytes:
        """Returns the result of one read; without `wait`, nothing if there is nothing to read."""
        deadline = asyncio.get_running_loop().time() + TIME_LIMIT
        while True:
            try:
                return self._socket.recv(_LARGEST_ANSWER)
            except BlockingIOError:
                if not wait:
                    return b""
                await self._wait_readable(deadline)
            except OSError as error:
                kind = _AnswersLostError if error.errno == errno.ENOBUFS else DeviceError
                raise _failed("read the kernel's answer", error, kind=kind) from error

    async def _wait_readable(self, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        self._waiting = waiting = loop.create_future()
        loop.add_reader(self._socket.fileno(), self._stop_waiting)
        try:
            async with asyncio.timeout_at(deadline):
                await waiting
        except TimeoutError as error:
            raise DeviceError(
                f"the kernel did not answer on netlink within {TIME_LIMIT:g} s"
            ) from error
        finally:
            self._stop_waiting()

    def _stop_waiting(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.get_loop().remove_reader(self._socket.fileno())
            if not waiting.done():
                waiting.set_result(None)


class _AnswersLostError(DeviceError):
    """The receive buffer was full, or the kernel had no memory."""


def pack_attributes(attributes: Mapping[int, bytes]) -> bytes:
    """Attributes in the kernel's format, each aligned to 4 bytes."""
    return b"".join(
        _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)
        for kind, value in attributes.items()
    )


def parse_attributes(attributes: bytes) -> dict[int, bytes]:
    """The values of attributes by their kinds, without the flags of nested ones."""
    found = {}
    while len(attributes) >= _ATTRIBUTE.size:
        size, kind = _ATTRIBUTE.unpack_from(attributes)
        found[kind & 0x3FFF] = attributes[_ATTRIBUTE.size : size]
        attributes = attributes[max(size + 3 & ~3, _ATTRIBUTE.size) :]
    return found


def _split(messages: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Kind, sequence number and body of each message."""
    offset = 0
    while offset + _HEADER.size <= len(messages):
        size, kind, _, number, _ = _HEADER.unpack_from(messages, offset)
        yield kind, number, messages[offset + _HEADER.size : offset + size]
        offset += max(size + 3 & ~3, _HEADER.size)


def _check_dump(body: bytes) -> None:
    """Raises DeviceError when the end of a dump has an error."""
    number = -_ERRNO.unpack_from(body)[0] if len(body) >= _ERRNO.size else 0
    if number:
        raise _failed("read a table of the kernel", OSError(number, os.strerror(number)))


def _failed(action: str, error: OSError, *, kind: type[DeviceError] = DeviceError) -> DeviceError:
    if error.errno == errno.EBADF:
        return kind(f"cannot {action}: the node is closed")
    return kind(f"cannot {action}: {(error.strerror or str(error)).lower()}")
