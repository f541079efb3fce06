"""
Packets as they pass a node: inner packets on its device, or the datagrams that carry them.

    interfaces, filter  ->  packet sockets beside the packet path  ->  packets

The packet path is not involved, so a packet costs nothing unless it is captured.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections import deque
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from tunnel.errors import ConfigError, DeviceError
from tunnel.linux.bpf import compile_filter, port_filter
from tunnel.linux.netlink import Netlink
from tunnel.linux.packet_socket import CaptureInterface, Packet, PacketSocket, find_interface
from tunnel.status import Status
from tunnel.types import Address, Endpoint

_BURST = 64
"""Packets read from one socket before the next one is read."""


class Capture:
    """
    An asynchronous iterator over the packets that pass some interfaces, from when it is entered.

    :func:`capture_device` makes one of a node's device on this host, and
    :meth:`tunnel.Tunnel.capture` one of a tunnel::

        with capture_device("tunnel1") as packets:
            async for packet in packets:
                print(summarize(packet))

    Super-packets and trains come whole, as the kernel moves them: one packet of up to 64 KiB for
    many on the wire. Cancelling the iteration loses no packet.

    Args:
        filters: A classic BPF program for each interface; empty accepts everything.

    Raises:
        DeviceError: An interface does not exist, or CAP_NET_RAW is missing.
    """

    def __init__(self, interfaces: Iterable[CaptureInterface], *, filters: Sequence[bytes]) -> None:
        self.interfaces = tuple(interfaces)
        self._filters = filters
        self._sockets: list[PacketSocket] = []
        self._received: deque[Packet] = deque()
        self._readable: asyncio.Future[None] | None = None
        self._closed = False

    def __enter__(self) -> Self:
        self._epoll = select.epoll()
        try:
            for interface, program in zip(self.interfaces, self._filters, strict=True):
                opened = PacketSocket(interface, program=program)
                self._sockets.append(opened)
                self._epoll.register(opened, select.EPOLLIN)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the capture and every iteration over it; :attr:`counts` stays."""
        if self._closed:
            return
        self._closed = True
        if self._readable is not None:
            self._readable.get_loop().remove_reader(self._epoll.fileno())
            _set_done(self._readable)
        self._epoll.close()
        for opened in self._sockets:
            opened.close()

    @property
    def counts(self) -> list[tuple[int, int]]:
        """For each interface, the packets that passed the filter, and how many of them the kernel
        dropped because they were not read in time."""
        return [opened.counts() for opened in self._sockets]

    @property
    def pending(self) -> bool:
        """Whether the next packet is available without waiting."""
        return bool(self._received)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Packet:
        """If cancelled, no packet is lost. Raises DeviceError if an interface no longer exists."""
        while not self._received:
            if not self._closed:
                await self._wait_readable()
            if self._closed:
                raise StopAsyncIteration
            self._read()
        return self._received.popleft()

    async def _wait_readable(self) -> None:
        loop = asyncio.get_running_loop()
        self._readable = loop.create_future()
        loop.add_reader(self._epoll.fileno(), _set_done, self._readable)
        try:
            await self._readable
        finally:
            if not self._closed:
                loop.remove_reader(self._epoll.fileno())

    def _read(self) -> None:
        ready = {descriptor for descriptor, _ in self._epoll.poll(0)}
        for opened in self._sockets:
            if opened.fileno() in ready:
                self._received += opened.read(_BURST)


def _set_done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def capture_node(status: Status, *, outer: bool, text: str = "") -> Capture:
    """
    Returns a capture of a node's inner packets, or of the datagrams that carry them.

    Args:
        text: A filter in tcpdump's language.

    Raises:
        ConfigError: The filter is invalid, or the node has no device to capture on.
        DeviceError: As :func:`capture_underlay`.
    """
    if outer:
        ports = {Endpoint.parse(own).port for own in status.endpoints}
        ports |= {peer.endpoint.port for peer in status.peers}
        addresses = [peer.address for peer in status.peers if peer.address is not None]
        return await capture_underlay(addresses, ports=ports, text=text)
    if status.device is None:
        raise ConfigError(f"{status.name} has no device to capture on (choose outer)")
    return capture_device(status.device, text=text)


def capture_device(device: str, *, text: str = "") -> Capture:
    """
    Returns a capture of inner packets, on a node's device; `text` as :func:`capture_node`.

    Raises:
        ConfigError: The filter is invalid.
        DeviceError: The device does not exist.
    """
    interface = find_interface(device, inner=True)
    program = compile_filter(text, link=interface.link) if text else b""
    return Capture([interface], filters=[program])


async def capture_underlay(
    peers: Iterable[Address], *, ports: Iterable[int], text: str = ""
) -> Capture:
    """
    Returns a capture of the datagrams from or to one of `ports`, on the interfaces that lead to
    the peers now. `text` selects further, by outer headers.

    Raises:
        ConfigError: The filter is invalid.
        DeviceError: An interface does not exist, or no route leads to any of the peers.
    """
    interfaces = [find_interface(name) for name in await _interfaces_to(peers)]
    if not interfaces:
        raise DeviceError(
            "no route leads to any peer, so there is no interface to capture on (see tunnel status)"
        )
    wanted = sorted(set(ports))
    programs = {}
    for link in {interface.link for interface in interfaces}:
        programs[link] = port_filter(wanted, link=link)
        if text:
            either = " or ".join(f"port {port}" for port in wanted)
            programs[link] = compile_filter(f"udp and ({either}) and ({text})", link=link)
    return Capture(interfaces, filters=[programs[one.link] for one in interfaces])


async def _interfaces_to(peers: Iterable[Address]) -> list[str]:
    """Returns the names of the interfaces by which the kernel would send to the peers."""
    async with Netlink() as netlink:
        paths = await netlink.get_paths(list(peers))
    devices = dict.fromkeys(path.device for path in paths if path is not None)
    return [socket.if_indextoname(device) for device in devices]
