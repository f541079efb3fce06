"""The binding of the FDB; its behaviour is tested in C."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel._native import Fdb

HOST, OTHER = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
macs = st.binary(min_size=6, max_size=6).filter(lambda mac: any(mac) and not mac[0] & 1)
vlans = st.none() | st.integers(1, 4094)


def made() -> Fdb:
    return Fdb(limit=10, share=5, ageing=300)


@given(st.dictionaries(st.tuples(macs, vlans), st.integers(0, 65534), max_size=50))
def test_static_entries_are_listed(entries: dict[tuple[bytes, int | None], int]) -> None:
    fdb = made()
    for (mac, vlan), index in entries.items():
        fdb.put(mac, vlan, index)
    assert {(mac, vlan): index for mac, vlan, index, *_ in fdb.entries()} == entries
    assert {entry[3:] for entry in fdb.entries()} <= {(True, 0)}
    for (mac, vlan), index in entries.items():
        assert fdb.lookup(mac, vlan) == index
        assert fdb.remove(mac, vlan)
        assert not fdb.remove(mac, vlan)
        assert fdb.lookup(mac, vlan) == -1
    assert fdb.entries() == []


def test_flush() -> None:
    fdb = made()
    for index, mac in enumerate((HOST, OTHER)):
        fdb.put(mac, None, index)
    fdb.flush(None, True)
    assert len(fdb.entries()) == 2
    fdb.flush(1, False)
    assert fdb.entries() == [(HOST, None, 0, True, 0)]
    fdb.flush(None, False)
    assert fdb.entries() == []


@pytest.mark.parametrize(
    ("mac", "vlan", "index"),
    [
        (HOST[:5], None, 0),
        (HOST, 0, 0),
        (HOST, 4095, 0),
        (HOST, -1, 0),
        (HOST, 2**70, 0),
        (HOST, None, -1),
        (HOST, None, 65535),
        (b"\xff" * 6, None, 0),
        (bytes.fromhex("01005e000001"), None, 0),
        (bytes(6), None, 0),
    ],
)
def test_invalid_entries(mac: bytes, vlan: int | None, index: int) -> None:
    fdb = made()
    with pytest.raises((ValueError, OverflowError)):
        fdb.put(mac, vlan, index)
    assert fdb.entries() == []


@pytest.mark.parametrize(
    "limits", [{"limit": 2**20 + 1}, {"ageing": 0}, {"ageing": 2**31}, {"limit": -1}]
)
def test_limits(limits: dict[str, int]) -> None:
    with pytest.raises((ValueError, OverflowError)):
        Fdb(**{"limit": 10, "share": 5, "ageing": 300} | limits)


def test_it_is_initialised_exactly_once() -> None:
    fdb = made()
    with pytest.raises(RuntimeError):
        Fdb.__init__(fdb, limit=1, share=1, ageing=1)
    empty = Fdb.__new__(Fdb)
    for call in (empty.entries, empty.counters, lambda: empty.lookup(HOST, None)):
        with pytest.raises(RuntimeError):
            call()


def test_threads() -> None:
    """Threads that share one table without the GIL do not break it."""
    fdb = made()

    def work(number: int) -> None:
        mac = bytes([2, number, 0, 0, 0, 0])
        for _ in range(500):
            fdb.put(mac, None, number)
            assert fdb.lookup(mac, None) == number
            fdb.entries()
            assert fdb.remove(mac, None)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fdb.entries() == []
