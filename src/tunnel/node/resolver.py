"""
Resolves the names of peers: when they are added, and again when they are silent.

    Resolve  ->  look-up  ->  PeerTable.resolved  ->  actions  ->  Driver

An address that cannot be used, say because no socket of its family opens, is discarded: the peer
keeps the one it had, and its name is resolved again later.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable

from tunnel.errors import TunnelError
from tunnel.linux.underlay import Underlay
from tunnel.node.driver import Driver
from tunnel.node.ticker import Ticker
from tunnel.node.workers import Workers
from tunnel.protocol.peer_table import Action, PeerTable, Resolve
from tunnel.supervise import Supervisor
from tunnel.types import Endpoint

log = logging.getLogger(__name__)

NAMES = "name resolution"
"""Name of the supervised task."""


class Resolver:
    """
    Args:
        changing: Held while the kernel or the packet path is changed for a peer.
    """

    def __init__(
        self,
        table: PeerTable,
        *,
        driver: Driver,
        underlay: Underlay,
        workers: Workers,
        supervisor: Supervisor,
        changing: asyncio.Lock,
    ) -> None:
        self._table, self._driver = table, driver
        self._underlay, self._workers = underlay, workers
        self._supervisor, self._changing = supervisor, changing
        self._ticker = Ticker(self._tick)
        self._lookups: dict[asyncio.Task[None], Endpoint] = {}
        self._closed = False

    def start(self) -> None:
        """Starts the task that resolves names again."""
        self._supervisor.start(NAMES, self._ticker.run)

    async def close(self) -> None:
        """Cancels look-ups; none is started any more."""
        self._closed = True
        for task in self._lookups:
            task.cancel()
        await asyncio.gather(*self._lookups, return_exceptions=True)

    def wake(self) -> None:
        """Makes the task check which name is due, after peers changed."""
        self._ticker.wake(self._table.next_tick(time.monotonic()))

    def look_up(self, actions: Iterable[Action]) -> None:
        """Starts a look-up for each :class:`Resolve` among `actions`."""
        for action in actions:
            if isinstance(action, Resolve) and not self._closed:
                task = asyncio.create_task(self.resolve(action.endpoint))
                self._lookups[task] = action.endpoint
                task.add_done_callback(self._lookups.pop)

    def _tick(self, now: float) -> float | None:
        received = dict(enumerate(self._workers.received()))
        self.look_up(self._table.tick(received, now=now))
        return self._table.next_tick(now)

    async def resolve(self, endpoint: Endpoint) -> None:
        """Resolves the name of a peer and applies the answer."""
        answer = await self._underlay.resolve(endpoint)
        async with self._changing:
            if endpoint not in self._table:  # removed in the meantime
                return
            before = self._table.address(endpoint)
            actions = self._table.resolved(endpoint, answer, now=time.monotonic())
            error = await self._apply(endpoint, actions)
            if error is not None:
                now = time.monotonic()
                reverted = self._table.revert(endpoint, before, error, now=now)
                await self._apply(endpoint, reverted)
        self.wake()

    async def _apply(self, endpoint: Endpoint, actions: Iterable[Action]) -> TunnelError | None:
        """Returns why the actions could not be applied."""
        try:
            return (await self._driver.apply(actions)).get(endpoint)
        except Exception as error:
            self._supervisor.failed(NAMES, error)
            return TunnelError(f"{type(error).__name__}: {error}")
