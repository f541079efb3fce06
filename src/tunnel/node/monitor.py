"""
Feeds time and control messages to the rules about peers, and passes on what they return.

    control messages, ticks  ->  Prober, Vteps  ->  actions  ->  Driver, Requests

Runs three supervised tasks. An action that fails for one peer is reported, and the others are
applied all the same.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from tunnel.errors import CodecError
from tunnel.node.driver import Driver
from tunnel.node.prober import Answered, Prober, ProberAction, SendMessage, TickDue
from tunnel.node.requests import Requests
from tunnel.node.ticker import Ticker
from tunnel.node.vteps import Solicit, Vteps
from tunnel.node.workers import CONTROL_MESSAGES, Workers
from tunnel.protocol import control_frames
from tunnel.protocol.control_frames import ControlMessage
from tunnel.protocol.liveness import StateChanged
from tunnel.protocol.neighbours import MacLearned
from tunnel.protocol.path_mtu import PathMtuChanged
from tunnel.protocol.peer_table import PeerTable
from tunnel.status import PeerState
from tunnel.supervise import Supervisor
from tunnel.types import Endpoint

log = logging.getLogger(__name__)

PROBER, NEIGHBOURS, VTEPS = "prober", "neighbours", "vteps"
"""Names of the supervised tasks."""

# Requests of peers cost time in the loop that moves packets. A flood of them is read slowly, and
# the queue in the packet path, which is small, drops the rest.
_COST = 1 / 4000  # seconds that one control message may take, on average
_BURST = 0.05  # seconds' worth of control messages that are read at once

_Action = ProberAction | Solicit | MacLearned


class Monitor:
    """
    Args:
        changing: Held while the kernel or the packet path is changed for a peer.
    """

    def __init__(
        self,
        table: PeerTable,
        *,
        prober: Prober,
        vteps: Vteps,
        driver: Driver,
        requests: Requests,
        workers: Workers,
        supervisor: Supervisor,
        changing: asyncio.Lock,
    ) -> None:
        self._table, self._prober, self._vteps = table, prober, vteps
        self._driver, self._requests = driver, requests
        self._workers, self._supervisor, self._changing = workers, supervisor, changing
        self._probing, self._soliciting = Ticker(self._probe), Ticker(self._solicit)
        self._reading = Ticker(self._read_late)
        self._read_until = 0.0  # when the messages that were read have used up their time
        self._learned: dict[Endpoint, None] = {}
        self._learned_some = asyncio.Event()

    def start(self) -> None:
        """Starts the tasks."""
        self._supervisor.start(PROBER, self._probing.run)
        self._supervisor.start(NEIGHBOURS, self._soliciting.run)
        self._supervisor.start(VTEPS, self._follow)
        self._supervisor.start(CONTROL_MESSAGES, self._reading.run)

    def wake(self) -> None:
        """Makes the tasks check what is due, after peers changed."""
        now = time.monotonic()
        self._probing.wake(self._prober.next_tick(now))
        self._soliciting.wake(self._vteps.next_tick(now))

    def watch(self) -> None:
        """Makes echoes more frequent for a while, for a caller that watches."""
        now = time.monotonic()
        self._prober.watch(now=now)
        self._probing.wake(self._prober.next_tick(now))

    def remove(self, endpoints: Iterable[Endpoint]) -> None:
        """Ignores peers that are about to be removed, and ends the requests to them."""
        endpoints = tuple(endpoints)
        for endpoint in endpoints:
            self._prober.remove(endpoint)
            self._requests.give_up(endpoint)
        self._vteps.remove(endpoints)

    # Control messages.

    def read(self) -> None:
        """Reads the control messages that arrived: at once, or later if there were very many."""
        wait = self._read_until - _BURST - time.monotonic()
        if wait > 0:
            self._reading.wake(time.monotonic() + wait)
        else:
            self._read_all()

    def _read_late(self, now: float) -> float | None:
        """A tick for messages that had to wait."""
        due = self._read_until - _BURST
        if due > now:
            return due
        self._read_all()
        return None

    def _read_all(self) -> None:
        messages = self._workers.take_control_messages()
        self._read_until = max(self._read_until, time.monotonic()) + len(messages) * _COST
        failure = _call_all(partial(self._receive, one) for one in messages)
        if failure is not None:
            raise failure

    def _receive(self, received: ControlMessage) -> None:
        index, source, ethertype, mac, body = received
        now = time.monotonic()
        if ethertype != control_frames.ETHERTYPE:
            senders = self._table.find_all_at(ipaddress.ip_address(source))
            self._apply(self._vteps.received_arp(ethertype, body, senders=senders, now=now))
            self._soliciting.wake(self._vteps.next_tick(now))
            return
        try:
            message = control_frames.decode(body)
        except CodecError as error:
            self._workers.count_bad_control(index)
            log.debug("%s", error)
            return
        if message is None:
            return
        sender = self._table.find_sender(ipaddress.ip_address(source), message.port)
        if sender is not None:
            self._apply(self._vteps.received_frame(sender, mac, now=now))
            self._apply(self._prober.received(sender, message, size=len(body), now=now))

    # Ticks.

    def _probe(self, now: float) -> float | None:
        sent = self._count_sent() if self._prober.wants_traffic(now) else None
        actions = self._prober.tick(sent, now=now)
        self._apply_each(PROBER, actions)
        return self._prober.next_tick(time.monotonic())

    def _solicit(self, now: float) -> float | None:
        actions = self._vteps.tick(self._count_sent(), now=now)
        self._apply_each(NEIGHBOURS, actions)
        return self._vteps.next_tick(time.monotonic())

    async def _follow(self) -> None:
        """Updates the kernel and the FDB to the MACs that were learned."""
        while True:
            await self._learned_some.wait()
            async with self._changing:
                learned, self._learned = self._learned, {}
                self._learned_some.clear()
                peers = [one for one in learned if one in self._table]  # others were removed
                await self._driver.follow(
                    {self._table.index(one): self._table.peer(one) for one in peers}
                )

    def _count_sent(self) -> Mapping[Endpoint, int]:
        """Returns the packets sent to each peer so far."""
        sent = self._workers.sent()
        # A peer that was just added may not be in the packet path yet.
        return {one: sent[at] for one, at in self._table.indices.items() if at < len(sent)}

    # Actions.

    def _apply(self, actions: Iterable[_Action]) -> None:
        for action in actions:
            match action:
                case SendMessage():
                    self._driver.send(action)
                case Answered():
                    self._requests.answered(action)
                case Solicit():
                    self._driver.solicit(action)
                case StateChanged(endpoint, state):
                    if state is PeerState.SILENT:
                        now = time.monotonic()
                        self._vteps.set_silent(endpoint, now=now)
                        self._soliciting.wake(self._vteps.next_tick(now))
                    self._driver.set_state(action)
                case TickDue(due):
                    self._probing.wake(due)
                case PathMtuChanged():
                    self._driver.set_path_mtu(action)
                case MacLearned(endpoint):
                    self._driver.set_mac(action)
                    self._learned[endpoint] = None
                    self._learned_some.set()

    def _apply_each(self, task: str, actions: Iterable[_Action]) -> None:
        """Applies all of the actions; reports the first failure as one of `task`, which goes on."""
        failure = _call_all(partial(self._apply, [one]) for one in actions)
        if failure is None:
            self._supervisor.recovered(task)
        else:
            self._supervisor.failed(task, failure)


def _call_all(calls: Iterable[Callable[[], None]]) -> Exception | None:
    """Makes every call. Returns the first failure."""
    failure: Exception | None = None
    for call in calls:
        try:
            call()
        except Exception as error:
            failure = failure or error
    return failure
