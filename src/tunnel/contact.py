"""
In contact with peers: asks whether they are there and how large a packet reaches them, and
answers when they ask. The rules are in ``control/``; here are the clock and the sending.

    a letter from a peer, a tick  ->  liveness, paths  ->  echoes, probes; what is new is told
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from tunnel.control import frames
from tunnel.control.frames import Echo, Message, Reply, Sample, Verdict
from tunnel.control.liveness import PATIENCE, Ask, Changed, Health, Liveness
from tunnel.control.membership import Membership
from tunnel.control.path import Fits, Paths, Probe
from tunnel.linux.underlay import Underlay
from tunnel.types import ANY_VTEP_MAC, Endpoint, PeerState

log = logging.getLogger(__name__)

LOOK = 3.0
"""Seconds that one look at the peers' health makes echoes more frequent."""


SAMPLES = 16
"""Messages in one train of a self-test."""

_TRAIN_BYTES = 65_000  # most that one send carries
_SAMPLE_WORDS = 80  # bytes that a sample has beside its data, at most


@dataclass(frozen=True)
class Samples:
    """What became of :data:`SAMPLES` messages: how many arrived as they were sent, and how many
    otherwise. Of the rest nothing was heard."""

    intact: int
    damaged: int


@dataclass(frozen=True)
class Place:
    """Where a peer is: its index in the packet path, underlay family, largest inner packet that
    the first hop towards it takes, in bytes."""

    index: int
    family: int
    limit: int


class Voice:
    """Sends messages to peers. What cannot be sent is lost."""

    def __init__(self, underlay: Underlay, membership: Membership, *, vni: int) -> None:
        self._underlay, self._membership, self._vni = underlay, membership, vni

    def say(
        self, endpoint: Endpoint, message: Message, *, size: int = 0, whole: bool = False
    ) -> None:
        """`size` pads it, `whole` forbids to fragment it."""
        address = self._membership.address(endpoint)
        if address is not None:
            datagram = self._encode(endpoint, message, size=size)
            self._underlay.send(datagram, address, endpoint.port, whole=whole)

    def say_together(self, endpoint: Endpoint, messages: Iterable[Message]) -> None:
        """Messages of equal length, as one train."""
        address = self._membership.address(endpoint)
        if address is not None:
            datagrams = [self._encode(endpoint, message, size=0) for message in messages]
            self._underlay.send_train(datagrams, address, endpoint.port)

    def _encode(self, endpoint: Endpoint, message: Message, *, size: int) -> bytes:
        return frames.encode(
            message,
            vni=self._vni,
            source=self._underlay.mac,
            destination=self._membership.peer(endpoint).mac or ANY_VTEP_MAC,
            size=size,
        )


class Contact:
    """
    Args:
        port: Ours, which tells peers who we are beside our address.
        sent: Packets sent to each peer so far.
        news: Called with what changed.
    """

    def __init__(
        self,
        *,
        port: int,
        voice: Voice,
        sent: Callable[[], Mapping[Endpoint, int]],
        news: Callable[[Changed | Fits], None],
    ) -> None:
        self._port, self._voice, self._sent, self._news = port, voice, sent, news
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

    def look(self) -> None:
        """Somebody wants to know: makes us look closer for a while."""
        now = time.monotonic()
        self._liveness.watch(until=now + LOOK, now=now)
        self._schedule()

    @property
    def health(self) -> Mapping[Endpoint, Health]:
        """Of each peer."""
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
                self._voice.say(endpoint, Reply(number, self._port, size))
            case Sample(number, _, nth, _, data):
                self._voice.say(endpoint, Verdict(number, self._port, nth, zlib.crc32(data)))
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
                self._voice.say(endpoint, Echo(number, self._port), size=size, whole=bool(size))
                await waiting
            finally:
                del self._waiting[Reply, number]
        return time.monotonic() - begun

    async def try_train(self, endpoint: Endpoint, *, size: int) -> tuple[Samples, Samples]:
        """
        Sends random messages of `size` bytes, or what a train of them can hold, first one by one,
        then as one train, and has them compared. Returns what became of those and of these.
        """
        size = min(size, _TRAIN_BYTES // SAMPLES - frames.HEADERS.size)
        singly = await self._sample(endpoint, size, together=False)
        return singly, await self._sample(endpoint, size, together=True)

    async def _sample(self, endpoint: Endpoint, size: int, *, together: bool) -> Samples:
        first = self._take_ids(SAMPLES)
        data = [random.randbytes(size - _SAMPLE_WORDS) for _ in range(SAMPLES)]
        messages = [
            Sample(first, self._port, number, SAMPLES, one) for number, one in enumerate(data)
        ]
        waiting = [self._expect(Verdict, first + number) for number in range(SAMPLES)]
        try:
            if together:
                self._voice.say_together(endpoint, messages)
            else:
                for message in messages:
                    self._voice.say(endpoint, message)
            await asyncio.wait(waiting, timeout=PATIENCE)
            verdicts = [one.result() for one in waiting if one.done() and not one.cancelled()]
        finally:
            for number in range(SAMPLES):
                del self._waiting[Verdict, first + number]
        told = {one.number: one.crc for one in verdicts if isinstance(one, Verdict)}
        intact = sum(told.get(number) == zlib.crc32(one) for number, one in enumerate(data))
        return Samples(intact, damaged=len(verdicts) - intact)

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
                if action.state is PeerState.UP:
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
                    self._voice.say(endpoint, Echo(number, self._port))
                case Probe(endpoint, number, size):
                    self._voice.say(endpoint, Echo(number, self._port), size=size, whole=True)
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
