"""
How large a packet the path to a peer takes, found by probes, in the manner of RFC 8899.

    add, remove, arrived, tick  ->  Probe, Fits

A probe is an echo padded to a size, sent with "don't fragment". The largest size is tried first,
which most often is the answer; else it is searched for between what is known to arrive and what
is known not to. Afterwards the answer is tried again: often while packets flow, so that a path
that became narrower is noticed before people do, and seldom when none do; and the next larger
size from time to time, for a path may become wider. A peer that answers no echo tells nothing.

Sizes are of inner packets, in bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tunnel.types import Endpoint

BASE = {4: 1130, 6: 1280}
"""Taken for granted by underlay family: what 1,180 bytes carry, and what inner IPv6 demands."""

PATIENCE = 0.3
"""Seconds until a probe counts as lost."""

TRIES = 2
"""Probes of one size lost in a row until it does not fit."""

BUSY = 0.5
"""Seconds between probes of what is known to fit, while packets flow."""

IDLE = 60.0
"""The same while none do."""

WIDER = 5.0
"""Seconds until the largest size is tried again on a narrower path, while packets flow."""

CLOSE = 8
"""The search ends when it is known this exactly."""


@dataclass(frozen=True)
class Probe:
    """Send an echo of this id, padded to `size`."""

    endpoint: Endpoint
    id: int
    size: int


@dataclass(frozen=True)
class Fits:
    """The path takes `size` and no more, None if that is not known (any more)."""

    endpoint: Endpoint
    size: int | None


@dataclass
class _Path:
    """While `searching`, the answer is from `low`, which fits, to `high`."""

    base: int
    limit: int
    low: int
    high: int
    searching: bool = True
    size: int | None = None  # said last
    asked: Probe | None = None
    sent: float = 0.0
    tries: int = 0
    due: float = 0.0
    wider: float = 0.0  # when to search above `size` again
    alive: bool = False
    busy: bool = False

    @property
    def candidate(self) -> int:
        """What to probe next."""
        if not self.searching:
            return self.low
        # The answer is most often the largest.
        return self.high if self.high == self.limit else (self.low + self.high + 1) // 2

    @property
    def rest(self) -> float:
        return BUSY if self.busy else IDLE


class Paths:
    """All peers of one tunnel. `now` is monotonic seconds throughout."""

    def __init__(self) -> None:
        self._paths: dict[Endpoint, _Path] = {}
        self._next_id = 1 << 32  # apart from those of plain echoes

    @property
    def sizes(self) -> Mapping[Endpoint, int | None]:
        return {endpoint: path.size for endpoint, path in self._paths.items()}

    def add(self, endpoint: Endpoint, *, family: int, limit: int, now: float) -> None:
        """A peer, or a new limit for one. Nothing is probed before it was :meth:`heard`."""
        base = min(BASE[family], limit)
        known = self._paths.get(endpoint)
        if known is None or known.limit != limit:
            self._paths[endpoint] = _Path(base, limit, low=base, high=limit, due=now)

    def remove(self, endpoint: Endpoint) -> None:
        self._paths.pop(endpoint, None)

    def heard(self, endpoint: Endpoint, *, now: float) -> None:
        """It answered a plain echo: now what gets lost is too large, and not just unheard."""
        path = self._paths.get(endpoint)
        if path is not None and not path.alive:
            path.alive, path.due = True, now

    def silent(self, endpoint: Endpoint) -> None:
        path = self._paths.get(endpoint)
        if path is not None:
            path.alive, path.asked = False, None

    def flows(self, endpoint: Endpoint, busy: bool, *, now: float) -> None:
        """Whether packets went to it lately."""
        path = self._paths.get(endpoint)
        if path is None:
            return
        if busy and not path.busy:
            path.due = min(path.due, now)
        path.busy = busy

    def arrived(self, endpoint: Endpoint, number: int, *, now: float) -> list[Fits]:
        """The answer to probe `number`; one that nobody waits for changes nothing."""
        path = self._paths.get(endpoint)
        if path is None or path.asked is None or path.asked.id != number:
            return []
        path.low, path.asked, path.tries = path.asked.size, None, 0
        path.due = now if path.searching else now + path.rest
        if not path.searching and path.size != path.limit and now >= path.wider:
            path.searching, path.high, path.due = True, path.limit, now
        return self._settle(endpoint, path, now=now)

    def tick(self, *, now: float) -> list[Probe | Fits]:
        actions: list[Probe | Fits] = []
        for endpoint, path in self._paths.items():
            if not path.alive:
                continue
            if path.asked is not None and now >= path.sent + PATIENCE:
                actions += self._lost(endpoint, path, path.asked.size, now=now)
            if path.asked is None and now >= path.due:
                path.asked = Probe(endpoint, self._next_id, path.candidate)
                path.sent = now
                self._next_id += 1
                actions.append(path.asked)
        return actions

    def next_tick(self, now: float) -> float | None:
        """When the next tick is due, `now` at the earliest; None while nothing is."""
        due = [
            path.sent + PATIENCE if path.asked else path.due
            for path in self._paths.values()
            if path.alive
        ]
        return max(now, min(due)) if due else None

    def _lost(self, endpoint: Endpoint, path: _Path, size: int, *, now: float) -> list[Fits]:
        path.asked, path.due = None, now
        path.tries += 1
        if path.tries < TRIES:
            return []
        path.tries = 0
        if path.searching:
            path.high = size - 1
            return self._settle(endpoint, path, now=now)
        # What used to fit does not. Until it is known what does, only the base is sure.
        path.searching, path.low, path.high = True, path.base, max(path.base, size - 1)
        return self._say(endpoint, path, path.base) + self._settle(endpoint, path, now=now)

    def _settle(self, endpoint: Endpoint, path: _Path, *, now: float) -> list[Fits]:
        """Ends the search where it is known well enough."""
        if not path.searching or path.high - path.low >= CLOSE:
            return []
        path.searching = False
        path.due = now + path.rest
        path.wider = now + (WIDER if path.busy else IDLE)
        return self._say(endpoint, path, path.low)

    def _say(self, endpoint: Endpoint, path: _Path, size: int) -> list[Fits]:
        if path.size == size:
            return []
        path.size = size
        return [Fits(endpoint, size)]
