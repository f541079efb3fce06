"""Which prefixes overlap, within one address family and across owners."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tunnel.types import Prefix

Span = tuple[int, int, int]
"""IP version, first address, prefix length: sorted, a prefix comes right before those inside it."""


class OwnedPrefix(NamedTuple):
    """A prefix and the number of its owner."""

    prefix: Prefix
    owner: int


def span(prefix: Prefix) -> Span:
    """The sort key of a prefix."""
    return prefix.version, int(prefix.network_address), prefix.prefixlen


def contains(outer: Prefix, inner: Prefix) -> bool:
    """Whether `inner` lies within `outer`, or is equal to it."""
    return (
        outer.version == inner.version
        and outer.prefixlen <= inner.prefixlen
        and inner.network_address in outer
    )


def overlap(one: Prefix, other: Prefix) -> bool:
    """Whether the two share an address. Prefixes of different families never do."""
    return contains(one, other) or contains(other, one)


def overlaps(prefixes: Iterable[OwnedPrefix]) -> Iterator[tuple[OwnedPrefix, OwnedPrefix]]:
    """
    Yields pairs of overlapping prefixes of different owners, the lower owner first.

    Every prefix that lies within another owner's outermost one is in at least one pair. Takes
    n log n time.
    """
    outermost: OwnedPrefix | None = None
    for owned in sorted(prefixes, key=lambda owned: span(owned.prefix)):
        # Prefixes nest or are disjoint: only the last outermost one can contain this one.
        if outermost is None or not contains(outermost.prefix, owned.prefix):
            outermost = owned
        elif outermost.owner != owned.owner:
            yield (outermost, owned) if outermost.owner < owned.owner else (owned, outermost)
