"""
How large a packet the path to a peer takes, found by probes, in the manner of RFC 8899.

    add, remove, heard, silent, flows, arrived, tick  ->  Probe, Measured

A probe is an echo padded to a size, sent with "don't fragment". What should fit is probed alone:
at first the largest size, which most often is the answer, later that answer, often while packets
flow, so that a path that became narrower is noticed before people do. Where it gets lost, a fan of
probes leaves at once, of sizes between what surely fits and what got lost, and then a closer one:
three fans know the answer to the byte. From time to time a fan looks for more, for a path may
become wider.

Each fan holds the smallest probe there is. Where not even that is answered nothing was learned of
sizes: the peer is away. One that never answers tells nothing.

Sizes are of inner packets, in bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tunnel.types import Endpoint

BASE = {4: 1130, 6: 1210}
"""Taken for granted by underlay family: what 1,180 bytes carry, and the 1,280 of every IPv6
link."""

PATIENCE = 0.2
"""Seconds until a probe counts as lost, or four round trips, but never more than a second."""

BUSY = 0.25
"""Seconds between probes of what is known to fit, while packets flow."""

IDLE = 60.0
"""The same while none do."""

WIDER = 5.0
"""Seconds until more is tried again on a narrower path, while packets flow; else :data:`IDLE`."""

FAN = 8
"""Sizes in one fan."""

MOST = 400
"""Lone probes in a second, over all peers: with more than a hundred each is probed more rarely."""

_LONGEST_PATIENCE = 1.0
_SMALLEST = 0


@dataclass(frozen=True)
class SendProbe:
    """Send an echo of this id, padded to `size`."""

    endpoint: Endpoint
    id: int
    size: int


@dataclass(frozen=True)
class PathMtuChanged:
    """The path takes `size`, and was not known to take more or less than before."""

    endpoint: Endpoint
    size: int


@dataclass
class _Path:
    """While a search goes on, the answer is from `low`, which fits, to `high`."""

    base: int
    limit: int
    due: float
    low: int = 0
    high: int = 0
    size: int | None = None  # said last
    asked: dict[int, int] = field(default_factory=dict)  # id -> size, of the round under way
    best: int | None = None  # largest that arrived in it
    fanned: bool = False
    sent: float = 0.0
    wider: float = 0.0  # when to look for more than `size`
    patience: float = PATIENCE
    alive: bool = False
    busy: bool = False


class Paths:
    """
    All peers of one tunnel. `now` is monotonic seconds throughout.

    Args:
        ids: Of the probes, never the same twice.
    """

    def __init__(self, ids: Iterator[int]) -> None:
        self._paths: dict[Endpoint, _Path] = {}
        self._ids = ids

    def size(self, endpoint: Endpoint) -> int | None:
        """What the path to a peer takes, None where that is not known."""
        path = self._paths.get(endpoint)
        return path.size if path else None

    @property
    def alive(self) -> bool:
        """Whether any peer answers."""
        return any(path.alive for path in self._paths.values())

    def add(self, endpoint: Endpoint, *, family: int, limit: int, now: float) -> None:
        """A peer, or one that is at another address now. Nothing is probed before it was
        :meth:`heard`."""
        self._paths[endpoint] = _Path(base=min(BASE[family], limit), limit=limit, due=now)

    def remove(self, endpoint: Endpoint) -> None:
        self._paths.pop(endpoint, None)

    def heard(self, endpoint: Endpoint, *, trip: float, now: float) -> None:
        """It answered a plain echo, usually after `trip` seconds: now what gets lost is too
        large, and not just unheard."""
        path = self._paths.get(endpoint)
        if path is None:
            return
        path.patience = min(max(PATIENCE, 4 * trip), _LONGEST_PATIENCE)
        if not path.alive:
            path.alive, path.due = True, now

    def silent(self, endpoint: Endpoint) -> None:
        path = self._paths.get(endpoint)
        if path is not None:
            path.alive = False
            path.asked.clear()

    def flows(self, endpoint: Endpoint, busy: bool, *, now: float) -> None:
        """Whether packets went to it lately."""
        path = self._paths.get(endpoint)
        if path is None:
            return
        if busy and not path.busy:
            path.due = min(path.due, now)
            path.wider = min(path.wider, now + WIDER)
        path.busy = busy

    def arrived(
        self, endpoint: Endpoint, number: int, *, now: float
    ) -> list[SendProbe | PathMtuChanged]:
        """The answer to probe `number`; one that nobody waits for changes nothing."""
        path = self._paths.get(endpoint)
        size = path.asked.pop(number, None) if path else None
        if path is None or size is None:
            return []
        path.best = max(size, path.best or _SMALLEST)
        if path.asked and size < path.high:
            return []
        return self._conclude(endpoint, path, now=now)

    def tick(self, *, now: float) -> list[SendProbe | PathMtuChanged]:
        actions: list[SendProbe | PathMtuChanged] = []
        for endpoint, path in self._paths.items():
            if path.asked:
                if now >= path.sent + path.patience:
                    actions += self._conclude(endpoint, path, now=now)
            elif path.alive and now >= path.due:
                actions += self._begin(endpoint, path, now=now)
        return actions

    def next_tick(self, now: float) -> float | None:
        """When the next tick is due, `now` at the earliest; None while nothing is."""
        due = [
            path.sent + path.patience if path.asked else path.due
            for path in self._paths.values()
            if path.alive
        ]
        return max(now, min(due)) if due else None

    def _begin(
        self, endpoint: Endpoint, path: _Path, *, now: float
    ) -> list[SendProbe | PathMtuChanged]:
        """Does what is known to fit still do so, or does more?"""
        if path.size is not None and path.size < path.limit and now >= path.wider:
            path.low, path.high = path.size, path.limit
            path.wider = now + _until_wider(path)
            return self._fan(endpoint, path, now=now)
        path.low, path.high, path.fanned = path.base, path.size or path.limit, False
        return self._ask(endpoint, path, [path.high], now=now)

    def _fan(
        self, endpoint: Endpoint, path: _Path, *, now: float
    ) -> list[SendProbe | PathMtuChanged]:
        """The largest three times: losses that come by chance should not make a path narrow."""
        path.fanned = True
        step = max(1, -(-(path.high - path.low) // FAN))
        sizes = [*range(path.high, path.low, -step), path.low, _SMALLEST, path.high, path.high]
        return self._ask(endpoint, path, sizes, now=now)

    def _ask(
        self, endpoint: Endpoint, path: _Path, sizes: list[int], *, now: float
    ) -> list[SendProbe | PathMtuChanged]:
        path.asked = {next(self._ids): size for size in sizes}
        path.best, path.sent = None, now
        return [SendProbe(endpoint, number, size) for number, size in path.asked.items()]

    def _conclude(
        self, endpoint: Endpoint, path: _Path, *, now: float
    ) -> list[SendProbe | PathMtuChanged]:
        """A round is over: its probes were answered, or their time is up."""
        lost, path.asked = set(path.asked.values()), {}
        if path.best is None and not path.fanned:
            return self._fan(endpoint, path, now=now)
        if path.best is None:
            path.due = now + _LONGEST_PATIENCE
            return []
        if path.best < path.low and path.low > path.base:
            # Not even what fitted: the answer is below.
            path.low, path.high = path.base, path.low
            return self._fan(endpoint, path, now=now)
        path.low = max(path.best, path.base)
        path.high = min((size for size in lost if size >= path.low), default=path.low + 1) - 1
        said = self._say(endpoint, path, path.low, now=now)
        if path.high > path.low:
            return said + self._fan(endpoint, path, now=now)
        self._rest(path, now=now)
        return said

    def _rest(self, path: _Path, *, now: float) -> None:
        often = max(BUSY, len(self._paths) / MOST)
        path.due = now + (often if path.busy else IDLE)

    def _say(
        self, endpoint: Endpoint, path: _Path, size: int, *, now: float
    ) -> list[SendProbe | PathMtuChanged]:
        if path.size == size:
            return []
        path.size, path.wider = size, now + _until_wider(path)
        return [PathMtuChanged(endpoint, size)]


def _until_wider(path: _Path) -> float:
    return WIDER if path.busy else IDLE
