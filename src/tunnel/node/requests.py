"""
Requests of people and programs to a peer: one echo, or a train of samples, and the answer to that.

    ping, try_train  ->  SendMessage, a future for each answer;  Answered  ->  the future
"""

from __future__ import annotations

import asyncio
import random
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from tunnel.node.driver import Driver
from tunnel.node.prober import Answered, SendMessage
from tunnel.protocol import control_frames
from tunnel.protocol.control_frames import EchoReply, EchoRequest, Sample, SampleReply
from tunnel.protocol.liveness import PATIENCE
from tunnel.types import Endpoint

SAMPLES = 16
"""Messages in one train of samples."""

_TRAIN_BYTES = 65_000  # most that one send carries
_SAMPLE_OVERHEAD = 80  # bytes of a sample beside its data, at most

_Key = tuple[Endpoint, int, int]  # peer, id, number of the sample


@dataclass(frozen=True)
class Samples:
    """How many of :data:`SAMPLES` messages arrived intact, and how many damaged. The rest was
    lost."""

    intact: int
    damaged: int


class Requests:
    """
    The requests that wait for an answer.

    Args:
        port: UDP port of this node.
        ids: Ids for requests, each different.
    """

    def __init__(self, driver: Driver, *, port: int, ids: Iterator[int]) -> None:
        self._driver, self._port, self._ids = driver, port, ids
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[_Key, asyncio.Future[EchoReply | SampleReply | None]] = {}
        self._closed = False

    async def ping(self, endpoint: Endpoint, *, size: int = 0) -> float:
        """
        Sends one echo of `size` bytes, which must not be fragmented. Returns seconds until the
        reply. If cancelled, it stops waiting.

        Raises:
            TimeoutError: There was no reply.
        """
        number = next(self._ids)
        request = EchoRequest(number, self._port)
        begun = time.monotonic()
        async with asyncio.timeout(PATIENCE):
            waiting = self._expect(endpoint, number)
            try:
                self._driver.send(SendMessage(endpoint, request, size, dont_fragment=bool(size)))
                answer = await waiting
            finally:
                del self._waiting[endpoint, number, 0]
        if answer is None:
            raise TimeoutError
        return time.monotonic() - begun

    async def try_train(self, endpoint: Endpoint, *, size: int) -> tuple[Samples, Samples]:
        """
        Sends samples of `size` bytes, or less if a train of them would be too long, first one by
        one, then as one train. Returns what became of the former and of the latter. If cancelled,
        it stops waiting.
        """
        size = min(size, _TRAIN_BYTES // SAMPLES - control_frames.HEADERS.size)
        singly = await self._sample(endpoint, size, as_train=False)
        return singly, await self._sample(endpoint, size, as_train=True)

    def answered(self, action: Answered) -> None:
        """Passes an answer to the request that waits for it."""
        match action.message:
            case EchoReply(number):
                self._set((action.endpoint, number, 0), action.message)
            case SampleReply(number, _, nth):
                self._set((action.endpoint, number, nth), action.message)

    def give_up(self, endpoint: Endpoint | None = None) -> None:
        """Ends the requests to a peer, or all of them, without an answer."""
        for key in self._waiting:
            if endpoint in (None, key[0]):
                self._set(key, None)

    def close(self) -> None:
        """Ends all requests; later ones get no answer."""
        self._closed = True
        self.give_up()

    async def _sample(self, endpoint: Endpoint, size: int, *, as_train: bool) -> Samples:
        number = next(self._ids)
        data = [random.randbytes(size - _SAMPLE_OVERHEAD) for _ in range(SAMPLES)]
        messages = [Sample(number, self._port, nth, SAMPLES, one) for nth, one in enumerate(data)]
        waiting = [self._expect(endpoint, number, nth) for nth in range(SAMPLES)]
        try:
            if as_train:
                self._driver.send_train(endpoint, messages)
            else:
                for message in messages:
                    self._driver.send(SendMessage(endpoint, message))
            await asyncio.wait(waiting, timeout=PATIENCE)
            replies = [one.result() for one in waiting if one.done()]
        finally:
            for nth in range(SAMPLES):
                del self._waiting[endpoint, number, nth]
        crcs = {one.number: one.crc for one in replies if isinstance(one, SampleReply)}
        intact = sum(crcs.get(nth) == zlib.crc32(one) for nth, one in enumerate(data))
        return Samples(intact, damaged=len(crcs) - intact)

    def _expect(
        self, endpoint: Endpoint, number: int, nth: int = 0
    ) -> asyncio.Future[EchoReply | SampleReply | None]:
        if self._closed:
            raise TimeoutError
        waiting: asyncio.Future[EchoReply | SampleReply | None] = self._loop.create_future()
        self._waiting[endpoint, number, nth] = waiting
        return waiting

    def _set(self, key: _Key, message: EchoReply | SampleReply | None) -> None:
        waiting = self._waiting.get(key)
        if waiting is not None and not waiting.done():
            waiting.set_result(message)
