"""What happens to a tunnel, for those who listen."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Self
from weakref import WeakSet

from tunnel.types import Event, EventsLost

MOST = 1024
"""Events kept for one listener."""


class Listener:
    """Every event from when it was made, in order; ends when the tunnel is closed."""

    def __init__(self) -> None:
        self._waiting: deque[Event] = deque()
        self._lost = 0
        self._closed = False
        self._changed = asyncio.Event()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """Cancelled, no event is lost."""
        while not self._waiting:
            if self._closed:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        if self._lost:
            lost, self._lost = self._lost, 0
            return EventsLost(lost)
        return self._waiting.popleft()

    def put(self, event: Event) -> None:
        """The oldest go where there are too many, and that is told."""
        if len(self._waiting) == MOST:
            self._waiting.popleft()
            self._lost += 1
        self._waiting.append(event)
        self._changed.set()

    def close(self) -> None:
        """It ends behind what is waiting."""
        self._closed = True
        self._changed.set()


class Events:
    """Tells everybody who listens. Who has stopped need not say so."""

    def __init__(self) -> None:
        self._listeners: WeakSet[Listener] = WeakSet()
        self._closed = False

    def listen(self) -> Listener:
        listener = Listener()
        self._listeners.add(listener)
        if self._closed:
            listener.close()
        return listener

    def tell(self, event: Event) -> None:
        for listener in self._listeners:
            listener.put(event)

    def close(self) -> None:
        """Listeners end when they have seen what there is."""
        self._closed = True
        for listener in self._listeners:
            listener.close()
