"""
The facade of a node for programs: :class:`Tunnel`, with a method for each command.

    open and close, changes  ->  node.node, node.peers
    status, counters, FDB    ->  node.snapshot, node.fdb
    ping, trains             ->  node.probes
    doctor, capture, explain ->  diagnostics
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

    Packets that the kernel writes to the device go to the peer that owns their destination;
    packets from peers go to the device. Per-packet work happens in C: this class opens the
    descriptors, updates the tables, and stops. With ``device=None`` the program takes the place of
    the device, by :meth:`send` and ``async for packet in tunnel``; that needs no privilege. With
    ``mode="tap"`` the tunnel carries Ethernet frames instead of packets, and the FDB decides
    instead of the peers' prefixes.

    Leaving the ``async with`` block closes everything and removes what was made. Cancelling the
    task inside the block does the same. A packet that cannot be forwarded never raises: it is
    counted in :attr:`stats` under a drop reason.

    A closed tunnel still returns what it counted and knew (:attr:`stats`, :meth:`status`,
    :meth:`drops`); its other methods raise ClosedError. Before the tunnel is open they raise
    StateError, except :attr:`config`, :attr:`phase`, :attr:`ready`, :attr:`supervisor` and
    :meth:`events`.

    Takes a :class:`Config`, or the keywords of one: ``Tunnel(vni=7)`` is ``Tunnel(Config(vni=7))``.

    Args:
        device: ``"tun"`` creates a TUN or a TAP device, as `mode` says; None creates none.
        confined: Gives up, for good, all privileges of the process but CAP_NET_ADMIN when the
            device is open, before any thread starts. For a process that only runs a node.
        user: The user that a confined process then runs as.
        config_source: Completes the configuration when the device is open.

    Raises:
        StateError: The tunnel was entered before.
        ConfigError: A value is invalid, or the MTU is more than the underlay carries.
        DeviceError: Most often CAP_NET_ADMIN is missing; the message says so.
        UnderlayError: The port is in use, or this host does not have the local address.
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

    # Opening and closing.

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
        """Closes the tunnel, as leaving the block does. It finishes first, however often it is
        cancelled."""
        await self._node.close()

    async def wait_closed(self) -> None:
        """
        Returns when the tunnel is closed. If cancelled, nothing changes.

        Raises:
            StateError: The tunnel was not entered.
            DeviceError: The tunnel closed by itself, because its device was deleted.
            UnderlayError: The tunnel closed by itself, because its UDP socket failed.
        """
        await self._node.wait_closed()

    # Changes.

    async def add_peer(self, peer: str | Peer) -> None:
        """
        Adds a peer. The packets of others are not affected. If cancelled, it still completes.

        Raises:
            ConfigError: The peer exists, or one of its prefixes overlaps another's.
            DeviceError: The kernel has another route for one of its prefixes.
            UnderlayError: It is the first peer of its underlay family, and no socket opens.
        """
        peer = Peer.parse(peer) if isinstance(peer, str) else peer
        self._node.check_open()
        await self._node.peers.add(peer)

    async def remove_peer(self, peer: str | Endpoint | Peer) -> None:
        """
        Removes a peer; its counters stay in the sums. If cancelled, it still completes.

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
        Removes and adds many peers at once. The packets of others are not affected. If cancelled,
        it still completes.

        Args:
            add: Peers to add. One that exists is changed to what is given, also if it is in
                `remove` as well.
            remove: Peers to remove. One that does not exist is fine.

        Returns the peers that could not be added or changed, with the reason. The tunnel does not
        have them afterwards; the rest of the change is applied.
        """
        self._node.check_open()
        return await self._node.peers.change(add=add, remove=remove)

    async def reload(self, config: Config) -> None:
        """
        Applies the peers of `config`: adds, removes and changes those that differ. The packets of
        others are not affected. If cancelled, it still completes.

        Raises:
            ConfigError: Something else differs, which takes a restart, or a new peer is this node.
                On any error the peers are those from before.
            DeviceError: The kernel has another route for a prefix of a new peer.
        """
        for word in differences(self.config, config):
            if word not in ("peer", "loop"):
                raise ConfigError(
                    f"{word} cannot change while the node runs (restart the node)", key=(word,)
                )
        self._node.check_open()
        await self._node.peers.replace(config.peers)

    async def renumber(self, config: Config) -> None:
        """
        Replaces this node's subnets and overlay addresses with those of `config`. If cancelled, it
        may have been done in part.

        Raises:
            ConfigError: A prefix of a peer overlaps a new subnet.
            DeviceError: The kernel refuses an address.
        """
        self._node.check_open()
        await self._node.renumber(config)

    # Frames.

    def fdb(self) -> tuple[FdbEntry, ...]:
        """
        Returns the FDB: the peer behind each MAC (in TAP mode).

        Raises:
            ConfigError: In TUN mode.
        """
        return fdb.entries(self._opened)

    def add_fdb(self, mac: str | Mac, *, peer: str | Endpoint, vlan: int | None = None) -> None:
        """
        Adds a static FDB entry, or replaces a learned one. It is removed with its peer.

        Raises:
            PeerNotFoundError: There is no such peer.
            ConfigError: There is no such VLAN (1 to 4094), or the MAC is that of a VTEP.
        """
        self._node.check_open()
        fdb.add(self._node, _mac(mac), vlan=vlan, peer=peer)

    def remove_fdb(self, mac: str | Mac, *, vlan: int | None = None) -> None:
        """
        Removes an FDB entry, static or learned.

        Raises:
            ConfigError: There is no such entry, or it is that of a peer's VTEP.
        """
        self._node.check_open()
        fdb.remove(self._node, _mac(mac), vlan=vlan)

    def flush_fdb(self, *, learned: bool = False) -> tuple[FdbEntry, ...]:
        """
        Removes all FDB entries except those of the peers' VTEPs, or only the `learned` ones.
        Returns the removed entries.

        Raises:
            ConfigError: In TUN mode.
        """
        self._node.check_open()
        return fdb.flush(self._node, learned=learned)

    # Packets, with device=None.

    async def send(self, packet: bytes) -> None:
        """
        Sends one inner IP packet (with ``device=None``); waits while the buffer is full.
        If cancelled, the packet is not sent.
        """
        await self._pair().send(packet)

    async def receive(self) -> bytes:
        """
        Returns the next inner IP packet (with ``device=None``). If cancelled, no packet is lost.

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

    # State. Only routes() waits, for the kernel.

    @property
    def _opened(self) -> Node:
        """The node, which is or was open. Raises StateError."""
        self._node.check_opened()
        return self._node

    @property
    def config(self) -> Config:
        """The configuration; :attr:`peers` has the current peers."""
        return self._node.config

    @property
    def mtu(self) -> int:
        """Largest inner packet, in bytes: as configured, or what all known paths carry."""
        return self._opened.underlay.mtu

    @property
    def peers(self) -> tuple[Endpoint, ...]:
        """The endpoints of the current peers; :meth:`status` has more about each."""
        return tuple(self._opened.peers.indices)

    def find_peer(self, peer: str | Endpoint) -> Endpoint:
        """
        Returns the endpoint of a peer.

        Args:
            peer: Its endpoint, its host alone if no other peer has that host, or an overlay
                address that it owns.

        Raises:
            PeerNotFoundError: There is no such peer; the text lists some of the peers.
        """
        return self._opened.peers.find(peer)

    @property
    def offloads(self) -> frozenset[str]:
        """The offloads in use; ``trains`` as long as any peer gets them."""
        return self._opened.offloads

    @property
    def stats(self) -> Stats:
        """Counters since the tunnel opened."""
        return snapshot.read_stats(self._opened)

    @property
    def ready(self) -> bool:
        """Whether packets can pass: the tunnel is open, its device is up, and its tasks run. Silent
        peers do not matter."""
        return self._node.ready

    @property
    def phase(self) -> str:
        """What the tunnel does: ``not open``, ``opens``, ``waits for the store ...: why``,
        ``open``, ``closes`` or ``closed``."""
        return self._node.phase

    @property
    def supervisor(self) -> Supervisor:
        """The long-lived tasks of this node. A program may add its own; :attr:`ready` depends on
        them as well."""
        return self._node.supervisor

    def status(self, *, watch: bool = True) -> Status:
        """
        Returns the state of the node and of each peer. With `watch`, echoes are sent every second
        for a while, so that a caller that asks again gets recent answers.
        """
        if watch:
            self._opened.peers.monitor.watch()
        return snapshot.read_status(self._opened)

    def snapshot(self) -> tuple[Status, Stats]:
        """Returns :meth:`status` (without `watch`) and :attr:`stats` of one moment; cheaper than
        both calls, because the counters are read once."""
        return snapshot.read_status_and_stats(self._opened)

    def describe(self) -> str:
        """Returns one line for people: ``tunnel1: vni 1, 192.0.2.1:8472, mtu 1450, 2 peers, device
        tso+uso, trains 127, gro, 2 workers``."""
        return snapshot.summarize(self._opened)

    def drops(self) -> tuple[Drop, ...]:
        """Returns every reason for which packets can be dropped, with its count and what to do,
        also if it never occurred."""
        return snapshot.read_drops(self._opened)

    def neighbours(self) -> dict[Endpoint, Neighbour]:
        """Returns the MAC of each peer's VTEP, and how the node knows it."""
        peers = self._opened.peers
        return {endpoint: peers.neighbour(endpoint) for endpoint in peers.indices}

    def gateway(self, prefix: Prefix) -> Address | None:
        """Returns the gateway of the kernel route of a peer's prefix; None in TUN mode."""
        return self._opened.peers.gateway(prefix)

    async def routes(self) -> tuple[Route, ...]:
        """
        Returns the prefixes of all peers, and whether the kernel routes each into the device: if
        not, another program removed that kernel route. With ``device=None`` there are no kernel
        routes. If cancelled, nothing changes.

        Raises:
            ClosedError: The tunnel is closed.
            DeviceError: The device no longer exists.
        """
        self._node.check_open()
        return await snapshot.read_routes(self._node)

    def events(self) -> AsyncIterator[Event]:
        """Returns the events from now on, for ``async for``. It ends when the tunnel is closed."""
        return self._node.events.subscribe()

    def emit(self, event: Event) -> None:
        """Adds an event to :meth:`events`."""
        self._node.events.emit(event)

    # Probes and diagnostics.

    async def ping(self, peer: str | Endpoint, *, size: int = 0) -> float:
        """
        Sends one echo through the data path and returns the seconds until the reply. If cancelled,
        nothing changes.

        Args:
            peer: As for :meth:`find_peer`.
            size: Bytes after the Ethernet header, which are not fragmented.

        Raises:
            PeerNotFoundError: There is no such peer.
            NoAnswerError: No reply came within a second; the text says why, and `stage` where the
                echo failed. A kernel vxlan device never answers. This is a TimeoutError, too.
        """
        self._node.check_open()
        return await probes.ping(self._node, peer, size=size)

    async def try_trains(self, peer: str | Endpoint) -> bool:
        """
        Returns whether trains of datagrams reach a peer undamaged. If they do not, though single
        datagrams do, the peer gets no more trains. If cancelled, nothing changes.

        Raises:
            PeerNotFoundError: There is no such peer.
            NoAnswerError: Single datagrams get no answer either.
        """
        self._node.check_open()
        return await probes.try_trains(self._node, peer)

    async def doctor(self) -> tuple[Finding, ...]:
        """
        Checks this host and the path to each peer for common problems. Returns at least one finding
        for each check, with what to do. It tries trains of datagrams with each peer that is up, as
        :meth:`try_trains` does, and takes three seconds if peers do not answer. What this process
        may not read, like the firewall without CAP_NET_ADMIN, is a finding as well. With
        ``device=None`` the checks of the device are left out.

        If cancelled, it stops; a peer that trains did not reach gets no more of them.

        Raises:
            ClosedError: The tunnel is closed.
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
        Captures packets while the block is entered::

            async with tunnel.capture("icmp") as packets:
                async for packet in packets:
                    print(packet.time, packet.data.hex())

        Packets that the kernel moves together are captured as one of up to 64 KiB. Packets that the
        filter rejects cost nothing. Closing the tunnel ends the iteration; cancelled, the iteration
        loses no packet. Needs CAP_NET_RAW.

        Args:
            text: A filter in tcpdump's language (pcap-filter(7)).
            outer: Captures the datagrams to and from peers, on the interfaces that they use now,
                instead of the inner packets on the device.

        Raises:
            ConfigError: The filter is invalid, or inner packets are asked for with
                ``device=None``, where the program has them itself.
            ClosedError: The tunnel is closed.
            DeviceError: CAP_NET_RAW is missing, or there is no route to any peer; while iterating,
                an interface no longer exists.
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
        Returns the path of a packet to `address`, step by step: what decides at each, and where the
        path ends.

        Asks the kernel and the packet path what they would do; sends nothing. With
        ``device=None`` the path begins at the packet path. If cancelled, nothing changes.

        Args:
            source: By default what the kernel would choose. Required if `address` belongs to this
                node: the path is that of a peer's packet then.
            size: Size of the whole inner packet, in bytes.
            protocol: ``tcp``, ``udp`` or ``icmp``.

        Raises:
            ConfigError: Such a packet cannot exist, or `source` is missing.
            ClosedError: The tunnel is closed.
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
