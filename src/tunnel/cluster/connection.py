"""
A store and whether it answers.

    a request  ->  its answer, or the error of the store
               ->  connected or not, since when and why; a change is logged and published
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from random import Random
from typing import TypeVar

from tunnel.cluster.roster import LINGER
from tunnel.cluster.stores.base import Store
from tunnel.errors import StoreError, StoreRefusedError, StoreUnavailableError
from tunnel.events import Event, StoreFound, StoreLost

log = logging.getLogger(__name__)

T = TypeVar("T")

_SHORTEST, _LONGEST = 0.25, 10.0  # seconds between attempts, doubled with each failure in a row


class StoreConnection:
    """
    Records the outcome of every request to a store.

    Args:
        name: The node, for the log.

    Attributes:
        connected: Whether the last request was answered, None before the first.
        since: When `connected` changed last, in monotonic seconds.
        why: Why the store does not answer, empty if it does.
        publish: Receives the events of a cluster; drops them until it is set.
    """

    def __init__(self, store: Store, *, name: str) -> None:
        self.store = store
        self.connected: bool | None = None
        self.since = time.monotonic()
        self.why = "not asked yet"
        self.publish: Callable[[Event], None] = lambda event: None
        self._name = name
        self._random = Random()

    async def ask(self, request: Awaitable[T]) -> T:
        """The answer to `request`. Raises what the store raises."""
        try:
            answer = await request
        except (StoreUnavailableError, StoreRefusedError) as error:
            self.record(str(error))
            raise
        except StoreError:
            self.record("")
            raise
        self.record("")
        return answer

    def record(self, why: str) -> None:
        """Records that the store answers if `why` is empty, or else why it does not."""
        before, self.why, self.connected = self.connected, why, not why
        if self.connected == before:
            return
        self.since = time.monotonic()
        if why and before is None:
            return  # the caller reports the first failure
        if why:
            log.warning("%s: continues without the store: %s", self._name, why)
            self.publish(StoreLost(self.store.address, why))
        else:
            log.info("%s: the store answers at %s", self._name, self.store.address)
            self.publish(StoreFound(self.store.address))

    @property
    def settled_at(self) -> float | None:
        """When every node has had time to write its record again; None while disconnected."""
        return self.since + LINGER if self.connected else None

    def is_settled(self, now: float) -> bool:
        """Whether that time has passed."""
        return self.settled_at is not None and now >= self.settled_at

    async def pause(self, failures: int) -> None:
        """Waits before the next attempt, for a random time: nodes that lost the store together do
        not return together."""
        longest = min(_LONGEST, _SHORTEST * 2 ** min(failures, 16))
        await asyncio.sleep(longest * self._random.uniform(0.5, 1))
