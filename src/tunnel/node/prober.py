"""
In contact with peers: asks whether they are there and how large a packet reaches them, and
answers when they ask. The rules are in ``control/``; here are the clock and the letters.

    a letter from a peer, a tick  ->  liveness, paths  ->  echoes, probes; what is new is told
"""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import logging
import random
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tunnel.errors import CodecError
from tunnel.linux.underlay import Underlay
from tunnel.protocol import arp, control_frames, path_mtu
from tunnel.protocol.control_frames import (
    ControlMessage,
    EchoReply,
    EchoRequest,
    Message,
    Sample,
    SampleReply,
)
from tunnel.protocol.liveness import PATIENCE, Health, Liveness, SendEcho, StateChanged
from tunnel.protocol.path_mtu import PathMtuChanged, Paths, SendProbe
from tunnel.protocol.peer_table import PeerTable
from tunnel.status import PeerState
from tunnel.types import ANY_VTEP_MAC, Address, Endpoint

log = logging.getLogger(__name__)

LOOK = 3.0
"""Seconds that one look at the peers' health makes echoes more frequent."""

SAMPLES = 16
"""Messages in one train of a self-test."""

_TRAIN_BYTES = 65_000  # most that one send carries
_SAMPLE_WORDS = 80  # bytes that a sample has beside its data, at most

_TRAFFIC = 1.0  # seconds between looks whether packets flow
_TICK = 1e-4  # seconds a peer between ticks at least: they cost some 3 % of that
_ROUNDING = 1e-3  # seconds; uvloop rounds to milliseconds, and too soon is in vain

# What peers ask costs us time in the loop that moves packets, so that a flood of letters is read
# slowly, and the inbox, which is small, turns the rest away.
_LETTER = 1 / 4000  # seconds that one letter may cost, on average
_LEEWAY = 0.05  # seconds' worth of letters that are read at once


@dataclass(frozen=True)
class Samples:
    """What became of :data:`SAMPLES` messages: how many arrived as they were sent, and how many
    otherwise. Of the rest nothing was heard."""

    intact: int
    damaged: int


class ControlChannel:
    """
    Letters to and from peers. What cannot be sent is lost.

    Args:
        take: Gives those that came.
        bad: Counts one that cannot be read, for the peer of this index.
    """

    def __init__(
        self,
        underlay: Underlay,
        membership: PeerTable,
        *,
        vni: int,
        take: Callable[[], Sequence[ControlMessage]],
        bad: Callable[[int], None],
    ) -> None:
        self._underlay, self._membership, self._vni = underlay, membership, vni
        self.take, self._bad = take, bad

    def read(self, letter: ControlMessage) -> tuple[Endpoint, Message] | None:
        """Who says what; None if it is nobody's, or nothing that is understood here."""
        index, source, _, _, body = letter
        try:
            message = control_frames.decode(body)
        except CodecError as error:
            self._bad(index)
            log.debug("%s", error)
            return None
        if message is None:
            return None
        sender = self._membership.at(ipaddress.ip_address(source), message.port)
        return None if sender is None else (sender, message)

    def say(
        self, endpoint: Endpoint, message: Message, *, size: int = 0, whole: bool = False
    ) -> None:
        """`size` pads it, `whole` forbids to fragment it."""
        address = self._membership.address(endpoint)
        if address is not None:
            datagram = self._encode(endpoint, message, size=size)
            self._underlay.send(datagram, address, endpoint.port, dont_fragment=whole)

    def say_together(self, endpoint: Endpoint, messages: Iterable[Message]) -> None:
        """Messages of equal length, as one train."""
        address = self._membership.address(endpoint)
        if address is not None:
            datagrams = [self._encode(endpoint, message, size=0) for message in messages]
            self._underlay.send_train(datagrams, address, endpoint.port)

    def ask(self, endpoint: Endpoint, address: Address, *, source: Address | None) -> None:
        """Asks a peer by ARP or NDP for the MAC of an overlay address; `source` is ours."""
        there = self._membership.address(endpoint)
        if there is not None:
            mac = self._underlay.mac
            destination, ethertype, body = arp.ask(address, source=source, mac=mac)
            headers = control_frames.headers(
                self._vni, destination=destination, source=mac, ethertype=ethertype
            )
            self._underlay.send(headers + body, there, endpoint.port, dont_fragment=False)

    def _encode(self, endpoint: Endpoint, message: Message, *, size: int) -> bytes:
        return control_frames.encode(
            message,
            vni=self._vni,
            source=self._underlay.mac,
            destination=self._membership.peer(endpoint).mac or ANY_VTEP_MAC,
            size=size,
        )


class Prober:
    """
    Knows each peer from :meth:`add` to :meth:`remove`; membership has to know it as long.

    Args:
        port: Ours, which tells peers who we are beside our address.
        sent: Packets sent to each peer so far.
        news: Called with what changed.
        heard: Called with who said something in a control frame, and from which MAC.
        resolve: Called with what is no control frame.
    """

    def __init__(
        self,
        *,
        port: int,
        post: ControlChannel,
        sent: Callable[[], Mapping[Endpoint, int]],
        news: Callable[[StateChanged | PathMtuChanged], None],
        heard: Callable[[Endpoint, bytes], None],
        resolve: Callable[[ControlMessage], None],
    ) -> None:
        self._port, self._post, self._sent, self._news = port, post, sent, news
        self._heard, self._resolve = heard, resolve
        self._loop = asyncio.get_running_loop()
        # One number for one question, whoever asks. They begin anywhere, so that an answer cannot
        # be forged, or be one to who had our address before, without having seen the question.
        self._ids = itertools.count(random.SystemRandom().getrandbits(62))
        self._liveness, self._paths = Liveness(self._ids), Paths(self._ids)
        self._before: Mapping[Endpoint, int] = {}
        self._traffic_due = 0.0
        self._waiting: dict[tuple[Endpoint, int, int], asyncio.Future[Message | None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0  # when the timer rings
        self._ticked = 0.0
        self._reading: asyncio.TimerHandle | None = None
        self._read_until = 0.0  # when what was read so far has cost its time
        self._closed = False

    def add(self, endpoint: Endpoint, *, family: int, limit: int) -> None:
        """
        A peer, or one that is at another address now: all that was known of it is forgotten.

        Args:
            family: Of its underlay address, 4 or 6.
            limit: Largest inner packet that the first hop towards it takes, in bytes.
        """
        now = time.monotonic()
        self._liveness.add(endpoint, now=now)
        self._paths.add(endpoint, family=family, limit=limit, now=now)
        self._wake(now)

    def remove(self, endpoint: Endpoint) -> None:
        """Who waits for an answer of this peer waits no longer."""
        self._liveness.remove(endpoint)
        self._paths.remove(endpoint)
        self._give_up(endpoint)

    def close(self) -> None:
        """Nothing is sent and nobody waits any more. What was known can still be read."""
        self._closed = True
        for timer in (self._timer, self._reading):
            if timer is not None:
                timer.cancel()
        self._give_up()

    def watch(self) -> None:
        """Somebody wants to know: makes us look closer for a while."""
        now = time.monotonic()
        self._liveness.watch(until=now + LOOK, now=now)
        self._wake(now + _TRAFFIC)

    def health(self, endpoint: Endpoint) -> Health | None:
        """Of a peer, None for one that is at no address yet."""
        return self._liveness.health(endpoint)

    def path_mtu(self, endpoint: Endpoint) -> int | None:
        """Largest inner packet that reaches a peer, in bytes, None where that is not known."""
        return self._paths.size(endpoint)

    def attend(self) -> None:
        """Letters came: reads them at once, or soon if very many came lately."""
        wait = self._read_until - _LEEWAY - time.monotonic()
        if self._closed or self._reading is not None:
            return
        if wait > 0:
            self._reading = self._loop.call_later(wait, self._read)
        else:
            self._read()

    async def ping(self, endpoint: Endpoint, *, size: int = 0) -> float:
        """
        Seconds until the answer to one echo of `size` bytes, which are not fragmented.

        Raises:
            TimeoutError: There was none.
        """
        number = next(self._ids)
        begun = time.monotonic()
        async with asyncio.timeout(PATIENCE):
            waiting = self._expect(endpoint, number)
            try:
                self._post.say(
                    endpoint, EchoRequest(number, self._port), size=size, whole=bool(size)
                )
                answer = await waiting
            finally:
                del self._waiting[endpoint, number, 0]
        if answer is None:
            raise TimeoutError
        return time.monotonic() - begun

    async def try_train(self, endpoint: Endpoint, *, size: int) -> tuple[Samples, Samples]:
        """
        Sends random messages of `size` bytes, or what a train of them can hold, first one by one,
        then as one train, and has them compared. Returns what became of those and of these.
        """
        size = min(size, _TRAIN_BYTES // SAMPLES - control_frames.HEADERS.size)
        singly = await self._sample(endpoint, size, together=False)
        return singly, await self._sample(endpoint, size, together=True)

    async def _sample(self, endpoint: Endpoint, size: int, *, together: bool) -> Samples:
        number = next(self._ids)
        data = [random.randbytes(size - _SAMPLE_WORDS) for _ in range(SAMPLES)]
        messages = [Sample(number, self._port, nth, SAMPLES, one) for nth, one in enumerate(data)]
        waiting = [self._expect(endpoint, number, nth) for nth in range(SAMPLES)]
        try:
            if together:
                self._post.say_together(endpoint, messages)
            else:
                for message in messages:
                    self._post.say(endpoint, message)
            await asyncio.wait(waiting, timeout=PATIENCE)
            verdicts = [one.result() for one in waiting if one.done()]
        finally:
            for nth in range(SAMPLES):
                del self._waiting[endpoint, number, nth]
        told = {one.number: one.crc for one in verdicts if isinstance(one, SampleReply)}
        intact = sum(told.get(nth) == zlib.crc32(one) for nth, one in enumerate(data))
        return Samples(intact, damaged=len(told) - intact)

    # Who waits for an answer.

    def _expect(
        self, endpoint: Endpoint, number: int, nth: int = 0
    ) -> asyncio.Future[Message | None]:
        if self._closed:
            raise TimeoutError
        waiting: asyncio.Future[Message | None] = self._loop.create_future()
        self._waiting[endpoint, number, nth] = waiting
        return waiting

    def _answer(self, endpoint: Endpoint, number: int, nth: int, message: Message | None) -> None:
        waiting = self._waiting.get((endpoint, number, nth))
        if waiting is not None and not waiting.done():
            waiting.set_result(message)

    def _give_up(self, endpoint: Endpoint | None = None) -> None:
        for asked in self._waiting:
            if endpoint in (None, asked[0]):
                self._answer(*asked, None)

    # Letters.

    def _read(self) -> None:
        self._reading = None
        letters = self._post.take()
        for letter in letters:
            _, _, ethertype, mac, body = letter
            if ethertype != control_frames.ETHERTYPE:
                self._resolve(letter)
            elif understood := self._post.read(letter):
                self._heard(understood[0], mac)
                self._receive(*understood, size=len(body))
        self._read_until = max(self._read_until, time.monotonic()) + len(letters) * _LETTER

    def _receive(self, endpoint: Endpoint, message: Message, *, size: int) -> None:
        now = time.monotonic()
        match message:
            case EchoRequest(number):
                self._post.say(endpoint, EchoReply(number, self._port, size))
                if self._liveness.heard(endpoint):
                    self._wake(now)
            case Sample(number, _, nth, _, data):
                self._post.say(endpoint, SampleReply(number, self._port, nth, zlib.crc32(data)))
            case EchoReply(number):
                self._answer(endpoint, number, 0, message)
                self._replied(endpoint, number, now=now)
            case SampleReply(number, _, nth):
                self._answer(endpoint, number, nth, message)

    def _replied(self, endpoint: Endpoint, number: int, *, now: float) -> None:
        became = self._liveness.replied(endpoint, number, now=now)
        if became is None:
            self._do(self._paths.arrived(endpoint, number, now=now))
            return
        self._paths.heard(endpoint, trip=self._liveness.rtt(endpoint) or 0.0, now=now)
        if became:
            self._do(became)
            self._wake(now)

    # Ticks.

    def _do(self, actions: Iterable[SendEcho | StateChanged | SendProbe | PathMtuChanged]) -> None:
        for action in actions:
            match action:
                case SendEcho(endpoint, number):
                    self._post.say(endpoint, EchoRequest(number, self._port))
                case SendProbe(endpoint, number, size):
                    self._post.say(endpoint, EchoRequest(number, self._port), size=size, whole=True)
                    self._wake(time.monotonic() + path_mtu.PATIENCE)
                case StateChanged(endpoint, state):
                    if state is PeerState.SILENT:
                        self._paths.silent(endpoint)
                    self._news(action)
                case PathMtuChanged():
                    self._news(action)

    def _tick(self) -> None:
        now = time.monotonic()
        self._timer, self._ticked = None, now
        if now >= self._traffic_due and self._paths.alive:
            self._look_for_traffic(now=now)
        self._do(self._liveness.tick(now=now))
        self._do(self._paths.tick(now=now))
        due = [self._liveness.next_tick(now), self._paths.next_tick(now)]
        if self._paths.alive:
            due.append(self._traffic_due)
        times = [one for one in due if one is not None]
        if times:
            self._wake(min(times))

    def _look_for_traffic(self, *, now: float) -> None:
        sent = self._sent()
        for endpoint, packets in sent.items():
            self._paths.flows(endpoint, packets > self._before.get(endpoint, packets), now=now)
        self._before = sent
        self._traffic_due = now + _TRAFFIC

    def _wake(self, due: float) -> None:
        """Has a tick by then, unless one is sooner; with very many peers a little later."""
        due = max(due, self._ticked + len(self._liveness) * _TICK)
        if self._closed or (self._timer is not None and self._due <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        # Not by the loop's clock, which uvloop reads once a turn and in milliseconds.
        delay = max(0.0, due - time.monotonic()) + _ROUNDING
        self._timer = self._loop.call_later(delay, self._tick)
        self._due = due
