"""
One forwarder whose device is a socket pair, and whose peers are plain sockets on loopback.

So the C path runs unchanged, one call at a time and without privileges:

    put() -> forwarder.outbound() -> Peer.take()
    Peer.send() -> inbound() -> take()
"""

from __future__ import annotations

import ctypes
import select
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType

from scapy.packet import Packet

from tunnel._native import Counters, Fdb, Forwarder, read_counters
from tunnel.testing.lab import Host

from .wire import NO_OFFLOAD, OUR_MAC, PEER_MAC, Vnet

_UDP_SEGMENT, _UDP_GRO = 103, 104
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE, _SO_MEMINFO = 32, 33, 55
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_DONT = 10, 23, 0
_CLONE_NEWNET = 0x40000000
_SECONDS = 2.0  # far more than loopback takes
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


class Peer:
    """A peer of the rig: a plain UDP socket that sends and receives datagrams."""

    def __init__(self, rig: Rig, index: int, *, address: str, mac: bytes) -> None:
        self.rig, self.index, self.address, self.mac = rig, index, address, mac
        self.socket = rig.open_socket(address)
        self.port: int = self.socket.getsockname()[1]

    def send(self, datagram: bytes, *, ecn: int = 0, size: int | None = None) -> None:
        """Sends to the rig, as a train of datagrams of `size` bytes if given. Returns when the
        datagram is in the receive buffer of the rig."""
        control: list[tuple[int, int, bytes]] = []
        if ecn:
            four = self.rig.family == 4
            level, kind = (0, socket.IP_TOS) if four else (41, socket.IPV6_TCLASS)
            control.append((level, kind, struct.pack("i", ecn)))
        if size:
            control.append((socket.IPPROTO_UDP, _UDP_SEGMENT, struct.pack("H", size)))
        before = self.rig.queued()
        self.socket.sendmsg([datagram], control, 0, self.rig.sockets[0].getsockname())
        deadline = time.monotonic() + _SECONDS
        while self.rig.queued() == before and time.monotonic() < deadline:
            time.sleep(0)

    def trains(self, datagrams: int) -> list[list[bytes]]:
        """Waits for that many datagrams, and returns those that arrived: a list for each train."""
        return [train for train, _, _ in self._arrivals(datagrams)]

    def take(self, datagrams: int = 1) -> list[bytes]:
        """Returns the datagrams that arrived, in order."""
        return [datagram for train in self.trains(datagrams) for datagram in train]

    def packets(self, count: int = 1) -> list[bytes]:
        """Returns the inner packets that arrived."""
        return [datagram[22:] for datagram in self.take(count)]

    def tos(self, datagrams: int) -> list[tuple[int, int]]:
        """(datagrams, ToS or traffic class) of each train that arrived."""
        return [(len(train), tos) for train, tos, _ in self._arrivals(datagrams)]

    def ports(self, datagrams: int) -> list[int]:
        """Source port of each train that arrived."""
        return [port for _, _, port in self._arrivals(datagrams)]

    def _arrivals(self, datagrams: int) -> list[tuple[list[bytes], int, int]]:
        arrivals: list[tuple[list[bytes], int, int]] = []
        deadline = time.monotonic() + _SECONDS
        while True:
            missing = datagrams - sum(len(train) for train, _, _ in arrivals)
            wait = max(0, deadline - time.monotonic()) if missing > 0 else 0
            if not select.select([self.socket], [], [], wait)[0]:
                return arrivals
            data, control, _, name = self.socket.recvmsg(65536, 128)
            size, tos = len(data) or 1, 0
            for level, kind, value in control:
                if (level, kind) == (socket.IPPROTO_UDP, _UDP_GRO):
                    size = struct.unpack("i", value)[0]
                elif kind in (socket.IP_TOS, socket.IPV6_TCLASS):
                    tos = value[0]
            train = [data[at : at + size] for at in range(0, max(1, len(data)), size)]
            arrivals.append((train, tos, name[1]))


class Rig:
    """A forwarder for tests; the ``with`` block closes everything that it opened. `device` is a
    descriptor to use instead of the socket pair."""

    def __init__(
        self,
        *,
        family: int = 4,
        vnet: bool = True,
        tcp: bool = True,
        udp: bool = True,
        vni: int = 1,
        segments: int = 127,
        sockets: int = 1,
        device: int | None = None,
        fdb: Fdb | None = None,
        flood: bool = True,
        learning: bool = True,
        storm: int = 0,
    ) -> None:
        self._stack = ExitStack()
        self.family, self.vnet = family, vnet
        self.device, self.program = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.device, self.program):
            self._stack.enter_context(end)
            end.setblocking(False)
            _set_buffer(end, socket.SO_SNDBUF, force=_SO_SNDBUFFORCE)
        local = "127.0.7.1" if family == 4 else "::1"
        self.sockets = [self.open_socket(local) for _ in range(sockets)]
        self.peers: list[Peer] = []
        self.routes: list[tuple[bytes, int, int]] = []
        descriptor = self.device.fileno() if device is None else device
        self.forwarder = Forwarder(
            device=descriptor,
            output=descriptor,
            vnet_header=vnet,
            coalesce_tcp=tcp,
            coalesce_udp=udp,
            vni=vni,
            mac=OUR_MAC,
            segments=segments,
            fdb=fdb,
            flood=flood,
            learning=learning,
            storm=storm,
        )
        self.forwarder.set_sockets(family, [sock.fileno() for sock in self.sockets])

    def __enter__(self) -> Rig:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def open_socket(self, address: str) -> socket.socket:
        """Opens a socket like `tunnel.linux.udp`, on any free port."""
        four = ":" not in address
        sock = socket.socket(_FAMILY[4 if four else 6], socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._stack.enter_context(sock)
        if four:
            sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DONT)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_DONT)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
        sock.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, 1)
        _set_buffer(sock, socket.SO_RCVBUF, force=_SO_RCVBUFFORCE)
        sock.bind((address, 0))
        return sock

    def add_peer(self, *, address: str | None = None, mac: bytes = PEER_MAC) -> Peer:
        """Adds the next peer: number n, counted from 1, has 10.0.n.0/24 and fd00:n::/64."""
        index = len(self.peers)
        if address is None:
            address = f"127.0.7.{index + 2}" if self.family == 4 else "::1"
        peer = Peer(self, index, address=address, mac=mac)
        self.peers.append(peer)
        self.forwarder.set_peer(index, packed(address), peer.port, mac)
        self.routes.append((packed(f"10.0.{index + 1}.0"), 24, index))
        self.routes.append((packed(f"fd00:{index + 1:x}::"), 64, index))
        self.forwarder.set_routes(self.routes)
        return peer

    # ---- device ----

    def put(self, packet: Packet | bytes, vnet: Vnet = NO_OFFLOAD) -> None:
        """Makes a packet readable from the device."""
        self.program.send((bytes(vnet) if self.vnet else b"") + bytes(packet))

    def outbound(self, *packets: Packet | bytes) -> None:
        """Puts packets without offloads, and forwards until the device is empty."""
        for packet in packets:
            self.put(packet)
        while self.forwarder.outbound():
            pass

    def writes(self) -> list[tuple[Vnet, bytes]]:
        """Returns (header, packet) of each write to the device."""
        messages = []
        while True:
            try:
                messages.append(self.program.recv(1 << 17))
            except BlockingIOError:
                break
        return [Vnet.cut(message) if self.vnet else (NO_OFFLOAD, message) for message in messages]

    def take(self) -> list[bytes]:
        """Returns the packets that were written to the device."""
        return [packet for _, packet in self.writes()]

    # ---- peers ----

    def queued(self) -> int:
        """Bytes of kernel memory in the queue of the receiving socket."""
        info = self.sockets[0].getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 4)
        return int.from_bytes(info, "little")

    def inbound(self) -> list[tuple[Vnet, bytes]]:
        """Moves everything that peers sent; returns what was written to the device."""
        while self.forwarder.inbound(self.family):
            pass
        return self.writes()

    # ---- counters ----

    def counters(self, index: int) -> Counters:
        """Of a peer, of ``UNKNOWN_PEER`` or of ``REMOVED_PEERS``."""
        return read_counters([self.forwarder])[index]

    def drops(self, index: int) -> dict[str, int]:
        """Packets by drop reason, only reasons that occurred."""
        return self.counters(index).drops

    def work(self) -> dict[str, int]:
        return self.forwarder.work()

    def trains(self, index: int) -> bool:
        """Whether a peer gets trains."""
        return self.forwarder.trains()[index] == 2


@contextmanager
def inside(host: Host) -> Iterator[None]:
    """Moves this thread to the network namespace of a host. Open sockets stay in theirs."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as home, open(f"/proc/{host.pid}/ns/net") as there:
        if libc.setns(there.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter the network of host {host.name}")
        try:
            yield
        finally:
            libc.setns(home.fileno(), _CLONE_NEWNET)


def _set_buffer(sock: socket.socket, plain: int, *, force: int) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, force, 8 << 20)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, plain, 8 << 20)


def send_all(peer: Peer, datagrams: Iterable[bytes]) -> None:
    for datagram in datagrams:
        peer.send(datagram)
