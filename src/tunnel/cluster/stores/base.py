"""
The interface of a store: keys with revisions, leases and a watch.

A write is guarded by the revision that the writer has read, an entry that is bound to a lease is
deleted when the lease expires, and a watch reports what changed after a revision. A store raises
only what is under :class:`tunnel.errors.StoreError`, and each call ends within its time limit.

An answer may be lost. So :class:`tunnel.errors.StoreUnavailableError` from a call that writes does
not say whether the write was done, and neither does cancelling the call: read again before the next
write.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self


@dataclass(frozen=True, slots=True)
class Entry:
    """
    A value in the store.

    Attributes:
        revision: The revision of the last write to this key; it guards the next write.
        lease: The id of the lease that the entry is bound to; None for an entry that stays until
            it is deleted.
        created: The revision at which the key was created; renewals do not change it.
    """

    value: bytes
    revision: int
    lease: int | None = None
    created: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All entries under a prefix at one revision of the store, by key."""

    revision: int
    entries: Mapping[str, Entry]


@dataclass(frozen=True, slots=True)
class Change:
    """A key that was written; `entry` is None if the key was deleted or its lease expired."""

    key: str
    entry: Entry | None


@dataclass(frozen=True, slots=True)
class Batch:
    """
    The changes up to `revision`, in their order; the next watch continues after it.

    Only the last of several writes to a key may be included. There are no changes at all if only
    the revision has advanced.
    """

    revision: int
    changes: tuple[Change, ...]


class Store(Protocol):
    """
    A store, open within its ``async with`` block.

    Every method may raise :class:`tunnel.errors.StoreUnavailableError` (try again later) or
    :class:`tunnel.errors.StoreRefusedError` (an administrator has to change something first).
    """

    @property
    def address(self) -> str:
        """The endpoint or directory that answered last; the next call asks it first."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None: ...

    async def read(self, prefix: str) -> Snapshot:
        """All keys that begin with `prefix`, not older than any state that was read before."""

    def watch(self, prefix: str, *, after: int) -> AsyncGenerator[Batch, None]:
        """
        The changes under `prefix` after a revision, as they happen.

        The watch changes endpoints by itself without losing a change. It ends only with an error;
        close it with ``aclose()`` to end it before.

        Raises:
            WatchGapError: The store no longer has all changes after that revision: read again, and
                compare whole values.
        """

    async def put(self, key: str, value: bytes, *, expect: int, lease: int | None = None) -> int:
        """
        Writes a key whose last revision is `expect`; 0 means that the key must not exist.

        With a lease it also succeeds if the key has this value and lease already: that is the
        caller's own write, whose answer was lost.

        Returns: The new revision of the key.

        Raises:
            ConflictError: The key has another revision; nothing was written.
            LeaseExpiredError: There is no such lease; nothing was written.
        """

    async def delete(self, key: str, *, expect: int) -> None:
        """
        Deletes a key whose last revision is `expect`; succeeds if there is no such key.

        Raises:
            ConflictError: The key has another revision, and still exists.
        """

    async def grant(self, ttl: int, *, lease: int = 0) -> int:
        """
        Creates a lease that expires unless it is kept alive within `ttl` seconds; the store may
        choose a longer time.

        Args:
            lease: The id, 1 to 2**63-1; 0 chooses one. A lease that exists is kept alive
                instead, so the caller can repeat a call whose answer was lost.

        Returns: The id.
        """

    async def keep_alive(self, lease: int) -> float:
        """
        Extends a lease to its full time. Returns that, in seconds.

        Raises:
            LeaseExpiredError: The lease has expired.
        """

    async def time_left(self, lease: int) -> float:
        """
        Seconds until a lease expires.

        Raises:
            LeaseExpiredError: The lease has expired.
        """

    async def revoke(self, lease: int) -> None:
        """Ends a lease, and deletes the entries that are bound to it; succeeds if the lease has
        expired."""
