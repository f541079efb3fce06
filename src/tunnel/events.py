"""Events of a tunnel, and their subscribers."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Self
from weakref import WeakSet

from tunnel.types import Endpoint, Mac, Prefix


@dataclass(frozen=True)
class PeerAdded:
    """A peer was added."""

    endpoint: Endpoint


@dataclass(frozen=True)
class PeerRemoved:
    """A peer was removed."""

    endpoint: Endpoint


@dataclass(frozen=True)
class PeerChanged:
    """The prefixes or the configured MAC of a peer changed."""

    endpoint: Endpoint


@dataclass(frozen=True)
class PeerUp:
    """A peer answered, for the first time or after it was silent."""

    endpoint: Endpoint


@dataclass(frozen=True)
class PeerSilent:
    """A peer that answered before does not answer any more."""

    endpoint: Endpoint


@dataclass(frozen=True)
class PathChanged:
    """`mtu` is the largest inner packet that reaches the peer, in bytes; None if unknown."""

    endpoint: Endpoint
    mtu: int | None


@dataclass(frozen=True)
class MacChanged:
    """The VTEP of a peer has another MAC: it was restarted or replaced."""

    endpoint: Endpoint
    mac: Mac
    before: Mac


@dataclass(frozen=True)
class OffloadLost:
    """An offload failed at run time and was turned off."""

    offload: str


@dataclass(frozen=True)
class SubnetsChanged:
    """The store granted `subnets` to this node; `before` is empty the first time."""

    subnets: tuple[Prefix, ...]
    before: tuple[Prefix, ...]


@dataclass(frozen=True)
class SubnetsLost:
    """The key of this node was deleted or taken. Packets flow while it acquires others."""

    subnets: tuple[Prefix, ...]
    why: str


@dataclass(frozen=True)
class StoreLost:
    """The store does not answer any more. The peers remain."""

    address: str
    why: str


@dataclass(frozen=True)
class StoreFound:
    """The store answers, for the first time or again."""

    address: str


@dataclass(frozen=True)
class EventsLost:
    """The subscriber was too slow: `count` events before the next one were discarded."""

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
"""The most events queued for one subscriber."""


class Listener:
    """Yields every event since it was created, in order; ends when the tunnel is closed."""

    def __init__(self) -> None:
        self._waiting: deque[Event] = deque()
        self._lost = 0
        self._closed = False
        self._changed = asyncio.Event()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """Waits for the next event. If cancelled, no event is lost."""
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
        """Queues an event. A full queue loses its oldest, which an EventsLost reports."""
        if len(self._waiting) == MOST:
            self._waiting.popleft()
            self._lost += 1
        self._waiting.append(event)
        self._changed.set()

    def close(self) -> None:
        """Ends the iteration after the queued events."""
        self._closed = True
        self._changed.set()


class Events:
    """Distributes events to all subscribers. An unreferenced subscriber is dropped."""

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
        """Ends every subscription after its queued events."""
        self._closed = True
        for listener in self._listeners:
            listener.close()
