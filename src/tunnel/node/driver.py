"""
Applies actions: to the packet path, the kernel, the control channel, and to events and the log.

    Peers, Resolver, Monitor  ->  rules  ->  actions  ->  Driver  ->  workers, reconciler, channel

A batch of the peer table is applied whole for each peer: what can fail is tried before the packet
path changes, and :meth:`Driver.apply` returns the peers for which something failed. Its caller
undoes those by one more batch. Removing never fails: what the kernel refuses to remove is logged.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from tunnel._native import Fdb
from tunnel.errors import DeviceError, TunnelError, UnderlayError
from tunnel.events import Event, Events, MacChanged, PathChanged, PeerSilent, PeerUp
from tunnel.linux.netlink import Netlink
from tunnel.linux.socketpair import SocketPair
from tunnel.linux.tun import Device
from tunnel.linux.underlay import Underlay
from tunnel.node.containers import Containers
from tunnel.node.control_channel import ControlChannel
from tunnel.node.prober import Prober, SendMessage
from tunnel.node.reconciler import Reconciler
from tunnel.node.vteps import (
    AddKernelRoutes,
    AnswerNeighbours,
    PutFdbEntry,
    RemoveFdbEntry,
    RemoveKernelRoutes,
    SetKernelNeighbours,
    Solicit,
    VtepAction,
    Vteps,
)
from tunnel.node.workers import Workers
from tunnel.protocol.control_frames import Message
from tunnel.protocol.liveness import StateChanged
from tunnel.protocol.neighbours import MacLearned
from tunnel.protocol.path_mtu import PathMtuChanged
from tunnel.protocol.peer_table import (
    Action,
    AddKernelRoute,
    ForgetPeer,
    PutPeer,
    PutRoutes,
    RemoveKernelRoute,
)
from tunnel.status import PeerState
from tunnel.types import ANY_VTEP_MAC, Address, Endpoint, Peer, Prefix

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Place:
    """A peer as the packet path has it."""

    index: int
    peer: Peer
    address: Address | None


class Driver:
    """
    The only object that changes the packet path and the kernel for peers; one batch at a time.

    Args:
        name: The name of the node, for the log.
        fdb: The forwarding database, in TAP mode only.
        kernel: The reconciler of the device, None without a device.
        prober, vteps: Rules that need to know which peers can be reached.
    """

    def __init__(
        self,
        name: str,
        *,
        device: Device | SocketPair,
        netlink: Netlink,
        underlay: Underlay,
        workers: Workers,
        containers: Containers,
        channel: ControlChannel,
        events: Events,
        fdb: Fdb | None,
        kernel: Reconciler | None,
        prober: Prober,
        vteps: Vteps,
    ) -> None:
        self._name = name
        self._device, self._netlink, self._containers = device, netlink, containers
        self._underlay, self._workers, self._channel = underlay, workers, channel
        self._events, self._fdb, self._kernel = events, fdb, kernel
        self._prober, self._vteps = prober, vteps
        self._places: dict[Endpoint, _Place] = {}
        self._endpoints: dict[int, Endpoint] = {}
        self._mtu = 0  # of the device

    # Batches of the peer table.

    async def apply(self, actions: Iterable[Action]) -> dict[Endpoint, TunnelError]:
        """Applies a batch in order, equal actions in a row as one. Returns the peers to undo, with
        the reason."""
        refused: dict[Endpoint, TunnelError] = {}
        for kind, group in groupby(actions, type):
            some: list[Any] = list(group)
            if kind is PutPeer:
                refused |= await self._put_peers(some)
            elif kind is PutRoutes:
                self._workers.set_routes(some[-1].rows)
            elif kind is AddKernelRoute:
                prefixes = [one.prefix for one in some]
                refused |= await self._add_kernel_routes(
                    [one for one in prefixes if self._vteps.owner(one) not in refused]
                )
            elif kind is RemoveKernelRoute:
                self._log(await self.change_vteps(self._vteps.unroute(one.prefix for one in some)))
            elif kind is ForgetPeer:
                await self._forget_peers(some)
        return refused

    async def _put_peers(self, puts: Sequence[PutPeer]) -> dict[Endpoint, TunnelError]:
        self._vteps.claim(put.peer for put in puts)
        refused = await self._reach([put for put in puts if put.address is not None])
        reached: dict[int, Peer] = {}
        for put in puts:
            endpoint = put.peer.endpoint
            if endpoint not in refused:
                self._place(put)
                if put.address is not None:
                    reached[put.index] = put.peer
            elif endpoint not in self._places:
                # The routes that follow name its index, so it has to exist until it is undone.
                self._place(PutPeer(put.index, put.peer, None))
        self._vteps.add(reached.values(), now=time.monotonic())
        return refused | self._blame(await self.change_vteps(self._vteps.follow(reached)))

    async def _reach(self, puts: Sequence[PutPeer]) -> dict[Endpoint, TunnelError]:
        """Finds the paths to peers, opens sockets and sets the MTU: all that can fail for a peer
        before it is in the packet path."""
        refused: dict[Endpoint, TunnelError] = {}
        wanted = {put.index: (put.peer.endpoint, put.address) for put in puts if put.address}
        every = [endpoint for endpoint, _ in wanted.values()]
        try:
            refused |= await self._underlay.resolve_paths(wanted)
        except (TunnelError, OSError) as error:
            refused |= dict.fromkeys(every, _as_tunnel_error(error))
        for family in {address.version for _, address in wanted.values()}:
            try:
                await self.listen(family)
            except UnderlayError as error:
                same = (endpoint for endpoint, one in wanted.values() if one.version == family)
                refused |= dict.fromkeys(same, error)
        try:
            await self.apply_mtu()
        except (TunnelError, OSError) as error:
            refused |= dict.fromkeys(every, _as_tunnel_error(error))
        return refused

    def _place(self, put: PutPeer) -> None:
        """Puts a peer into the packet path, and resets what is known about its path if its address
        changed."""
        endpoint, address = put.peer.endpoint, put.address
        before = self._places.get(endpoint)
        self._places[endpoint] = place = _Place(put.index, put.peer, address)
        self._endpoints[put.index] = endpoint
        self._set_peer(place)
        if address is not None and (before is None or before.address != address):
            limit = self._underlay.max_inner_packet(put.index) or self._underlay.mtu
            family, now = address.version, time.monotonic()
            self._prober.add(endpoint, family=family, limit=limit, now=now)

    def _set_peer(self, place: _Place) -> None:
        self._workers.set_peer(
            place.index,
            place.address.packed if place.address else None,
            port=place.peer.endpoint.port,
            mac=self._vteps.destination_mac(place.peer) or ANY_VTEP_MAC,
        )

    async def _forget_peers(self, forgets: Sequence[ForgetPeer]) -> None:
        endpoints = []
        # A peer that could not be put is not in the packet path.
        for one in (one for one in forgets if one.index in self._endpoints):
            self._workers.remove_peer(one.index)
            self._underlay.remove_peer(one.index)
            endpoints.append(self._endpoints.pop(one.index))
            del self._places[endpoints[-1]]
        self._log(await self.change_vteps(self._vteps.forget(endpoints)))
        try:
            await self.apply_mtu()
        except (TunnelError, OSError) as error:
            log.warning("%s: cannot set the MTU: %s", self._name, error)

    async def _add_kernel_routes(self, prefixes: Sequence[Prefix]) -> dict[Endpoint, TunnelError]:
        if not isinstance(self._device, Device):
            return {}
        refused = await self.change_vteps(self._vteps.route(prefixes))
        try:
            refused |= await self._underlay.check_prefixes(prefixes, device=self._device.index)
        except (TunnelError, OSError) as error:
            refused |= dict.fromkeys(prefixes, _as_tunnel_error(error))
        return self._blame(refused)

    def _blame(self, refused: Mapping[Prefix, TunnelError]) -> dict[Endpoint, TunnelError]:
        return {self._vteps.owner(prefix): error for prefix, error in refused.items()}

    # Sockets and device.

    async def listen(self, family: int) -> None:
        """Opens the sockets of an underlay family (4 or 6) unless they are open. Raises
        UnderlayError."""
        descriptors = await self._underlay.open(family, workers=len(self._device.queues))
        if descriptors is not None:
            self._workers.listen(family, descriptors)

    async def apply_mtu(self) -> None:
        """Sets the device's MTU to what all paths take. Raises DeviceError."""
        mtu = self._underlay.mtu
        if isinstance(self._device, Device) and mtu != self._mtu:
            await self._netlink.set_mtu(
                self._device.index, mtu, gso_max_size=self._underlay.gso_max_size
            )
            self._mtu = mtu
            self._containers.set_mtu(mtu)

    # VTEPs.

    async def follow(self, peers: Mapping[int, Peer]) -> None:
        """Updates FDB, neighbour entries and kernel routes to the MACs of peers, by index."""
        self._log(await self.change_vteps(self._vteps.follow(peers)))

    async def change_vteps(self, actions: Iterable[VtepAction]) -> dict[Prefix, TunnelError]:
        """Applies actions in order. Returns the prefixes for which the kernel refused something."""
        refused: dict[Prefix, TunnelError] = {}
        failure: TunnelError | None = None
        for action in actions:
            match action:
                case AnswerNeighbours(rows):
                    self._workers.set_neighbours(rows)
                case PutFdbEntry(mac, index) if self._fdb is not None:
                    self._fdb.put(mac.packed, None, index)
                case RemoveFdbEntry(mac) if self._fdb is not None:
                    self._fdb.remove(mac.packed, None)
                case AddKernelRoutes(gateways) if failure is not None:
                    refused |= dict.fromkeys(gateways, failure)
                case AddKernelRoutes(gateways) if self._kernel is not None:
                    try:
                        refused |= await self._kernel.add_routes(gateways)
                    except (TunnelError, OSError) as error:
                        refused |= dict.fromkeys(gateways, _as_tunnel_error(error))
                case SetKernelNeighbours() | RemoveKernelRoutes():
                    failure = await self._change_kernel(action) or failure
        self._vteps.refused(refused)
        return refused

    async def _change_kernel(
        self, action: SetKernelNeighbours | RemoveKernelRoutes
    ) -> TunnelError | None:
        """Returns why the kernel refused neighbour entries; a refused removal is logged."""
        if self._kernel is None:
            return None
        try:
            match action:
                case SetKernelNeighbours(macs):
                    await self._kernel.set_neighbours(macs)
                case RemoveKernelRoutes(prefixes, gateways):
                    await self._kernel.remove_routes(prefixes)
                    await self._kernel.remove_neighbours(gateways)
        except (TunnelError, OSError) as error:
            if isinstance(action, SetKernelNeighbours):
                return _as_tunnel_error(error)
            log.warning("%s: %s", self._name, error)
        return None

    def answer_neighbours(self, actions: Iterable[VtepAction]) -> None:
        """Sets the addresses for which the packet path answers ARP and NDP."""
        for action in actions:
            if isinstance(action, AnswerNeighbours):
                self._workers.set_neighbours(action.rows)

    def _log(self, refused: Mapping[Prefix, TunnelError]) -> None:
        for prefix, error in refused.items():
            log.warning("%s: peer %s: %s", self._name, self._vteps.owner(prefix), error)

    # Messages.

    def send(self, action: SendMessage) -> None:
        """Sends a control message, unless the peer has no address."""
        place = self._places.get(action.endpoint)
        if place is not None and place.address is not None:
            self._channel.send(
                action.message,
                place.peer,
                place.address,
                size=action.size,
                dont_fragment=action.dont_fragment,
            )

    def send_train(self, endpoint: Endpoint, messages: Iterable[Message]) -> None:
        """Sends messages of equal length as one train, unless the peer has no address."""
        place = self._places.get(endpoint)
        if place is not None and place.address is not None:
            self._channel.send_train(messages, place.peer, place.address)

    def solicit(self, action: Solicit) -> None:
        """Sends an ARP request or NDP solicitation, unless the peer has no address."""
        place = self._places.get(action.endpoint)
        if place is not None and place.address is not None:
            self._channel.solicit(action.address, place.peer, place.address, source=action.source)

    # What was learned about peers.

    def set_state(self, action: StateChanged) -> None:
        """Logs and reports that a peer is up or silent."""
        endpoint, up = action.endpoint, action.state is PeerState.UP
        log.info("%s: peer %s is %s", self._name, endpoint, action.state.value)
        self._events.emit(PeerUp(endpoint) if up else PeerSilent(endpoint))

    def set_path_mtu(self, action: PathMtuChanged) -> None:
        """Makes the packet path respect a path MTU below the first hop's, and reports it."""
        place = self._places.get(action.endpoint)
        if place is None:
            return
        limit = self._underlay.max_inner_packet(place.index)
        # The first hop's own MTU is known to the kernel, and the device has it.
        narrow = action.size if limit and action.size < limit else 0
        self._workers.set_mtu(place.index, narrow)
        self._events.emit(PathChanged(action.endpoint, action.size))
        if narrow:
            log.info("%s: the path MTU to %s is %d bytes", self._name, action.endpoint, narrow)

    def set_mac(self, action: MacLearned) -> None:
        """Makes the packet path use a peer's MAC; :meth:`follow` does the rest."""
        endpoint, mac, before = action.endpoint, action.mac, action.before
        place = self._places.get(endpoint)
        if place is None:
            return
        self._set_peer(place)
        if before is None:
            log.info("%s: peer %s has MAC %s", self._name, endpoint, mac)
        elif mac != before:
            log.warning("%s: peer %s has MAC %s now, not %s", self._name, endpoint, mac, before)
            self._events.emit(MacChanged(endpoint, mac, before))

    def report(self, verb: str, events: Iterable[Event]) -> None:
        """Logs and reports changes of peers."""
        for event in events:
            log.info("%s: peer %s %s", self._name, getattr(event, "endpoint", ""), verb)
            self._events.emit(event)


def _as_tunnel_error(error: TunnelError | OSError) -> TunnelError:
    if isinstance(error, TunnelError):
        return error
    wrapped = DeviceError(f"the kernel did not answer: {error.strerror or error}")
    wrapped.__cause__ = error
    return wrapped
