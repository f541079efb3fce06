"""
Follows a store: passes on every change, and the whole content after changes were missed.

    watch  ->  Batch     ->  a queue for each reader
    read   ->  Snapshot  ->
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import aclosing, suppress
from typing import Protocol

from tunnel.cluster.connection import StoreConnection
from tunnel.cluster.stores.base import Batch, Snapshot
from tunnel.errors import StoreRefusedError, StoreUnavailableError, WatchGapError

log = logging.getLogger(__name__)


class ChangeReader(Protocol):
    """A queue that takes changes of the store, and possibly more."""

    def put_nowait(self, change: Batch | Snapshot, /) -> None: ...


class StoreFollower:
    """
    Watches all keys under a prefix.

    Args:
        revision: The state that the readers know already.
        readers: Queues for the changes.
        name: The node, for the log.
    """

    def __init__(
        self,
        connection: StoreConnection,
        *,
        prefix: str,
        revision: int,
        readers: Sequence[ChangeReader],
        name: str,
    ) -> None:
        self._connection, self._store = connection, connection.store
        self._prefix, self._revision, self._readers = prefix, revision, readers
        self._name = name

    async def run(self) -> None:
        """Follows the store until it is cancelled."""
        failures = 0
        while True:
            try:
                watch = self._store.watch(self._prefix, after=self._revision)
                async with aclosing(watch) as batches:
                    async for batch in batches:
                        failures = 0
                        self._connection.record("")
                        self._pass_on(batch)
            except WatchGapError as error:
                log.info("%s: %s", self._name, error)
            except (StoreUnavailableError, StoreRefusedError) as error:
                self._connection.record(str(error))
            await self._connection.pause(failures)
            failures += 1
            # Not only after a gap: an etcd that was restored from a backup has other revisions.
            with suppress(StoreUnavailableError, StoreRefusedError):
                self._pass_on(await self._connection.ask(self._store.read(self._prefix)))

    def _pass_on(self, change: Batch | Snapshot) -> None:
        self._revision = change.revision
        for reader in self._readers:
            reader.put_nowait(change)
