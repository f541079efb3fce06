"""Overlaps of prefixes, against a comparison of all pairs."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.prefixes import OwnedPrefix, contains, overlap, overlaps
from tunnel.types import Prefix


@st.composite
def prefixes(draw: st.DrawFn) -> Prefix:
    """Prefixes of /8 to /12 in a /8 of each family: few, so that many overlap."""
    start = ipaddress.ip_address(draw(st.sampled_from(["10.0.0.0", "fd00::"])))
    address = start + (draw(st.integers(0, 15)) << (start.max_prefixlen - 12))
    return ipaddress.ip_network((address, draw(st.integers(8, 12))), strict=False)


@pytest.mark.parametrize(
    ("one", "other", "contained"),
    [
        ("10.0.0.0/8", "10.1.0.0/16", True),
        ("10.1.0.0/16", "10.1.0.0/16", True),
        ("10.1.0.0/16", "10.0.0.0/8", False),
        ("0.0.0.0/0", "fd00::/8", False),
        ("::/0", "10.0.0.0/8", False),
    ],
)
def test_contains(one: str, other: str, contained: bool) -> None:
    assert contains(ipaddress.ip_network(one), ipaddress.ip_network(other)) == contained


@given(prefixes(), prefixes())
def test_overlap_is_that_of_ipaddress(one: Prefix, other: Prefix) -> None:
    if one.version == other.version:
        assert overlap(one, other) == one.overlaps(other)
    else:
        assert not overlap(one, other)


@given(st.lists(st.builds(OwnedPrefix, prefixes(), st.integers(0, 3)), max_size=12))
def test_overlaps_finds_pairs_of_different_owners(owned: list[OwnedPrefix]) -> None:
    pairs = list(overlaps(owned))
    assert all(a.owner < b.owner and overlap(a.prefix, b.prefix) for a, b in pairs)
    conflict = any(a.owner != b.owner and overlap(a.prefix, b.prefix) for a in owned for b in owned)
    # One owner's larger prefix may hide a conflict of two others inside it, never all conflicts.
    assert bool(pairs) == conflict
