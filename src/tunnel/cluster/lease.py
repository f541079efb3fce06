"""
A node's claim on its subnets: how it acquires the key for its record, and keeps it.

    content of the store, earlier subnets, a clock  ->  Claim
        ->  Read, Put, Delete, Wait: the next step, answered by a method of the claim

Every write is guarded: it creates a key that does not exist, or replaces a key at the revision at
which the node read it as its own. After anything unexpected (a lost race, a lost answer, a deleted
key) the claim reads everything again before it writes.

A reservation stays one: what the node writes there is bound to no lease.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from random import Random

from tunnel.cluster.network import Network, make_key, parse_key
from tunnel.cluster.record import Lease, Record, leases_of
from tunnel.cluster.stores.base import Batch, Change, Snapshot
from tunnel.errors import ConfigError
from tunnel.prefixes import overlap
from tunnel.types import Prefix

TTL = 24 * 3600
"""Seconds for which a lease is granted, as flannel's."""

MARGIN = 3600.0
"""Seconds before its end at which a lease is renewed by default, as flannel's."""

CHOICES = 100
"""A new subnet is chosen from this many free ones, as flannel's: nodes that start together rarely
choose the same."""

_SHORTEST, _LONGEST = 0.05, 30.0  # seconds between attempts, doubled with each failure in a row


# The steps of a claim. The answer is read(), wrote() or deleted(); or conflict(), or away().


@dataclass(frozen=True)
class Read:
    """Read all keys."""


@dataclass(frozen=True)
class Put:
    """Write a key whose last revision is `expect`; with a `ttl`, bound to a lease of so many
    seconds."""

    key: str
    value: bytes
    expect: int
    ttl: int | None


@dataclass(frozen=True)
class Delete:
    """Delete a key whose last revision is `expect`."""

    key: str
    expect: int


@dataclass(frozen=True)
class Wait:
    """Wait until that time, or for a change in the store; None waits for a change only."""

    until: float | None


StoreRequest = Read | Put | Delete | Wait


# What a claim reports.


@dataclass(frozen=True)
class Acquired:
    """The node has these subnets; `before` are those that it had, empty the first time."""

    subnets: tuple[Prefix, ...]
    before: tuple[Prefix, ...]


@dataclass(frozen=True)
class Lost:
    """The node's key was deleted, or belongs to another node. The claim acquires subnets again,
    the same if possible; the node uses the lost ones until then."""

    subnets: tuple[Prefix, ...]
    why: str


@dataclass(frozen=True)
class Exhausted:
    """No subnet is free; the claim tries again."""

    why: str


@dataclass(frozen=True)
class Doubled:
    """Another host has this node's id, as after its disk was copied. Each overwrites the record of
    the other, with long pauses, until an administrator gives one of them another id."""

    where: str


LeaseEvent = Acquired | Lost | Exhausted | Doubled


@dataclass(frozen=True)
class _Held:
    """The node's key in the store; a reservation has neither an end nor a time of renewal."""

    key: str
    subnets: tuple[Prefix, ...]
    revision: int
    until: float | None
    renew: float | None


class Claim:
    """
    The claim of one node. `now` is monotonic seconds throughout.

    The caller performs what :meth:`step` returns and reports the result. It passes changes of the
    store to :meth:`changed`, and calls :meth:`missed` after some were missed.

    Args:
        record: The record of the node.
        directory: The prefix of all records, ``/coreos.com/network/subnets/``.
        random: Chooses subnets and the length of pauses.
        prefer: Subnets that the node had before, or prefers.
        ttl: Seconds for which a lease is granted.
        margin: Seconds before its end at which a lease is renewed, less than `ttl`; by default
            :data:`MARGIN`, or half of a lease that is shorter than twice that.
    """

    def __init__(
        self,
        network: Network,
        record: Record,
        *,
        directory: str,
        random: Random,
        prefer: Iterable[Prefix] = (),
        ttl: int = TTL,
        margin: float | None = None,
    ) -> None:
        self._network, self._record, self._directory = network, record, directory
        self._random, self._ttl = random, ttl
        self._margin = min(MARGIN, ttl / 2) if margin is None else margin
        self._prefer = tuple(prefer)
        self._held: _Held | None = None
        self._subnets: tuple[Prefix, ...] = ()
        self._lost_reported = self._exhausted_reported = False
        self._planned: Put | Delete | None = None
        self._is_verified = False  # as of the last read, `_held` is in the store and has no rival
        self._has_changed = False  # since that read began
        self._asked_at = self._paused_until = float("-inf")
        self._failures = 0

    @property
    def subnets(self) -> tuple[Prefix, ...]:
        """The subnets of the node, also while the store does not answer or others are being
        acquired; empty until the first are acquired."""
        return self._subnets

    @property
    def key(self) -> str | None:
        """The key of the node's record, None while there is none."""
        return self._held.key if self._held else None

    @property
    def until(self) -> float | None:
        """When the lease ends unless it is renewed; None for a reservation, or without a key."""
        return self._held.until if self._held else None

    def step(self, *, now: float) -> StoreRequest:
        """The next step; the same one until it is answered."""
        if now < self._paused_until:
            return Wait(self._paused_until)
        held = self._held
        if self._planned is None and self._is_current and held is not None:
            if not _needs_renewal(held, now):
                return Wait(held.renew)
            self._planned = self._renewal(held)
        if self._planned is None:
            self._is_verified = self._has_changed = False
            return Read()
        self._asked_at = now
        return self._planned

    def read(self, snapshot: Snapshot, *, now: float) -> list[LeaseEvent]:
        """
        Answers Read with the content of the store, and plans the next write.

        The content may be older than what the claim knows, if the store was restored from a backup.
        """
        own, others = self._split(snapshot)
        usable = [lease for lease in own if self._network.fits(lease.subnets)]
        best = min(usable, key=self._preference, default=None)
        events = self._check_for_loss(best, others)
        self._is_verified, self._planned = False, None
        if best is None:
            return events + self._choose([*own, *others], now=now)
        rival = next((one for one in others if one.is_member and best.yields_to(one)), None)
        if rival is not None and not best.is_reservation:
            self._held, self._planned = None, Delete(best.key, best.entry.revision)
            return events + self._report_loss(best.subnets, f"{rival.key} has precedence")
        held = self._match(best, now)
        if held is None:
            ttl = None if best.is_reservation else self._ttl
            self._planned = Put(best.key, self._record.text(), best.entry.revision, ttl)
            return events + self._check_for_double(best, now)
        self._held, self._is_verified = held, True
        # The node needs one key; it deletes others once this one is safe.
        spare = next((one for one in own if one is not best and self._is_spare(one)), None)
        if spare is not None:
            self._planned = Delete(spare.key, spare.entry.revision)
        return events + self._confirm()

    def wrote(self, put: Put, revision: int) -> list[LeaseEvent]:
        """Answers Put: the key is at `revision` now."""
        until = renew = None
        if put.ttl is not None:
            until = self._asked_at + put.ttl
            # Nodes that started together do not renew together.
            spread = 0.1 * min(self._margin, put.ttl - self._margin)
            renew = until - self._margin - spread * self._random.random()
        subnets = parse_key(put.key.removeprefix(self._directory))
        self._held = _Held(put.key, subnets, revision, until, renew)
        self._planned = None
        # After a renewal that is all. A new key has to be verified by a read: its guard does not
        # cover other keys with overlapping subnets.
        return self._confirm() if self._is_current else []

    def deleted(self, delete: Delete) -> None:
        """Answers Delete: the key does not exist."""
        self._planned, self._is_verified = None, False

    def conflict(self, *, now: float) -> None:
        """Answers a write whose key had another revision."""
        self._pause(now)

    def away(self, *, now: float) -> None:
        """Answers any step if the store did not answer: a write may have been done or not."""
        self._pause(now)

    def changed(self, batch: Batch) -> None:
        """Applies changes of the store."""
        if any(map(self._concerns, batch.changes)):
            self._has_changed = True

    def missed(self) -> None:
        """Anything may have changed."""
        self._has_changed = True

    @property
    def _is_current(self) -> bool:
        return self._is_verified and not self._has_changed

    def _split(self, snapshot: Snapshot) -> tuple[list[Lease], list[Lease]]:
        """The leases of this node, and those of others."""
        own: list[Lease] = []
        others: list[Lease] = []
        for lease in leases_of(snapshot.entries, directory=self._directory):
            is_own = lease.record is not None and self._record.is_same_node(lease.record)
            (own if is_own else others).append(lease)
        return own, others

    def _concerns(self, change: Change) -> bool:
        """Whether a change is about the node's key or subnets, or makes another key of this node.
        Without a key every change is relevant."""
        held, entry = self._held, change.entry
        if held is None:
            return True
        if change.key == held.key:
            return entry is None or entry.revision != held.revision
        if entry is None or not change.key.startswith(self._directory):
            return False
        with suppress(ConfigError):
            name = change.key.removeprefix(self._directory)
            lease = Lease.read(name, entry, key=change.key)
            return self._is_spare(lease) or any(
                overlap(own, other) for own in held.subnets for other in lease.subnets
            )
        return False

    def _preference(self, lease: Lease) -> tuple[bool, bool, bool, bool, str]:
        """The sort key of this node's leases. The lowest is used: the one that it holds, a
        reservation, earlier subnets, its own id."""
        assert lease.record
        return (
            self._held is None or lease.key != self._held.key,
            not lease.is_reservation,
            not set(lease.subnets) <= set(self._preferred),
            lease.record.node != self._record.node,
            lease.key,
        )

    @property
    def _preferred(self) -> tuple[Prefix, ...]:
        return self._subnets + self._prefer

    def _match(self, lease: Lease, now: float) -> _Held | None:
        """What the node holds by this lease, None if its record has to be written first."""
        held, entry = self._held, lease.entry
        if entry.value != self._record.text():
            return None
        if lease.is_reservation:
            return _Held(lease.key, lease.subnets, entry.revision, None, None)
        known = held is not None and (held.key, held.revision) == (lease.key, entry.revision)
        return held if known and not _needs_renewal(held, now) else None

    def _is_spare(self, lease: Lease) -> bool:
        """Whether this node created it, rather than flannel or an administrator."""
        return (
            lease.record is not None
            and lease.record.node == self._record.node
            and not lease.is_reservation
        )

    def _choose(self, leases: Iterable[Lease], *, now: float) -> list[LeaseEvent]:
        """Plans to create a key for free subnets, preferred ones if possible."""
        taken = [net for one in leases if not self._is_spare(one) for net in one.subnets]
        chosen: list[Prefix] = []
        for pool in self._network.pools:
            preferred = [one for one in self._preferred if pool.fits(one)]
            preferred = [one for one in preferred if not any(overlap(one, net) for net in taken)]
            free = preferred[:1] or list(islice(pool.free(taken), CHOICES))
            if not free:
                self._pause(now)
                return self._report_exhaustion(
                    f"no subnet is free in {pool.network}: all of {pool.size} are taken (release "
                    "some, or make the network larger)"
                )
            chosen.append(self._random.choice(free))
        key = self._directory + make_key(chosen)
        self._planned = Put(key, self._record.text(), 0, self._ttl)
        return []

    def _renewal(self, held: _Held) -> Put:
        ttl = None if held.until is None else self._ttl
        return Put(held.key, self._record.text(), held.revision, ttl)

    def _check_for_loss(self, best: Lease | None, others: Iterable[Lease]) -> list[LeaseEvent]:
        held = self._held
        if held is None or (best is not None and best.key == held.key):
            return []
        self._held = None
        taken = next((one for one in others if one.key == held.key), None)
        if taken is None:
            return self._report_loss(held.subnets, f"{held.key} was deleted, or its lease expired")
        return self._report_loss(
            held.subnets, f"{held.key} now belongs to {_describe_owner(taken)}"
        )

    def _check_for_double(self, lease: Lease, now: float) -> list[LeaseEvent]:
        held, record = self._held, lease.record
        overwritten = held is not None and lease.entry.revision != held.revision
        if not overwritten or record is None or record.node != self._record.node:
            return []
        if (where := _address_of(record)) == _address_of(self._record):
            return []
        self._paused_until = now + self._longest_pause * self._random.uniform(0.5, 1)
        return [Doubled(where)]

    def _report_loss(self, subnets: tuple[Prefix, ...], why: str) -> list[LeaseEvent]:
        """Reports a loss once, and only of subnets that were reported as acquired."""
        if self._lost_reported or subnets != self._subnets:
            return []
        self._lost_reported = True
        return [Lost(subnets, why)]

    def _report_exhaustion(self, why: str) -> list[LeaseEvent]:
        if self._exhausted_reported:
            return []
        self._exhausted_reported = True
        return [Exhausted(why)]

    def _confirm(self) -> list[LeaseEvent]:
        """The node holds its key."""
        assert self._held
        self._failures = 0
        self._exhausted_reported = False
        before, self._subnets = self._subnets, self._held.subnets
        if before == self._subnets and not self._lost_reported:
            return []
        self._lost_reported = False
        return [Acquired(self._subnets, before)]

    @property
    def _longest_pause(self) -> float:
        return max(_SHORTEST, min(_LONGEST, self._ttl / 8))

    def _pause(self, now: float) -> None:
        """Waits before the next attempt, which begins with a read."""
        self._planned, self._is_verified = None, False
        pause = min(self._longest_pause, _SHORTEST * 2 ** min(self._failures, 16))
        self._failures += 1
        self._paused_until = now + pause * self._random.uniform(0.5, 1)


def _needs_renewal(held: _Held | None, now: float) -> bool:
    return held is not None and held.renew is not None and now >= held.renew


def _describe_owner(lease: Lease) -> str:
    if lease.record is None:
        return "a node whose record cannot be read"
    where = _address_of(lease.record)
    return f"node {lease.record.node} at {where}" if lease.record.node else where


def _address_of(record: Record) -> str:
    return str(record.address or record.address6 or "an unknown address")
