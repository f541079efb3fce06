"""
Packets as they pass a node: inside, on its device, or outside, on the way to and from its peers.

    interfaces, filter  ->  sockets beside the packet path  ->  packets, or a line on each

Nothing of it is in the packet path: what is not captured costs nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import select
import socket
import struct
from collections import deque
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from tunnel.errors import CodecError, ConfigError, DeviceError
from tunnel.linux.bpf import ETHERNET, compile_filter, port_filter
from tunnel.linux.netlink import Netlink
from tunnel.linux.packet_socket import CaptureInterface, Packet, PacketSocket, find_interface
from tunnel.protocol import control_frames
from tunnel.status import Status
from tunnel.types import Address, Endpoint

_BURST = 64
"""Packets read from one socket before it is another's turn."""


class Capture:
    """
    Packets that pass some interfaces, from the moment this is entered: those of a node's device
    here, those of a tunnel by :meth:`tunnel.Tunnel.capture`.

    ::

        with inside("tunnel1") as packets:
            async for packet in packets:
                print(describe(packet))

    Super-packets and trains come whole, as the kernel moves them: one packet of up to 64 KiB
    where many are on the wire. Cancelled while it waits, no packet is lost.

    Raises:
        ConfigError: The filter is none.
        DeviceError: An interface is not there, or CAP_NET_RAW is missing.
    """

    def __init__(self, interfaces: Iterable[CaptureInterface], *, filters: Sequence[bytes]) -> None:
        self.interfaces = tuple(interfaces)
        self._filters = filters
        self._taps: list[PacketSocket] = []
        self._waiting: deque[Packet] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._closed = False

    def __enter__(self) -> Self:
        self._epoll = select.epoll()
        try:
            for interface, program in zip(self.interfaces, self._filters, strict=True):
                tap = PacketSocket(interface, program=program)
                self._taps.append(tap)
                self._epoll.register(tap, select.EPOLLIN)
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
        """Ends it, and with it who iterates; the counts stay."""
        if self._closed:
            return
        self._closed = True
        if self._wake is not None:
            self._wake.get_loop().remove_reader(self._epoll.fileno())
            _wake(self._wake)
        self._epoll.close()
        for tap in self._taps:
            tap.close()

    @property
    def counts(self) -> list[tuple[int, int]]:
        """Of each interface: how many packets passed the filter, and how many of them the kernel
        dropped because they were not taken in time."""
        return [tap.counts() for tap in self._taps]

    @property
    def pending(self) -> bool:
        """Whether there are packets that nobody has to wait for."""
        return bool(self._waiting)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Packet:
        """Cancelled, no packet is lost. Raises DeviceError if an interface has gone."""
        while not self._waiting:
            if not self._closed:
                await self._readable()
            if self._closed:
                raise StopAsyncIteration
            self._read()
        return self._waiting.popleft()

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        self._wake = loop.create_future()
        loop.add_reader(self._epoll.fileno(), _wake, self._wake)
        try:
            await self._wake
        finally:
            if not self._closed:
                loop.remove_reader(self._epoll.fileno())

    def _read(self) -> None:
        ready = {descriptor for descriptor, _ in self._epoll.poll(0)}
        for tap in self._taps:
            if tap.fileno() in ready:
                self._waiting += tap.read(_BURST)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


async def of(status: Status, *, outer: bool, text: str = "") -> Capture:
    """
    What passes a node: inside, or the datagrams that carry it; `text` is a filter in tcpdump's
    language.

    Raises:
        ConfigError: The filter is none, or there is no device to capture on.
        DeviceError: As :func:`outside`.
    """
    if outer:
        ports = {Endpoint.parse(own).port for own in status.endpoints}
        ports |= {peer.endpoint.port for peer in status.peers}
        addresses = [peer.address for peer in status.peers if peer.address is not None]
        return await outside(addresses, ports=ports, text=text)
    if status.device is None:
        raise ConfigError(f"{status.name} has no device to capture on (choose outer)")
    return inside(status.device, text=text)


def inside(device: str, *, text: str = "") -> Capture:
    """
    Inner packets, on a node's device; `text` is a filter in tcpdump's language.

    Raises:
        ConfigError, DeviceError: As :class:`Capture`.
    """
    interface = find_interface(device, inner=True)
    program = compile_filter(text, link=interface.link) if text else b""
    return Capture([interface], filters=[program])


async def outside(peers: Iterable[Address], *, ports: Iterable[int], text: str = "") -> Capture:
    """
    Datagrams from or to one of `ports`, on the interfaces that lead to peers. The kernel selects
    them; `text` selects further, by outer headers, in tcpdump's language.

    Raises:
        ConfigError, DeviceError: As :class:`Capture`; or no route leads to any of the peers.
    """
    interfaces = [find_interface(name) for name in await _ways_to(peers)]
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


async def _ways_to(peers: Iterable[Address]) -> list[str]:
    """Names of the interfaces by which the kernel would send to them."""
    names: dict[str, None] = {}
    async with Netlink() as netlink:
        for address in peers:
            path = await netlink.get_path(address)
            if path is not None:
                names[socket.if_indextoname(path.device)] = None
    return list(names)


# One line on a packet. Its bytes are anybody's: a length is believed where it can be seen.

_ICMP = {0: "echo reply", 3: "unreachable", 8: "echo request", 11: "time exceeded"}
_ICMP6 = {1: "unreachable", 2: "packet too big", 3: "time exceeded", 128: "echo request"}
_ICMP6 |= {129: "echo reply", 135: "neighbour solicitation", 136: "neighbour advertisement"}
_TCP_FLAGS = "FSRP.UEC"
_ETHERNET_HEADER = 14


def describe(packet: Packet) -> str:
    """
    What people want to know of a packet, in one line: ``10.1.0.0.4711 > 10.2.0.0.80: tcp [S],
    60 bytes``, and of one that carries another what it carries.
    """
    data = packet.data
    if packet.interface.link != ETHERNET:
        return _ip(data)
    if len(data) < _ETHERNET_HEADER:
        return f"no whole Ethernet header, {len(data)} bytes"
    return _ethernet(data)


def _ethernet(frame: bytes) -> str:
    (ethertype,) = struct.unpack_from("!H", frame, 12)
    body = frame[_ETHERNET_HEADER:]
    if ethertype in (0x0800, 0x86DD):
        return _ip(body)
    if ethertype == control_frames.ETHERTYPE:
        return _control(body)
    return f"ethertype {ethertype:#06x}, {len(frame)} bytes"


def _ip(data: bytes) -> str:
    version = data[0] >> 4 if data else 0
    if version == 4 and len(data) >= 20:
        header, protocol = max(20, 4 * (data[0] & 0x0F)), data[9]
        later = bool(struct.unpack_from("!H", data, 6)[0] & 0x1FFF)
        source, destination = data[12:16], data[16:20]
    elif version == 6 and len(data) >= 40:
        header, protocol, later = 40, data[6], False
        source, destination = data[8:24], data[24:40]
    else:
        return f"no whole IP header, {len(data)} bytes"
    ends = [str(ipaddress.ip_address(end)) for end in (source, destination)]
    payload = data[header:]
    if protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP) and len(payload) >= 8 and not later:
        ports = struct.unpack_from("!HH", payload)
        ends = [f"{end}.{port}" for end, port in zip(ends, ports, strict=True)]
    what = "later fragment" if later else _transport(protocol, payload)
    return f"{ends[0]} > {ends[1]}: {what or f'protocol {protocol}'}, {len(data)} bytes"


def _transport(protocol: int, payload: bytes) -> str:
    match protocol:
        case socket.IPPROTO_TCP if len(payload) >= 14:
            bits = payload[13]
            flags = "".join(name for i, name in enumerate(_TCP_FLAGS) if bits >> i & 1)
            return f"tcp [{flags}]"
        case socket.IPPROTO_UDP if len(payload) >= 8:
            return _vxlan(payload[8:]) or "udp"
        case socket.IPPROTO_ICMP if payload:
            return f"icmp {_ICMP.get(payload[0], payload[0])}"
        case socket.IPPROTO_ICMPV6 if payload:
            return f"icmp6 {_ICMP6.get(payload[0], payload[0])}"
    return ""


def looks_like_vxlan(payload: bytes) -> bool:
    """Whether a datagram's content is as RFC 7348 has it and every sender sends it."""
    return (
        len(payload) >= control_frames.HEADERS.size
        and payload[:4] == b"\x08\0\0\0"
        and payload[7] == 0
        and struct.unpack_from("!H", payload, 20)[0]
        in (0x0800, 0x86DD, 0x0806, control_frames.ETHERTYPE)
    )


def _vxlan(payload: bytes) -> str:
    if not looks_like_vxlan(payload):
        return ""
    vni = int.from_bytes(payload[4:7])
    return f"vni {vni} ({_ethernet(payload[8:])})"


def _control(body: bytes) -> str:
    try:
        message = control_frames.decode(body)
    except CodecError:
        return f"control frame that cannot be read, {len(body)} bytes"
    kind = control_frames.kind_of(message) if message else "of an unknown kind"
    return f"control {kind}, {len(body)} bytes"
