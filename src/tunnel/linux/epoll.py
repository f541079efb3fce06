"""Waiting for packets: in the event loop, or in a thread of its own."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import threading
from collections.abc import Callable
from typing import Protocol


class Mover(Protocol):
    """What moves packets: a :class:`tunnel._native.Forwarder`."""

    def move(self) -> bool: ...
    def run(self, watch: int, stop: int, /) -> bool: ...


class Poller:
    """
    Has packets moved, in the running loop, whenever a descriptor is readable.

    The descriptors are in an epoll of their own, and the loop watches that. Since Linux 6.13
    epoll passes on that a socket's wake-up is "synchronous": the scheduler takes the waker,
    a busy sender, for one that is about to sleep, and puts us behind it on its CPU. A second
    epoll wakes the loop as any event does. On two cores this moved 40 % more small packets.

    Args:
        attend: Called when something other than packets is to be seen to.
        failed: Called with the error when a descriptor is of no use; nothing moves then.
    """

    def __init__(
        self, mover: Mover, *, attend: Callable[[], None], failed: Callable[[OSError], None]
    ) -> None:
        self._mover, self._attend, self._failed = mover, attend, failed
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()

    def add(self, descriptor: int) -> None:
        self._epoll.register(descriptor, select.EPOLLIN)

    def start(self) -> None:
        self._loop.add_reader(self._epoll.fileno(), self._ready)

    def close(self) -> None:
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()

    def _ready(self) -> None:
        try:
            if self._mover.move():
                self._attend()
        except OSError as error:
            self.close()
            self._failed(error)


class ThreadedPoller(Poller):
    """
    The same in a thread that never comes back to Python while packets move. Callbacks are
    called in the loop.
    """

    def __init__(
        self, mover: Mover, *, attend: Callable[[], None], failed: Callable[[OSError], None]
    ) -> None:
        super().__init__(mover, attend=attend, failed=failed)
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._outer = select.epoll()
        self._outer.register(self._epoll.fileno(), select.EPOLLIN)
        self._outer.register(self._stop, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name="tunnel worker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Returns when the last batch has been moved."""
        if self._epoll.closed:
            return
        os.eventfd_write(self._stop, 1)
        if self._thread.ident is not None:
            self._thread.join()
        self._outer.close()
        self._epoll.close()
        os.close(self._stop)

    def _run(self) -> None:
        # Signals are for the thread of the loop.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            while self._mover.run(self._outer.fileno(), self._stop):
                self._loop.call_soon_threadsafe(self._tell, self._attend)
        except OSError as error:
            self._loop.call_soon_threadsafe(self._tell, self._failed, error)

    def _tell(self, callback: Callable[..., None], *what: OSError) -> None:
        """In the loop; closed in the meantime, nobody wants to know any more."""
        if not self._epoll.closed:
            callback(*what)
