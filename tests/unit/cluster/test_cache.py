"""The copy of a store on disk."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.cluster.cache import dump, load
from tunnel.cluster.stores.base import Entry, Snapshot
from tunnel.errors import ConfigError

NUMBERS = st.integers(0, 1 << 63)
ENTRIES = st.builds(Entry, st.binary(max_size=20), NUMBERS, st.none() | NUMBERS, NUMBERS)
SNAPSHOTS = st.builds(Snapshot, NUMBERS, st.dictionaries(st.text(max_size=10), ENTRIES, max_size=4))


@given(SNAPSHOTS)
def test_a_snapshot_survives_a_round_trip(snapshot: Snapshot) -> None:
    assert load(dump(snapshot)) == snapshot


@given(SNAPSHOTS, st.data())
def test_a_truncated_file_is_refused(snapshot: Snapshot, data: st.DataObject) -> None:
    text = dump(snapshot)
    with pytest.raises(ConfigError, match="cannot be read"):
        load(text[: data.draw(st.integers(0, len(text) - 1))])


@pytest.mark.parametrize(
    "text",
    [
        *(b"[]", b"7", b"{}", b"\xff", b"[" * 100_000, b'{"version":2,"revision":1,"entries":{}}'),
        *(b'{"version":1,"revision":"1","entries":{}}', b'{"version":1,"revision":1}'),
        b'{"version":1,"revision":1,"entries":{"a":["!",1,null,1]}}',
        b'{"version":1,"revision":1,"entries":{"a":["",1]}}',
        b'{"version":1,"revision":1,"entries":{"a":["","1",null,1]}}',
    ],
)
def test_another_text_is_refused(text: bytes) -> None:
    with pytest.raises(ConfigError):
        load(text)
