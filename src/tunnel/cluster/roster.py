"""
The other members of a cluster: their records in the store, made into peers.

    snapshot, changes  ->  Roster  ->  Difference: peers to add, change and remove

A node of this program is one peer: both its subnets are behind one endpoint, of a family that it
and this node have in common. A node of flannel is one peer for each family, because flannel sends
inner IPv4 over outer IPv4 only, and inner IPv6 over outer IPv6.

Where records disagree, in this order:

1. The subnets of this node and the configured peers have precedence over records.
2. If subnets of several records overlap, the longest prefix has the subnet, then the oldest record
   (:meth:`tunnel.cluster.record.Lease.rank`). The others lose that subnet.
3. Several records with one endpoint are one peer with all their subnets; the MAC is that of the
   record that was written last.

Each problem is reported once for as long as it lasts.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tunnel.cluster.network import Network
from tunnel.cluster.record import Lease, Record
from tunnel.cluster.stores.base import Batch, Entry, Snapshot
from tunnel.errors import ConfigError
from tunnel.prefixes import Span
from tunnel.prefixes import span as span_of
from tunnel.types import Address, Endpoint, Mac, Peer, Prefix

LINGER = 60.0
"""Seconds for which a peer stays after its record vanished in an outage of the store: its node may
be about to write the record again, or still be cut off from the store but not from this node."""


@dataclass(frozen=True)
class Difference:
    """
    A change of the peers. Apply `remove` first: a subnet may move from one peer to another.

    Attributes:
        change: New prefixes or another MAC for endpoints that were peers before.
        problems: New ones, a line each.
    """

    add: tuple[Peer, ...] = ()
    change: tuple[Peer, ...] = ()
    remove: tuple[Endpoint, ...] = ()
    problems: tuple[str, ...] = ()


class _Location(NamedTuple):
    """The part of a record that is about one endpoint."""

    endpoint: Endpoint
    subnets: tuple[Prefix, ...]
    mac: Mac | None


@dataclass(frozen=True)
class _Member:
    """The record of another node, and where it locates its subnets."""

    lease: Lease
    locations: tuple[_Location, ...]


class _Assignment(NamedTuple):
    """A subnet at an endpoint, by the record with that key or, without a key, by configuration."""

    subnet: Prefix
    endpoint: Endpoint
    key: str = ""


class Roster:
    """
    All members but this node. `now` is monotonic seconds throughout.

    Args:
        record: The record of this node, which is not a peer.
        directory: The prefix of all records, ``/coreos.com/network/subnets/``.
        config_key: The key of the network's config; a config that no longer matches `network` is a
            problem. Not checked if empty.
        static: The configured peers, which the tunnel has already.
    """

    def __init__(
        self,
        network: Network,
        record: Record,
        *,
        directory: str,
        config_key: str = "",
        static: Iterable[Peer] = (),
    ) -> None:
        self._network, self._record = network, record
        self._directory, self._config_key = directory, config_key
        self._own_subnets: tuple[Prefix, ...] = ()
        self._revision = 0
        self._entries: dict[str, Entry] = {}
        self._members: dict[str, _Member] = {}
        self._lingering: dict[str, float] = {}  # key -> until when
        self._keys_at: dict[Endpoint, set[str]] = {}
        self._assignments = _Assignments()
        self._static: dict[Endpoint, Peer] = {}
        self._peers: dict[Endpoint, Peer] = {}
        self._problems: dict[str | Endpoint, tuple[str, ...]] = {}
        self._reported: frozenset[str] = frozenset()
        self._affected: set[Endpoint] = set()
        self.configure(static)

    @property
    def peers(self) -> tuple[Peer, ...]:
        """All peers, as the differences so far have made them."""
        return tuple(self._peers.values())

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with the network's config and the records now, a line each."""
        return tuple(text for texts in self._problems.values() for text in texts)

    @property
    def revision(self) -> int:
        """The state of the store that is known."""
        return self._revision

    @property
    def snapshot(self) -> Snapshot:
        """The known state of the store, lingering records included: a roster that reads it has the
        same peers."""
        lingering = {key: self._members[key].lease.entry for key in self._lingering}
        return Snapshot(self._revision, self._entries | lingering)

    def configure(self, static: Iterable[Peer]) -> Difference:
        """Replaces the configured peers."""
        before, self._static = self._static, {peer.endpoint: peer for peer in static}
        for peer in before.values():
            self._assignments.remove(_assign(peer))
        for peer in self._static.values():
            self._assignments.add(_assign(peer))
        for peer in (*before.values(), *self._static.values()):
            self._affected.add(peer.endpoint)
            self._mark_overlapping(peer.prefixes)
        return self._update_peers()

    def set_own_subnets(self, subnets: Iterable[Prefix]) -> Difference:
        """Replaces the subnets of this node."""
        before, self._own_subnets = self._own_subnets, tuple(subnets)
        self._mark_overlapping((*before, *self._own_subnets))
        return self._update_peers()

    def read(self, snapshot: Snapshot, *, now: float) -> Difference:
        """Applies the whole content of the store, or of the disk; records that are missing
        linger."""
        for key, entry in snapshot.entries.items():
            self._lingering.pop(key, None)
            if self._entries.get(key) != entry:
                self._set_entry(key, entry)
        for key in self._entries.keys() - snapshot.entries.keys():
            self._remove_later(key, until=now + LINGER)
        self._entries, self._revision = dict(snapshot.entries), snapshot.revision
        return self._update_peers()

    def changed(self, batch: Batch, *, until: float | None = None) -> Difference:
        """Applies changes of the store. With `until`, records that are deleted linger till then."""
        for change in batch.changes:
            before = self._entries.pop(change.key, None)
            if change.entry is not None:
                self._entries[change.key] = change.entry
            elif until is not None:
                if before is not None:
                    self._remove_later(change.key, until=until)
                continue
            self._lingering.pop(change.key, None)
            self._set_entry(change.key, change.entry)
        self._revision = batch.revision
        return self._update_peers()

    def tick(self, *, now: float) -> Difference:
        """Removes lingering records whose time is over."""
        for key in [key for key, until in self._lingering.items() if now >= until]:
            del self._lingering[key]
            self._set_entry(key, None)
        return self._update_peers()

    def next_tick(self, now: float) -> float | None:
        """When the next tick is due, `now` at the earliest; None while nothing lingers."""
        return max(now, min(self._lingering.values())) if self._lingering else None

    def _remove_later(self, key: str, *, until: float) -> None:
        if key in self._members:
            self._lingering[key] = until
            self._mark(self._members[key])
        else:
            self._set_entry(key, None)

    # From an entry to a member.

    def _set_entry(self, key: str, entry: Entry | None) -> None:
        self._problems.pop(key, None)
        if key == self._config_key:
            self._check_network(entry)
        before = self._members.get(key)
        if before is not None:
            self._mark(before)
            self._remove_from_index(before)
            del self._members[key]
        if entry is None or not key.startswith(self._directory):
            return
        faults: list[str] = []
        after = self._read_member(key, entry, faults)
        if faults:
            self._problems[key] = tuple(f"{key}: {fault}" for fault in faults)
        if after is not None:
            self._members[key] = after
            self._add_to_index(after)
            self._mark(after)

    def _check_network(self, entry: Entry | None) -> None:
        """The config is applied at the start of a node only."""
        problem = ""
        try:
            if entry is None:
                problem = "the network's config was deleted from the store"
            elif Network.parse(entry.value) != self._network:
                problem = "the network's config has changed (restart this node)"
        except ConfigError as error:
            problem = f"the network's config is invalid now: {error}"
        if problem:
            self._problems[self._config_key] = (problem,)

    def _read_member(self, key: str, entry: Entry, faults: list[str]) -> _Member | None:
        """None for this node's own record, an unused reservation, and a faulty record."""
        try:
            lease = Lease.read(key.removeprefix(self._directory), entry, key=key)
        except ConfigError as error:
            faults.append(f"{error} (left out)")
            return None
        record = lease.record
        if record is None:
            faults.append(f"{lease.fault} (left out)")
        elif self._record.is_same_node(record) or lease.is_unused:
            pass
        elif not lease.is_member:
            backend = repr(record.backend) if record.backend else "not named"
            faults.append(f"its backend is {backend} (left out)")
        elif not record.has_vni(self._network.vni):
            faults.append(f"its VNI {record.vni} is not {self._network.vni} (left out)")
        else:
            return _Member(lease, tuple(self._locate(record, lease.subnets, faults)))
        return None

    def _locate(
        self, record: Record, subnets: tuple[Prefix, ...], faults: list[str]
    ) -> Iterator[_Location]:
        own = (self._record.address, self._record.address6)
        usable: dict[int, tuple[Address, Mac | None]] = {}
        if record.address and own[0]:
            usable[4] = record.address, record.mac
        if record.address6 and own[1]:
            usable[6] = record.address6, record.mac6
        groups = [subnets] if record.node else [(subnet,) for subnet in subnets]
        for group in groups:
            version = min(usable, default=4) if record.node else group[0].version
            address, mac = usable.get(version, (None, None))
            if address is None:
                need = "an address" if record.node else f"an IPv{version} address"
                faults.append(f"this node and that one do not both have {need} (left out)")
            elif address in own:
                faults.append(f"{address} is this node's address (left out)")
            else:
                yield _Location(Endpoint(str(address), self._network.port), group, mac)

    def _add_to_index(self, member: _Member) -> None:
        for location in member.locations:
            self._keys_at.setdefault(location.endpoint, set()).add(member.lease.key)
            self._assignments.add(_assign_location(member, location))

    def _remove_from_index(self, member: _Member) -> None:
        for location in member.locations:
            keys = self._keys_at.get(location.endpoint, set())
            keys.discard(member.lease.key)
            if not keys:
                self._keys_at.pop(location.endpoint, None)
            self._assignments.remove(_assign_location(member, location))

    def _mark(self, member: _Member) -> None:
        """Marks the peers of a member, and those with overlapping subnets, to be made again."""
        for location in member.locations:
            self._affected.add(location.endpoint)
            self._mark_overlapping(location.subnets)

    def _mark_overlapping(self, subnets: Iterable[Prefix]) -> None:
        for subnet in subnets:
            self._affected |= {one.endpoint for one in self._assignments.overlapping(subnet)}

    # From members to peers.

    def _update_peers(self) -> Difference:
        add, change, remove = [], [], []
        for endpoint in sorted(self._affected):
            before, after = self._peers.get(endpoint), self._make_peer(endpoint)
            if after is None:
                if before is not None:
                    remove.append(endpoint)
                    del self._peers[endpoint]
                continue
            if before is None:
                add.append(after)
            elif before != after:
                change.append(after)
            self._peers[endpoint] = after
        self._affected = set()
        problems = self.problems
        new = tuple(text for text in problems if text not in self._reported)
        self._reported = frozenset(problems)
        return Difference(tuple(add), tuple(change), tuple(remove), new)

    def _make_peer(self, endpoint: Endpoint) -> Peer | None:
        """The peer at an endpoint, None if there is none."""
        self._problems.pop(endpoint, None)
        static = self._static.get(endpoint)
        prefixes = list(static.prefixes) if static else []
        macs: list[Mac] = []
        faults = []
        members = [self._members[key] for key in self._keys_at.get(endpoint, ())]
        for member in sorted(members, key=lambda one: one.lease.entry.revision):
            for location in member.locations:
                if location.endpoint != endpoint:
                    continue
                macs += [location.mac] if location.mac else []
                for subnet in location.subnets:
                    owner = self._find_other_owner(member, subnet, endpoint)
                    if owner is None:
                        prefixes.append(subnet)
                    else:
                        faults.append(f"{member.lease.key}: {subnet} is {owner} (left out)")
        if len(set(macs)) > 1:
            faults.append(
                f"{endpoint} is in several records with different MACs (the last is used)"
            )
        if faults:
            self._problems[endpoint] = tuple(faults)
        if static is None and not prefixes:
            return None
        mac = static.mac if static and static.mac else macs[-1] if macs else None
        return Peer(endpoint, prefixes, mac=mac)

    def _find_other_owner(self, member: _Member, subnet: Prefix, endpoint: Endpoint) -> str | None:
        """The owner of this subnet in words, None if it is `member`."""
        for own in self._own_subnets:
            if own.version == subnet.version and own.overlaps(subnet):
                return "this node's"
        for other in self._assignments.overlapping(subnet):
            if other.endpoint == endpoint:
                continue
            if not other.key:
                return f"the configured peer {other.endpoint}'s"
            if self._rank(self._members[other.key], other.subnet) < self._rank(member, subnet):
                return f"that of {other.key}"
        return None

    def _rank(self, member: _Member, subnet: Prefix) -> tuple[bool, int, int, str]:
        """A lingering record comes last: its subnet may have been assigned again."""
        return member.lease.key in self._lingering, *member.lease.rank(subnet)


def _assign(peer: Peer) -> Iterator[_Assignment]:
    return (_Assignment(prefix, peer.endpoint) for prefix in peer.prefixes)


def _assign_location(member: _Member, location: _Location) -> Iterator[_Assignment]:
    key = member.lease.key
    return (_Assignment(subnet, location.endpoint, key) for subnet in location.subnets)


class _Assignments:
    """
    Assignments by subnet, to find those that overlap a given one.

    Prefixes are nested or disjoint. So those that overlap a prefix are the prefixes above it, at
    most one for each length in use, and those below it, which are adjacent in sorted order.
    """

    def __init__(self) -> None:
        self._by_span: dict[Span, set[_Assignment]] = {}
        self._order: list[Span] = []
        self._lengths: Counter[tuple[int, int]] = Counter()  # (version, length) -> spans

    def add(self, assignments: Iterable[_Assignment]) -> None:
        for one in assignments:
            span = span_of(one.subnet)
            if span not in self._by_span:
                insort(self._order, span)
                self._lengths[span[0], span[2]] += 1
            self._by_span.setdefault(span, set()).add(one)

    def remove(self, assignments: Iterable[_Assignment]) -> None:
        for one in assignments:
            span = span_of(one.subnet)
            self._by_span[span].discard(one)
            if not self._by_span[span]:
                del self._by_span[span]
                del self._order[bisect_left(self._order, span)]
                self._lengths[span[0], span[2]] -= 1

    def overlapping(self, subnet: Prefix) -> Iterator[_Assignment]:
        version, first, length = span_of(subnet)
        bits = subnet.max_prefixlen
        for (other, shorter), spans in self._lengths.items():
            if other == version and shorter <= length and spans:
                above = version, first >> (bits - shorter) << (bits - shorter), shorter
                yield from self._by_span.get(above, ())
        last = first + subnet.num_addresses - 1
        for index in range(
            bisect_left(self._order, (version, first, length + 1)), len(self._order)
        ):
            span = self._order[index]
            if span > (version, last, bits):
                return
            yield from self._by_span[span]
