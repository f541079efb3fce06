"""
Whether a peer answers, its round trip time and its loss, by a few echoes a minute.

    add, remove, received_request, received_reply, tick  ->  SendEcho, StateChanged

A peer that has never answered is unknown, not silent: a kernel vxlan device answers no echo.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from tunnel.status import PeerState
from tunnel.types import Endpoint

INTERVAL = 15.0
"""Seconds between echoes to a peer."""

WATCHED = 1.0
"""Seconds between echoes while a caller watches or after an echo was lost. Also the shortest time
between an echo and one that is sent because the peer sent an echo."""

PATIENCE = 1.0
"""Seconds until an echo counts as lost."""

MISSES = 3
"""Echoes lost in a row after which a peer that answered before is silent."""

AT_ONCE = 64
"""The most echoes in one tick, so that the socket's buffer has room for all replies."""

_MEMORY = 20  # echoes that the loss is computed from
_SMOOTHING = 1 / 8  # of the round trip, as TCP does (RFC 6298)


@dataclass(frozen=True)
class SendEcho:
    """Sends an echo request with this id."""

    endpoint: Endpoint
    id: int


@dataclass(frozen=True)
class StateChanged:
    """A peer is up or silent from now on."""

    endpoint: Endpoint
    state: PeerState


@dataclass(frozen=True)
class Health:
    """
    Attributes:
        since: When `state` began, monotonic seconds.
        rtt: Smoothed round trip in seconds, None before the first answer.
        loss: Share of the last 20 echoes, 0 to 1; None before the first answer.
    """

    state: PeerState
    since: float
    rtt: float | None
    loss: float | None


@dataclass
class _Pulse:
    since: float
    due: float  # when to send the next echo
    state: PeerState = PeerState.UNKNOWN
    rtt: float | None = None
    missed: int = 0
    last: float = float("-inf")  # when the last echo was sent
    sent: dict[int, float] = field(default_factory=dict)  # by id, those without a reply so far
    answered: deque[bool] = field(default_factory=lambda: deque(maxlen=_MEMORY))


class Liveness:
    """
    The liveness of all peers. `now` is monotonic seconds throughout.

    Args:
        ids: Ids for the echoes, each different.
    """

    def __init__(self, ids: Iterator[int]) -> None:
        self._pulses: dict[Endpoint, _Pulse] = {}
        self._ids = ids
        self._watched = 0.0

    def __len__(self) -> int:
        return len(self._pulses)

    def add(self, endpoint: Endpoint, *, now: float) -> None:
        """Adds a peer, or resets one whose address changed. The first echo is due at once."""
        self._pulses[endpoint] = _Pulse(since=now, due=now)

    def remove(self, endpoint: Endpoint) -> None:
        self._pulses.pop(endpoint, None)

    def watch(self, *, until: float, now: float) -> None:
        """Sends an echo every second until then, for a caller that watches."""
        self._watched = max(self._watched, until)
        for pulse in self._pulses.values():
            pulse.due = min(pulse.due, now + WATCHED)

    def received_request(self, endpoint: Endpoint) -> bool:
        """
        Takes an echo request of a peer: it may just have started, so an echo to it is due soon.
        Returns whether the next tick is due earlier than before.
        """
        pulse = self._pulses.get(endpoint)
        if pulse is None or pulse.state is PeerState.UP or pulse.due <= pulse.last + WATCHED:
            return False
        pulse.due = pulse.last + WATCHED
        return True

    def received_reply(
        self, endpoint: Endpoint, number: int, *, now: float
    ) -> list[StateChanged] | None:
        """Takes the reply to echo `number`. Returns None, and changes nothing, if that echo is not
        waiting for one."""
        pulse = self._pulses.get(endpoint)
        sent = pulse.sent.pop(number, None) if pulse else None
        if pulse is None or sent is None:
            return None
        trip = now - sent
        pulse.rtt = trip if pulse.rtt is None else pulse.rtt + _SMOOTHING * (trip - pulse.rtt)
        pulse.answered.append(True)
        pulse.missed = 0
        return self._set_state(endpoint, pulse, PeerState.UP, now=now)

    def rtt(self, endpoint: Endpoint) -> float | None:
        """Smoothed round trip in seconds, None before the first answer."""
        pulse = self._pulses.get(endpoint)
        return pulse.rtt if pulse else None

    def tick(self, *, now: float) -> list[SendEcho | StateChanged]:
        """Counts lost echoes and sends those that are due, :data:`AT_ONCE` at most; the others are
        due in the next tick."""
        actions: list[SendEcho | StateChanged] = []
        for endpoint, pulse in self._pulses.items():
            if pulse.sent:
                actions += self._count_lost(endpoint, pulse, now=now)
            if now >= pulse.due and len(actions) < AT_ONCE:
                eager = now < self._watched or 0 < pulse.missed < MISSES
                number = next(self._ids)
                pulse.due = now + (WATCHED if eager else INTERVAL)
                pulse.sent[number] = pulse.last = now
                actions.append(SendEcho(endpoint, number))
        return actions

    def next_tick(self, now: float) -> float | None:
        """Returns when the next tick is due, `now` at the earliest; None without peers."""
        due = [pulse.due for pulse in self._pulses.values()]
        due += [sent + PATIENCE for one in self._pulses.values() for sent in one.sent.values()]
        return max(now, min(due)) if due else None

    def health(self, endpoint: Endpoint) -> Health | None:
        """Returns None for a peer that was not added."""
        pulse = self._pulses.get(endpoint)
        return _health(pulse) if pulse else None

    def _count_lost(self, endpoint: Endpoint, pulse: _Pulse, *, now: float) -> list[StateChanged]:
        late = [number for number, sent in pulse.sent.items() if now >= sent + PATIENCE]
        for number in late:
            del pulse.sent[number]
            pulse.answered.append(False)
            pulse.missed += 1
        if late and pulse.missed < MISSES and pulse.state is PeerState.UP:
            pulse.due = min(pulse.due, now)  # so that the next echo decides soon
        if pulse.missed < MISSES or pulse.state is not PeerState.UP:
            return []
        return self._set_state(endpoint, pulse, PeerState.SILENT, now=now)

    def _set_state(
        self, endpoint: Endpoint, pulse: _Pulse, state: PeerState, *, now: float
    ) -> list[StateChanged]:
        if pulse.state is state:
            return []
        pulse.state, pulse.since = state, now
        return [StateChanged(endpoint, state)]


def _health(pulse: _Pulse) -> Health:
    known = pulse.state is not PeerState.UNKNOWN
    loss = pulse.answered.count(False) / len(pulse.answered) if known and pulse.answered else None
    return Health(pulse.state, pulse.since, pulse.rtt, loss)
