"""
Who the members of a cluster are: the records in the store, made into peers.

    snapshot, changes  ->  Roster  ->  Difference: peers that come, change and go

A node of ours is one peer: both its subnets are behind one endpoint, of the family that it and we
have in common. Flannel's is one for each family, because there inner IPv4 comes and goes over outer
IPv4 only, and inner IPv6 over outer IPv6.

Where records disagree, in this order:

1. What this node has, and what its configuration says of peers, stands.
2. Of several records whose subnets overlap, one has the subnet: that of the longest prefix, then
   the one that was there first (:meth:`tunnel.cluster.record.Lease.rank`). The others keep what is
   left of theirs, which is nothing where that was all.
3. Several records with one endpoint are one peer with all their subnets; the MAC is that of the
   record that was written last.

Each such thing is told once, as long as it lasts.
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
"""Seconds for which a peer stays whose record was gone after an outage of the store: its node may
be about to write it again, or be still cut off, and packets go on meanwhile."""


@dataclass(frozen=True)
class Difference:
    """
    What is different in peers. Apply `remove` first: a subnet may move from one to another.

    Attributes:
        change: Those whose endpoint was a peer's before; their prefixes or MAC are others now.
        troubles: What was not told before, one line each.
    """

    add: tuple[Peer, ...] = ()
    change: tuple[Peer, ...] = ()
    remove: tuple[Endpoint, ...] = ()
    troubles: tuple[str, ...] = ()


class _Place(NamedTuple):
    """What a record says of one endpoint."""

    endpoint: Endpoint
    subnets: tuple[Prefix, ...]
    mac: Mac | None


@dataclass(frozen=True)
class _Member:
    """A record of somebody else, and what follows from it."""

    lease: Lease
    places: tuple[_Place, ...]


class _Assignment(NamedTuple):
    """Who says that a subnet is at an endpoint: a record, by its key, or the configuration."""

    subnet: Prefix
    endpoint: Endpoint
    key: str = ""


class Roster:
    """
    All members but this node. `now` is monotonic seconds throughout.

    Args:
        network: That they are of.
        record: Ours, to know what is not somebody else's.
        directory: Keys are below it, ``/coreos.com/network/subnets/``.
        static: Peers of the configuration, which are peers already.
    """

    def __init__(
        self, network: Network, record: Record, *, directory: str, static: Iterable[Peer] = ()
    ) -> None:
        self._network, self._record, self._directory = network, record, directory
        self._own: tuple[Prefix, ...] = ()
        self._revision = 0
        self._entries: dict[str, Entry] = {}
        self._members: dict[str, _Member] = {}
        self._leaving: dict[str, float] = {}  # by key: until when
        self._at: dict[Endpoint, set[str]] = {}  # keys
        self._claims = _Assignments()
        self._static: dict[Endpoint, Peer] = {}
        self._peers: dict[Endpoint, Peer] = {}
        self._troubles: dict[str | Endpoint, tuple[str, ...]] = {}
        self._told: frozenset[str] = frozenset()
        self._touched: set[Endpoint] = set()
        self.configure(static)

    @property
    def peers(self) -> tuple[Peer, ...]:
        """All of them, as the differences so far have made them."""
        return tuple(self._peers.values())

    @property
    def troubles(self) -> tuple[str, ...]:
        """What is wrong with records now, one line each."""
        return tuple(text for texts in self._troubles.values() for text in texts)

    @property
    def snapshot(self) -> Snapshot:
        """What is known of the store. Kept on disk it is who the peers are after a restart, until
        the store is back."""
        leaving = {key: self._members[key].lease.entry for key in self._leaving}
        return Snapshot(self._revision, self._entries | leaving)

    def configure(self, static: Iterable[Peer]) -> Difference:
        """These are the peers of the configuration from now on."""
        before, self._static = self._static, {peer.endpoint: peer for peer in static}
        for peers, there in ((before, False), (self._static, True)):
            for peer in peers.values():
                self._claims.set(
                    (_Assignment(one, peer.endpoint) for one in peer.prefixes), there=there
                )
                self._touched.add(peer.endpoint)
                self._touch_around(peer.prefixes)
        return self._settle()

    def settle_in(self, subnets: Iterable[Prefix]) -> Difference:
        """This node has these subnets from now on."""
        before, self._own = self._own, tuple(subnets)
        self._touch_around((*before, *self._own))
        return self._settle()

    def read(self, snapshot: Snapshot, *, now: float) -> Difference:
        """All that is in the store: first what is on disk, then at the start and after a gap."""
        for key, entry in snapshot.entries.items():
            self._leaving.pop(key, None)
            if self._entries.get(key) != entry:
                self._take(key, entry)
        for key in self._entries.keys() - snapshot.entries.keys():
            self._miss(key, until=now + LINGER)
        self._entries, self._revision = dict(snapshot.entries), snapshot.revision
        return self._settle()

    def changed(self, batch: Batch, *, until: float | None = None) -> Difference:
        """What the watch brings. Who is deleted goes at once, or with the first tick after `until`
        if he is not back by then."""
        for change in batch.changes:
            before = self._entries.pop(change.key, None)
            if change.entry is not None:
                self._entries[change.key] = change.entry
            elif until is not None:
                if before is not None:
                    self._miss(change.key, until=until)
                continue
            self._leaving.pop(change.key, None)
            self._take(change.key, change.entry)
        self._revision = batch.revision
        return self._settle()

    def tick(self, *, now: float) -> Difference:
        """Lets go who has not come back."""
        for key in [key for key, until in self._leaving.items() if now >= until]:
            del self._leaving[key]
            self._take(key, None)
        return self._settle()

    def next_tick(self, now: float) -> float | None:
        """When the next tick is due, `now` at the earliest; None while nobody is leaving."""
        return max(now, min(self._leaving.values())) if self._leaving else None

    def _miss(self, key: str, *, until: float) -> None:
        if key in self._members:
            self._leaving[key] = until
            self._touch(self._members[key])
        else:
            self._take(key, None)

    # From an entry to a member.

    def _take(self, key: str, entry: Entry | None) -> None:
        self._troubles.pop(key, None)
        before = self._members.get(key)
        if before is not None:
            self._touch(before)
            self._list(before, there=False)
            del self._members[key]
        if entry is None or not key.startswith(self._directory):
            return
        faults: list[str] = []
        after = self._read(key, entry, faults)
        if faults:
            self._troubles[key] = tuple(f"{key}: {fault}" for fault in faults)
        if after is not None:
            self._members[key] = after
            self._list(after, there=True)
            self._touch(after)

    def _read(self, key: str, entry: Entry, faults: list[str]) -> _Member | None:
        """None for what is ours, for what is reserved and not in use, and for what cannot be a
        peer, which is a fault."""
        try:
            lease = Lease.read(key.removeprefix(self._directory), entry, key=key)
        except ConfigError as error:
            faults.append(f"{error} (left out)")
            return None
        record = lease.record
        if record is None:
            faults.append(f"{lease.fault} (left out)")
        elif self._record.is_same_node(record) or not record.backend:
            pass
        elif not lease.is_member:
            faults.append(f"its backend is {record.backend!r} (left out)")
        elif record.vni is not None and (record.vni - self._network.vni) & 0xFFFF:
            faults.append(f"its VNI {record.vni} is not {self._network.vni} (left out)")
        else:
            return _Member(lease, tuple(self._places(record, lease.subnets, faults)))
        return None

    def _places(
        self, record: Record, subnets: tuple[Prefix, ...], faults: list[str]
    ) -> Iterator[_Place]:
        ours = (self._record.address, self._record.address6)
        ways: dict[int, tuple[Address, Mac | None]] = {}
        if record.address and ours[0]:
            ways[4] = record.address, record.mac
        if record.address6 and ours[1]:
            ways[6] = record.address6, record.mac6
        groups = [subnets] if record.node else [(subnet,) for subnet in subnets]
        for group in groups:
            version = min(ways, default=4) if record.node else group[0].version
            address, mac = ways.get(version, (None, None))
            if address is None:
                need = "an address" if record.node else f"an IPv{version} address"
                faults.append(f"this node and that one do not both have {need} (left out)")
            elif address in ours:
                faults.append(f"{address} is this node's address (left out)")
            else:
                yield _Place(Endpoint(str(address), self._network.port), group, mac)

    def _list(self, member: _Member, *, there: bool) -> None:
        """Puts it where it is found by endpoint and by subnet, or takes it away."""
        key = member.lease.key
        for place in member.places:
            keys = self._at.setdefault(place.endpoint, set())
            if there:
                keys.add(key)
            else:
                keys.discard(key)
            if not keys:
                del self._at[place.endpoint]
            claims = (_Assignment(one, place.endpoint, key) for one in place.subnets)
            self._claims.set(claims, there=there)

    def _touch(self, member: _Member) -> None:
        """It is another now, and what overlaps it may be as well."""
        for place in member.places:
            self._touched.add(place.endpoint)
            self._touch_around(place.subnets)

    def _touch_around(self, subnets: Iterable[Prefix]) -> None:
        for subnet in subnets:
            self._touched |= {claim.endpoint for claim in self._claims.overlapping(subnet)}

    # From members to peers.

    def _settle(self) -> Difference:
        add, change, remove = [], [], []
        for endpoint in sorted(self._touched):
            before, after = self._peers.get(endpoint), self._compose(endpoint)
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
        self._touched = set()
        troubles = self.troubles
        news = tuple(text for text in troubles if text not in self._told)
        self._told = frozenset(troubles)
        return Difference(tuple(add), tuple(change), tuple(remove), news)

    def _compose(self, endpoint: Endpoint) -> Peer | None:
        """Who is at an endpoint, None where nobody is."""
        self._troubles.pop(endpoint, None)
        static = self._static.get(endpoint)
        prefixes = list(static.prefixes) if static else []
        macs: list[Mac] = []
        faults = []
        members = [self._members[key] for key in self._at.get(endpoint, ())]
        for member in sorted(members, key=lambda one: one.lease.entry.revision):
            for place in member.places:
                if place.endpoint != endpoint:
                    continue
                macs += [place.mac] if place.mac else []
                for subnet in place.subnets:
                    holder = self._holder(member, subnet, endpoint)
                    if holder is None:
                        prefixes.append(subnet)
                    else:
                        faults.append(f"{member.lease.key}: {subnet} is {holder} (left out)")
        if len(set(macs)) > 1:
            faults.append(
                f"{endpoint} is in several records with different MACs (the last is used)"
            )
        if faults:
            self._troubles[endpoint] = tuple(faults)
        if static is None and not prefixes:
            return None
        mac = static.mac if static and static.mac else macs[-1] if macs else None
        return Peer(endpoint, prefixes, mac=mac)

    def _holder(self, member: _Member, subnet: Prefix, endpoint: Endpoint) -> str | None:
        """Who else has this subnet, in words; None where it is this member's."""
        for own in self._own:
            if own.version == subnet.version and own.overlaps(subnet):
                return "this node's"
        for claim in self._claims.overlapping(subnet):
            if claim.endpoint == endpoint:
                continue
            if not claim.key:
                return f"the configured peer {claim.endpoint}'s"
            if self._rank(self._members[claim.key], claim.subnet) < self._rank(member, subnet):
                return f"that of {claim.key}"
        return None

    def _rank(self, member: _Member, subnet: Prefix) -> tuple[bool, int, int, str]:
        """Who is leaving keeps no subnet from anybody."""
        return member.lease.key in self._leaving, *member.lease.rank(subnet)


class _Assignments:
    """Claims by their subnets, to find those that overlap one. Subnets nest or are apart, so these
    are above it, one for each length in use, and below it, next to each other in order."""

    def __init__(self) -> None:
        self._there: dict[Span, set[_Assignment]] = {}
        self._order: list[Span] = []
        self._lengths: Counter[tuple[int, int]] = Counter()  # (version, length) -> spans

    def set(self, claims: Iterable[_Assignment], *, there: bool) -> None:
        """Puts claims, or takes them away."""
        for claim in claims:
            span = span_of(claim.subnet)
            if there:
                if span not in self._there:
                    insort(self._order, span)
                    self._lengths[span[0], span[2]] += 1
                self._there.setdefault(span, set()).add(claim)
                continue
            self._there[span].discard(claim)
            if not self._there[span]:
                del self._there[span]
                del self._order[bisect_left(self._order, span)]
                self._lengths[span[0], span[2]] -= 1

    def overlapping(self, subnet: Prefix) -> Iterator[_Assignment]:
        version, first, length = span_of(subnet)
        bits = subnet.max_prefixlen
        for (other, shorter), spans in self._lengths.items():
            if other == version and shorter <= length and spans:
                above = version, first >> (bits - shorter) << (bits - shorter), shorter
                yield from self._there.get(above, ())
        last = first + subnet.num_addresses - 1
        for index in range(
            bisect_left(self._order, (version, first, length + 1)), len(self._order)
        ):
            span = self._order[index]
            if span > (version, last, bits):
                return
            yield from self._there[span]
