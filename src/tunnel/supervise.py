"""
Long-lived tasks that survive their own faults.

    a task fails unexpectedly  ->  logged, restarted with backoff, unhealthy meanwhile

A task is a coroutine function that runs until it is cancelled. It handles the errors that it
expects. An error that reaches the supervisor is a bug, or unexpected behaviour of the operating
system: it must neither end another task nor go unnoticed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

from tunnel.status import TaskHealth

log = logging.getLogger(__name__)

SHORTEST, LONGEST = 0.5, 30.0
"""Seconds before a restart; doubled with each failure in a row, up to the longest."""


class Supervisor:
    """
    The long-lived tasks of one node.

    Args:
        owner: Name of the node, for the log.
        changed: Called when the health of a task has changed.
    """

    def __init__(self, owner: str, *, changed: Callable[[], None] = lambda: None) -> None:
        self._owner, self._changed = owner, changed
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._health: dict[str, TaskHealth] = {}

    @property
    def tasks(self) -> tuple[TaskHealth, ...]:
        """The health of each task, in the order of their start."""
        return tuple(self._health.values())

    @property
    def healthy(self) -> bool:
        """Whether every task is healthy."""
        return all(task.healthy for task in self._health.values())

    def start(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Runs `work` until :meth:`stop` or :meth:`close`; a return ends it for good. A task that
        ended is healthy, whatever happened before."""
        assert name not in self._tasks, f"{name} is already running"
        self._health[name] = TaskHealth(name)
        self._tasks[name] = asyncio.create_task(self._keep(name, work), name=name)

    async def stop(self, names: Iterable[str]) -> None:
        """Cancels tasks and waits for their end; ignores names of tasks that do not run."""
        ending = {name: task for name in names if (task := self._tasks.pop(name, None)) is not None}
        for task in ending.values():
            task.cancel()
        await asyncio.gather(*ending.values(), return_exceptions=True)
        for name in ending:
            self._ended(name)

    async def close(self) -> None:
        """Cancels every task and waits for their end."""
        await self.stop(tuple(self._tasks))

    def failed(self, name: str, error: BaseException) -> None:
        """Records that `name` failed, which may be a task or a thread."""
        before = self._health.get(name, TaskHealth(name))
        why = f"{type(error).__name__}: {error}"
        # Log the traceback once: a repeated fault would fill the log.
        repeated = why == before.why
        log.error(
            "%s: %s failed: %s (restarting it)",
            self._owner,
            name,
            why,
            exc_info=None if repeated else error,
        )
        self._set(TaskHealth(name, healthy=False, failures=before.failures + 1, why=why))

    def recovered(self, name: str) -> None:
        """Records that `name` runs again."""
        before = self._health.get(name, TaskHealth(name))
        if not before.healthy:
            log.info("%s: %s runs again", self._owner, name)
            self._set(TaskHealth(name, failures=before.failures, why=before.why))

    def _ended(self, name: str) -> None:
        before = self._health[name]
        if not before.healthy:
            self._set(TaskHealth(name, failures=before.failures, why=before.why))

    def _set(self, health: TaskHealth) -> None:
        self._health[health.name] = health
        self._changed()

    async def _keep(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        loop, pause = asyncio.get_running_loop(), SHORTEST
        while True:
            begun = loop.time()
            proven = loop.call_later(pause, self.recovered, name)
            try:
                await work()
                self._ended(name)
                return
            except Exception as error:
                self.failed(name, error)
            finally:
                proven.cancel()
            # After a long run the pauses start over.
            pause = SHORTEST if loop.time() - begun > LONGEST else pause
            await asyncio.sleep(pause)
            pause = min(LONGEST, 2 * pause)


async def finish(task: asyncio.Task[None]) -> None:
    """
    Waits for the end of a task that has to finish, like closing.

    Cancelled, however often, it waits all the same, and then raises CancelledError. Otherwise it
    raises what the task raised.
    """
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    task.result()
