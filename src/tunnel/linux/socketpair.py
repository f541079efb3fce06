"""A stand-in for the device of a node without one: a socket pair that keeps packet boundaries."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from tunnel.errors import DeviceError

_LARGEST_PACKET = 65535
_BUFFER = 4 << 20  # bytes each way; the kernel may grant less


class SocketPair:
    """
    A pair of SOCK_SEQPACKET sockets: one end is the forwarder's device, without offloads, the other
    is the program's.

    A full buffer makes the writer wait. Closing ends every call that waits.
    """

    offloads: frozenset[str] = frozenset()
    vnet_header = False

    def __init__(self) -> None:
        self._near, self._far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._loop = asyncio.get_running_loop()
        self._reading, self._writing = asyncio.Lock(), asyncio.Lock()
        self._waiting: set[asyncio.Future[None]] = set()
        for end in (self._near, self._far):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)

    @property
    def output(self) -> int:
        """Descriptor of the forwarder's end."""
        return self._near.fileno()

    @property
    def queues(self) -> list[int]:
        return [self.output]

    def overflows(self) -> int:
        """0: a full buffer makes the writer wait."""
        return 0

    async def send(self, packet: bytes) -> None:
        """
        Sends one IP packet, waiting while the buffer is full. If cancelled, nothing was sent.

        Raises:
            DeviceError: Closed, or the packet is empty or longer than 65,535 bytes.
        """
        if not 0 < len(packet) <= _LARGEST_PACKET:
            raise DeviceError(f"packet of {len(packet)} bytes refused (1 to {_LARGEST_PACKET})")
        async with self._writing:
            while self._far.fileno() >= 0:
                try:
                    self._far.send(packet)
                except BlockingIOError:
                    await self._ready(self._loop.add_writer, self._loop.remove_writer)
                else:
                    return
        raise DeviceError("the tunnel is closed (send inside its async with block)")

    async def receive(self) -> bytes | None:
        """Returns the next packet, None once closed. If cancelled, no packet is lost."""
        async with self._reading:
            while self._far.fileno() >= 0:
                try:
                    return self._far.recv(_LARGEST_PACKET)
                except BlockingIOError:
                    await self._ready(self._loop.add_reader, self._loop.remove_reader)
        return None

    def close(self) -> None:
        if self._far.fileno() >= 0:
            self._loop.remove_reader(self._far.fileno())
            self._loop.remove_writer(self._far.fileno())
        for waiter in self._waiting:
            _wake(waiter)
        self._near.close()
        self._far.close()

    async def _ready(self, add: Callable[..., None], remove: Callable[[int], bool]) -> None:
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiting.add(waiter)
        add(self._far.fileno(), _wake, waiter)
        try:
            await waiter
        finally:
            self._waiting.discard(waiter)
            if self._far.fileno() >= 0:
                remove(self._far.fileno())


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
