"""
Who the peers are, kept true everywhere.

    a change, a name that leads elsewhere, silence  ->  membership
        ->  actions  ->  the packet path, the kernel's routes, contact
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import (
    Callable,
    Collection,
    Container,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager
from itertools import groupby
from typing import Any, TypeVar

from tunnel._native import Fdb
from tunnel.config.node import Config
from tunnel.errors import DeviceError, TunnelError, UnderlayError
from tunnel.events import (
    Events,
    MacChanged,
    PathChanged,
    PeerAdded,
    PeerChanged,
    PeerRemoved,
    PeerSilent,
    PeerUp,
)
from tunnel.linux.netlink import Netlink
from tunnel.linux.socketpair import SocketPair
from tunnel.linux.tun import Device
from tunnel.linux.underlay import Underlay
from tunnel.node.prober import ControlChannel, Prober
from tunnel.node.reconciler import Reconciler
from tunnel.node.vteps import Vteps
from tunnel.node.workers import Workers
from tunnel.protocol.control_frames import ControlMessage
from tunnel.protocol.liveness import StateChanged
from tunnel.protocol.neighbours import MacLearned
from tunnel.protocol.path_mtu import PathMtuChanged
from tunnel.protocol.peer_table import (
    Action,
    AddKernelRoute,
    ForgetPeer,
    PeerTable,
    PutPeer,
    PutRoutes,
    RemoveKernelRoute,
    Resolve,
)
from tunnel.status import PeerState
from tunnel.types import ANY_VTEP_MAC, Address, Endpoint, Peer, Prefix

log = logging.getLogger(__name__)

Result = TypeVar("Result")


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
        device: Device | SocketPair,
        netlink: Netlink,
        underlay: Underlay,
        workers: Workers,
        events: Events,
        fdb: Fdb | None,
        kernel: Reconciler | None,
        resized: Callable[[int], None],
    ) -> None:
        self._name = config.name
        self._device, self._netlink = device, netlink
        self._underlay, self._workers, self._events = underlay, workers, events
        self._loop = asyncio.get_running_loop()
        self._membership = PeerTable(
            subnets=config.subnets, local=underlay.endpoints, mode=config.mode
        )
        post = ControlChannel(
            underlay,
            self._membership,
            vni=config.vni,
            take=workers.take_control_messages,
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
        self.prober = Prober(
            port=config.port,
            post=post,
            sent=self._count_sent,
            news=self._hear,
            heard=self.vteps.heard,
            resolve=self._resolve,
        )
        self._changing = asyncio.Lock()
        self._changes: set[asyncio.Task[Any]] = set()
        self._lookups: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False
        self._resized = resized
        self._fitted = 0

    @property
    def indices(self) -> Mapping[Endpoint, int]:
        """Under which index the packet path knows each peer."""
        return self._membership.peers

    def find(self, peer: str | Endpoint) -> Endpoint:
        """Returns the peer that is meant, as :meth:`PeerTable.find`."""
        return self._membership.find(peer)

    def peer(self, endpoint: Endpoint) -> Peer:
        return self._membership.peer(endpoint)

    def address(self, endpoint: Endpoint) -> Address | None:
        """Where a peer is now, None as long as its name is not resolved."""
        return self._membership.address(endpoint)

    async def open(
        self, peers: Sequence[Peer], *, found: Sequence[Address | UnderlayError]
    ) -> None:
        """Takes in the first ones, which were `found` at these addresses, or why not."""
        now = self._loop.time()
        first = self._membership.add(peers, now=now)
        actions: list[Action] = [action for action in first if not isinstance(action, Resolve)]
        for peer, answer in zip(peers, found, strict=True):
            if peer.endpoint.address is None:
                actions += self._membership.resolved(peer.endpoint, answer, now=now)
        for error in (await self._apply(actions)).values():
            raise error
        self._schedule()

    async def add(self, peer: Peer) -> None:
        await self._see_through(self._add(peer))

    async def remove(self, endpoint: Endpoint) -> None:
        await self._see_through(self._remove(endpoint))

    async def become(self, wanted: Sequence[Peer]) -> None:
        """Applies the difference; where it cannot be, the peers are who they were."""
        await self._see_through(self._become(wanted))

    async def change(
        self, *, add: Iterable[Peer], remove: Iterable[Endpoint]
    ) -> dict[Endpoint, TunnelError]:
        """
        Lets many go and takes many in at once; one that is there already becomes what is given.
        Who cannot come stays out, or goes, and keeps nobody else from it: returns why.
        """
        return await self._see_through(self._change_those(add=add, remove=remove))

    def own(self, subnets: Iterable[Prefix]) -> None:
        """What no peer can have, from now on. Raises ConfigError if one has."""
        self._membership.own(subnets)

    def stop(self) -> None:
        """Nobody is asked, and no name looked up, any more."""
        self._stopped = True
        self.prober.close()
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
        """Gives the device the MTU that fits the paths."""
        mtu = self._underlay.mtu
        if isinstance(self._device, Device) and mtu != self._fitted:
            await self._netlink.set_mtu(
                self._device.index, mtu, gso_max_size=self._underlay.gso_max_size
            )
            self._fitted = mtu
            self._resized(mtu)

    # Changes.

    async def _see_through(self, work: Coroutine[Any, Any, Result]) -> Result:
        return await asyncio.shield(_spawn(self._changes, work))

    async def _add(self, peer: Peer) -> None:
        async with self._changing:
            actions = self._membership.add([peer], now=self._loop.time())
            for error in (await self._make(actions, come=[peer])).values():
                raise error

    async def _remove(self, endpoint: Endpoint) -> None:
        async with self._changing:
            await self._change(gone=[self._membership.peer(endpoint).endpoint])

    async def _change_those(
        self, *, add: Iterable[Peer], remove: Iterable[Endpoint]
    ) -> dict[Endpoint, TunnelError]:
        async with self._changing:
            return await self._change(
                come=add, gone=[one for one in remove if one in self._membership]
            )

    async def _become(self, wanted: Sequence[Peer]) -> None:
        async with self._changing:
            self._membership.check(wanted)
            before = {endpoint: self._membership.peer(endpoint) for endpoint in self.indices}
            after = {peer.endpoint: peer for peer in wanted}
            come = _others(after, before)
            gone = [endpoint for endpoint in before if endpoint not in after]
            refused = await self._change(come=come, gone=gone)
            if refused:
                new = [endpoint for endpoint in self.indices if endpoint not in before]
                after = {endpoint: self._membership.peer(endpoint) for endpoint in self.indices}
                await self._change(come=_others(before, after), gone=new)
            for error in refused.values():
                raise error

    async def _change(
        self, *, come: Iterable[Peer] = (), gone: Sequence[Endpoint] = ()
    ) -> dict[Endpoint, TunnelError]:
        new = {peer.endpoint: peer for peer in come}
        there = {endpoint for endpoint in new if endpoint in self._membership}
        faults = self._membership.refuse(add=new.values(), remove=gone)
        # Who cannot be what it is to become is not what it was either.
        gone = [*gone, *(endpoint for endpoint in faults if endpoint in there)]
        come = [peer for endpoint, peer in new.items() if endpoint not in faults]
        actions = self._membership.change(add=come, remove=gone, now=self._loop.time())
        return {**faults, **await self._make(actions, come=come, gone=gone, there=there)}

    async def _make(
        self,
        actions: Iterable[Action],
        *,
        come: Iterable[Peer],
        gone: Sequence[Endpoint] = (),
        there: Container[Endpoint] = (),
    ) -> dict[Endpoint, TunnelError]:
        """Makes a change true, tells of it, and returns who had to be let go again. `there` are
        those who were before."""
        refused = await self._carry_out(actions, gone=gone)
        if refused:
            left = self._membership.change(add=(), remove=refused, now=self._loop.time())
            await self._carry_out(left, gone=refused)
        self._tell(PeerRemoved, "goes", [*gone, *(one for one in refused if one in there)])
        stay = [peer.endpoint for peer in come if peer.endpoint not in refused]
        self._tell(PeerChanged, "changes", [one for one in stay if one in there])
        self._tell(PeerAdded, "comes", [one for one in stay if one not in there])
        self._schedule()
        return refused

    async def _carry_out(
        self, actions: Iterable[Action], *, gone: Collection[Endpoint]
    ) -> dict[Endpoint, TunnelError]:
        for endpoint in gone:
            self.prober.remove(endpoint)
        self.vteps.remove(gone)
        refused = await self._apply(actions)
        self.vteps.forget(gone)
        return refused

    def _tell(
        self,
        kind: type[PeerAdded | PeerRemoved | PeerChanged],
        verb: str,
        endpoints: Iterable[Endpoint],
    ) -> None:
        for endpoint in endpoints:
            log.info("%s: peer %s %s", self._name, endpoint, verb)
            self._events.emit(kind(endpoint))

    async def _apply(self, actions: Iterable[Action]) -> dict[Endpoint, TunnelError]:
        """Equal actions in a row as one. Returns whose could not be done."""
        refused: dict[Endpoint, TunnelError] = {}
        for kind, group in groupby(actions, type):
            some: list[Any] = list(group)
            if kind is PutPeer:
                refused |= await self._put(some)
            elif kind is PutRoutes:
                for routes in some:
                    self._set_routes(routes)
            elif kind is AddKernelRoute:
                refused |= await self._route([one.prefix for one in some])
            elif kind is RemoveKernelRoute:
                await self.vteps.unroute(one.prefix for one in some)
            elif kind is ForgetPeer:
                for one in some:
                    self._workers.remove_peer(one.index)
                    self._underlay.remove_peer(one.index)
                await self.fit()
            elif kind is Resolve:
                for one in some:
                    _spawn(self._lookups, self.resolve(one.endpoint))
        return refused

    def _set_routes(self, whole: PutRoutes) -> None:
        self._workers.set_routes(
            [(p.network_address.packed, p.prefixlen, index) for p, index in whole.routes]
        )

    async def _route(self, prefixes: Sequence[Prefix]) -> dict[Endpoint, TunnelError]:
        if not isinstance(self._device, Device):
            return {}
        refused: dict[Prefix, TunnelError] = {**await self.vteps.route(prefixes)}
        refused |= await self._underlay.check_prefixes(prefixes, device=self._device.index)
        return self._blame(refused)

    def _blame(self, refused: Mapping[Prefix, TunnelError]) -> dict[Endpoint, TunnelError]:
        return {self.vteps.peer(prefix): error for prefix, error in refused.items()}

    async def _put(self, puts: Sequence[PutPeer]) -> dict[Endpoint, TunnelError]:
        self.vteps.claim(put.peer for put in puts)
        for put in puts:
            self._point(put.index, put.peer, put.address)
        there = {put.index: (put.peer.endpoint, put.address) for put in puts if put.address}
        known = {
            index for index, (_, one) in there.items() if self._underlay.has_path_to(index, one)
        }
        refused: dict[Endpoint, TunnelError] = {**await self._underlay.resolve_paths(there)}
        for family in {address.version for _, address in there.values()}:
            try:
                await self.listen(family)
            except UnderlayError as error:
                same = (endpoint for endpoint, one in there.values() if one.version == family)
                refused |= dict.fromkeys(same, error)
        try:
            await self.fit()
        except DeviceError as error:
            refused |= {endpoint: error for endpoint, _ in there.values()}
        reached = {
            put.index: put.peer
            for put in puts
            if put.address is not None and put.peer.endpoint not in refused
        }
        for index in reached.keys() - known:
            endpoint, address = there[index]
            limit = self._underlay.max_inner_packet(index) or self._underlay.mtu
            self.prober.add(endpoint, family=address.version, limit=limit)
        self.vteps.add(reached.values())
        return refused | self._blame(await self.vteps.follow(reached))

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
        answer = await self._underlay.resolve(endpoint)
        async with self._changing:
            actions = self._membership.resolved(endpoint, answer, now=self._loop.time())
            with self._logged(endpoint):
                for error in (await self._apply(actions)).values():
                    raise error
        self._schedule()

    def _schedule(self) -> None:
        """Sleeps until membership wants to look again, for ever if it never does."""
        if self._timer is not None:
            self._timer.cancel()
        due = None if self._stopped else self._membership.next_tick(self._loop.time())
        self._timer = None if due is None else self._loop.call_at(due, self._tick)

    def _tick(self) -> None:
        received = dict(enumerate(self._workers.received()))
        for action in self._membership.tick(received, now=self._loop.time()):
            assert isinstance(action, Resolve)
            _spawn(self._lookups, self.resolve(action.endpoint))
        self._schedule()

    # VTEPs.

    def _resolve(self, letter: ControlMessage) -> None:
        source = ipaddress.ip_address(letter[1])
        self.vteps.told(letter, senders=self._membership.all_at(source))

    def _know(self, known: MacLearned) -> None:
        """A peer's MAC is known: at once to packets, and soon to the kernel."""
        endpoint, mac, before = known.endpoint, known.mac, known.before
        index = self._membership.index(endpoint)
        self._point(index, self._membership.peer(endpoint), self._membership.address(endpoint))
        if before is None:
            log.info("%s: peer %s has MAC %s", self._name, endpoint, mac)
        elif mac != before:
            log.warning("%s: peer %s has MAC %s now, not %s", self._name, endpoint, mac, before)
            self._events.emit(MacChanged(endpoint, mac, before))
        _spawn(self._changes, self._follow(endpoint))

    async def _follow(self, endpoint: Endpoint) -> None:
        async with self._changing:
            index = self.indices.get(endpoint)
            if index is None:  # it has gone
                return
            with self._logged(endpoint):
                peer = self._membership.peer(endpoint)
                for error in (await self.vteps.follow({index: peer})).values():
                    raise error

    @contextmanager
    def _logged(self, endpoint: Endpoint) -> Iterator[None]:
        """Nobody waits for this, and the others' packets go on."""
        try:
            yield
        except TunnelError as error:
            log.warning("%s: peer %s: %s", self._name, endpoint, error)

    # In contact.

    def _count_sent(self) -> dict[Endpoint, int]:
        sent = self._workers.sent()
        # Who has just come may not be in the packet path yet.
        return {
            endpoint: sent[index] for endpoint, index in self.indices.items() if index < len(sent)
        }

    def _hear(self, news: StateChanged | PathMtuChanged) -> None:
        match news:
            case StateChanged(endpoint, state):
                log.info("%s: peer %s is %s", self._name, endpoint, state.value)
                up = state is PeerState.UP
                if not up:
                    self.vteps.silent(endpoint)
                self._events.emit(PeerUp(endpoint) if up else PeerSilent(endpoint))
            case PathMtuChanged(endpoint, size):
                index = self._membership.index(endpoint)
                limit = self._underlay.max_inner_packet(index)
                # At the first hop's own MTU the kernel knows as much, and the device has it.
                narrow = size if limit and size < limit else 0
                self._workers.set_mtu(index, narrow)
                self._events.emit(PathChanged(endpoint, size))
                if narrow:
                    log.info("%s: path to %s takes %d bytes", self._name, endpoint, narrow)


def _others(wanted: Mapping[Endpoint, Peer], there: Mapping[Endpoint, Peer]) -> list[Peer]:
    """Those that are not there, or not like that."""
    return [peer for endpoint, peer in wanted.items() if there.get(endpoint) != peer]


def _spawn(
    tasks: set[asyncio.Task[Any]], work: Coroutine[Any, Any, Result]
) -> asyncio.Task[Result]:
    """Starts a task and holds it: the loop does not."""
    task = asyncio.create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return task
