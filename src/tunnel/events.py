"""What happens to a tunnel, for those who listen."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from tunnel.types import Event, EventsLost

_MOST = 1024  # kept for one listener


class _Listener:
    def __init__(self) -> None:
        self.waiting: deque[Event] = deque()
        self.lost = 0
        self.ready = asyncio.Event()


class Events:
    """Each listener gets every event that happens after it began, in order."""

    def __init__(self) -> None:
        self._listeners: set[_Listener] = set()
        self._closed = False

    def tell(self, event: Event) -> None:
        for listener in self._listeners:
            if len(listener.waiting) == _MOST:
                listener.waiting.popleft()
                listener.lost += 1
            listener.waiting.append(event)
            listener.ready.set()

    def close(self) -> None:
        """Listeners end when they have seen what there is."""
        self._closed = True
        for listener in self._listeners:
            listener.ready.set()

    async def listen(self) -> AsyncIterator[Event]:
        listener = _Listener()
        self._listeners.add(listener)
        try:
            while listener.waiting or not self._closed:
                if not listener.waiting:
                    listener.ready.clear()
                    await listener.ready.wait()
                    continue
                if listener.lost:
                    yield EventsLost(listener.lost)
                    listener.lost = 0
                yield listener.waiting.popleft()
        finally:
            self._listeners.discard(listener)
