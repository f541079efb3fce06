"""
Who the peers are, kept true everywhere.

    a change, a name that leads elsewhere, silence  ->  membership
        ->  actions  ->  the packet path, the kernel's routes, contact
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

from tunnel._native import Fdb
from tunnel.config import Config
from tunnel.contact import Contact, Post
from tunnel.control.frames import Letter
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
from tunnel.control.neighbours import Known
from tunnel.control.path import Measured
from tunnel.errors import TunnelError
from tunnel.events import Events
from tunnel.kernel import Kernel
from tunnel.linux.netlink import Netlink
from tunnel.linux.pair import Pair
from tunnel.linux.tun import Device
from tunnel.linux.underlay import Underlay
from tunnel.types import (
    ANY_VTEP_MAC,
    Address,
    Endpoint,
    MacChanged,
    PathChanged,
    Peer,
    PeerAdded,
    PeerRemoved,
    PeerSilent,
    PeerState,
    PeerUp,
)
from tunnel.vteps import Vteps
from tunnel.workers import Workers

log = logging.getLogger(__name__)


class Peers:
    """
    The peers of one tunnel. Changes are made one after the other, whole or not at all, and are
    seen through where who asked for one is cancelled.

    Args:
        fdb: In TAP mode.
        kernel: Of the device, None without one.
        resized: Called with the device's new MTU, in bytes.
    """

    def __init__(
        self,
        config: Config,
        *,
        device: Device | Pair,
        netlink: Netlink,
        underlay: Underlay,
        workers: Workers,
        events: Events,
        fdb: Fdb | None,
        kernel: Kernel | None,
        resized: Callable[[int], None],
    ) -> None:
        self._name = config.name
        self._device, self._netlink = device, netlink
        self._underlay, self._workers, self._events = underlay, workers, events
        self._loop = asyncio.get_running_loop()
        self._membership = Membership(
            subnets=config.subnets, local=underlay.endpoints, mode=config.mode
        )
        post = Post(
            underlay,
            self._membership,
            vni=config.vni,
            take=workers.take_letters,
            bad=workers.count_bad_control,
        )
        self.vteps = Vteps(
            mac=underlay.mac,
            own=config.addresses,
            workers=workers,
            fdb=fdb,
            kernel=kernel,
            ask=post.ask,
            sent=self._count_sent,
            known=self._know,
        )
        self.contact = Contact(
            port=config.port,
            post=post,
            sent=self._count_sent,
            news=self._hear,
            heard=self.vteps.heard,
            resolve=self._resolve,
        )
        self._changing = asyncio.Lock()
        self._reloading = asyncio.Lock()
        self._changes: set[asyncio.Task[None]] = set()
        self._lookups: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False
        self._resized = resized
        self._fitted = 0

    @property
    def indices(self) -> Mapping[Endpoint, int]:
        """Under which index the packet path knows each peer."""
        return self._membership.peers

    def known(self, peer: str | Endpoint) -> Endpoint:
        """The peer that is meant. Raises ConfigError if there is none."""
        endpoint = Endpoint.parse(peer) if isinstance(peer, str) else peer
        return self._membership.peer(endpoint).endpoint

    def peer(self, endpoint: Endpoint) -> Peer:
        return self._membership.peer(endpoint)

    def address(self, endpoint: Endpoint) -> Address | None:
        """Where a peer is now, None as long as its name is not resolved."""
        return self._membership.address(endpoint)

    async def open(self, peers: Sequence[Peer], *, found: Sequence[Address | None]) -> None:
        """Takes in the first ones, which were `found` at these addresses."""
        now = self._loop.time()
        first = self._membership.add(peers, now=now)
        await self._apply(action for action in first if not isinstance(action, Resolve))
        for peer, address in zip(peers, found, strict=True):
            if peer.endpoint.address is None:
                await self._apply(self._membership.resolved(peer.endpoint, address, now=now))
        self._schedule()

    async def add(self, peer: Peer) -> None:
        await self._see_through(self._add(peer))

    async def remove(self, endpoint: Endpoint) -> None:
        await self._see_through(self._remove(endpoint))

    async def become(self, wanted: Sequence[Peer]) -> None:
        """Applies the difference; where it cannot be, the peers are who they were."""
        await self._see_through(self._reload(wanted))

    def stop(self) -> None:
        """Nobody is asked, and no name looked up, any more."""
        self._stopped = True
        self.contact.close()
        self.vteps.close()
        if self._timer is not None:
            self._timer.cancel()

    async def settle(self) -> None:
        """Ends the changes that are under way; nobody waits for the lookups."""
        for task in self._lookups:
            task.cancel()
        await asyncio.gather(*self._lookups, *self._changes, return_exceptions=True)

    async def listen(self, family: int) -> None:
        """Opens the sockets of a family unless they are."""
        descriptors = await self._underlay.open(family, workers=len(self._device.queues))
        if descriptors is not None:
            self._workers.listen(family, descriptors)

    async def fit(self) -> None:
        """Gives the device the MTU that fits the paths; a configured one has to fit them."""
        self._underlay.check_mtu()
        mtu = self._underlay.mtu
        if isinstance(self._device, Device) and mtu != self._fitted:
            await self._netlink.set_mtu(
                self._device.index, mtu, gso_max_size=self._underlay.gso_max_size
            )
            self._fitted = mtu
            self._resized(mtu)

    # Changes.

    async def _see_through(self, work: Coroutine[Any, Any, None]) -> None:
        await asyncio.shield(_spawn(self._changes, work))

    async def _add(self, peer: Peer) -> None:
        async with self._changing:
            actions = self._membership.add([peer], now=self._loop.time())
            try:
                await self._apply(actions)
            except TunnelError:
                await self._forget(peer.endpoint)
                raise
        log.info("%s: peer %s comes", self._name, peer.endpoint)
        self._events.tell(PeerAdded(peer.endpoint))
        self._schedule()

    async def _remove(self, endpoint: Endpoint) -> None:
        async with self._changing:
            await self._forget(endpoint)
        log.info("%s: peer %s goes", self._name, endpoint)
        self._events.tell(PeerRemoved(endpoint))
        self._schedule()

    async def _forget(self, endpoint: Endpoint) -> None:
        peer = self._membership.peer(endpoint)
        actions = self._membership.remove(endpoint, now=self._loop.time())
        self.contact.remove(endpoint)
        self.vteps.remove(endpoint)
        await self._apply(actions)
        await self.vteps.forget(peer)

    async def _reload(self, wanted: Sequence[Peer]) -> None:
        async with self._reloading:
            self._membership.check(wanted)
            before = [self._membership.peer(endpoint) for endpoint in self.indices]
            try:
                await self._become(wanted)
            except TunnelError:
                await self._become(before)
                raise

    async def _become(self, wanted: Iterable[Peer]) -> None:
        before = {endpoint: self._membership.peer(endpoint) for endpoint in self.indices}
        after = {peer.endpoint: peer for peer in wanted}
        for endpoint, peer in before.items():
            if after.get(endpoint) != peer:
                await self._remove(endpoint)
        for endpoint, peer in after.items():
            if before.get(endpoint) != peer:
                await self._add(peer)

    async def _apply(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case PutPeer(index, peer, address):
                    await self._put(index, peer, address)
                case ForgetPeer(index):
                    self._workers.remove_peer(index)
                    self._underlay.forget(index)
                    await self.fit()
                case PutRoutes(routes):
                    self._workers.set_routes(
                        [(p.network_address.packed, p.prefixlen, index) for p, index in routes]
                    )
                case AddKernelRoute(prefix) if isinstance(self._device, Device):
                    await self.vteps.route(prefix)
                    await self._underlay.check_outside(prefix, device=self._device.index)
                case RemoveKernelRoute(prefix):
                    await self.vteps.unroute(prefix)
                case Resolve(endpoint):
                    _spawn(self._lookups, self.resolve(endpoint))

    async def _put(self, index: int, peer: Peer, address: Address | None) -> None:
        self.vteps.claim(peer)
        self._point(index, peer, address)
        if address is None:
            return
        await self._underlay.reach(index, peer.endpoint, address)
        await self.listen(address.version)
        await self.fit()
        limit = self._underlay.carried(index) or self._underlay.mtu
        self.contact.add(peer.endpoint, family=address.version, limit=limit)
        self.vteps.add(peer)
        await self.vteps.follow(peer, index)

    def _point(self, index: int, peer: Peer, address: Address | None) -> None:
        """Tells the packet path where a peer is."""
        self._workers.set_peer(
            index,
            address.packed if address else None,
            port=peer.endpoint.port,
            mac=self.vteps.used(peer) or ANY_VTEP_MAC,
        )

    # Names.

    async def resolve(self, endpoint: Endpoint) -> None:
        """Looks up where a peer's name leads now."""
        address = await self._underlay.resolve(endpoint)
        async with self._changing:
            actions = self._membership.resolved(endpoint, address, now=self._loop.time())
            try:
                await self._apply(actions)
            except TunnelError as error:
                # Nobody waits for this answer, and the others' packets go on.
                log.warning("%s: peer %s: %s", self._name, endpoint, error)
        if actions:
            log.info("%s: peer %s is at %s", self._name, endpoint, address)
        self._schedule()

    def _schedule(self) -> None:
        """Sleeps until membership wants to look again, for ever if it never does."""
        if self._timer is not None:
            self._timer.cancel()
        due = None if self._stopped else self._membership.next_tick(self._loop.time())
        self._timer = None if due is None else self._loop.call_at(due, self._tick)

    def _tick(self) -> None:
        heard = {
            index: self._workers.stats(index).inbound.packets for index in self.indices.values()
        }
        for action in self._membership.tick(heard, now=self._loop.time()):
            assert isinstance(action, Resolve)
            _spawn(self._lookups, self.resolve(action.endpoint))
        self._schedule()

    # VTEPs.

    def _resolve(self, letter: Letter) -> None:
        source = ipaddress.ip_address(letter[1])
        self.vteps.told(letter, senders=self._membership.all_at(source))

    def _know(self, known: Known) -> None:
        """A peer's MAC is known: at once to packets, and soon to the kernel."""
        endpoint, mac, before = known.endpoint, known.mac, known.before
        index = self._membership.index(endpoint)
        self._point(index, self._membership.peer(endpoint), self._membership.address(endpoint))
        if before is None:
            log.info("%s: peer %s has MAC %s", self._name, endpoint, mac)
        elif mac != before:
            log.warning("%s: peer %s has MAC %s now, not %s", self._name, endpoint, mac, before)
            self._events.tell(MacChanged(endpoint, mac, before))
        _spawn(self._changes, self._follow(endpoint))

    async def _follow(self, endpoint: Endpoint) -> None:
        async with self._changing:
            index = self.indices.get(endpoint)
            if index is None:  # it has gone
                return
            try:
                await self.vteps.follow(self._membership.peer(endpoint), index)
            except TunnelError as error:
                log.warning("%s: peer %s: %s", self._name, endpoint, error)

    # In contact.

    def _count_sent(self) -> dict[Endpoint, int]:
        sent = self._workers.sent()
        # Who has just come may not be in the packet path yet.
        return {
            endpoint: sent[index] for endpoint, index in self.indices.items() if index < len(sent)
        }

    def _hear(self, news: Became | Measured) -> None:
        match news:
            case Became(endpoint, state):
                log.info("%s: peer %s is %s", self._name, endpoint, state.value)
                up = state is PeerState.UP
                if not up:
                    self.vteps.silent(endpoint)
                self._events.tell(PeerUp(endpoint) if up else PeerSilent(endpoint))
            case Measured(endpoint, size):
                index = self._membership.index(endpoint)
                limit = self._underlay.carried(index)
                # At the first hop's own MTU the kernel knows as much, and the device has it.
                narrow = size if limit and size < limit else 0
                self._workers.set_mtu(index, narrow)
                self._events.tell(PathChanged(endpoint, size))
                if narrow:
                    log.info("%s: path to %s takes %d bytes", self._name, endpoint, narrow)


def _spawn(tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Starts a task and holds it: the loop does not."""
    task = asyncio.create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return task
