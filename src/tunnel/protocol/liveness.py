"""
Is a peer there, how far away is it, and how much gets lost: by echoes, a few a minute.

    add, remove, heard, replied, tick  ->  Ask, Became

A peer that never answered is unknown: a kernel vxlan device answers no echo and is well.
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
"""The same while somebody looks, or after an echo was missed; an echo of its own that makes us ask
leaves as much after our last."""

PATIENCE = 1.0
"""Seconds until an echo counts as lost."""

MISSES = 3
"""Lost in a row until a peer that answered before is silent."""

AT_ONCE = 64
"""Echoes in one tick: so many answers at once find room with us."""

_MEMORY = 20  # echoes that loss is reckoned from
_SMOOTHING = 1 / 8  # of the round trip, as TCP does (RFC 6298)


@dataclass(frozen=True)
class SendEcho:
    """Send an echo with this id."""

    endpoint: Endpoint
    id: int


@dataclass(frozen=True)
class StateChanged:
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
    last: float = float("-inf")  # when it was asked last
    asked: dict[int, float] = field(default_factory=dict)  # id -> when
    answered: deque[bool] = field(default_factory=lambda: deque(maxlen=_MEMORY))


class Liveness:
    """
    All peers of one tunnel. `now` is monotonic seconds throughout.

    Args:
        ids: Of the echoes, never the same twice.
    """

    def __init__(self, ids: Iterator[int]) -> None:
        self._pulses: dict[Endpoint, _Pulse] = {}
        self._ids = ids
        self._watched = 0.0

    def __len__(self) -> int:
        return len(self._pulses)

    def add(self, endpoint: Endpoint, *, now: float) -> None:
        """A peer, or one that is at another address now. The first echo leaves at once."""
        self._pulses[endpoint] = _Pulse(since=now, due=now)

    def remove(self, endpoint: Endpoint) -> None:
        self._pulses.pop(endpoint, None)

    def watch(self, *, until: float, now: float) -> None:
        """Somebody looks: echoes come every second until then."""
        self._watched = max(self._watched, until)
        for pulse in self._pulses.values():
            pulse.due = min(pulse.due, now + WATCHED)

    def heard(self, endpoint: Endpoint) -> bool:
        """It asked us, so it may just have begun, and is worth asking soon. Returns whether that
        changed when a tick is due."""
        pulse = self._pulses.get(endpoint)
        if pulse is None or pulse.state is PeerState.UP or pulse.due <= pulse.last + WATCHED:
            return False
        pulse.due = pulse.last + WATCHED
        return True

    def replied(self, endpoint: Endpoint, number: int, *, now: float) -> list[StateChanged] | None:
        """An answer to echo `number`; None, and nothing changes, where nobody waits for it (any
        more)."""
        pulse = self._pulses.get(endpoint)
        asked = pulse.asked.pop(number, None) if pulse else None
        if pulse is None or asked is None:
            return None
        trip = now - asked
        pulse.rtt = trip if pulse.rtt is None else pulse.rtt + _SMOOTHING * (trip - pulse.rtt)
        pulse.answered.append(True)
        pulse.missed = 0
        return self._turn(endpoint, pulse, PeerState.UP, now=now)

    def rtt(self, endpoint: Endpoint) -> float | None:
        """Smoothed round trip in seconds, None before the first answer."""
        pulse = self._pulses.get(endpoint)
        return pulse.rtt if pulse else None

    def tick(self, *, now: float) -> list[SendEcho | StateChanged]:
        """Counts what was missed and asks whom it is time to ask; with very many the rest is due
        in the next."""
        actions: list[SendEcho | StateChanged] = []
        for endpoint, pulse in self._pulses.items():
            if pulse.asked:
                actions += self._miss(endpoint, pulse, now=now)
            if now >= pulse.due and len(actions) < AT_ONCE:
                eager = now < self._watched or 0 < pulse.missed < MISSES
                number = next(self._ids)
                pulse.due = now + (WATCHED if eager else INTERVAL)
                pulse.asked[number] = pulse.last = now
                actions.append(SendEcho(endpoint, number))
        return actions

    def next_tick(self, now: float) -> float | None:
        """When the next tick is due, `now` at the earliest; None without peers."""
        due = [pulse.due for pulse in self._pulses.values()]
        due += [asked + PATIENCE for one in self._pulses.values() for asked in one.asked.values()]
        return max(now, min(due)) if due else None

    def health(self, endpoint: Endpoint) -> Health | None:
        """None for a peer that was not added."""
        pulse = self._pulses.get(endpoint)
        return _health(pulse) if pulse else None

    def _miss(self, endpoint: Endpoint, pulse: _Pulse, *, now: float) -> list[StateChanged]:
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
    ) -> list[StateChanged]:
        if pulse.state is state:
            return []
        pulse.state, pulse.since = state, now
        return [StateChanged(endpoint, state)]


def _health(pulse: _Pulse) -> Health:
    known = pulse.state is not PeerState.UNKNOWN
    loss = pulse.answered.count(False) / len(pulse.answered) if known and pulse.answered else None
    return Health(pulse.state, pulse.since, pulse.rtt, loss)
