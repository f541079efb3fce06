"""
What follows from the MACs of the peers' VTEPs: FDB entries, neighbour entries and kernel routes.

    a control frame, an ARP or NDP message, a tick  ->  MacLearned, Solicit
    a prefix to route, a MAC that changed  ->  what to change in the FDB and in the kernel

In TUN mode a kernel route has no gateway. In TAP mode it has what flannel's routes have: the VTEP's
address as gateway, a neighbour entry for that, and an FDB entry for its MAC. Knows no clock, socket
or loop; :mod:`tunnel.node.driver` applies the actions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tunnel.protocol import arp
from tunnel.protocol.neighbours import MacLearned, Neighbours, gateway
from tunnel.status import MacSource, Neighbour
from tunnel.types import Address, Endpoint, InterfaceAddress, Mac, Peer, Prefix


@dataclass(frozen=True)
class Solicit:
    """Solicits the MAC of an overlay address from a peer; `source` is an address of this node."""

    endpoint: Endpoint
    address: Address
    source: Address | None


@dataclass(frozen=True)
class AnswerNeighbours:
    """Replaces the addresses for which the packet path answers ARP and NDP: packed addresses and
    MACs."""

    rows: tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True)
class PutFdbEntry:
    """Adds or replaces the FDB entry of a VTEP."""

    mac: Mac
    index: int


@dataclass(frozen=True)
class RemoveFdbEntry:
    """Removes the FDB entry of a VTEP."""

    mac: Mac


@dataclass(frozen=True)
class SetKernelNeighbours:
    """Adds or replaces neighbour entries of the device."""

    macs: Mapping[Address, Mac]


@dataclass(frozen=True)
class AddKernelRoutes:
    """Adds kernel routes to the device, each with its gateway or None. A prefix that the kernel
    refuses is given to :meth:`Vteps.refused`."""

    gateways: Mapping[Prefix, Address | None]


@dataclass(frozen=True)
class RemoveKernelRoutes:
    """Removes kernel routes, and the neighbour entries of their gateways."""

    prefixes: tuple[Prefix, ...]
    gateways: tuple[Address, ...]


VtepAction = (
    AnswerNeighbours
    | PutFdbEntry
    | RemoveFdbEntry
    | SetKernelNeighbours
    | AddKernelRoutes
    | RemoveKernelRoutes
)


class Vteps:
    """
    The VTEPs of all peers. `now` is monotonic seconds throughout.

    Args:
        mac: The MAC of this node's VTEP.
        addresses: Overlay addresses of this node.
        ethernet: Whether the node is in TAP mode.
    """

    def __init__(self, *, mac: Mac, addresses: Iterable[InterfaceAddress], ethernet: bool) -> None:
        self._mac, self._addresses, self._ethernet = mac, list(addresses), ethernet
        self._neighbours = Neighbours(mac=mac, unique=ethernet)
        self._owners: dict[Prefix, Endpoint] = {}
        # In TAP mode.
        self._macs: dict[Endpoint, Mac] = {}  # of the FDB entries
        self._endpoints: dict[Mac, Endpoint] = {}  # of the FDB entries
        self._routed: set[Prefix] = set()
        self._gateways: dict[Prefix, Address] = {}  # of the kernel routes
        self._answers: dict[bytes, bytes] = {}
        self._answers_of: dict[Prefix, bytes] = {}
        self._answers_used: Counter[bytes] = Counter()  # two default routes share a gateway

    # Queries.

    def get(self, endpoint: Endpoint, *, now: float) -> Neighbour:
        """Returns what is known about a peer's VTEP."""
        return self._neighbours.get(endpoint, now=now)

    def destination_mac(self, peer: Peer) -> Mac | None:
        """
        Returns the destination MAC of packets to a peer, None for the one that every node accepts.

        In TUN mode a node of this program gets the latter: if it restarts with another MAC, it
        accepts packets also before its next control frame.
        """
        found = self._neighbours.get(peer.endpoint, now=0.0)
        if not self._ethernet and found.source is MacSource.CONTROL:
            return None
        return peer.mac or found.mac

    def gateway(self, prefix: Prefix) -> Address | None:
        """Returns the gateway of a prefix's kernel route, None if it has none."""
        return self._gateways.get(prefix)

    def owner(self, prefix: Prefix) -> Endpoint:
        """Returns the peer that owns a prefix."""
        return self._owners[prefix]

    def find(self, mac: Mac) -> Endpoint | None:
        """Returns the peer whose VTEP has an FDB entry with this MAC."""
        return self._endpoints.get(mac)

    # Peers.

    def claim(self, peers: Iterable[Peer]) -> None:
        """Records the owners of prefixes that are going to be routed."""
        for peer in peers:
            moved = [one for one in peer.prefixes if self._owners.get(one) != peer.endpoint]
            self._owners.update(dict.fromkeys(moved, peer.endpoint))
            self._answer_for(moved, None)

    def add(self, peers: Iterable[Peer], *, now: float) -> None:
        """Adds peers that can be solicited, or whose address or prefixes changed."""
        for peer in peers:
            self._neighbours.add(peer, now=now)

    def remove(self, endpoints: Iterable[Endpoint]) -> None:
        """Ignores peers that are about to be removed: their MACs are no longer learned."""
        for endpoint in endpoints:
            self._neighbours.remove(endpoint)

    def forget(self, endpoints: Iterable[Endpoint]) -> list[VtepAction]:
        """Removes the FDB entries of peers that were removed."""
        macs = [mac for one in endpoints if (mac := self._macs.pop(one, None)) is not None]
        return list(self._release(macs))

    # Neighbour discovery.

    def received_frame(self, endpoint: Endpoint, mac: bytes, *, now: float) -> list[MacLearned]:
        """Takes the source MAC of a peer's control frame."""
        if mac[0] & 1 or not any(mac):
            return []
        return self._neighbours.received_frame(endpoint, Mac(mac), now=now)

    def received_arp(
        self, ethertype: int, body: bytes, *, senders: Iterable[Endpoint], now: float
    ) -> list[MacLearned]:
        """Takes an ARP or NDP message from one of the peers at its outer address."""
        announced = arp.parse(ethertype, body)
        if announced is None:
            return []
        address, mac = announced
        return [
            learned
            for endpoint in senders
            for learned in self._neighbours.received_address(endpoint, address, mac, now=now)
        ]

    def set_silent(self, endpoint: Endpoint, *, now: float) -> None:
        """Resolves the MAC of a peer that is silent now."""
        self._neighbours.set_silent(endpoint, now=now)

    def tick(self, sent: Mapping[Endpoint, int], *, now: float) -> list[Solicit]:
        """Returns the solicitations that are due; `sent` counts the packets to each peer."""
        return [
            Solicit(one.endpoint, one.address, self._source_for(one.address))
            for one in self._neighbours.tick(sent, now=now)
        ]

    def next_tick(self, now: float) -> float | None:
        """Returns when the next tick is due, None if every MAC is known."""
        return self._neighbours.next_tick(now)

    def _source_for(self, address: Address) -> Address | None:
        """Returns an address of this node in the same subnet, else any of that family."""
        own = [one for one in self._addresses if one.version == address.version]
        own.sort(key=lambda one: address not in one.network)
        return own[0].ip if own else None

    # The packet path answers ARP and NDP: peers' for addresses of this node in TUN mode, the
    # device's for addresses of the peers' VTEPs in TAP mode.

    def set_addresses(self, addresses: Iterable[InterfaceAddress]) -> list[VtepAction]:
        """Replaces the overlay addresses of this node."""
        self._addresses = list(addresses)
        return self.answer()

    def answer(self) -> list[VtepAction]:
        """Returns the action that sets all answers."""
        if self._ethernet:
            return [AnswerNeighbours(tuple(self._answers.items()))]
        return [
            AnswerNeighbours(
                tuple({one.ip.packed: self._mac.packed for one in self._addresses}.items())
            )
        ]

    def _answer_for(self, prefixes: Iterable[Prefix], mac: Mac | None) -> None:
        """Sets the answers for the gateways of one peer's prefixes, or removes them."""
        for prefix in prefixes:
            if (before := self._answers_of.pop(prefix, None)) is not None:
                self._answers_used[before] -= 1
                if not self._answers_used[before]:
                    del self._answers[before], self._answers_used[before]
        if mac is None:
            return
        for prefix in prefixes:
            if (via := gateway(prefix, mac)) is not None:
                self._answers[via.packed], self._answers_of[prefix] = mac.packed, via.packed
                self._answers_used[via.packed] += 1

    # Kernel routes.

    def route(self, prefixes: Iterable[Prefix]) -> list[VtepAction]:
        """Routes prefixes to the device, in TAP mode by their VTEPs."""
        if not self._ethernet:
            return [AddKernelRoutes(dict.fromkeys(prefixes))]
        prefixes = tuple(prefixes)
        self._routed.update(prefixes)
        macs = {prefix: self._macs.get(self._owners[prefix]) for prefix in prefixes}
        # Without a MAC the kernel resolves the gateway; some prefixes have no gateway before.
        gateways = {one: via for one, mac in macs.items() if (via := gateway(one, mac)) is not None}
        moved = [one for one, via in gateways.items() if self._gateways.get(one, via) != via]
        known = {via: mac for one, via in gateways.items() if (mac := macs[one]) is not None}
        actions = self._leave(moved)
        self._gateways.update(gateways)
        return [*actions, SetKernelNeighbours(known), AddKernelRoutes(gateways)]

    def refused(self, prefixes: Iterable[Prefix]) -> None:
        """Records that the kernel refused routes."""
        for prefix in prefixes:
            self._gateways.pop(prefix, None)

    def unroute(self, prefixes: Iterable[Prefix]) -> list[VtepAction]:
        """Removes the kernel routes of prefixes that have no owner any more."""
        prefixes = tuple(prefixes)
        self._routed.difference_update(prefixes)
        actions = self._leave(prefixes)
        for prefix in prefixes:
            self._owners.pop(prefix, None)
        if self._ethernet:
            self._answer_for(prefixes, None)
            actions += self.answer()
        return actions

    def _leave(self, prefixes: Iterable[Prefix]) -> list[VtepAction]:
        prefixes = tuple(prefixes)
        if not prefixes:
            return []
        gateways = [self._gateways.pop(one) for one in prefixes if one in self._gateways]
        return [RemoveKernelRoutes(prefixes, tuple(gateways))]

    # MACs.

    def follow(self, peers: Mapping[int, Peer]) -> list[VtepAction]:
        """
        Updates what depends on the MACs of peers, by index (in TAP mode). The new entries are
        added before the old ones are removed.
        """
        if not self._ethernet:
            return []
        actions: list[VtepAction] = []
        affected: list[Prefix] = []
        replaced: list[Mac] = []
        for index, peer in peers.items():
            before, mac = self._macs.get(peer.endpoint), self.destination_mac(peer)
            if mac is not None and mac != before:
                actions.append(PutFdbEntry(mac, index))
                self._macs[peer.endpoint], self._endpoints[mac] = mac, peer.endpoint
                replaced += [before] if before else []
                affected += [one for one in peer.prefixes if one in self._routed]
            self._answer_for(peer.prefixes, self._macs.get(peer.endpoint))
        return [
            *actions,
            *(self.route(affected) if affected else ()),
            *self._release(replaced),
            *self.answer(),
        ]

    def _release(self, macs: Iterable[Mac]) -> Iterable[VtepAction]:
        """Removes FDB entries, unless another peer has the MAC by now."""
        for mac in macs:
            endpoint = self._endpoints.get(mac)
            if endpoint is None or self._macs.get(endpoint) != mac:
                self._endpoints.pop(mac, None)
                yield RemoveFdbEntry(mac)
