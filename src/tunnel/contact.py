"""
In contact with peers: asks whether they are there and how large a packet reaches them, and
answers when they ask. The rules are in ``control/``; here are the clock and the sending.

    a letter from a peer, a tick  ->  liveness, paths  ->  echoes, probes; what is new is told
"""

from __future__ import annotations

import asyncio
import logging
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from tunnel.control.frames import Echo, Message, Reply, Sample, Verdict
from tunnel.control.liveness import PATIENCE, Ask, Changed, Health, Liveness
from tunnel.control.path import Fits, Paths, Probe
from tunnel.types import Endpoint

log = logging.getLogger(__name__)

LOOK = 3.0
"""Seconds that one look at the peers' health makes echoes more frequent."""


@dataclass(frozen=True)
class Place:
    """Where a peer is: its index in the packet path, underlay family, largest inner packet that
    the first hop towards it takes, in bytes."""

    index: int
    family: int
    limit: int


class Outlet(Protocol):
    """Sends one message to a peer; `size` pads it, `whole` forbids to fragment it. What cannot
    be sent is lost."""

    def __call__(
        self, endpoint: Endpoint, message: Message, *, size: int = 0, whole: bool = False
    ) -> None: ...


class Contact:
    """
    Args:
        port: Ours, which tells peers who we are beside our address.
        send: See :class:`Outlet`.
        sent: Packets sent to each peer so far.
        news: Called with what changed.
    """

    def __init__(
        self,
        *,
        port: int,
        send: Outlet,
        sent: Callable[[], Mapping[Endpoint, int]],
        news: Callable[[Changed | Fits], None],
    ) -> None:
        self._port, self._send, self._sent, self._news = port, send, sent, news
        self._loop = asyncio.get_running_loop()
        self._liveness, self._paths = Liveness(), Paths()
        self._timer: asyncio.TimerHandle | None = None
        self._before: Mapping[Endpoint, int] = {}
        self._waiting: dict[tuple[type[Message], int], asyncio.Future[Message]] = {}
        self._next_id = 1 << 48  # apart from those of liveness and paths

    def add(self, endpoint: Endpoint, place: Place) -> None:
        now = time.monotonic()
        self._liveness.add(endpoint, now=now)
        self._paths.add(endpoint, family=place.family, limit=place.limit, now=now)
        self._schedule()

    def remove(self, endpoint: Endpoint) -> None:
        self._liveness.remove(endpoint)
        self._paths.remove(endpoint)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for waiter in self._waiting.values():
            waiter.cancel()

    @property
    def health(self) -> Mapping[Endpoint, Health]:
        """Of each peer. Who looks makes us look closer for a while."""
        now = time.monotonic()
        self._liveness.watch(until=now + LOOK, now=now)
        self._schedule()
        return self._liveness.health

    @property
    def path_mtus(self) -> Mapping[Endpoint, int | None]:
        """Largest inner packet that reaches each peer, in bytes, None where that is not known."""
        return self._paths.sizes

    def receive(self, endpoint: Endpoint, message: Message, *, size: int) -> None:
        """Takes a message of `size` bytes from a peer."""
        now = time.monotonic()
        match message:
            case Echo(number):
                self._send(endpoint, Reply(number, self._port, size))
            case Sample(number, _, nth, _, data):
                self._send(endpoint, Verdict(number, self._port, nth, zlib.crc32(data)))
            case Reply(number) as reply:
                self._tell(self._liveness.replied(endpoint, number, now=now))
                self._tell(self._paths.arrived(endpoint, number, now=now))
                self._answer((Reply, number), reply)
            case Verdict(number, _, nth) as verdict:
                self._answer((Verdict, number + nth), verdict)
        self._schedule()

    async def ping(self, endpoint: Endpoint, *, size: int = 0) -> float:
        """
        Seconds until the answer to one echo of `size` bytes, which are not fragmented.

        Raises:
            TimeoutError: There was none.
        """
        number = self._take_ids(1)
        begun = time.monotonic()
        async with asyncio.timeout(PATIENCE):
            waiting = self._expect(Reply, number)
            try:
                self._send(endpoint, Echo(number, self._port), size=size, whole=bool(size))
                await waiting
            finally:
                del self._waiting[Reply, number]
        return time.monotonic() - begun

    def _take_ids(self, count: int) -> int:
        first = self._next_id
        self._next_id += count
        return first

    def _expect(self, kind: type[Message], number: int) -> asyncio.Future[Message]:
        waiting: asyncio.Future[Message] = self._loop.create_future()
        self._waiting[kind, number] = waiting
        return waiting

    def _answer(self, key: tuple[type[Message], int], message: Message) -> None:
        waiting = self._waiting.get(key)
        if waiting is not None and not waiting.done():
            waiting.set_result(message)

    def _tell(self, actions: list[Changed] | list[Fits]) -> None:
        now = time.monotonic()
        for action in actions:
            if isinstance(action, Changed):
                if action.state.value == "up":
                    self._paths.heard(action.endpoint, now=now)
                else:
                    self._paths.silent(action.endpoint)
            self._news(action)

    def _tick(self) -> None:
        now = time.monotonic()
        self._look_for_traffic(now=now)
        for action in [*self._liveness.tick(now=now), *self._paths.tick(now=now)]:
            match action:
                case Ask(endpoint, number):
                    self._send(endpoint, Echo(number, self._port))
                case Probe(endpoint, number, size):
                    self._send(endpoint, Echo(number, self._port), size=size, whole=True)
                case Changed():
                    self._tell([action])
                case Fits():
                    self._tell([action])
        self._schedule()

    def _look_for_traffic(self, *, now: float) -> None:
        sent = self._sent()
        for endpoint, packets in sent.items():
            self._paths.flows(endpoint, packets > self._before.get(endpoint, packets), now=now)
        self._before = sent

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        now = time.monotonic()
        due = [self._liveness.next_tick(now), self._paths.next_tick(now)]
        times = [one for one in due if one is not None]
        # Not by the loop's clock, which uvloop reads once a turn and in milliseconds.
        self._timer = self._loop.call_later(min(times) - now, self._tick) if times else None
