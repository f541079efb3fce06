"""
Stand-ins for what a test does not want to wait for or to install.

    FakeClock    a monotonic clock that a test advances
    MemoryStore  a cluster's store in this process, which a test can take away

A program tests its cluster without etcd and without privileges, except for the network's config,
which it puts there first::

    store = MemoryStore()
    async with Cluster(config, device=None, store=store) as cluster:
        store.available = False  # an outage
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from types import TracebackType
from typing import Self

from tunnel.cluster.stores.base import Batch, Snapshot
from tunnel.cluster.stores.keys import Keys
from tunnel.errors import StoreUnavailableError

_POLL = 0.05  # seconds between two readings of a clock that may be a fake one


class FakeClock:
    """A monotonic clock, called like :func:`time.monotonic`; `now` is set by the test."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class MemoryStore:
    """
    A :class:`tunnel.cluster.stores.base.Store` in memory, shared by all of its users.

    Args:
        monotonic: The clock of its leases.

    Attributes:
        available: While False, every call and watch raises StoreUnavailableError.
    """

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.available = True
        self._monotonic = monotonic
        self._content = Keys()

    @property
    def address(self) -> str:
        return "memory"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        pass

    async def read(self, prefix: str) -> Snapshot:
        keys = self._keys()
        entries = {key: entry for key, entry in keys.entries.items() if key.startswith(prefix)}
        return Snapshot(keys.revision, entries)

    async def watch(self, prefix: str, *, after: int) -> AsyncGenerator[Batch, None]:
        while True:
            keys = self._keys()
            if keys.revision != after:
                changes = keys.since(after, prefix)
                after = keys.revision
                yield Batch(after, changes)
            await asyncio.sleep(_POLL)

    async def put(self, key: str, value: bytes, *, expect: int, lease: int | None = None) -> int:
        return self._keys().put(key, value, expect=expect, lease=lease)

    async def delete(self, key: str, *, expect: int) -> None:
        self._keys().delete(key, expect=expect)

    async def grant(self, ttl: int, *, lease: int = 0) -> int:
        return self._keys().grant(ttl, lease=lease, now=self._monotonic())

    async def keep_alive(self, lease: int) -> float:
        return self._keys().keep_alive(lease, now=self._monotonic())

    async def time_left(self, lease: int) -> float:
        return self._keys().lease(lease).ends - self._monotonic()

    async def revoke(self, lease: int) -> None:
        self._keys().revoke(lease)

    def _keys(self) -> Keys:
        """Returns the content without what has expired."""
        if not self.available:
            raise StoreUnavailableError("the store in memory is not available")
        self._content.expire(self._monotonic())
        return self._content
