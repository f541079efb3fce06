"""
A node's claim on its subnets: how it gets the key that its record is under, and keeps it.

    what is in the store, what we had before, a clock  ->  Claim
        ->  Read, Put, Delete, Wait: what to do next, each answered by a method of it

Nothing is ever written unguarded: a key is created if it is not there, or replaced at the revision
at which it was read as ours. Whatever could not be foreseen (a lost race, a lost answer, somebody
who deleted our key) has one answer: read again, compare, and only then write.

A reservation stays one: what is written there is bound to no lease.
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
"""Seconds that a lease is for, flannel's."""

MARGIN = 3600.0
"""Seconds before its end at which it is renewed, flannel's; half of a shorter lease."""

CHOICE = 100
"""A new subnet is one of so many free ones, as with flannel: nodes that come at the same time
rarely want the same."""

_SHORTEST, _LONGEST = 0.05, 30.0  # seconds between two attempts, growing by the double


# What a Claim asks for. The answer is read(), wrote() or deleted(); or conflict(), or away().


@dataclass(frozen=True)
class Read:
    """Read everything."""


@dataclass(frozen=True)
class Put:
    """
    Write a key, guarded. With a `ttl` bind it to a new lease of so many seconds; revoke that only
    after a conflict: where the answer was lost the key may be bound to it.
    """

    key: str
    value: bytes
    expect: int
    ttl: int | None


@dataclass(frozen=True)
class Delete:
    """Delete a key, guarded."""

    key: str
    expect: int


@dataclass(frozen=True)
class Wait:
    """Nothing to do until then, or before something changes; for ever, None."""

    until: float | None


StoreRequest = Read | Put | Delete | Wait


# What a Claim tells.


@dataclass(frozen=True)
class Acquired:
    """These are ours now; `before` is what was until now, empty the first time."""

    subnets: tuple[Prefix, ...]
    before: tuple[Prefix, ...]


@dataclass(frozen=True)
class Lost:
    """Somebody has deleted our key or has it now. Others are being acquired, the same if
    possible; until then there are none better."""

    subnets: tuple[Prefix, ...]
    why: str


@dataclass(frozen=True)
class Exhausted:
    """There is none to be had; it is tried again."""

    why: str


@dataclass(frozen=True)
class Doubled:
    """Another host has our id, as a copy of this one's disk has. Each writes over the record of the
    other, with long pauses; somebody has to give one of them another id."""

    where: str


LeaseEvent = Acquired | Lost | Exhausted | Doubled


@dataclass(frozen=True)
class _Held:
    key: str
    subnets: tuple[Prefix, ...]
    revision: int
    until: float | None  # None for a reservation
    renew: float | None


class Claim:
    """
    The subnets of one node. `now` is monotonic seconds throughout.

    Ask :meth:`step` what to do, do it, answer; what the watch brings goes to :meth:`changed`, and
    when that had to begin anew, say :meth:`missed`.

    Args:
        network: That the subnets are of.
        record: Ours.
        directory: Keys are below it, ``/coreos.com/network/subnets/``.
        random: Chooses subnets and the length of pauses.
        prefer: What we had before, or would like to have.
        ttl: Seconds that each lease is for.
        margin: Seconds before its end at which it is renewed; half of it at most.
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
        margin: float = MARGIN,
    ) -> None:
        self._network, self._record, self._directory = network, record, directory
        self._random, self._ttl = random, ttl
        self._margin = min(margin, ttl / 2)
        self._prefer = tuple(prefer)
        self._held: _Held | None = None
        self._told: tuple[Prefix, ...] = ()
        self._is_lost = self._is_exhausted = False
        self._plan: Put | Delete | None = None
        self._is_read = False  # our key is as we think, and the only one
        self._is_stirred = False  # somebody has touched it since that was asked
        self._asked = self._due = float("-inf")
        self._failures = 0

    @property
    def subnets(self) -> tuple[Prefix, ...]:
        """What we have, also while the store is away and while we have to look for others; empty
        before the first were acquired."""
        return self._told

    @property
    def key(self) -> str | None:
        """Under which we are known, None while there is none."""
        return self._held.key if self._held else None

    @property
    def until(self) -> float | None:
        """When the lease ends unless it is renewed; None for a reservation, or without any."""
        return self._held.until if self._held else None

    def step(self, *, now: float) -> StoreRequest:
        """What to do next. Asked again before the answer, it is the same."""
        if now < self._due:
            return Wait(self._due)
        held = self._held
        if self._plan is None and self._is_sure and held is not None:
            if not _is_due(held, now):
                return Wait(held.renew)
            self._plan = self._renewal(held)
        if self._plan is None:
            self._is_read = self._is_stirred = False
            return Read()
        self._asked = now
        return self._plan

    def read(self, snapshot: Snapshot, *, now: float) -> list[LeaseEvent]:
        """All that is in the store, in answer to Read: what was read before the last write says
        nothing. It may be older than what we hold, of a store that was put back from a backup."""
        own: list[Lease] = []
        others: list[Lease] = []
        for lease in leases_of(snapshot.entries, directory=self._directory):
            mine = lease.record is not None and self._record.is_same_node(lease.record)
            (own if mine else others).append(lease)
        fitting = [one for one in own if self._network.fits(one.subnets)]
        best = min(fitting, key=self._liking, default=None)
        news = self._look_for_loss(best, others)
        self._is_read, self._plan = False, None
        if best is None:
            return news + self._choose([*own, *others], now=now)
        rival = next((one for one in others if one.is_member and best.yields_to(one)), None)
        if rival is not None and not best.is_reservation:
            self._held, self._plan = None, Delete(best.key, best.entry.revision)
            return news + self._lose(best.subnets, f"{rival.key} was there first")
        kept = self._kept(best, now)
        if kept is None:
            ttl = None if best.is_reservation else self._ttl
            self._plan = Put(best.key, self._record.text(), best.entry.revision, ttl)
            return news + self._look_for_double(best, now)
        self._held, self._is_read = kept, True
        # One subnet each: what is left of others goes, once this one is safe.
        spare = next((one for one in own if one is not best and self._is_spare(one)), None)
        if spare is not None:
            self._plan = Delete(spare.key, spare.entry.revision)
        return news + self._settle()

    def wrote(self, put: Put, revision: int) -> list[LeaseEvent]:
        """`put` was made, and its key is at `revision` now."""
        until = renew = None
        if put.ttl is not None:
            until = self._asked + put.ttl
            # Nodes that came together do not all come again together.
            renew = until - self._margin * self._random.uniform(1, 1.1)
        subnets = parse_key(put.key.removeprefix(self._directory))
        self._held = _Held(put.key, subnets, revision, until, renew)
        self._plan = None
        # After a mere renewal that is all. Otherwise have a look: what guards a key does not
        # guard it against others that overlap.
        return self._settle() if self._is_sure else []

    def deleted(self, delete: Delete) -> None:
        """`delete` was done, or its key was not there."""
        self._plan, self._is_read = None, False

    def conflict(self, *, now: float) -> None:
        """Somebody was faster."""
        self._pause(now)

    def away(self, *, now: float) -> None:
        """The store cannot be reached, or the answer was lost: nobody knows what was done."""
        self._pause(now)

    def changed(self, batch: Batch) -> None:
        """What the watch brings."""
        if any(map(self._concerns, batch.changes)):
            self._is_stirred = True

    def missed(self) -> None:
        """Nobody knows what has changed."""
        self._is_stirred = True

    @property
    def _is_sure(self) -> bool:
        return self._is_read and not self._is_stirred

    def _concerns(self, change: Change) -> bool:
        """Whether it touches our key or its subnets, or is another key of ours. While we look for
        one, anything may."""
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
                overlap(ours, theirs) for ours in held.subnets for theirs in lease.subnets
            )
        return False

    def _liking(self, lease: Lease) -> tuple[bool, bool, bool, bool, str]:
        """The lowest is taken of several that are ours: what we have, what was reserved for us,
        what we had, what has our id."""
        assert lease.record
        return (
            self._held is None or lease.key != self._held.key,
            not lease.is_reservation,
            not set(lease.subnets) <= set(self._wanted),
            lease.record.node != self._record.node,
            lease.key,
        )

    @property
    def _wanted(self) -> tuple[Prefix, ...]:
        return self._told + self._prefer

    def _kept(self, lease: Lease, now: float) -> _Held | None:
        """What we hold, unless something has to be written for that."""
        held, entry = self._held, lease.entry
        if entry.value != self._record.text():
            return None
        if lease.is_reservation:
            return _Held(lease.key, lease.subnets, entry.revision, None, None)
        known = held is not None and (held.key, held.revision) == (lease.key, entry.revision)
        return held if known and not _is_due(held, now) else None

    def _is_spare(self, lease: Lease) -> bool:
        """Not what is flannel's or was reserved."""
        return (
            lease.record is not None
            and lease.record.node == self._record.node
            and not lease.is_reservation
        )

    def _choose(self, leases: Iterable[Lease], *, now: float) -> list[LeaseEvent]:
        taken = [net for one in leases if not self._is_spare(one) for net in one.subnets]
        chosen: list[Prefix] = []
        for pool in self._network.pools:
            wanted = [one for one in self._wanted if pool.fits(one)]
            wanted = [one for one in wanted if not any(overlap(one, net) for net in taken)]
            free = wanted[:1] or list(islice(pool.free(taken), CHOICE))
            if not free:
                self._pause(now)
                return self._exhaust(
                    f"no subnet is free in {pool.network}: all of {pool.size} are taken (release "
                    "some, or make the network larger)"
                )
            chosen.append(self._random.choice(free))
        key = self._directory + make_key(chosen)
        self._plan = Put(key, self._record.text(), 0, self._ttl)
        return []

    def _renewal(self, held: _Held) -> Put:
        ttl = None if held.until is None else self._ttl
        return Put(held.key, self._record.text(), held.revision, ttl)

    def _look_for_loss(self, best: Lease | None, others: Iterable[Lease]) -> list[LeaseEvent]:
        held = self._held
        if held is None or (best is not None and best.key == held.key):
            return []
        self._held = None
        there = next((one for one in others if one.key == held.key), None)
        if there is None:
            return self._lose(held.subnets, f"somebody deleted {held.key}, or it ran out")
        return self._lose(held.subnets, f"{held.key} is {_whose(there)} now")

    def _look_for_double(self, lease: Lease, now: float) -> list[LeaseEvent]:
        held, record = self._held, lease.record
        written = held is not None and lease.entry.revision != held.revision
        if not written or record is None or record.node != self._record.node:
            return []
        if (where := _place(record)) == _place(self._record):
            return []
        self._due = now + self._longest * self._random.uniform(0.5, 1)
        return [Doubled(where)]

    def _lose(self, subnets: tuple[Prefix, ...], why: str) -> list[LeaseEvent]:
        """Told once, and only of what was told to be ours."""
        if self._is_lost or subnets != self._told:
            return []
        self._is_lost = True
        return [Lost(subnets, why)]

    def _exhaust(self, why: str) -> list[LeaseEvent]:
        if self._is_exhausted:
            return []
        self._is_exhausted = True
        return [Exhausted(why)]

    def _settle(self) -> list[LeaseEvent]:
        """Our key is there and ours."""
        assert self._held
        self._failures = 0
        self._is_exhausted = False
        before, self._told = self._told, self._held.subnets
        if before == self._told and not self._is_lost:
            return []
        self._is_lost = False
        return [Acquired(self._told, before)]

    @property
    def _longest(self) -> float:
        """Seconds that a pause has at the most."""
        return max(_SHORTEST, min(_LONGEST, self._ttl / 8))

    def _pause(self, now: float) -> None:
        """Before the next attempt, which begins with looking how things are."""
        self._plan, self._is_read = None, False
        pause = min(self._longest, _SHORTEST * 2 ** min(self._failures, 16))
        self._failures += 1
        self._due = now + pause * self._random.uniform(0.5, 1)


def _is_due(held: _Held | None, now: float) -> bool:
    return held is not None and held.renew is not None and now >= held.renew


def _whose(lease: Lease) -> str:
    if lease.record is None:
        return "something that cannot be read"
    where = _place(lease.record)
    return f"of node {lease.record.node} at {where}" if lease.record.node else f"of {where}"


def _place(record: Record) -> str:
    return str(record.address or record.address6 or "an unknown address")
