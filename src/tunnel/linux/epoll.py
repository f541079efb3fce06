"""Moves packets whenever a descriptor is readable: in the event loop, or in a thread."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import threading
from collections.abc import Callable
from typing import Protocol


class Mover(Protocol):
    """An object that moves packets: a :class:`tunnel._native.Forwarder`."""

    def move(self) -> bool: ...
    def run(self, epoll: int, stop: int, /) -> bool: ...


class Poller:
    """
    Moves packets in the running loop.

    The descriptors are in an epoll of their own, and the loop watches that one. Since Linux 6.13
    epoll passes on that a socket's wake-up is "synchronous": the scheduler assumes that the waker,
    a busy sender, is about to sleep, and queues this process behind it on its CPU. A second epoll
    wakes the loop like any other event. On two cores this moved 40 % more small packets.

    Args:
        attend: Called in the loop when :meth:`Mover.move` returned True.
    """

    def __init__(self, mover: Mover, *, attend: Callable[[], None]) -> None:
        self._mover, self._attend = mover, attend
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._done: asyncio.Future[None] | None = None

    def add(self, descriptor: int) -> None:
        self._epoll.register(descriptor, select.EPOLLIN)

    async def run(self) -> None:
        """
        Moves packets until :meth:`close`. Raises what the mover raises; no packet moves then until
        this is called again. If cancelled, it closes.
        """
        if self._epoll.closed:
            return
        self._done = self._loop.create_future()
        try:
            self._start(self._done)
            await self._done
        except asyncio.CancelledError:
            self.close()
            raise

    def close(self) -> None:
        """Returns when the batch under way is finished. No packet moves any more."""
        if self._epoll.closed:
            return
        self._stop()
        self._epoll.close()
        if self._done is not None:
            self._finish(self._done, None)

    def _start(self, done: asyncio.Future[None]) -> None:
        self._loop.add_reader(self._epoll.fileno(), self._move, done)

    def _stop(self) -> None:
        self._loop.remove_reader(self._epoll.fileno())

    def _move(self, done: asyncio.Future[None]) -> None:
        if done.done():
            return
        try:
            attend = self._mover.move()
        except Exception as error:
            self._stop()
            self._finish(done, error)
            return
        if attend:
            self._attend()

    def _finish(self, done: asyncio.Future[None], error: Exception | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)


class ThreadedPoller(Poller):
    """Moves packets in a thread that does not return to Python while packets keep coming."""

    def __init__(self, mover: Mover, *, attend: Callable[[], None]) -> None:
        super().__init__(mover, attend=attend)
        self._stop_event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._outer = select.epoll()
        self._outer.register(self._epoll.fileno(), select.EPOLLIN)
        self._outer.register(self._stop_event, select.EPOLLIN)
        self._thread: threading.Thread | None = None

    def _start(self, done: asyncio.Future[None]) -> None:
        self._thread = threading.Thread(
            target=self._work, args=(done,), name="tunnel worker", daemon=True
        )
        self._thread.start()

    def _stop(self) -> None:
        os.eventfd_write(self._stop_event, 1)
        if self._thread is not None:
            self._thread.join()
        self._outer.close()
        os.close(self._stop_event)

    def _work(self, done: asyncio.Future[None]) -> None:
        # Signals are handled in the thread of the loop.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        failure: Exception | None = None
        try:
            while self._mover.run(self._outer.fileno(), self._stop_event):
                self._loop.call_soon_threadsafe(self._attend_unless_closed)
        except Exception as error:
            failure = error
        self._loop.call_soon_threadsafe(self._finish, done, failure)

    def _attend_unless_closed(self) -> None:
        if not self._epoll.closed:
            self._attend()
