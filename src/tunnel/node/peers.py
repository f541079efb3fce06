"""
Queries and changes of the peers of a node.

    add, remove, change, replace  ->  PeerTable  ->  actions  ->  Driver

The rules are in :mod:`tunnel.protocol`; :mod:`tunnel.node.driver` applies their actions,
:mod:`tunnel.node.monitor` and :mod:`tunnel.node.resolver` feed them time and messages.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Container, Coroutine, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from tunnel._native import Fdb
from tunnel.config.node import Config
from tunnel.errors import TunnelError, UnderlayError
from tunnel.events import Events, PeerAdded, PeerChanged, PeerRemoved
from tunnel.linux.netlink import Netlink
from tunnel.linux.socketpair import SocketPair
from tunnel.linux.tun import Device
from tunnel.linux.underlay import Underlay
from tunnel.node.containers import Containers
from tunnel.node.control_channel import ControlChannel
from tunnel.node.driver import Driver
from tunnel.node.monitor import Monitor
from tunnel.node.prober import Prober
from tunnel.node.reconciler import Reconciler
from tunnel.node.requests import Requests
from tunnel.node.resolver import Resolver
from tunnel.node.vteps import Vteps
from tunnel.node.workers import Workers
from tunnel.protocol.peer_table import Action, PeerTable, Resolve
from tunnel.status import Neighbour
from tunnel.supervise import Supervisor
from tunnel.types import Address, Endpoint, InterfaceAddress, Mac, Peer, Prefix

Result = TypeVar("Result")


class Peers:
    """
    The peers of one node. Changes are made one after the other, and each is finished even if its
    caller is cancelled.

    Args:
        fdb: The forwarding database, in TAP mode only.
        kernel: The reconciler of the device, None without a device.

    Attributes:
        indices: The index of each peer in the packet path; a view.
        prober: Knows health and path MTU of each peer.
        requests: Sends echoes and samples to peers.
        resolver: Resolves the names of peers.
    """

    def __init__(
        self,
        config: Config,
        *,
        device: Device | SocketPair,
        netlink: Netlink,
        underlay: Underlay,
        workers: Workers,
        containers: Containers,
        events: Events,
        supervisor: Supervisor,
        fdb: Fdb | None,
        kernel: Reconciler | None,
    ) -> None:
        # Request ids start at random: no sender can guess a reply, and replies to a node that had
        # this address before do not match.
        ids = itertools.count(random.SystemRandom().getrandbits(62))
        self._table = PeerTable(subnets=config.subnets, local=underlay.endpoints, mode=config.mode)
        self.indices = self._table.indices
        self._underlay, self._changing = underlay, asyncio.Lock()
        self._changes: set[asyncio.Task[Any]] = set()
        self.prober = Prober(port=config.port, ids=ids)
        self._vteps = Vteps(mac=underlay.mac, addresses=config.addresses, ethernet=fdb is not None)
        self.driver = Driver(
            config.name,
            device=device,
            netlink=netlink,
            underlay=underlay,
            workers=workers,
            containers=containers,
            channel=ControlChannel(underlay, vni=config.vni),
            events=events,
            fdb=fdb,
            kernel=kernel,
            prober=self.prober,
            vteps=self._vteps,
        )
        self.driver.answer_neighbours(self._vteps.answer())
        self.requests = Requests(self.driver, port=config.port, ids=ids)
        self.monitor = Monitor(
            self._table,
            prober=self.prober,
            vteps=self._vteps,
            driver=self.driver,
            requests=self.requests,
            workers=workers,
            supervisor=supervisor,
            changing=self._changing,
        )
        self.resolver = Resolver(
            self._table,
            driver=self.driver,
            underlay=underlay,
            workers=workers,
            supervisor=supervisor,
            changing=self._changing,
        )

    async def open(
        self, peers: Sequence[Peer], *, answers: Sequence[Address | UnderlayError]
    ) -> None:
        """Adds the first peers, whose names were resolved already, and starts the tasks. Raises
        the error of the first peer that is refused."""
        now = time.monotonic()
        first = self._table.add(peers, now=now)
        actions: list[Action] = [action for action in first if not isinstance(action, Resolve)]
        for peer, answer in zip(peers, answers, strict=True):
            if peer.endpoint.address is None:
                actions += self._table.resolved(peer.endpoint, answer, now=now)
        for error in (await self.driver.apply(actions)).values():
            raise error
        self.monitor.start()
        self.resolver.start()

    async def close(self) -> None:
        """Finishes the changes that are under way, and cancels look-ups and requests."""
        self.requests.close()
        await self.resolver.close()
        await asyncio.gather(*self._changes, return_exceptions=True)

    # Queries.

    def find(self, peer: str | Endpoint) -> Endpoint:
        """Returns the peer that `peer` names, as :meth:`PeerTable.find`."""
        return self._table.find(peer)

    def peer(self, endpoint: Endpoint) -> Peer:
        """Returns a peer. Raises PeerNotFoundError."""
        return self._table.peer(endpoint)

    def address(self, endpoint: Endpoint) -> Address | None:
        """Returns a peer's address, None while its name is not resolved."""
        return self._table.address(endpoint)

    def neighbour(self, endpoint: Endpoint) -> Neighbour:
        """Returns what is known about a peer's VTEP."""
        return self._vteps.get(endpoint, now=time.monotonic())

    def destination_mac(self, peer: Peer) -> Mac | None:
        """Returns the destination MAC of packets to a peer, None for that which every node
        accepts."""
        return self._vteps.destination_mac(peer)

    def gateway(self, prefix: Prefix) -> Address | None:
        """Returns the gateway of a prefix's kernel route, None if it has none."""
        return self._vteps.gateway(prefix)

    def find_vtep(self, mac: Mac) -> Endpoint | None:
        """Returns the peer whose VTEP has an FDB entry with this MAC."""
        return self._vteps.find(mac)

    # This node's own addresses.

    def set_subnets(self, subnets: Iterable[Prefix]) -> None:
        """Replaces the subnets of this node. Raises ConfigError if a peer has one of them."""
        self._table.set_subnets(subnets)

    def set_addresses(self, addresses: Iterable[InterfaceAddress]) -> None:
        """Replaces the overlay addresses of this node, for which ARP and NDP are answered."""
        self.driver.answer_neighbours(self._vteps.set_addresses(addresses))

    # Changes.

    async def add(self, peer: Peer) -> None:
        """Adds a peer. Raises ConfigError, or the error with which it is refused."""
        await self._finish(self._add(peer))

    async def remove(self, endpoint: Endpoint) -> None:
        """Removes a peer. Raises PeerNotFoundError."""
        await self._finish(self._remove(endpoint))

    async def replace(self, wanted: Sequence[Peer]) -> None:
        """Replaces the peers with `wanted`. If one is refused, restores the peers from before and
        raises the error."""
        await self._finish(self._replace(wanted))

    async def change(
        self, *, add: Iterable[Peer], remove: Iterable[Endpoint]
    ) -> dict[Endpoint, TunnelError]:
        """
        Removes some peers and adds others at once. One in `add` that exists is changed, also if it
        is in `remove` as well; one in `remove` that does not exist is fine.

        Returns the peers that are refused, with the reason: they are not there afterwards, also if
        they were before.
        """
        return await self._finish(self._change(add=add, remove=remove))

    async def _finish(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Runs a change as a task of its own, which goes on if the caller is cancelled."""
        task = asyncio.create_task(self._with_lock(work))
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)

    async def _with_lock(self, work: Coroutine[Any, Any, Result]) -> Result:
        async with self._changing:
            return await work

    async def _add(self, peer: Peer) -> None:
        actions = self._table.add([peer], now=time.monotonic())
        for error in (await self._apply(actions, add=[peer])).values():
            raise error

    async def _remove(self, endpoint: Endpoint) -> None:
        self._table.peer(endpoint)  # raises PeerNotFoundError
        await self._change(remove=[endpoint])

    async def _replace(self, wanted: Sequence[Peer]) -> None:
        self._table.check(wanted)
        before = {endpoint: self._table.peer(endpoint) for endpoint in self.indices}
        after = {peer.endpoint: peer for peer in wanted}
        refused = await self._change(
            add=_differing(after, before), remove=[one for one in before if one not in after]
        )
        if refused:
            now = {endpoint: self._table.peer(endpoint) for endpoint in self.indices}
            await self._change(
                add=_differing(before, now), remove=[one for one in now if one not in before]
            )
        for error in refused.values():
            raise error

    async def _change(
        self, *, add: Iterable[Peer] = (), remove: Iterable[Endpoint] = ()
    ) -> dict[Endpoint, TunnelError]:
        new = {peer.endpoint: peer for peer in add}
        existing = {endpoint for endpoint in new if endpoint in self._table}
        leaving = [one for one in remove if one in self._table and one not in new]
        faults = self._table.find_conflicts(add=new.values(), remove=leaving)
        # A peer that cannot be changed cannot stay as it was either: its prefixes may be another's.
        leaving += [endpoint for endpoint in faults if endpoint in existing]
        accepted = [peer for endpoint, peer in new.items() if endpoint not in faults]
        actions = self._table.change(add=accepted, remove=leaving, now=time.monotonic())
        refused = await self._apply(actions, add=accepted, remove=leaving, existing=existing)
        return {**faults, **refused}

    async def _apply(
        self,
        actions: Sequence[Action],
        *,
        add: Sequence[Peer],
        remove: Sequence[Endpoint] = (),
        existing: Container[Endpoint] = (),
    ) -> dict[Endpoint, TunnelError]:
        """Applies a change, undoes it for the peers that are refused, and reports the rest.
        Returns those that are refused."""
        self.monitor.remove(remove)
        try:
            refused = await self.driver.apply(actions)
        except Exception:
            await self._undo([peer.endpoint for peer in add])
            raise
        await self._undo(refused)
        added = [peer.endpoint for peer in add if peer.endpoint not in refused]
        removed = [*remove, *(one for one in refused if one in existing)]
        self.driver.report("was removed", map(PeerRemoved, removed))
        self.driver.report("was changed", (PeerChanged(one) for one in added if one in existing))
        self.driver.report("was added", (PeerAdded(one) for one in added if one not in existing))
        self.resolver.look_up(actions)
        if added:
            self.monitor.wake()
            self.resolver.wake()
        return refused

    async def _undo(self, endpoints: Iterable[Endpoint]) -> None:
        endpoints = [one for one in endpoints if one in self._table]
        self.monitor.remove(endpoints)
        await self.driver.apply(self._table.change(add=(), remove=endpoints, now=time.monotonic()))


def _differing(wanted: Mapping[Endpoint, Peer], present: Mapping[Endpoint, Peer]) -> list[Peer]:
    """Returns the wanted peers that are not present, or not with these prefixes and MAC."""
    return [peer for endpoint, peer in wanted.items() if present.get(endpoint) != peer]
