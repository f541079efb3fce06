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
from types import TracebackType
from typing import Any, Literal, Self

from tunnel._native import Forwarder
from tunnel.config import AUTO_WORKERS, Config, differences
from tunnel.contact import SAMPLES, Contact, Post
from tunnel.control.liveness import Became
from tunnel.control.membership import (
    Action,
    AddKernelRoute,
    ForgetPeer,
    Membership,
    PutPeer,
    PutRoutes,
    RemoveKernelRoute,
    Resolve,
)
from tunnel.control.path import Measured
from tunnel.errors import ConfigError, DeviceError, TunnelError, UnderlayError
from tunnel.events import Events
from tunnel.linux.netlink import Netlink
from tunnel.linux.pair import Pair
from tunnel.linux.privileges import drop_privileges
from tunnel.linux.tun import Device, open_device
from tunnel.linux.underlay import Underlay
from tunnel.types import (
    ANY_VTEP_MAC,
    DEFAULT_PORT,
    Address,
    Endpoint,
    Event,
    Interface,
    Mac,
    OffloadLost,
    PathChanged,
    Peer,
    PeerAdded,
    PeerRemoved,
    PeerSilent,
    PeerState,
    PeerStatus,
    PeerUp,
    Prefix,
    Stats,
    Status,
    Traffic,
)
from tunnel.workers import GONE, NOBODY, Workers

log = logging.getLogger(__name__)


class Tunnel:
    """
    One end of an overlay: a TUN device joined to peers over UDP.

    Packets the kernel writes to the device go to the peer that owns their destination;
    packets from peers go to the device. Per-packet work happens in C: this class opens the
    descriptors, keeps the tables true, and stops. With ``device=None`` the program itself
    is the device, by :meth:`send` and ``async for packet in tunnel``; that needs no
    privilege.

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
        )
        self._with_tun = device is not None
        self._confined = False
        self._user: str | None = None
        self._undo = AsyncExitStack()
        self._changing = asyncio.Lock()
        self._reloading = asyncio.Lock()
        self._changes: set[asyncio.Task[None]] = set()
        self._lookups: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._closing: asyncio.Task[None] | None = None
        self._started = False
        self._closed = asyncio.Event()
        self._events = Events()
        self._failure: BaseException | None = None
        self._offloads_seen: frozenset[str] = frozenset()
        self._fitted = 0

    @classmethod
    def from_config(
        cls,
        config: Config,
        *,
        device: Literal["tun"] | None = "tun",
        confined: bool = False,
        user: str | None = None,
    ) -> Self:
        """
        Args:
            confined: For a process that is nothing but a node. When its device is open, and before
                any thread is started, it gives up for good all that it could do but for
                CAP_NET_ADMIN.
            user: Whom it becomes then.
        """
        words = {field.name: getattr(config, field.name) for field in fields(config)}
        del words["loop"]
        tunnel = cls(device=device, **words)
        tunnel._confined, tunnel._user = confined, user
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
        await self._change(self._add(peer))

    async def remove_peer(self, peer: str | Endpoint | Peer) -> None:
        """
        Lets a peer go; its counters stay in the sums. Cancelled, it is still done.

        Raises:
            ConfigError: There is no such peer.
        """
        if isinstance(peer, Peer):
            peer = peer.endpoint
        endpoint = Endpoint.parse(peer) if isinstance(peer, str) else peer
        await self._change(self._remove(endpoint))

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
        return tuple(self._membership.peers)

    @property
    def offloads(self) -> frozenset[str]:
        """Those in use now; ``trains`` as long as any peer gets them."""
        tcp, udp = self._workers.coalescing
        indices = self._membership.peers.values()
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
            endpoint: self._workers.stats(index)
            for endpoint, index in self._membership.peers.items()
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
            work=self._workers.work() | {"device_overflows": self._device.overflows()},
            offloads=self.offloads,
            strays=nobody.drops,
        )

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
        now = time.monotonic()
        if look:
            self._contact.look()
        stats, health, path_mtus = self.stats, self._contact.health, self._contact.path_mtus
        peers = []
        for endpoint, index in self._membership.peers.items():
            peer, own = self._membership.peer(endpoint), stats.peers[endpoint]
            pulse = health.get(endpoint)
            peers.append(
                PeerStatus(
                    endpoint=endpoint,
                    address=self._membership.address(endpoint),
                    mac=peer.mac,
                    prefixes=peer.prefixes,
                    state=pulse.state if pulse else PeerState.UNKNOWN,
                    seconds=now - pulse.since if pulse else self._loop.time() - self._opened,
                    rtt=pulse.rtt if pulse else None,
                    loss=pulse.loss if pulse else None,
                    path_mtu=path_mtus.get(endpoint),
                    trains=self._workers.trains(index),
                    outbound=own.outbound,
                    inbound=own.inbound,
                    drops=own.drops,
                    last_drop=self._workers.last_drop(index),
                )
            )
        return Status(
            name=self.config.name,
            device=self._device.name if isinstance(self._device, Device) else None,
            vni=self.config.vni,
            endpoints=tuple(self._underlay.describe()),
            mac=self._underlay.mac,
            mtu=self.mtu,
            offloads=stats.offloads,
            workers=len(self._workers),
            seconds=self._loop.time() - self._opened,
            peers=tuple(peers),
            drops=stats.drops,
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
        endpoint = self._known(peer)
        return await self._contact.ping(endpoint, size=size)

    async def try_trains(self, peer: str | Endpoint) -> bool:
        """
        Whether trains of datagrams reach a peer as they were sent. Where they do not, though
        single datagrams do, it gets none any more. Cancelled, nothing changes.

        Raises:
            ConfigError: There is no such peer.
            TimeoutError: Single datagrams get no answer either.
        """
        endpoint = self._known(peer)
        size = self._contact.path_mtus.get(endpoint) or self.mtu
        singly, together = await self._contact.try_train(endpoint, size=min(size, self.mtu))
        if not singly.intact:
            raise TimeoutError
        # One that arrives damaged is no accident: checksums let none pass. Some get lost anyway.
        if together.damaged or together.intact < SAMPLES // 2 <= singly.intact:
            # It may have gone meanwhile.
            self._workers.set_trains(self._membership.peers[self._known(endpoint)], False)
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
        await self._change(self._reload(config.peers))

    async def is_routed(self, peer: str | Endpoint) -> bool:
        """
        Whether this host has a route to where a peer is now. Cancelled, nothing changes.

        Raises:
            ConfigError: There is no such peer.
        """
        address = self._membership.address(self._known(peer))
        return address is not None and await self._netlink.path_to(address) is not None

    async def kernel_routes(self) -> frozenset[Prefix] | None:
        """What the kernel routes into the device for us; None without one. Cancelled, nothing
        changes."""
        if not isinstance(self._device, Device):
            return None
        return frozenset(await self._netlink.routes(self._device.index))

    def _known(self, peer: str | Endpoint) -> Endpoint:
        endpoint = Endpoint.parse(peer) if isinstance(peer, str) else peer
        return self._membership.peer(endpoint).endpoint

    def describe(self) -> str:
        """``tunnel1: vni 1, 192.0.2.1:8472, mtu 1450, 2 peers, device tso+uso, trains 127,
        gro, 2 workers``: one line for people."""
        used = self.offloads
        peers, workers = len(self._membership.peers), len(self._workers)
        device = "+".join(word for word in ("tso", "uso") if word in used) or "plain"
        return ", ".join(
            [
                f"{self.config.name}: vni {self.config.vni}",
                *self._underlay.describe(),
                f"mtu {self.mtu}",
                f"{peers} peer{'' if peers == 1 else 's'}",
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
        self._opened = self._loop.time()
        self._netlink = await self._undo.enter_async_context(Netlink())
        self._device = await self._open_device()
        if self._confined:
            drop_privileges(user=self._user, port=self.config.port)
        self._underlay = Underlay(self.config, netlink=self._netlink)
        self._undo.callback(self._underlay.close)

        endpoints = [peer.endpoint for peer in self.config.peers]
        found = await asyncio.gather(*(self._underlay.resolve(end) for end in endpoints))
        await self._underlay.choose_locals(address for address in found if address is not None)
        self._workers = self._make_workers()
        self._membership = Membership(subnets=self.config.subnets, local=self._underlay.endpoints)
        self._contact = Contact(
            port=self.config.port,
            post=Post(
                self._underlay,
                self._membership,
                vni=self.config.vni,
                take=self._workers.take_letters,
                bad=self._workers.count_bad_control,
            ),
            sent=self._count_sent,
            news=self._hear,
        )
        self._undo.callback(self._stop)
        self._undo.push_async_callback(self._settle)
        for family in tuple(self._underlay.locals):
            await self._listen(family)
        await self._set_device_up()
        now = self._loop.time()
        first = self._membership.add(self.config.peers, now=now)
        await self._apply(action for action in first if not isinstance(action, Resolve))
        for endpoint, address in zip(endpoints, found, strict=True):
            if endpoint.address is None:
                await self._apply(self._membership.resolved(endpoint, address, now=now))
        self._offloads_seen = self.offloads
        self._workers.start(self._device.queues)
        self._started = True
        self._schedule()
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
            return open_device(self.config.name, offloads=self.config.offload, queues=count)
        except DeviceError:
            if count == 1 or self.config.workers != "auto":
                raise
            # A persistent device may have been made with one queue.
            return open_device(self.config.name, offloads=self.config.offload)

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
            )
            for queue in self._device.queues
        ]
        return Workers(forwarders, attend=self._attend, failed=self._fail)

    async def _listen(self, family: int) -> None:
        """Opens the sockets of a family unless they are."""
        descriptors = await self._underlay.open(family, workers=len(self._device.queues))
        if descriptors is not None:
            self._workers.listen(family, descriptors)

    async def _set_device_up(self) -> None:
        if isinstance(self._device, Device):
            await self._fit()
            await self._netlink.set_up(self._device.index)
            for interface in self.config.addresses:
                await self._netlink.add_address(self._device.index, interface)

    # Peers come, go and move.

    async def _change(self, work: Coroutine[Any, Any, None]) -> None:
        """Sees a change through, even where the caller is cancelled."""
        if self._closing is not None:
            work.close()
            raise DeviceError(f"{self.config.name} is closed")
        await asyncio.shield(_spawn(self._changes, work))

    async def _add(self, peer: Peer) -> None:
        async with self._changing:
            actions = self._membership.add([peer], now=self._loop.time())
            try:
                await self._apply(actions)
            except TunnelError:
                await self._forget(peer.endpoint)
                raise
        log.info("%s: peer %s comes", self.config.name, peer.endpoint)
        self._events.tell(PeerAdded(peer.endpoint))
        self._schedule()

    async def _remove(self, endpoint: Endpoint) -> None:
        async with self._changing:
            await self._forget(endpoint)
        log.info("%s: peer %s goes", self.config.name, endpoint)
        self._events.tell(PeerRemoved(endpoint))
        self._schedule()

    async def _reload(self, wanted: Iterable[Peer]) -> None:
        async with self._reloading:
            before = [self._membership.peer(endpoint) for endpoint in self.peers]
            try:
                await self._become(wanted)
            except TunnelError:
                await self._become(before)
                raise

    async def _become(self, wanted: Iterable[Peer]) -> None:
        before = {endpoint: self._membership.peer(endpoint) for endpoint in self.peers}
        after = {peer.endpoint: peer for peer in wanted}
        for endpoint, peer in before.items():
            if after.get(endpoint) != peer:
                await self._remove(endpoint)
        for endpoint, peer in after.items():
            if before.get(endpoint) != peer:
                await self._add(peer)

    async def _forget(self, endpoint: Endpoint) -> None:
        actions = self._membership.remove(endpoint, now=self._loop.time())
        self._contact.remove(endpoint)
        await self._apply(actions)

    async def _resolve(self, endpoint: Endpoint) -> None:
        address = await self._underlay.resolve(endpoint)
        async with self._changing:
            actions = self._membership.resolved(endpoint, address, now=self._loop.time())
            try:
                await self._apply(actions)
            except TunnelError as error:
                # Nobody waits for this answer, and the others' packets go on.
                log.warning("%s: peer %s: %s", self.config.name, endpoint, error)
        if actions:
            log.info("%s: peer %s is at %s", self.config.name, endpoint, address)
        self._schedule()

    async def _apply(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case PutPeer(index, peer, address):
                    self._workers.set_peer(
                        index,
                        address.packed if address else None,
                        port=peer.endpoint.port,
                        mac=peer.mac or ANY_VTEP_MAC,
                    )
                    if address is not None:
                        await self._underlay.reach(index, peer.endpoint, address)
                        await self._listen(address.version)
                        await self._fit()
                        self._contact.add(
                            peer.endpoint,
                            family=address.version,
                            limit=self._underlay.carried(index) or self.mtu,
                        )
                case ForgetPeer(index):
                    self._workers.remove_peer(index)
                    self._underlay.forget(index)
                    await self._fit()
                case PutRoutes(routes):
                    self._workers.set_routes(
                        [(p.network_address.packed, p.prefixlen, index) for p, index in routes]
                    )
                case AddKernelRoute(prefix) if isinstance(self._device, Device):
                    await self._netlink.add_route(self._device.index, prefix)
                    await self._underlay.check_outside(prefix, device=self._device.index)
                case RemoveKernelRoute(prefix) if isinstance(self._device, Device):
                    await self._netlink.remove_route(self._device.index, prefix)
                case Resolve(endpoint):
                    _spawn(self._lookups, self._resolve(endpoint))

    async def _fit(self) -> None:
        """Gives the device the MTU that fits the paths; a configured one has to fit them."""
        self._underlay.check_mtu()
        mtu = self._underlay.mtu
        if isinstance(self._device, Device) and mtu != self._fitted:
            await self._netlink.set_mtu(
                self._device.index, mtu, gso_max_size=self._underlay.gso_max_size
            )
            self._fitted = mtu

    # In contact with peers.

    def _count_sent(self) -> dict[Endpoint, int]:
        sent = self._workers.sent()
        # Who has just come may not be in the packet path yet.
        peers = self._membership.peers.items()
        return {endpoint: sent[index] for endpoint, index in peers if index < len(sent)}

    def _hear(self, news: Became | Measured) -> None:
        match news:
            case Became(endpoint, state):
                log.info("%s: peer %s is %s", self.config.name, endpoint, state.value)
                up = state is PeerState.UP
                self._events.tell(PeerUp(endpoint) if up else PeerSilent(endpoint))
            case Measured(endpoint, size):
                index = self._membership.index(endpoint)
                limit = self._underlay.carried(index)
                # At the first hop's own MTU the kernel knows as much, and the device has it.
                narrow = size if limit and size < limit else 0
                self._workers.set_mtu(index, narrow)
                self._events.tell(PathChanged(endpoint, size))
                if narrow:
                    log.info("%s: path to %s takes %d bytes", self.config.name, endpoint, narrow)

    def _attend(self) -> None:
        """Something other than packets wants to be seen: an offload was lost, letters came."""
        self._contact.attend()
        self._look()

    def _schedule(self) -> None:
        """Sleeps until membership wants to look again, for ever if it never does."""
        if self._timer is not None:
            self._timer.cancel()
        due = self._membership.next_tick(self._loop.time())
        self._timer = None if due is None else self._loop.call_at(due, self._tick)

    def _tick(self) -> None:
        heard = {
            index: self._workers.stats(index).inbound.packets
            for index in self._membership.peers.values()
        }
        for action in self._membership.tick(heard, now=self._loop.time()):
            assert isinstance(action, Resolve)
            _spawn(self._lookups, self._resolve(action.endpoint))
        self._schedule()

    # Running.

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
        self._contact.close()
        if self._timer is not None:
            self._timer.cancel()

    async def _settle(self) -> None:
        """Ends the changes that are under way; nobody waits for the lookups."""
        for task in self._lookups:
            task.cancel()
        await asyncio.gather(*self._lookups, *self._changes, return_exceptions=True)

    def _pair(self) -> Pair:
        if not isinstance(self._device, Pair):
            raise ConfigError(
                f"{self.config.name} has a device: packets go through it "
                "(open it with device=None to send and receive them here)"
            )
        return self._device


def _spawn(tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Starts a task and holds it: the loop does not."""
    task = asyncio.create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return task
