"""
The overlay as a program has it: :class:`Tunnel`, and all that can be asked of it.

    what is open  ->  node.py    what is known  ->  snapshot.py, fdb.py
    what is tried  ->  probes.py, doctor.py    what passes, or would  ->  capture.py, explain.py
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from types import TracebackType
from typing import Literal, Self, Unpack

from tunnel.config.node import Config, differences
from tunnel.config.options import ConfigOptions
from tunnel.diagnostics import doctor
from tunnel.diagnostics.capture import Capture, capture_node
from tunnel.diagnostics.doctor import Finding
from tunnel.diagnostics.path_inputs import PathInputReader
from tunnel.diagnostics.path_trace import PathTrace, trace
from tunnel.errors import ClosedError, ConfigError, TunnelError
from tunnel.events import Event
from tunnel.linux.socketpair import SocketPair
from tunnel.node import fdb, probes, snapshot
from tunnel.node.config_source import ConfigSource
from tunnel.node.node import Node
from tunnel.status import Drop, FdbEntry, Neighbour, Route, Stats, Status
from tunnel.supervise import Supervisor
from tunnel.types import (
    Address,
    Endpoint,
    Mac,
    Peer,
    Prefix,
    parse_address,
)


class Tunnel:
    """
    One end of an overlay: a TUN or TAP device joined to peers over UDP.

    Packets the kernel writes to the device go to the peer that owns their destination;
    packets from peers go to the device. Per-packet work happens in C: this class opens the
    descriptors, keeps the tables true, and stops. With ``device=None`` the program itself
    is the device, by :meth:`send` and ``async for packet in tunnel``; that needs no
    privilege. With ``mode="tap"`` Ethernet frames stand for packets everywhere, and the
    FDB for the peers' prefixes.

    Leaving the ``async with`` block closes everything and removes what was made.
    Cancelling the task inside the block does the same. A packet that cannot be forwarded
    never raises: it is counted in :attr:`stats` under a drop reason.

    Closed, it still tells what it counted and knew (:attr:`stats`, :meth:`status`,
    :meth:`drops`). All that would ask or change anything raises ClosedError then, and before it
    is entered all raises StateError, but for :attr:`config`, :attr:`phase`, :attr:`ready` and
    :meth:`events`.

    Takes a :class:`Config`, or the keywords of one: ``Tunnel(vni=7)`` is ``Tunnel(Config(vni=7))``.

    Args:
        device: ``"tun"`` creates the device that `mode` says, a TUN or a TAP; None creates none.
        confined: Gives up, for good, all privileges of the process but CAP_NET_ADMIN when the
            device is open, before any thread starts. For a process that only runs a node.
        user: The user that a confined process then runs as.
        config_source: Completes the configuration when the device is open.

    Raises:
        ConfigError: A value that cannot be, or an MTU that the underlay does not carry.
        DeviceError: Most often CAP_NET_ADMIN is missing; the message says so.
        UnderlayError: The port is in use, or the local address is not ours.
    """

    def __init__(
        self,
        config: Config | None = None,
        /,
        *,
        device: Literal["tun"] | None = "tun",
        confined: bool = False,
        user: str | None = None,
        config_source: ConfigSource | None = None,
        **options: Unpack[ConfigOptions],
    ) -> None:
        if device not in ("tun", None):
            raise ConfigError(
                f"device {device!r} is not known (leave it out and give mode: 'tun' or 'tap'; "
                "None creates no device)",
                key=("device",),
            )
        if config is not None and options:
            raise TypeError("a Tunnel takes a Config or options, not both")
        self._node = Node(
            config if config is not None else Config(**options),
            with_device=device is not None,
            confined=confined,
            user=user,
            config_source=config_source,
        )

    # From its beginning to its end.

    async def __aenter__(self) -> Self:
        self._node.check_new()  # a tunnel that is open stays open
        try:
            await self._node.open()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Does what leaving the block does. Cancelled, it finishes first."""
        await self._node.close()

    async def wait_closed(self) -> None:
        """
        Returns when the tunnel is closed. Cancelled, nothing changes.

        Raises:
            DeviceError: It closed by itself, because its device vanished.
            UnderlayError: It did, because its UDP socket failed.
        """
        await self._node.wait_closed()

    # Changes.

    async def add_peer(self, peer: str | Peer) -> None:
        """
        Takes a peer in without touching the others' packets. Cancelled, it is still done.

        Raises:
            ConfigError: It is there already, or one of its prefixes is another's.
            DeviceError: The kernel has another route for one of its prefixes.
            UnderlayError: It is the first of its underlay family and no socket opens.
        """
        peer = Peer.parse(peer) if isinstance(peer, str) else peer
        self._node.check_open()
        await self._node.peers.add(peer)

    async def remove_peer(self, peer: str | Endpoint | Peer) -> None:
        """
        Removes a peer; its counters stay in the sums. Cancelled, it is still done.

        Args:
            peer: As for :meth:`find_peer`.

        Raises:
            PeerNotFoundError: There is no such peer.
        """
        self._node.check_open()
        meant = peer.endpoint if isinstance(peer, Peer) else peer
        await self._node.peers.remove(self._node.peers.find(meant))

    async def change_peers(
        self, *, add: Iterable[Peer] = (), remove: Iterable[Endpoint] = ()
    ) -> dict[Endpoint, TunnelError]:
        """
        Lets many peers go and takes many in, at once and without touching the others' packets; one
        that comes and is there becomes what is given, one that goes and is not there is fine.
        Cancelled, it is still done.

        Returns: Who could not come, and why. The others did.
        """
        self._node.check_open()
        return await self._node.peers.change(add=add, remove=remove)

    async def reload(self, config: Config) -> None:
        """
        Applies what differs in `config`: peers that came, went, or have other prefixes or another
        MAC. Packets of all others go on. Cancelled, it is still done.

        Raises:
            ConfigError: Something else differs, which takes a restart, or a peer that came is
                ourselves. Like below, the peers are then who they were.
            DeviceError: The kernel has another route for a prefix of a peer that came.
        """
        for word in differences(self.config, config):
            if word not in ("peer", "loop"):
                raise ConfigError(f"{word} cannot change while it runs (restart it)", key=(word,))
        self._node.check_open()
        await self._node.peers.replace(config.peers)

    async def renumber(self, config: Config) -> None:
        """
        Changes what lives behind this node to the subnets and addresses of `config`. Cancelled, it
        may have been done in part.

        Raises:
            ConfigError: A peer owns some of that.
            DeviceError: The kernel refuses an address.
        """
        self._node.check_open()
        await self._node.renumber(config)

    # Frames.

    def fdb(self) -> tuple[FdbEntry, ...]:
        """
        Behind which peer each MAC is (in TAP mode).

        Raises:
            ConfigError: In TUN mode.
        """
        return fdb.entries(self._opened)

    def add_fdb(self, mac: str | Mac, *, peer: str | Endpoint, vlan: int | None = None) -> None:
        """
        Puts a static entry, in the place of a learned one. It goes with its peer.

        Raises:
            PeerNotFoundError: There is no such peer.
            ConfigError: There is no such VLAN (1 to 4094), or the MAC is that of a VTEP.
        """
        self._node.check_open()
        fdb.add(self._node, _mac(mac), vlan=vlan, peer=peer)

    def remove_fdb(self, mac: str | Mac, *, vlan: int | None = None) -> None:
        """
        Removes an entry, static or learned.

        Raises:
            ConfigError: There is none, or it is that of a peer's VTEP.
        """
        self._node.check_open()
        fdb.remove(self._node, _mac(mac), vlan=vlan)

    def flush_fdb(self, *, learned: bool = False) -> tuple[FdbEntry, ...]:
        """
        Removes all entries but those of the peers' VTEPs, or only the `learned` ones. Returns
        which.

        Raises:
            ConfigError: In TUN mode.
        """
        self._node.check_open()
        return fdb.flush(self._node, learned=learned)

    # Packets, where the program is the device.

    async def send(self, packet: bytes) -> None:
        """
        Sends one inner IP packet (with ``device=None``); waits while the buffer is full.
        Cancelled, it was not sent.
        """
        await self._pair().send(packet)

    async def receive(self) -> bytes:
        """
        The next inner IP packet (with ``device=None``). Cancelled, none is lost.

        Raises:
            ClosedError: The tunnel was closed.
        """
        packet = await self._pair().receive()
        if packet is None:
            raise self._node.failure or ClosedError(f"{self.config.name} is closed")
        return packet

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        packet = await self._pair().receive()
        if packet is None:
            raise self._node.failure or StopAsyncIteration
        return packet

    def _pair(self) -> SocketPair:
        device = self._opened.device
        if not isinstance(device, SocketPair):
            raise ConfigError(
                f"{self.config.name} has a device: packets go through it "
                "(open it with device=None to send and receive them here)"
            )
        return device

    # What is known. Nothing of it waits, but for the kernel.

    @property
    def _opened(self) -> Node:
        """What it has open, or had. Raises StateError where it never was."""
        self._node.check_opened()
        return self._node

    @property
    def config(self) -> Config:
        """What it was told; its peers may be others by now."""
        return self._node.config

    @property
    def mtu(self) -> int:
        """Largest inner packet, in bytes: as configured, or what every known path carries."""
        return self._opened.underlay.mtu

    @property
    def peers(self) -> tuple[Endpoint, ...]:
        """Who is a peer now; :meth:`status` says more of each."""
        return tuple(self._opened.peers.indices)

    def find_peer(self, peer: str | Endpoint) -> Endpoint:
        """
        Returns the endpoint of the peer that is meant.

        Args:
            peer: Its endpoint, its host alone if no other peer is there, or an overlay address
                that it owns.

        Raises:
            PeerNotFoundError: There is no such peer; the text lists some that there are.
        """
        return self._opened.peers.find(peer)

    @property
    def offloads(self) -> frozenset[str]:
        """Those in use now; ``trains`` as long as any peer gets them."""
        return self._opened.offloads

    @property
    def stats(self) -> Stats:
        """Counters since it opened; still there when it is closed."""
        return snapshot.read_stats(self._opened)

    @property
    def ready(self) -> bool:
        """Whether packets can pass: it is open, and nobody has set its device down. What peers
        do is not asked: one that is silent makes the others no worse."""
        return self._node.ready

    @property
    def phase(self) -> str:
        """What it does now: ``not open``, ``opens``, ``waits for the store ...: why``, ``open``,
        ``closes`` or ``closed``."""
        return self._node.phase

    @property
    def supervisor(self) -> Supervisor:
        """The long-lived tasks of this node; a program may add its own, which :attr:`ready` then
        depends on as well."""
        return self._node.supervisor

    def status(self, *, watch: bool = True) -> Status:
        """
        All that is known now. Whoever asks again and again gets fresher answers, for echoes go
        out every second for a while; without `watch` it changes nothing.
        """
        if watch:
            self._opened.peers.monitor.watch()
        return snapshot.read_status(self._opened)

    def describe(self) -> str:
        """``tunnel1: vni 1, 192.0.2.1:8472, mtu 1450, 2 peers, device tso+uso, trains 127,
        gro, 2 workers``: one line for people."""
        return snapshot.summarize(self._opened)

    def drops(self) -> tuple[Drop, ...]:
        """Why packets were not forwarded, how many, and what to do: every reason there is, also
        those that never occurred. Still there when it is closed."""
        return snapshot.read_drops(self._opened)

    def neighbours(self) -> dict[Endpoint, Neighbour]:
        """Which MAC each peer's VTEP has, and who said so."""
        peers = self._opened.peers
        return {endpoint: peers.neighbour(endpoint) for endpoint in peers.indices}

    def gateway(self, prefix: Prefix) -> Address | None:
        """By which VTEP's address the kernel routes a peer's prefix; None in TUN mode."""
        return self._opened.peers.gateway(prefix)

    async def routes(self) -> tuple[Route, ...]:
        """
        Which peer owns which prefix, and whether the kernel routes it into the device: where it
        does not, somebody took that kernel route away. With ``device=None`` there are none in the
        kernel. Cancelled, nothing changes.

        Raises:
            DeviceError: The tunnel is closed, or its device has gone.
        """
        self._node.check_open()
        return await snapshot.read_routes(self._node)

    def events(self) -> AsyncIterator[Event]:
        """What happens from now on, for ``async for``; ends when the tunnel is closed."""
        return self._node.events.subscribe()

    def emit(self, event: Event) -> None:
        """Tells whoever listens to :meth:`events`."""
        self._node.events.emit(event)

    # What is to be found out.

    async def ping(self, peer: str | Endpoint, *, size: int = 0) -> float:
        """
        Seconds until a peer has answered one echo through the data path, of `size` bytes behind
        the Ethernet header, which must arrive whole. Cancelled, nothing changes.

        Raises:
            PeerNotFoundError: There is no such peer.
            NoAnswer: There was none within a second; its text says why, and its `stage` where it
                ended. A kernel vxlan device answers nothing. It is a TimeoutError, too.
        """
        self._node.check_open()
        return await probes.ping(self._node, peer, size=size)

    async def try_trains(self, peer: str | Endpoint) -> bool:
        """
        Whether trains of datagrams reach a peer as they were sent. Where they do not, though
        single datagrams do, it gets none any more. Cancelled, nothing changes.

        Raises:
            PeerNotFoundError: There is no such peer.
            NoAnswer: Single datagrams get no answer either.
        """
        self._node.check_open()
        return await probes.try_trains(self._node, peer)

    async def doctor(self) -> tuple[Finding, ...]:
        """
        What usually goes wrong, looked for on this host and on the way to each peer, and what to
        do about it; at least one finding for each check. Tries whether trains of datagrams reach
        each peer that is up, as :meth:`try_trains` does, and takes three seconds if peers do not
        answer. What this process may not see, like the firewall without CAP_NET_ADMIN, is a
        finding as well. With ``device=None`` the rest is looked at all the same.

        Cancelled, it stops where it is; a peer that trains did not reach gets none any more.

        Raises:
            DeviceError: The tunnel is closed.
        """

        async def ask() -> Status:
            return self.status()

        self._node.check_open()
        seen, trains = await doctor.try_peers(ask, try_trains=self.try_trains)
        peers = tuple(self._node.peers.peer(one) for one in self.peers)
        config = replace(self.config, peers=peers)
        return tuple(await doctor.examine(config, status=seen, trains=trains))

    @asynccontextmanager
    async def capture(self, text: str = "", *, outer: bool = False) -> AsyncIterator[Capture]:
        """
        Packets as they pass, from when the block is entered until it is left::

            async with tunnel.capture("icmp") as packets:
                async for packet in packets:
                    print(packet.time, packet.data.hex())

        Packets that the kernel moves together come whole, as one of up to 64 KiB. What is not
        captured costs nothing. Closing the tunnel ends the iteration; cancelling whoever iterates
        loses no packet. Takes CAP_NET_RAW.

        Args:
            text: A filter in tcpdump's language (pcap-filter(7)).
            outer: The datagrams to and from peers, on the interfaces that lead to them now;
                else the inner packets on the device.

        Raises:
            ConfigError: The filter is none, or inner packets are wanted of a tunnel with
                ``device=None``, which sees them itself.
            DeviceError: CAP_NET_RAW is missing, no route leads to any peer, or the tunnel is
                closed; while iterating, an interface has gone.
        """
        self._node.check_open()
        prepared = await capture_node(self.status(watch=False), outer=outer, text=text)
        with self._node.capturing(prepared), prepared as packets:
            yield packets

    async def explain(
        self,
        address: str | Address,
        *,
        source: str | Address | None = None,
        size: int = 84,
        protocol: str = "icmp",
        sport: int = 40_000,
        dport: int = 80,
    ) -> PathTrace:
        """
        The way of a packet to `address`, step by step: what decides at each, and where it ends.

        The kernel and the packet path are asked what they would do; nothing is sent. With
        ``device=None`` it begins at the packet path. Cancelled, nothing changes.

        Args:
            source: By default what the kernel would choose. Needed where `address` is ours: the
                way is then that of a peer's packet to it.
            size: Of the whole inner packet, in bytes.
            protocol: ``tcp``, ``udp`` or ``icmp``.

        Raises:
            ConfigError: There is no such packet, or `source` is missing.
            DeviceError: The tunnel is closed.
        """
        self._node.check_open()
        inputs = await PathInputReader(self._node, self.status(watch=False)).read(
            parse_address(address),
            source=None if source is None else parse_address(source),
            size=size,
            protocol=protocol,
            sport=sport,
            dport=dport,
        )
        return trace(inputs)


def _mac(mac: str | Mac) -> Mac:
    return Mac.parse(mac) if isinstance(mac, str) else mac
