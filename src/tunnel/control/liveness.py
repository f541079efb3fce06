"""
Is a peer there, how far away is it, and how much gets lost: by echoes, a few a minute.

    add, remove, replied, tick  ->  Ask, Changed

A peer that never answered is unknown: a kernel vxlan device answers no echo and is well.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from tunnel.types import Endpoint, PeerState

INTERVAL = 15.0
"""Seconds between echoes to a peer."""

WATCHED = 1.0
"""The same while somebody looks, or after an echo was missed."""

PATIENCE = 1.0
"""Seconds until an echo counts as lost."""

MISSES = 3
"""Lost in a row until a peer that answered before is silent."""

_MEMORY = 20  # echoes that loss is reckoned from
_SMOOTHING = 1 / 8  # of the round trip, as TCP does (RFC 6298)


@dataclass(frozen=True)
class Ask:
    """Send an echo with this id."""

    endpoint: Endpoint
    id: int


@dataclass(frozen=True)
class Changed:
    """A peer is up or silent now, and was not before."""

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
    due: float
    state: PeerState = PeerState.UNKNOWN
    rtt: float | None = None
    missed: int = 0
    asked: dict[int, float] = field(default_factory=dict)  # id -> when
    answered: deque[bool] = field(default_factory=lambda: deque(maxlen=_MEMORY))


class Liveness:
    """All peers of one tunnel. `now` is monotonic seconds throughout."""

    def __init__(self) -> None:
        self._pulses: dict[Endpoint, _Pulse] = {}
        self._next_id = 1
        self._watched = 0.0

    def add(self, endpoint: Endpoint, *, now: float) -> None:
        """The first echo leaves at once."""
        self._pulses[endpoint] = _Pulse(since=now, due=now)

    def remove(self, endpoint: Endpoint) -> None:
        self._pulses.pop(endpoint, None)

    def watch(self, *, until: float, now: float) -> None:
        """Somebody looks: echoes come every second until then."""
        self._watched = max(self._watched, until)
        for pulse in self._pulses.values():
            pulse.due = min(pulse.due, now + WATCHED)

    def replied(self, endpoint: Endpoint, number: int, *, now: float) -> list[Changed]:
        """An answer to echo `number`; one that nobody waits for, or no more, changes nothing."""
        pulse = self._pulses.get(endpoint)
        asked = pulse.asked.pop(number, None) if pulse else None
        if pulse is None or asked is None:
            return []
        trip = now - asked
        pulse.rtt = trip if pulse.rtt is None else pulse.rtt + _SMOOTHING * (trip - pulse.rtt)
        pulse.answered.append(True)
        pulse.missed = 0
        return self._turn(endpoint, pulse, PeerState.UP, now=now)

    def tick(self, *, now: float) -> list[Ask | Changed]:
        """Counts what was missed and asks whom it is time to ask."""
        actions: list[Ask | Changed] = []
        for endpoint, pulse in self._pulses.items():
            actions += self._miss(endpoint, pulse, now=now)
            if now >= pulse.due:
                eager = now < self._watched or 0 < pulse.missed < MISSES
                pulse.due = now + (WATCHED if eager else INTERVAL)
                pulse.asked[self._next_id] = now
                actions.append(Ask(endpoint, self._next_id))
                self._next_id += 1
        return actions

    def next_tick(self, now: float) -> float | None:
        """When the next tick is due, `now` at the earliest; None without peers."""
        due = [pulse.due for pulse in self._pulses.values()]
        due += [asked + PATIENCE for one in self._pulses.values() for asked in one.asked.values()]
        return max(now, min(due)) if due else None

    @property
    def health(self) -> Mapping[Endpoint, Health]:
        return {endpoint: _health(pulse) for endpoint, pulse in self._pulses.items()}

    def _miss(self, endpoint: Endpoint, pulse: _Pulse, *, now: float) -> list[Changed]:
        late = [number for number, asked in pulse.asked.items() if now >= asked + PATIENCE]
        for number in late:
            del pulse.asked[number]
            pulse.answered.append(False)
            pulse.missed += 1
        if late and pulse.missed < MISSES and pulse.state is PeerState.UP:
            pulse.due = min(pulse.due, now)  # sure of it soon
        if pulse.missed < MISSES or pulse.state is not PeerState.UP:
            return []
        return self._turn(endpoint, pulse, PeerState.SILENT, now=now)

    def _turn(
        self, endpoint: Endpoint, pulse: _Pulse, state: PeerState, *, now: float
    ) -> list[Changed]:
        if pulse.state is state:
            return []
        pulse.state, pulse.since = state, now
        return [Changed(endpoint, state)]


def _health(pulse: _Pulse) -> Health:
    known = pulse.state is not PeerState.UNKNOWN
    loss = pulse.answered.count(False) / len(pulse.answered) if known and pulse.answered else None
    return Health(pulse.state, pulse.since, pulse.rtt, loss)
