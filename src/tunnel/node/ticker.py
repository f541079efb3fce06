"""A supervised task that calls a function whenever it is due."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

_ROUNDING = 1e-3  # seconds; uvloop rounds to milliseconds, and a tick before its time does nothing


class Ticker:
    """
    Sleeps until a tick is due. The first tick is due at once, also after a failure and a restart.

    Args:
        tick: Does what is due at a time in monotonic seconds, and returns when the next tick is
            due, None if none is.
    """

    def __init__(self, tick: Callable[[float], float | None]) -> None:
        self._tick = tick
        self._due: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._rang = asyncio.Event()
        self._running = False

    async def run(self) -> None:
        """Ticks until it is cancelled; raises what a tick raises."""
        self._running = True
        self._rang.set()
        try:
            while True:
                await self._rang.wait()
                self._rang.clear()
                self._due = None
                self.wake(self._tick(time.monotonic()))
        finally:
            self._running = False
            self._cancel()

    def wake(self, due: float | None) -> None:
        """Makes a tick due at `due`, in monotonic seconds, unless one is due before. Does nothing
        for None, or while the task does not run."""
        if not self._running or due is None or (self._due is not None and self._due <= due):
            return
        self._cancel()
        self._due = due
        # Not the loop's own clock, which uvloop reads once an iteration and in milliseconds.
        delay = max(0.0, due - time.monotonic()) + _ROUNDING
        self._timer = asyncio.get_running_loop().call_later(delay, self._rang.set)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = self._timer = None
