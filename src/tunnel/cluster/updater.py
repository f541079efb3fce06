"""
Keeps the peers and subnets of a tunnel as the store has them.

    Batch, Snapshot  ->  Roster  ->  peers to add, change, remove  ->  Tunnel.change_peers
    subnets of the keeper        ->  Tunnel.renumber, and the file with the identity
                                 ->  the file of members

Changes wait until the tunnel has accepted or refused them; a peer that it refused is tried again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace

from tunnel.cluster.connection import StoreConnection
from tunnel.cluster.network import join_prefixes
from tunnel.cluster.roster import LINGER, Difference, Roster
from tunnel.cluster.state import Identity, State
from tunnel.cluster.stores.base import Batch, Snapshot
from tunnel.config.node import Config
from tunnel.errors import ConfigError, StoreRefusedError, StoreUnavailableError, TunnelError
from tunnel.tunnel import Tunnel
from tunnel.types import Endpoint, Peer, Prefix

log = logging.getLogger(__name__)

_CALM = 0.25  # seconds for which changes are collected before they are applied
_RETRY = 30.0  # seconds until a change that was refused is tried again
_SAVE = 2.0  # seconds between two writes of the members to disk, at least

Update = Batch | Snapshot | tuple[Prefix, ...]
"""A change of the store, or the subnets that this node has from now on."""


@dataclass(frozen=True)
class _Refusal:
    """A peer that the tunnel refused, why, and when it is tried again."""

    peer: Peer
    why: str
    due: float


class PeerUpdater:
    """
    Applies what other tasks learn to a tunnel that is open.

    Args:
        roster: The other nodes; only the updater changes it.
        identity: The node's identity, as on disk.
        configure: Makes the configuration of the tunnel for other subnets.
        updates: The changes to apply.
        prefix: The prefix of all keys of the cluster.
    """

    def __init__(
        self,
        tunnel: Tunnel,
        *,
        roster: Roster,
        connection: StoreConnection,
        state: State,
        identity: Identity,
        configure: Callable[[tuple[Prefix, ...]], Config],
        updates: asyncio.Queue[Update],
        prefix: str,
    ) -> None:
        self._tunnel, self._roster, self._connection = tunnel, roster, connection
        self._state, self._identity = state, identity
        self._configure, self._updates = configure, updates
        self._name, self._prefix, self._has_run = tunnel.config.name, prefix, False
        self._subnets = tunnel.config.subnets
        configured = {peer.endpoint: peer for peer in tunnel.config.peers}
        # None removes the peer.
        self._pending: dict[Endpoint, Peer | None] = {
            peer.endpoint: peer for peer in roster.peers if configured.get(peer.endpoint) != peer
        }
        self._refused: dict[Endpoint, _Refusal] = {}
        self._applying = asyncio.Lock()
        self._retry_at = 0.0  # after the tunnel refused a change as a whole
        self._unsaved, self._saved_at = True, 0.0

    async def run(self) -> None:
        """Applies updates until it is cancelled. Run again after a failure, it reads the store: an
        update may have been lost with that."""
        if self._has_run:
            await self._read_store()
        self._has_run = True
        while True:
            await self._wait_for_updates(until=self._due())
            self._read_updates()
            now = time.monotonic()
            if self._connection.is_settled(now):
                self._collect(self._roster.tick(now=now))
            for endpoint, refusal in self._refused.items():
                if now >= refusal.due:
                    self._pending.setdefault(endpoint, refusal.peer)
            if now >= self._retry_at:
                await self._try_to_apply()
            if now >= self._saved_at + _SAVE:
                await self.save()
            await asyncio.sleep(_CALM)

    async def _read_store(self) -> None:
        # If the store does not answer, the follower reads it once it does.
        with suppress(StoreUnavailableError, StoreRefusedError):
            store = self._connection.store
            self._updates.put_nowait(await self._connection.ask(store.read(self._prefix)))

    async def reload(self, peers: Iterable[Peer]) -> None:
        """
        Replaces the configured peers. If cancelled, it still completes.

        Raises:
            TunnelError: The tunnel refused one of them. The others are applied.
        """
        configured = tuple(peers)
        self._collect(self._roster.configure(configured))
        await self.apply()
        for peer in configured:
            if peer.endpoint in self._refused:
                raise TunnelError(self._refused[peer.endpoint].why)

    async def apply(self) -> None:
        """Applies all changes that wait. Raises TunnelError if the tunnel refuses all of them."""
        async with self._applying:
            # A change that fails stays pending, and is tried again.
            pending = dict(self._pending)
            added = {endpoint: peer for endpoint, peer in pending.items() if peer is not None}
            removed = [endpoint for endpoint in pending if endpoint not in added]
            if self._subnets != self._tunnel.config.subnets:
                # The new subnets may have been a peer's, and a peer may own the old ones now.
                removed += added.keys() & set(self._tunnel.peers)
                await self._tunnel.change_peers(remove=removed)
                await self._move()
            elif not pending:
                return
            refused = await self._tunnel.change_peers(add=added.values(), remove=removed)
            for endpoint, peer in pending.items():
                self._refused.pop(endpoint, None)
                if self._pending[endpoint] is peer:  # else it has changed meanwhile
                    del self._pending[endpoint]
            for endpoint, error in refused.items():
                self._refuse(added[endpoint], str(error))

    async def save(self) -> None:
        """Writes the members to disk if they have changed."""
        if not self._unsaved:
            return
        self._unsaved, self._saved_at = False, time.monotonic()
        try:
            await asyncio.to_thread(self._state.save_members, self._roster.snapshot)
        except ConfigError as error:
            log.error("%s: %s", self._name, error)
        except asyncio.CancelledError:
            self._unsaved = True  # closing writes it again
            raise

    async def _wait_for_updates(self, *, until: float | None) -> None:
        seconds = None if until is None else max(0.0, until - time.monotonic())
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                self._read(await self._updates.get())

    def _read_updates(self) -> None:
        while not self._updates.empty():
            self._read(self._updates.get_nowait())

    def _read(self, update: Update) -> None:
        now = time.monotonic()
        match update:
            case Snapshot():
                self._collect(self._roster.read(update, now=now))
            case Batch():
                # After an outage the first changes are nodes that could not renew because of it.
                settled = self._connection.is_settled(now)
                until = None if settled else now + LINGER
                self._collect(self._roster.changed(update, until=until))
            case _:
                self._subnets = update
                self._collect(self._roster.set_own_subnets(update))

    def _collect(self, difference: Difference) -> None:
        for problem in difference.problems:
            log.warning("%s: %s", self._name, problem)
        self._pending |= dict.fromkeys(difference.remove)
        self._pending |= {one.endpoint: one for one in (*difference.change, *difference.add)}
        self._unsaved = True

    def _due(self) -> float | None:
        """When the next action is due even if no update arrives."""
        due = [refusal.due for refusal in self._refused.values()]
        if self._pending or self._subnets != self._tunnel.config.subnets:
            due.append(self._retry_at)
        if self._unsaved:
            due.append(self._saved_at + _SAVE)
        settled_at = self._connection.settled_at
        tick = self._roster.next_tick(time.monotonic())
        if tick is not None and settled_at is not None:
            due.append(max(tick, settled_at))
        return min(due, default=None)

    async def _try_to_apply(self) -> None:
        try:
            await self.apply()
            await self._save_identity()
        except TunnelError as error:
            log.error("%s: %s", self._name, error)
            self._retry_at = time.monotonic() + _RETRY

    async def _move(self) -> None:
        before = self._tunnel.config.subnets
        await self._tunnel.renumber(self._configure(self._subnets))
        log.warning(
            "%s: has %s now, not %s: recreate the containers with addresses in the old subnet",
            self._name,
            join_prefixes(self._subnets),
            join_prefixes(before),
        )

    async def _save_identity(self) -> None:
        if self._subnets == self._identity.subnets:
            return
        self._identity = replace(self._identity, subnets=self._subnets)
        try:
            await asyncio.to_thread(self._state.save_identity, self._identity)
        except ConfigError as error:
            log.error("%s: %s", self._name, error)

    def _refuse(self, peer: Peer, why: str) -> None:
        before = self._refused.get(peer.endpoint)
        if before is None or before.why != why:
            log.warning("%s: peer %s is left out: %s", self._name, peer.endpoint, why)
        self._refused[peer.endpoint] = _Refusal(peer, why, time.monotonic() + _RETRY)
