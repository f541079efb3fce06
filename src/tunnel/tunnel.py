"""
The one place where the planes meet: descriptors are opened, tables kept true, all undone.

    peers  ->  membership  ->  actions  ->  forwarder's tables, kernel routes
    device or socket is readable  ->  forwarder.outbound, forwarder.inbound
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import AsyncExitStack
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeVar

from tunnel._native import Fdb, Forwarder
from tunnel.config import AUTO_WORKERS, Config, differences
from tunnel.contact import SAMPLES
from tunnel.containers import Containers, prepare_subnet_file
from tunnel.control.walk import Walk, walk
from tunnel.errors import ConfigError, DeviceError, TunnelError, UnderlayError
from tunnel.events import Events
from tunnel.explain import Explainer
from tunnel.kernel import Kernel
from tunnel.linux.netlink import Netlink
from tunnel.linux.pair import Pair
from tunnel.linux.privileges import drop_privileges
from tunnel.linux.tun import Device, open_device
from tunnel.linux.underlay import Underlay
from tunnel.peers import Peers
from tunnel.types import (
    DEFAULT_PORT,
    Address,
    Endpoint,
    Event,
    FdbEntry,
    Interface,
    Mac,
    Neighbour,
    OffloadLost,
    Peer,
    PeerState,
    PeerStats,
    PeerStatus,
    Prefix,
    Stats,
    Status,
    StoreStatus,
    Traffic,
    parse_address,
)
from tunnel.workers import GONE, NOBODY, Workers

log = logging.getLogger(__name__)

Result = TypeVar("Result")

_LEARNED, _LEARNED_SHARE = 1 << 16, 1 << 13  # MACs in all, and of one peer


class Origin(Protocol):
    """Where a tunnel gets from what it is not told itself."""

    def prepare(self, *, user: str | None) -> None:
        """The device is open. If this process is about to become another, this is the last
        moment as who started it."""

    async def join(self) -> Config:
        """What the tunnel is to be. Its name, mode and all that is of the device stay."""

    def status(self) -> StoreStatus: ...


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

    Takes what :class:`Config` takes but ``loop``: it runs on the running one.

    Raises:
        ConfigError: A value that cannot be, or an MTU that the underlay does not carry.
        DeviceError: Most often CAP_NET_ADMIN is missing; the message says so.
        UnderlayError: The port is in use, or the local address is not ours.
    """

    def __init__(
        self,
        *,
        device: Literal["tun"] | None = "tun",
        name: str = "",
        vni: int = 1,
        local: str | Address | None = None,
        port: int = DEFAULT_PORT,
        subnets: Iterable[str | Prefix] = (),
        addresses: Iterable[str | Interface] = (),
        mtu: int | None = None,
        mac: str | Mac | None = None,
        peers: Iterable[str | Peer] = (),
        offload: str | Iterable[str] = "auto",
        source_ports: int = 8,
        workers: int | str = "auto",
        mode: Literal["tun", "tap"] = "tun",
        flood: bool | None = None,
        learning: bool | None = None,
        ageing: int | None = None,
        storm_limit: int | None = None,
        networks: Iterable[str | Prefix] = (),
        subnet_file: str | Path | None = None,
        ip_masq: bool = False,
    ) -> None:
        self.config = Config(
            name=name,
            vni=vni,
            local=local,
            port=port,
            subnets=subnets,
            addresses=addresses,
            mtu=mtu,
            mac=mac,
            peers=peers,
            offload=offload,
            source_ports=source_ports,
            workers=workers,
            mode=mode,
            flood=flood,
            learning=learning,
            ageing=ageing,
            storm_limit=storm_limit,
            networks=networks,
            subnet_file=subnet_file,
            ip_masq=ip_masq,
        )
        self._with_tun = device is not None
        self._fdb: Fdb | None = None
        if self.config.ageing is not None:  # in TAP mode
            self._fdb = Fdb(limit=_LEARNED, share=_LEARNED_SHARE, ageing=self.config.ageing)
        self._origin: Origin | None = None
        self._confined = False
        self._user: str | None = None
        self._undo = AsyncExitStack()
        self._closing: asyncio.Task[None] | None = None
        self._started = False
        self._closed = asyncio.Event()
        self._events = Events()
        self._failure: BaseException | None = None
        self._offloads_seen: frozenset[str] = frozenset()

    @classmethod
    def from_config(
        cls,
        config: Config,
        *,
        device: Literal["tun"] | None = "tun",
        confined: bool = False,
        user: str | None = None,
        origin: Origin | None = None,
    ) -> Self:
        """
        Args:
            confined: For a process that is nothing but a node. When its device is open, and before
                any thread is started, it gives up for good all that it could do but for
                CAP_NET_ADMIN.
            user: Whom it becomes then.
            origin: Has the last word on what the tunnel is, once the device is open.
        """
        words = {field.name: getattr(config, field.name) for field in fields(config)}
        del words["loop"]
        tunnel = cls(device=device, **words)
        tunnel._confined, tunnel._user, tunnel._origin = confined, user, origin
        return tunnel

    async def __aenter__(self) -> Self:
        if self._closing is not None:
            raise DeviceError(f"{self.config.name} is closed (open another Tunnel)")
        try:
            await self._open()
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
        if self._closing is None:
            self._closing = asyncio.create_task(self._undo.aclose())
        cancelled: asyncio.CancelledError | None = None
        while not self._closing.done():
            try:
                await asyncio.wait([self._closing])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled
        self._closing.result()

    async def wait_closed(self) -> None:
        """
        Returns when the tunnel is closed. Cancelled, nothing changes.

        Raises:
            DeviceError: It closed by itself, because its device vanished.
        """
        await self._closed.wait()
        if self._failure is not None:
            raise self._failure

    async def add_peer(self, peer: str | Peer) -> None:
        """
        Takes a peer in without touching the others' packets. Cancelled, it is still done.

        Raises:
            ConfigError: It is there already, or one of its prefixes is another's.
            DeviceError: The kernel has another route for one of its prefixes.
            UnderlayError: It is the first of its underlay family and no socket opens.
        """
        peer = Peer.parse(peer) if isinstance(peer, str) else peer
        await self._change(self._peers.add(peer))

    async def remove_peer(self, peer: str | Endpoint | Peer) -> None:
        """
        Lets a peer go; its counters stay in the sums. Cancelled, it is still done.

        Raises:
            ConfigError: There is no such peer.
        """
        if isinstance(peer, Peer):
            peer = peer.endpoint
        endpoint = Endpoint.parse(peer) if isinstance(peer, str) else peer
        await self._change(self._peers.remove(endpoint))

    async def change_peers(
        self, *, come: Iterable[Peer] = (), gone: Iterable[Endpoint] = ()
    ) -> dict[Endpoint, TunnelError]:
        """
        Lets many peers go and takes many in, at once and without touching the others' packets; one
        that comes and is there becomes what is given, one that goes and is not there is fine.
        Cancelled, it is still done.

        Returns: Who could not come, and why. The others did.
        """
        return await self._change(self._peers.change(come=come, gone=gone))

    async def move(self, config: Config) -> None:
        """
        Changes what lives behind this node to the subnets and addresses of `config`. Cancelled, it
        may have been done in part.

        Raises:
            ConfigError: A peer owns some of that.
            DeviceError: The kernel refuses an address.
        """
        self._peers.own(config.subnets)
        before, after = set(self.config.addresses), set(config.addresses)
        if self._kernel is not None:
            for address in after - before:
                await self._kernel.add_address(address)
            for address in before - after:
                await self._kernel.remove_address(address)
        await self._containers.move(config, mtu=self.mtu)
        self.config = config

    def tell(self, event: Event) -> None:
        """Tells whoever listens to :meth:`events`."""
        self._events.tell(event)

    def fdb(self) -> tuple[FdbEntry, ...]:
        """
        Behind which peer each MAC is (in TAP mode).

        Raises:
            ConfigError: In TUN mode.
        """
        peers = {index: endpoint for endpoint, index in self._peers.indices.items()}
        return tuple(
            FdbEntry(Mac(mac), vlan, peers[index], static=static, seconds=seconds)
            for mac, vlan, index, static, seconds in self._table().entries()
            if index in peers
        )

    def add_fdb(self, mac: str | Mac, *, peer: str | Endpoint, vlan: int | None = None) -> None:
        """
        Puts a static entry, in the place of a learned one. It goes with its peer.

        Raises:
            ConfigError: No such peer, no such VLAN (1 to 4094), or the MAC is that of a VTEP.
        """
        table, mac = self._table(), _mac(mac)
        index = self._peers.indices[self._peers.known(peer)]
        self._check_free(mac, vlan=_vlan(vlan))
        table.put(mac.packed, vlan, index)

    def remove_fdb(self, mac: str | Mac, *, vlan: int | None = None) -> None:
        """
        Removes an entry, static or learned.

        Raises:
            ConfigError: There is none, or it is that of a peer's VTEP.
        """
        table, mac = self._table(), _mac(mac)
        self._check_free(mac, vlan=_vlan(vlan))
        if not table.remove(mac.packed, vlan):
            raise ConfigError(f"FDB entry {_spell(mac, vlan)} is not there (see tunnel fdb list)")

    def flush_fdb(self, *, learned: bool = False) -> tuple[FdbEntry, ...]:
        """
        Removes all entries but those of the peers' VTEPs, or only the `learned` ones. Returns
        which.

        Raises:
            ConfigError: In TUN mode.
        """
        table, owner = self._table(), self._peers.vteps.owner
        if learned:
            gone = [entry for entry in self.fdb() if not entry.static]
        else:
            gone = [entry for entry in self.fdb() if entry.vlan or not owner(entry.mac)]
        return tuple(entry for entry in gone if table.remove(entry.mac.packed, entry.vlan))

    def neighbours(self) -> dict[Endpoint, Neighbour]:
        """Which MAC each peer's VTEP has, and who said so."""
        return {endpoint: self._peers.vteps.get(endpoint) for endpoint in self._peers.indices}

    def gateway(self, prefix: Prefix) -> Address | None:
        """By which VTEP's address the kernel routes a peer's prefix; None in TUN mode."""
        return self._peers.vteps.via(prefix)

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
            DeviceError: The tunnel was closed.
        """
        packet = await self._pair().receive()
        if packet is None:
            raise self._failure or DeviceError(f"{self.config.name} is closed")
        return packet

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        packet = await self._pair().receive()
        if packet is None:
            raise self._failure or StopAsyncIteration
        return packet

    @property
    def mtu(self) -> int:
        """Largest inner packet, in bytes: as configured, or what every known path carries."""
        return self._underlay.mtu

    @property
    def peers(self) -> tuple[Endpoint, ...]:
        return tuple(self._peers.indices)

    @property
    def offloads(self) -> frozenset[str]:
        """Those in use now; ``trains`` as long as any peer gets them."""
        tcp, udp = self._workers.coalescing
        indices = self._peers.indices.values()
        abilities = self._underlay.abilities
        trains = not indices or any(self._workers.trains(index) for index in indices)
        in_use = {
            "tso": "tso" in self._device.offloads and tcp,
            "uso": "uso" in self._device.offloads and udp,
            "trains": abilities.segments > 1 and trains,
            "gro": abilities.gro,
        }
        return frozenset(word for word, used in in_use.items() if used)

    @property
    def stats(self) -> Stats:
        """Counters since it opened; still there when it is closed."""
        peers = {
            endpoint: self._workers.stats(index) for endpoint, index in self._peers.indices.items()
        }
        nobody, gone = self._workers.stats(NOBODY), self._workers.stats(GONE)
        everyone = [*peers.values(), nobody, gone]
        drops: Counter[str] = Counter()
        for one in everyone:
            drops.update(one.drops)
        return Stats(
            outbound=sum((one.outbound for one in everyone), Traffic()),
            inbound=sum((one.inbound for one in everyone), Traffic()),
            drops=dict(drops),
            peers=peers,
            work=self._workers.work()
            | self._count_fdb()
            | {"device_overflows": self._device.overflows()},
            offloads=self.offloads,
            strays=nobody.drops,
        )

    def _count_fdb(self) -> dict[str, int]:
        counters = {} if self._fdb is None else self._fdb.counters()
        return {f"fdb_{name}": count for name, count in counters.items()}

    @property
    def ready(self) -> bool:
        """Whether packets can pass: it is open, and nobody has set its device down. What peers
        do is not asked: one that is silent makes the others no worse."""
        if not self._started or self._closing is not None:
            return False
        return not isinstance(self._device, Device) or self._device.is_up()

    def status(self, *, look: bool = True) -> Status:
        """
        All that is known now. Whoever asks again and again gets fresher answers, for echoes go
        out every second for a while; without `look` nothing is made of it.
        """
        if look:
            self._peers.contact.look()
        stats, age = self.stats, time.monotonic() - self._opened
        return Status(
            name=self.config.name,
            device=self._device.name if isinstance(self._device, Device) else None,
            vni=self.config.vni,
            endpoints=tuple(self._underlay.describe()),
            mac=self._underlay.mac,
            mtu=self.mtu,
            offloads=stats.offloads,
            workers=len(self._workers),
            seconds=age,
            peers=tuple(
                self._peer_status(one, stats.peers[one], index=index)
                for one, index in self._peers.indices.items()
            ),
            drops=stats.drops,
            subnets=self.config.subnets,
            mode=self.config.mode,
            store=self._origin.status() if self._origin else None,
        )

    def _peer_status(self, endpoint: Endpoint, own: PeerStats, *, index: int) -> PeerStatus:
        peer = self._peers.peer(endpoint)
        # One whose name is not resolved yet was never asked.
        health = self._peers.contact.health(endpoint)
        return PeerStatus(
            endpoint=endpoint,
            address=self._peers.address(endpoint),
            mac=self._peers.vteps.used(peer),
            prefixes=peer.prefixes,
            state=health.state if health else PeerState.UNKNOWN,
            seconds=time.monotonic() - (health.since if health else self._opened),
            rtt=health.rtt if health else None,
            loss=health.loss if health else None,
            path_mtu=self._peers.contact.path_mtu(endpoint),
            trains=self._workers.trains(index),
            outbound=own.outbound,
            inbound=own.inbound,
            drops=own.drops,
            last_drop=self._workers.last_drop(index),
        )

    def events(self) -> AsyncIterator[Event]:
        """What happens from now on, for ``async for``; ends when the tunnel is closed."""
        return self._events.listen()

    async def ping(self, peer: str | Endpoint, *, size: int = 0) -> float:
        """
        Seconds until a peer has answered one echo through the data path, of `size` bytes behind
        the Ethernet header, which must arrive whole. Cancelled, nothing changes.

        Raises:
            ConfigError: There is no such peer.
            TimeoutError: No answer within a second: it is not there, is no node of ours (a
                kernel vxlan device answers nothing), or `size` does not fit the path.
        """
        endpoint = self._peers.known(peer)
        return await self._peers.contact.ping(endpoint, size=size)

    async def try_trains(self, peer: str | Endpoint) -> bool:
        """
        Whether trains of datagrams reach a peer as they were sent. Where they do not, though
        single datagrams do, it gets none any more. Cancelled, nothing changes.

        Raises:
            ConfigError: There is no such peer.
            TimeoutError: Single datagrams get no answer either.
        """
        endpoint = self._peers.known(peer)
        size = self._peers.contact.path_mtu(endpoint) or self.mtu
        singly, together = await self._peers.contact.try_train(endpoint, size=min(size, self.mtu))
        if not singly.intact:
            raise TimeoutError
        # One that arrives damaged is no accident: checksums let none pass. Some get lost anyway.
        if together.damaged or together.intact < SAMPLES // 2 <= singly.intact:
            # It may have gone meanwhile.
            self._workers.set_trains(self._peers.indices[self._peers.known(endpoint)], False)
            self._look()
            return False
        return True

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
        await self._change(self._peers.become(config.peers))

    async def is_routed(self, peer: str | Endpoint) -> bool:
        """
        Whether this host has a route to where a peer is now. Cancelled, nothing changes.

        Raises:
            ConfigError: There is no such peer.
        """
        address = self._peers.address(self._peers.known(peer))
        return address is not None and await self._netlink.path_to(address) is not None

    async def explain(
        self,
        address: str | Address,
        *,
        source: str | Address | None = None,
        size: int = 84,
        protocol: str = "icmp",
        sport: int = 40_000,
        dport: int = 80,
    ) -> Walk:
        """
        The way of a packet to `address`, step by step: what decides at each, and where it ends.

        The kernel and the packet path are asked what they would do; nothing is sent. Cancelled,
        nothing changes.

        Args:
            source: By default what the kernel would choose. Needed where `address` is ours: the
                way is then that of a peer's packet to it.
            size: Of the whole inner packet, in bytes.
            protocol: ``tcp``, ``udp`` or ``icmp``.

        Raises:
            ConfigError: There is no such packet, or `source` is missing.
        """
        explainer = Explainer(
            config=self.config,
            status=self.status(look=False),
            fdb=self._fdb,
            indices=self._peers.indices,
            device=self._device,
            netlink=self._netlink,
            underlay=self._underlay,
            workers=self._workers,
        )
        facts = await explainer.gather(
            parse_address(address),
            source=None if source is None else parse_address(source),
            size=size,
            protocol=protocol,
            sport=sport,
            dport=dport,
        )
        return walk(facts)

    async def kernel_routes(self) -> frozenset[Prefix] | None:
        """What the kernel routes into the device for us; None without one. Cancelled, nothing
        changes."""
        if not isinstance(self._device, Device):
            return None
        return frozenset(await self._netlink.routes(self._device.index))

    def describe(self) -> str:
        """``tunnel1: vni 1, 192.0.2.1:8472, mtu 1450, 2 peers, device tso+uso, trains 127,
        gro, 2 workers``: one line for people."""
        used = self.offloads
        peers, workers = len(self._peers.indices), len(self._workers)
        device = "+".join(word for word in ("tso", "uso") if word in used) or "plain"
        return ", ".join(
            [
                f"{self.config.name}: vni {self.config.vni}",
                *self._underlay.describe(),
                f"mtu {self.mtu}",
                f"{peers} peer{'' if peers == 1 else 's'}",
                *(["mode tap"] if self._fdb is not None else []),
                f"device {device}" if self._with_tun else "no device",
                f"trains {self._underlay.abilities.segments}" if "trains" in used else "no trains",
                "gro" if "gro" in used else "no gro",
                f"{workers} worker{'' if workers == 1 else 's'}",
            ]
        )

    # Opening: each step says at once how it is undone.

    async def _open(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._undo.callback(self._closed.set)
        self._undo.callback(self._events.close)
        self._opened = time.monotonic()
        self._netlink = await self._undo.enter_async_context(Netlink())
        self._device = await self._open_device()
        if self._origin is not None:
            self._origin.prepare(user=self._user)
        if self._confined:
            prepare_subnet_file(self.config.subnet_file, user=self._user)
            drop_privileges(user=self._user, port=self.config.port)
        if self._origin is not None:
            self.config = await self._origin.join()
        self._containers = Containers(self.config)
        self._underlay = Underlay(self.config, netlink=self._netlink)
        self._undo.callback(self._underlay.close)

        endpoints = [peer.endpoint for peer in self.config.peers]
        found = await asyncio.gather(*(self._underlay.resolve(end) for end in endpoints))
        await self._underlay.choose_locals(address for address in found if address is not None)
        self._workers = self._make_workers()
        self._kernel: Kernel | None = None
        if isinstance(self._device, Device):
            self._kernel = Kernel(self._netlink, index=self._device.index, name=self.config.name)
        self._peers = Peers(
            self.config,
            device=self._device,
            netlink=self._netlink,
            underlay=self._underlay,
            workers=self._workers,
            events=self._events,
            fdb=self._fdb,
            kernel=self._kernel,
            resized=self._containers.resize,
        )
        self._undo.callback(self._stop)
        self._undo.push_async_callback(self._peers.settle)
        for family in tuple(self._underlay.locals):
            await self._peers.listen(family)
        await self._set_device_up()
        await self._peers.open(self.config.peers, found=found)
        self._undo.push_async_callback(self._containers.close)
        await self._containers.start()
        self._containers.publish(self.mtu)
        self._offloads_seen = self.offloads
        self._workers.start(self._device.queues)
        self._started = True
        for reason in self._underlay.abilities.reasons:
            log.warning("%s: %s", self.config.name, reason)

    async def _open_device(self) -> Device | Pair:
        workers = self._count_workers()
        if not self._with_tun:
            pair = Pair()
            self._undo.callback(pair.close)
            return pair
        if workers > 1:
            await self._netlink.check_idle(self.config.name)
        device = self._open_queues(workers)
        self._undo.callback(device.close)
        if device.persistent:
            # Left by a node that was killed, or made by an admin; it outlives us as well.
            await self._netlink.clear(device.index)
            self._undo.push_async_callback(self._netlink.clear, device.index)
        return device

    def _open_queues(self, count: int) -> Device:
        try:
            return open_device(
                self.config.name,
                offloads=self.config.offload,
                queues=count,
                mode=self.config.mode,
            )
        except DeviceError:
            if count == 1 or self.config.workers != "auto":
                raise
            # A persistent device may have been made with one queue.
            return open_device(
                self.config.name, offloads=self.config.offload, mode=self.config.mode
            )

    def _count_workers(self) -> int:
        if self.config.workers == "auto":
            return min(len(os.sched_getaffinity(0)), AUTO_WORKERS) if self._with_tun else 1
        if self.config.workers > 1 and not self._with_tun:
            raise ConfigError(
                f"workers {self.config.workers} need a device (without one there is one worker)",
                key=("workers",),
            )
        return self.config.workers

    def _make_workers(self) -> Workers:
        forwarders = [
            Forwarder(
                device=queue,
                output=self._device.output,
                vnet_header=self._device.vnet_header,
                coalesce_tcp="tso" in self._device.offloads,
                coalesce_udp="uso" in self._device.offloads,
                vni=self.config.vni,
                mac=self._underlay.mac.packed,
                segments=self._underlay.abilities.segments,
                fdb=self._fdb,
                flood=bool(self.config.flood),
                learning=bool(self.config.learning),
                storm=self.config.storm_limit or 0,
            )
            for queue in self._device.queues
        ]
        return Workers(forwarders, attend=self._attend, failed=self._fail)

    async def _set_device_up(self) -> None:
        if self._kernel is None or not isinstance(self._device, Device):
            return
        await self._peers.fit()
        mac = self._underlay.mac if self._fdb is not None else None
        await self._netlink.set_up(self._device.index, mac=mac)
        for interface in self.config.addresses:
            await self._kernel.add_address(interface)
        self._undo.push_async_callback(self._kernel.close)
        await self._kernel.start(moved=self._peers.vteps.move)

    # Running.

    async def _change(self, work: Coroutine[Any, Any, Result]) -> Result:
        if self._closing is not None:
            work.close()
            raise DeviceError(f"{self.config.name} is closed")
        return await work

    def _attend(self) -> None:
        """Something other than packets wants to be seen: an offload was lost, letters came."""
        self._peers.contact.attend()
        self._look()

    def _look(self) -> None:
        """Says once when an offload was turned off."""
        lost, self._offloads_seen = self._offloads_seen - self.offloads, self.offloads
        for offload in lost:
            self._events.tell(OffloadLost(offload))
        if lost:
            log.warning("%s: turned off at run time: %s", self.config.name, ", ".join(sorted(lost)))

    def _fail(self, error: OSError) -> None:
        """Closes, with the reason for who waits."""
        if self._failure is not None:
            return
        name, why = self.config.name, error.strerror
        if error.filename in self._device.queues:
            self._failure = DeviceError(f"device {name} is gone: {why}")
        else:
            self._failure = UnderlayError(f"the UDP socket of {name} failed: {why}")
        self._failure.__cause__ = error
        log.info("%s: closing: %s", self.config.name, self._failure)
        self._stop()
        self._closing = self._closing or self._loop.create_task(self._undo.aclose())

    def _stop(self) -> None:
        self._workers.close()
        self._peers.stop()

    def _table(self) -> Fdb:
        if self._fdb is None:
            raise ConfigError(
                f"{self.config.name} has no FDB: packets go by their routes (see --mode tap)"
            )
        return self._fdb

    def _check_free(self, mac: Mac, *, vlan: int | None) -> None:
        owner = self._peers.vteps.owner(mac) if vlan is None else None
        if owner is not None:
            raise ConfigError(f"FDB entry {mac} is that of peer {owner} itself (it goes with it)")
        if mac == self._underlay.mac:
            raise ConfigError(f"MAC {mac} is this node's own (no peer can have it)")

    def _pair(self) -> Pair:
        if not isinstance(self._device, Pair):
            raise ConfigError(
                f"{self.config.name} has a device: packets go through it "
                "(open it with device=None to send and receive them here)"
            )
        return self._device


def _mac(mac: str | Mac) -> Mac:
    return Mac.parse(mac) if isinstance(mac, str) else mac


def _vlan(vlan: int | None) -> int | None:
    if vlan is not None and not 1 <= vlan <= 4094:
        raise ConfigError(f"VLAN {vlan} is out of range (1 to 4094)")
    return vlan


def _spell(mac: Mac, vlan: int | None) -> str:
    return str(mac) if vlan is None else f"{mac} vlan {vlan}"
