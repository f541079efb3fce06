"""
Which echoes and probes to send to each peer, and what their replies say about it.

    add, remove, received, tick  ->  SendMessage, Answered, StateChanged, PathMtuChanged

Joins the rules of :mod:`tunnel.protocol.liveness` and :mod:`tunnel.protocol.path_mtu`: a peer whose
path is probed is one that answers. Knows no clock, socket or loop.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from tunnel.protocol.control_frames import EchoReply, EchoRequest, Message, Sample, SampleReply
from tunnel.protocol.liveness import Health, Liveness, SendEcho, StateChanged
from tunnel.protocol.path_mtu import PATIENCE, PathMtuChanged, PathMtus, SendProbe
from tunnel.status import PeerState
from tunnel.types import Endpoint

WATCHED = 3.0
"""Seconds for which one call of :meth:`Prober.watch` makes echoes more frequent."""

_TRAFFIC = 1.0  # seconds between two comparisons of the packet counters
_TICK = 1e-4  # seconds between two ticks for each peer: ticks cost some 3 % of that


@dataclass(frozen=True)
class SendMessage:
    """
    Sends a control message to a peer.

    Attributes:
        size: Bytes after the Ethernet header that the message is padded to.
        dont_fragment: Whether it has to arrive in one piece or not at all.
    """

    endpoint: Endpoint
    message: Message
    size: int = 0
    dont_fragment: bool = False


@dataclass(frozen=True)
class Answered:
    """A peer answered a request."""

    endpoint: Endpoint
    message: EchoReply | SampleReply


@dataclass(frozen=True)
class TickDue:
    """A tick is due at this time, even if :meth:`Prober.next_tick` returned a later one."""

    due: float


ProberAction = SendMessage | Answered | TickDue | StateChanged | PathMtuChanged


class Prober:
    """
    Knows each peer from :meth:`add` to :meth:`remove`. `now` is monotonic seconds throughout.

    Args:
        port: UDP port of this node, by which peers tell nodes at one address apart.
        ids: Ids for requests, each different.
    """

    def __init__(self, *, port: int, ids: Iterator[int]) -> None:
        self._port = port
        self._liveness, self._paths = Liveness(ids), PathMtus(ids)
        self._sent: Mapping[Endpoint, int] = {}
        self._traffic_due = 0.0
        self._ticked = 0.0

    def add(self, endpoint: Endpoint, *, family: int, limit: int, now: float) -> None:
        """
        Adds a peer, or resets one whose address changed.

        Args:
            family: Family of its underlay address, 4 or 6.
            limit: Largest inner packet that the first hop to it takes, in bytes.
        """
        self._liveness.add(endpoint, now=now)
        self._paths.add(endpoint, family=family, limit=limit, now=now)

    def remove(self, endpoint: Endpoint) -> None:
        """Removes a peer; does nothing if it was not added."""
        self._liveness.remove(endpoint)
        self._paths.remove(endpoint)

    def watch(self, *, now: float) -> None:
        """Makes echoes more frequent for a while, for a caller that watches."""
        self._liveness.watch(until=now + WATCHED, now=now)

    def health(self, endpoint: Endpoint) -> Health | None:
        """Returns the health of a peer, None if it has no address yet."""
        return self._liveness.health(endpoint)

    def path_mtu(self, endpoint: Endpoint) -> int | None:
        """Returns the largest inner packet that reaches a peer, in bytes; None if not known."""
        return self._paths.size(endpoint)

    def received(
        self, endpoint: Endpoint, message: Message, *, size: int, now: float
    ) -> list[ProberAction]:
        """Takes a message of a peer, of `size` bytes after the Ethernet header."""
        match message:
            case EchoRequest(number):
                reply = SendMessage(endpoint, EchoReply(number, self._port, size))
                earlier = self._liveness.received_request(endpoint)
                return [reply, self._tick_at(now)] if earlier else [reply]
            case Sample(number, _, nth, _, data):
                crc = zlib.crc32(data)
                return [SendMessage(endpoint, SampleReply(number, self._port, nth, crc))]
            case EchoReply(number):
                changes = self._received_reply(endpoint, number, now=now)
                return [Answered(endpoint, message), *changes]
            case SampleReply():
                return [Answered(endpoint, message)]

    def wants_traffic(self, now: float) -> bool:
        """Whether the next tick compares packet counters."""
        return self._paths.alive and now >= self._traffic_due

    def tick(self, sent: Mapping[Endpoint, int] | None, *, now: float) -> list[ProberAction]:
        """
        Sends what is due, and counts what was lost.

        Args:
            sent: Packets sent to each peer so far; None unless :meth:`wants_traffic`.
        """
        self._ticked = now
        if sent is not None:
            self._compare_traffic(sent, now=now)
        return [
            *self._translate(self._liveness.tick(now=now), now=now),
            *self._translate(self._paths.tick(now=now), now=now),
        ]

    def next_tick(self, now: float) -> float | None:
        """Returns when the next tick is due, None without peers. With very many peers it is a
        little later than the rules ask for."""
        due = [self._liveness.next_tick(now), self._paths.next_tick(now)]
        if self._paths.alive:
            due.append(self._traffic_due)
        times = [one for one in due if one is not None]
        return self._tick_at(min(times)).due if times else None

    def _tick_at(self, due: float) -> TickDue:
        return TickDue(max(due, self._ticked + len(self._liveness) * _TICK))

    def _received_reply(self, endpoint: Endpoint, number: int, *, now: float) -> list[ProberAction]:
        changes = self._liveness.received_reply(endpoint, number, now=now)
        if changes is None:
            return self._translate(self._paths.received_reply(endpoint, number, now=now), now=now)
        self._paths.set_alive(endpoint, rtt=self._liveness.rtt(endpoint) or 0.0, now=now)
        # The first reply makes the first probe due.
        return [*self._translate(changes, now=now), self._tick_at(now)] if changes else []

    def _compare_traffic(self, sent: Mapping[Endpoint, int], *, now: float) -> None:
        for endpoint, packets in sent.items():
            busy = packets > self._sent.get(endpoint, packets)
            self._paths.set_traffic(endpoint, busy, now=now)
        self._sent, self._traffic_due = sent, now + _TRAFFIC

    def _translate(
        self,
        actions: Iterable[SendEcho | StateChanged | SendProbe | PathMtuChanged],
        *,
        now: float,
    ) -> list[ProberAction]:
        translated: list[ProberAction] = []
        for action in actions:
            match action:
                case SendEcho(endpoint, number):
                    translated.append(SendMessage(endpoint, EchoRequest(number, self._port)))
                case SendProbe(endpoint, number, size):
                    request = EchoRequest(number, self._port)
                    translated.append(SendMessage(endpoint, request, size, dont_fragment=True))
                    translated.append(self._tick_at(now + PATIENCE))
                case StateChanged(endpoint, state):
                    if state is PeerState.SILENT:
                        self._paths.set_silent(endpoint)
                    translated.append(action)
                case PathMtuChanged():
                    translated.append(action)
        return translated
