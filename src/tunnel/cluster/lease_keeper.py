"""
Acquires the subnets of a node and renews their lease, for as long as the node runs.

    batches and snapshots of the follower  ->  LeaseKeeper  ->  writes to the store
                                                            ->  queue of subnets, for the updater

:mod:`tunnel.cluster.lease` decides what to read and write; this module has the store and the clock.

A write whose answer is lost leaves a lease of unknown fate behind. So the keeper chooses the id of
a lease itself and uses it for every attempt until one is answered: however many answers are lost,
there is at most one such lease.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from tunnel.cluster.connection import StoreConnection
from tunnel.cluster.lease import (
    Acquired,
    Claim,
    Delete,
    Doubled,
    Exhausted,
    LeaseEvent,
    Lost,
    Put,
    Read,
    Wait,
)
from tunnel.cluster.network import join_prefixes
from tunnel.cluster.stores.base import Batch, Entry, Snapshot
from tunnel.errors import (
    ConflictError,
    LeaseExpiredError,
    StoreError,
    StoreRefusedError,
    StoreUnavailableError,
)
from tunnel.events import SubnetsChanged, SubnetsLost
from tunnel.types import Prefix

log = logging.getLogger(__name__)


class SubnetsReader(Protocol):
    """A queue that takes subnets, and possibly more."""

    def put_nowait(self, subnets: tuple[Prefix, ...], /) -> None: ...


class LeaseKeeper:
    """
    Applies the decisions of a :class:`Claim` to the store.

    Args:
        acquired: Receives the subnets of the node, each time that they change.
        prefix: The prefix of all keys of the cluster.
        name: The node, for the log.
        identity_path: The file with the node's id, for the log.

    Attributes:
        changes: What the follower reads: a Batch, or a Snapshot after changes were missed.
        problem: Why the node has no subnet yet, empty if it has one.
    """

    def __init__(
        self,
        claim: Claim,
        connection: StoreConnection,
        *,
        acquired: SubnetsReader,
        prefix: str,
        name: str,
        identity_path: Path,
    ) -> None:
        self.claim = claim
        self.changes: asyncio.Queue[Batch | Snapshot] = asyncio.Queue()
        self.problem = ""
        self._connection, self._store = connection, connection.store
        self._acquired = acquired
        self._prefix, self._name, self._identity_path = prefix, name, identity_path
        self._known = Snapshot(0, {})  # as read last, or the node's key as written last
        self._next_lease = _new_lease()
        self._has_run = False

    async def acquire(self) -> tuple[Prefix, ...]:
        """The node's subnets, once the store has granted some."""
        while not self.claim.subnets:
            await self._advance()
        return self.claim.subnets

    async def run(self) -> None:
        """Keeps the lease until it is cancelled. Run again after a failure, it reads the store: a
        change may have been lost with that."""
        if self._has_run:
            self.claim.missed()
        self._has_run = True
        while True:
            await self._advance()

    async def _advance(self) -> None:
        """Performs the next step of the claim."""
        while not self.changes.empty():
            self._apply(self.changes.get_nowait())
        step = self.claim.step(now=time.monotonic())
        try:
            match step:
                case Wait(until):
                    await self._wait(until)
                case Read():
                    self._known = await self._connection.ask(self._store.read(self._prefix))
                    self._report(self.claim.read(self._known, now=time.monotonic()))
                case Put():
                    await self._put(step)
                case Delete(key, expect):
                    await self._connection.ask(self._store.delete(key, expect=expect))
                    self.claim.deleted(step)
        except ConflictError:
            self.claim.conflict(now=time.monotonic())
        except (StoreUnavailableError, StoreRefusedError):
            self.claim.away(now=time.monotonic())
        except LeaseExpiredError:
            self._next_lease = _new_lease()
            self.claim.away(now=time.monotonic())
        except Exception:
            self.claim.away(now=time.monotonic())  # the write may have been done
            raise

    async def _wait(self, until: float | None) -> None:
        """Waits for that time, or for a change of the store."""
        seconds = None if until is None else max(0.0, until - time.monotonic())
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                self._apply(await self.changes.get())

    def _apply(self, change: Batch | Snapshot) -> None:
        if isinstance(change, Batch):
            self.claim.changed(change)
        else:
            self.claim.missed()

    async def _put(self, put: Put) -> None:
        lease = None
        if put.ttl is not None:
            lease = await self._connection.ask(self._store.grant(put.ttl, lease=self._next_lease))
        revision = await self._connection.ask(
            self._store.put(put.key, put.value, expect=put.expect, lease=lease)
        )
        before = self._known.entries.get(put.key)
        self._known = Snapshot(revision, {put.key: Entry(put.value, revision, lease)})
        if lease is not None:
            self._next_lease = _new_lease()
        self._report(self.claim.wrote(put, revision))
        if before is not None and before.revision == put.expect and before.lease != lease:
            await self._revoke(before.lease)

    async def _revoke(self, lease: int | None) -> None:
        """Ends a lease that nothing is bound to any more; failing that, it expires by itself."""
        if lease is not None:
            with suppress(StoreError):
                await self._connection.ask(self._store.revoke(lease))

    def _report(self, events: Iterable[LeaseEvent]) -> None:
        """Logs, publishes and passes on what happened to the subnets."""
        for event in events:
            match event:
                case Acquired(subnets, before):
                    log.info("%s: acquired %s", self._name, join_prefixes(subnets))
                    self.problem = ""
                    self._connection.publish(SubnetsChanged(subnets, before))
                    self._acquired.put_nowait(subnets)
                case Lost(subnets, why):
                    log.error(
                        "%s: lost %s: %s (acquiring subnets again)",
                        self._name,
                        join_prefixes(subnets),
                        why,
                    )
                    self._connection.publish(SubnetsLost(subnets, why))
                case Exhausted(why):
                    log.error("%s: %s", self._name, why)
                    self.problem = why
                case Doubled(where):
                    log.error(
                        "%s: %s has the same node id, from a copy of %s (remove the copy, so "
                        "that the host becomes a new node)",
                        self._name,
                        where,
                        self._identity_path,
                    )


def _new_lease() -> int:
    """A lease id that no other node chooses; etcd's ids are positive and have 63 bits."""
    return secrets.randbits(62) + 1
