"""What happens to a tunnel, for those who listen."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Self
from weakref import WeakSet

from tunnel.types import Endpoint, Mac, Prefix


@dataclass(frozen=True)
class PeerAdded:
    endpoint: Endpoint


@dataclass(frozen=True)
class PeerRemoved:
    endpoint: Endpoint


@dataclass(frozen=True)
class PeerChanged:
    """It owns other prefixes than before, or another MAC was configured for it."""

    endpoint: Endpoint


@dataclass(frozen=True)
class PeerUp:
    """It answered, for the first time or again."""

    endpoint: Endpoint


@dataclass(frozen=True)
class PeerSilent:
    """It answered before, and does not now."""

    endpoint: Endpoint


@dataclass(frozen=True)
class PathChanged:
    """`mtu` is the largest inner packet that reaches the peer, in bytes."""

    endpoint: Endpoint
    mtu: int | None


@dataclass(frozen=True)
class MacChanged:
    """A peer's VTEP has another MAC than before: it was restarted, or replaced."""

    endpoint: Endpoint
    mac: Mac
    before: Mac


@dataclass(frozen=True)
class OffloadLost:
    """Turned off at run time, for it did not work."""

    offload: str


@dataclass(frozen=True)
class SubnetsChanged:
    """This node has got these; `before` is what it had, empty the first time."""

    subnets: tuple[Prefix, ...]
    before: tuple[Prefix, ...]


@dataclass(frozen=True)
class SubnetsLost:
    """Somebody took our key away, or has it now. Packets go on while others are acquired."""

    subnets: tuple[Prefix, ...]
    why: str


@dataclass(frozen=True)
class StoreLost:
    """The store does not answer any more; who was a peer stays one."""

    address: str
    why: str


@dataclass(frozen=True)
class StoreFound:
    """The store answers, for the first time or again."""

    address: str


@dataclass(frozen=True)
class EventsLost:
    """Who listens did not keep up, and missed so many before the next one."""

    count: int


Event = (
    PeerAdded
    | PeerRemoved
    | PeerChanged
    | PeerUp
    | PeerSilent
    | PathChanged
    | MacChanged
    | OffloadLost
    | SubnetsChanged
    | SubnetsLost
    | StoreLost
    | StoreFound
    | EventsLost
)


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

    def subscribe(self) -> Listener:
        listener = Listener()
        self._listeners.add(listener)
        if self._closed:
            listener.close()
        return listener

    def emit(self, event: Event) -> None:
        for listener in self._listeners:
            listener.put(event)

    def close(self) -> None:
        """Listeners end when they have seen what there is."""
        self._closed = True
        for listener in self._listeners:
            listener.close()
