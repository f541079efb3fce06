"""
The path MTU of each peer, found by probes, as RFC 8899 (DPLPMTUD) describes.

    add, remove, set_alive, set_silent, set_traffic, received_reply, tick
        ->  SendProbe, PathMtuChanged

A probe is an echo padded to a size and sent with "don't fragment". A single probe confirms a size:
first the largest, which usually fits, later the size that was found, and often while packets flow,
so that a path that becomes narrower is noticed early. If the single probe is lost, a fan of probes
is sent at once, with sizes between one that fits and the one that was lost, and then narrower fans:
three of them find the size to the byte. From time to time a fan tries larger sizes, because a path
can become wider.

Each fan includes the smallest probe. If that is lost too, the peer is unreachable, and the
fan says nothing about sizes. The path MTU of a peer that never answers stays unknown.

Sizes are of inner packets, in bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tunnel.types import Endpoint

BASE = {4: 1130, 6: 1210}
"""Sizes that are assumed to fit, by underlay family: what an underlay MTU of 1,180 bytes carries,
and the 1,280 of every IPv6 link."""

PATIENCE = 0.2
"""Seconds until a probe counts as lost. Four round trips if that is longer, a second at most."""

BUSY = 0.25
"""Seconds between probes of the size that fits, while packets flow."""

IDLE = 60.0
"""Seconds between them while no packets flow."""

WIDER = 5.0
"""Seconds until larger sizes are tried again while packets flow; :data:`IDLE` while none do."""

FAN = 8
"""Steps between the sizes of one fan."""

MOST = 400
"""Single probes a second to all peers together; with more than a hundred peers each gets fewer."""

_LONGEST_PATIENCE = 1.0
_SMALLEST = 0


@dataclass(frozen=True)
class SendProbe:
    """Sends an echo request with this id, padded to `size`."""

    endpoint: Endpoint
    id: int
    size: int


@dataclass(frozen=True)
class PathMtuChanged:
    """The path MTU is `size` from now on."""

    endpoint: Endpoint
    size: int


@dataclass
class _PathState:
    """During a search the path MTU is between `low`, which fits, and `high`."""

    base: int
    limit: int
    due: float
    low: int = 0
    high: int = 0
    size: int | None = None  # last reported
    probes: dict[int, int] = field(default_factory=dict)  # size by id, of the round under way
    best: int | None = None  # largest that was answered in it
    fanned: bool = False
    sent: float = 0.0
    wider: float = 0.0  # when to try larger sizes
    patience: float = PATIENCE
    alive: bool = False
    busy: bool = False


class PathMtus:
    """
    The path MTUs of all peers. `now` is monotonic seconds throughout.

    Args:
        ids: Ids for the probes, each different.
    """

    def __init__(self, ids: Iterator[int]) -> None:
        self._paths: dict[Endpoint, _PathState] = {}
        self._ids = ids

    def size(self, endpoint: Endpoint) -> int | None:
        """Returns the path MTU of a peer, None if it is not known."""
        path = self._paths.get(endpoint)
        return path.size if path else None

    @property
    def alive(self) -> bool:
        """Whether any peer answers."""
        return any(path.alive for path in self._paths.values())

    def add(self, endpoint: Endpoint, *, family: int, limit: int, now: float) -> None:
        """Adds a peer, or resets one whose address changed. No probe is sent before
        :meth:`set_alive`."""
        self._paths[endpoint] = _PathState(base=min(BASE[family], limit), limit=limit, due=now)

    def remove(self, endpoint: Endpoint) -> None:
        self._paths.pop(endpoint, None)

    def set_alive(self, endpoint: Endpoint, *, rtt: float, now: float) -> None:
        """Records that a peer answered an echo without padding, with a round trip of `rtt`
        seconds: probes that are lost now are too large."""
        path = self._paths.get(endpoint)
        if path is None:
            return
        path.patience = min(max(PATIENCE, 4 * rtt), _LONGEST_PATIENCE)
        if not path.alive:
            path.alive, path.due = True, now

    def set_silent(self, endpoint: Endpoint) -> None:
        """Records that a peer does not answer any more; no probe is sent to it."""
        path = self._paths.get(endpoint)
        if path is not None:
            path.alive = False
            path.probes.clear()

    def set_traffic(self, endpoint: Endpoint, busy: bool, *, now: float) -> None:
        """Records whether packets are sent to a peer."""
        path = self._paths.get(endpoint)
        if path is None:
            return
        if busy and not path.busy:
            path.due = min(path.due, now)
            path.wider = min(path.wider, now + WIDER)
        path.busy = busy

    def received_reply(
        self, endpoint: Endpoint, number: int, *, now: float
    ) -> list[SendProbe | PathMtuChanged]:
        """Takes the reply to probe `number`; does nothing if that probe is not waiting for one."""
        path = self._paths.get(endpoint)
        size = path.probes.pop(number, None) if path else None
        if path is None or size is None:
            return []
        path.best = max(size, path.best or _SMALLEST)
        if path.probes and size < path.high:
            return []
        return self._conclude(endpoint, path, now=now)

    def tick(self, *, now: float) -> list[SendProbe | PathMtuChanged]:
        """Ends rounds whose time is over, and begins those that are due."""
        actions: list[SendProbe | PathMtuChanged] = []
        for endpoint, path in self._paths.items():
            if path.probes:
                if now >= path.sent + path.patience:
                    actions += self._conclude(endpoint, path, now=now)
            elif path.alive and now >= path.due:
                actions += self._begin(endpoint, path, now=now)
        return actions

    def next_tick(self, now: float) -> float | None:
        """Returns when the next tick is due, `now` at the earliest; None if none is."""
        due = [
            path.sent + path.patience if path.probes else path.due
            for path in self._paths.values()
            if path.alive
        ]
        return max(now, min(due)) if due else None

    def _begin(
        self, endpoint: Endpoint, path: _PathState, *, now: float
    ) -> list[SendProbe | PathMtuChanged]:
        """Probes whether the known size still fits, or whether a larger one does."""
        if path.size is not None and path.size < path.limit and now >= path.wider:
            path.low, path.high = path.size, path.limit
            path.wider = now + _until_wider(path)
            return self._fan(endpoint, path, now=now)
        path.low, path.high, path.fanned = path.base, path.size or path.limit, False
        return self._send(endpoint, path, [path.high], now=now)

    def _fan(
        self, endpoint: Endpoint, path: _PathState, *, now: float
    ) -> list[SendProbe | PathMtuChanged]:
        """Probes the largest size three times: a random loss must not lower the path MTU."""
        path.fanned = True
        step = max(1, -(-(path.high - path.low) // FAN))
        sizes = [*range(path.high, path.low, -step), path.low, _SMALLEST, path.high, path.high]
        return self._send(endpoint, path, sizes, now=now)

    def _send(
        self, endpoint: Endpoint, path: _PathState, sizes: list[int], *, now: float
    ) -> list[SendProbe | PathMtuChanged]:
        path.probes = {next(self._ids): size for size in sizes}
        path.best, path.sent = None, now
        return [SendProbe(endpoint, number, size) for number, size in path.probes.items()]

    def _conclude(
        self, endpoint: Endpoint, path: _PathState, *, now: float
    ) -> list[SendProbe | PathMtuChanged]:
        """Ends a round, whose probes were answered or are late."""
        lost, path.probes = set(path.probes.values()), {}
        if path.best is None and not path.fanned:
            return self._fan(endpoint, path, now=now)
        if path.best is None:
            path.due = now + _LONGEST_PATIENCE
            return []
        if path.best < path.low and path.low > path.base:
            # Not even the size that fitted before: the path MTU is lower.
            path.low, path.high = path.base, path.low
            return self._fan(endpoint, path, now=now)
        path.low = max(path.best, path.base)
        path.high = min((size for size in lost if size >= path.low), default=path.low + 1) - 1
        changes = self._report(endpoint, path, path.low, now=now)
        if path.high > path.low:
            return changes + self._fan(endpoint, path, now=now)
        self._schedule(path, now=now)
        return changes

    def _schedule(self, path: _PathState, *, now: float) -> None:
        often = max(BUSY, len(self._paths) / MOST)
        path.due = now + (often if path.busy else IDLE)

    def _report(
        self, endpoint: Endpoint, path: _PathState, size: int, *, now: float
    ) -> list[SendProbe | PathMtuChanged]:
        if path.size == size:
            return []
        path.size, path.wider = size, now + _until_wider(path)
        return [PathMtuChanged(endpoint, size)]


def _until_wider(path: _PathState) -> float:
    return WIDER if path.busy else IDLE
