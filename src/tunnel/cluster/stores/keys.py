"""
The content of a directory store's file: entries, leases, and the time by which they expire.

The file is JSON, and may be read and, while no node is running, edited by hand::

    {"version": 2, "clock": 3600.5, "revision": 7, "forgotten": 0,
     "entries": {"/a": {"value": "text", "revision": 7, "lease": 1234, "created": 5}},
     "deleted": {"/b": 6},
     "leases": {"1234": {"ttl": 60, "ends": 3660.5}}}

Version 1 had no ``version`` and no ``clock``, and its leases ended by the wall clock (``until``).
It is read, with each lease extended to its full time. Programs that know version 1 alone refuse
version 2.
"""

from __future__ import annotations

import json
import math
import secrets
from dataclasses import asdict, dataclass, field
from typing import Any

from tunnel.cluster.stores.base import Change, Entry
from tunnel.errors import ConflictError, LeaseExpiredError, WatchGapError

_VERSION = 2
_MOST_DELETED = 1000  # deletions that are kept for watches


@dataclass
class StoredLease:
    """A lease of `ttl` seconds that expires when the clock of the store reads `ends`."""

    ttl: int
    ends: float


@dataclass
class Keys:
    """
    The content of the file. `now` is the time by the clock of the store.

    Attributes:
        clock: The time by the clock of the store when the file was written, in seconds.
        deleted: Key -> revision of its deletion, for watches.
        forgotten: Deletions up to this revision are no longer in `deleted`.
    """

    version: int = _VERSION
    clock: float = 0.0
    revision: int = 0
    forgotten: int = 0
    entries: dict[str, Entry] = field(default_factory=dict)
    deleted: dict[str, int] = field(default_factory=dict)
    leases: dict[int, StoredLease] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: bytes) -> Keys:
        """Raises ValueError, or another error of the parsing, for any other text."""
        found = json.loads(text)
        version = int(found.get("version", 1))
        if not 1 <= version <= _VERSION:
            raise ValueError(f"its version is {version}, not {_VERSION} (update tunnel)")
        return cls(
            clock=_read_time(found["clock"]) if version > 1 else 0.0,
            revision=int(found["revision"]),
            forgotten=int(found["forgotten"]),
            entries={str(key): _read_entry(one) for key, one in found["entries"].items()},
            deleted={str(key): int(revision) for key, revision in found["deleted"].items()},
            leases={
                int(lease): _read_lease(one, version) for lease, one in found["leases"].items()
            },
        )

    def text(self) -> str:
        """The file. Values are text; a byte that is not becomes a lone surrogate."""
        found = asdict(self)
        for entry in found["entries"].values():
            entry["value"] = entry["value"].decode(errors="surrogateescape")
        return json.dumps(found, indent=1)

    def put(self, key: str, value: bytes, *, expect: int, lease: int | None) -> int:
        if lease is not None:
            self.lease(lease)
        before = self.entries.get(key)
        revision = before.revision if before else 0
        if revision == expect:
            self.revision += 1
            created = before.created if before else self.revision
            self.entries[key] = Entry(value, self.revision, lease=lease, created=created)
            self.deleted.pop(key, None)
            return self.revision
        if before and lease is not None and (before.value, before.lease) == (value, lease):
            return before.revision
        raise ConflictError(key, expect=expect, revision=revision)

    def delete(self, key: str, *, expect: int) -> None:
        before = self.entries.get(key)
        if before and before.revision != expect:
            raise ConflictError(key, expect=expect, revision=before.revision)
        if before:
            self._delete([key])

    def grant(self, ttl: int, *, lease: int, now: float) -> int:
        lease = lease or secrets.randbits(62) + 1
        self.leases[lease] = StoredLease(ttl, now + ttl)
        return lease

    def lease(self, lease: int) -> StoredLease:
        if lease not in self.leases:
            raise LeaseExpiredError(lease)
        return self.leases[lease]

    def keep_alive(self, lease: int, *, now: float) -> float:
        one = self.lease(lease)
        one.ends = now + one.ttl
        return one.ttl

    def revoke(self, lease: int) -> None:
        self.leases.pop(lease, None)
        self._delete([key for key, entry in self.entries.items() if entry.lease == lease])

    def expired(self, now: float) -> list[int]:
        """The leases whose time is over."""
        return [lease for lease, one in self.leases.items() if one.ends <= now]

    def expire(self, now: float) -> None:
        for lease in self.expired(now):
            self.revoke(lease)

    def since(self, after: int, prefix: str) -> tuple[Change, ...]:
        """The last change of each key under `prefix` that changed after a revision."""
        if not self.forgotten <= after <= self.revision:
            raise WatchGapError(
                f"changes from {self.forgotten} to {self.revision} are known, not {after}"
            )
        written = [(entry.revision, Change(key, entry)) for key, entry in self.entries.items()]
        deleted = [(revision, Change(key, None)) for key, revision in self.deleted.items()]
        changes = sorted(written + deleted, key=lambda one: one[0])
        return tuple(
            change
            for revision, change in changes
            if revision > after and change.key.startswith(prefix)
        )

    def _delete(self, keys: list[str]) -> None:
        for key in keys:
            self.revision += 1
            del self.entries[key]
            self.deleted[key] = self.revision
        for key in list(self.deleted)[:-_MOST_DELETED]:
            self.forgotten = self.deleted.pop(key)


def _read_entry(found: Any) -> Entry:
    return Entry(
        found["value"].encode(errors="surrogateescape"),
        revision=int(found["revision"]),
        lease=None if found["lease"] is None else int(found["lease"]),
        created=int(found["created"]),
    )


def _read_lease(found: Any, version: int) -> StoredLease:
    ttl = int(found["ttl"])
    if version == 1:
        _read_time(found["until"])
        return StoredLease(ttl, float(ttl))
    return StoredLease(ttl, _read_time(found["ends"]))


def _read_time(found: Any) -> float:
    seconds = float(found)
    if not math.isfinite(seconds):
        raise ValueError(f"{found} is not a time")
    return seconds
