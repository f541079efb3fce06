"""
Where the members of a cluster find each other: a small store of keys with revisions.

What is written is guarded by the revision that was read, what is bound to a lease goes when
nobody keeps that alive, and a watch tells what changed since a revision. Which kinds there are is
:mod:`tunnel.stores`; all of them raise only what is under :class:`tunnel.errors.StoreError`, and
each call ends within the store's time-out.

An answer may be lost on its way. So :class:`tunnel.errors.StoreUnavailableError` from a call that
writes says nothing about whether it was done, nor does cancelling one: read again before the next
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
    What is under a key.

    Attributes:
        revision: Of the last write to this key: what guards the next one.
        lease: What it is bound to; None for what stays until somebody deletes it.
        created: Revision at which the key came to be: who was there first, also after renewals.
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
    """A key that was written; ``entry`` is None where it was deleted, or its lease ended."""

    key: str
    entry: Entry | None


@dataclass(frozen=True, slots=True)
class Batch:
    """What changed until ``revision``, in that order: the next watch goes on after it. Of a key
    that was written more than once there may be the last write only; and nothing at all, when only
    the revision is news."""

    revision: int
    changes: tuple[Change, ...]


class Store(Protocol):
    """
    A store that was entered with ``async with``; leaving that gives back what it holds.

    Whatever it does may raise :class:`tunnel.errors.StoreUnavailableError` (try again later) or
    :class:`tunnel.errors.StoreRefusedError` (somebody has to change something first).
    """

    @property
    def address(self) -> str:
        """Which endpoint or directory the next call asks first: the one that answered last."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None: ...

    async def read(self, prefix: str) -> Snapshot:
        """All keys that begin with ``prefix``, as they are now: nobody sees older ones after."""

    def watch(self, prefix: str, *, after: int) -> AsyncGenerator[Batch, None]:
        """
        What changes under ``prefix`` after a revision, as it comes; close it with ``aclose()``
        when it is left before its end.

        It changes endpoints by itself and loses nothing by that. It ends only with an error.

        Raises:
            Gap: The store no longer has all changes since ``after``: read again, and compare
                whole values.
        """

    async def put(self, key: str, value: bytes, *, expect: int, lease: int | None = None) -> int:
        """
        Writes a key whose last revision is ``expect``; 0 means that it must not be there.

        Under a lease it is also done when this very value is there already: our own write, whose
        answer was lost.

        Returns: Its new revision.

        Raises:
            Conflict: Somebody was faster; nothing was written.
            LeaseGone: There is no such lease (any more); nothing was written.
        """

    async def delete(self, key: str, *, expect: int) -> None:
        """
        Deletes a key whose last revision is ``expect``. It is also done when it is not there.

        Raises:
            Conflict: It has been written since; it is still there.
        """

    async def grant(self, ttl: int, *, lease: int = 0) -> int:
        """A new lease, which ends when it was not kept alive for ``ttl`` seconds; the store may
        make that longer. Entries that are bound to it end with it."""

    async def keep_alive(self, lease: int) -> float:
        """Makes a lease as long as it was granted for. Returns: that time, in seconds.

        Raises:
            LeaseGone: It has ended.
        """

    async def time_left(self, lease: int) -> float:
        """Seconds until a lease ends.

        Raises:
            LeaseGone: It has ended.
        """

    async def revoke(self, lease: int) -> None:
        """Ends a lease, and the entries that are bound to it; done if it has ended already."""
