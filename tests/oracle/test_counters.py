"""The counters of all peers, read at once and added up over the workers."""

import pytest

from tunnel._native import (
    DROP_REASONS,
    REMOVED_PEERS,
    UNKNOWN_PEER,
    WORK,
    Counters,
    Forwarder,
    read_counters,
)

from .rig import Rig
from .wire import ip, udp

FIELDS = (
    "outbound_packets",
    "outbound_bytes",
    "inbound_packets",
    "inbound_bytes",
    "drops",
    "last_drop",
    "trains",
)


def test_the_fields_have_names() -> None:
    with Rig() as rig:
        row = rig.counters(UNKNOWN_PEER)
        assert isinstance(row, Counters)
        assert row == tuple(getattr(row, name) for name in FIELDS)
        assert [name for name in dir(Counters) if name in FIELDS] == sorted(FIELDS)
        assert tuple(rig.work()) == WORK


def test_workers_are_added_up() -> None:
    packet = ip(4, dst="10.0.1.9") / udp(b"x")
    stray = ip(4, dst="10.77.0.1") / udp(b"x")
    with Rig() as one, Rig() as other:
        for rig in (one, other):
            rig.add_peer()
        one.outbound(packet, stray)
        other.outbound(packet, packet, stray)
        rows = read_counters([one.forwarder, other.forwarder])
        assert set(rows) == {UNKNOWN_PEER, REMOVED_PEERS, 0}
        assert (rows[0].outbound_packets, rows[0].outbound_bytes) == (3, 3 * len(packet))
        assert rows[UNKNOWN_PEER].drops == {"no_route": 2}
        assert rows[UNKNOWN_PEER].last_drop == "no_route"
        assert rows[0].drops == {}
        assert rows[0].last_drop is None
        assert rows[REMOVED_PEERS][:4] == (0, 0, 0, 0)


def test_trains_are_on_only_where_every_worker_sends_them() -> None:
    with Rig() as one, Rig() as other, Rig(segments=1) as singly:
        for rig in (one, other, singly):
            rig.add_peer()
        assert read_counters([one.forwarder, other.forwarder])[0].trains
        assert not read_counters([one.forwarder, singly.forwarder])[0].trains
        other.forwarder.set_trains(0, False)
        assert not read_counters([one.forwarder, other.forwarder])[0].trains
        assert not read_counters([other.forwarder, one.forwarder])[0].trains
        assert [rig.forwarder.trains()[:2] for rig in (one, other, singly)] == [
            b"\2\0",
            b"\1\0",
            b"\1\0",
        ]


def test_workers_may_have_different_peers_for_a_moment() -> None:
    """A change reaches one worker after the other."""
    with Rig() as one, Rig() as other:
        one.add_peer()
        for _ in range(40):
            other.add_peer()
        for order in ((one, other), (other, one)):
            rows = read_counters([rig.forwarder for rig in order])
            assert set(rows) == {UNKNOWN_PEER, REMOVED_PEERS, *range(40)}


def test_what_is_no_forwarder_is_refused() -> None:
    for wrong in ([None], 7, [object()]):
        with pytest.raises(TypeError):
            read_counters(wrong)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="not initialised"):
        read_counters([Forwarder.__new__(Forwarder)])
    assert read_counters([])[UNKNOWN_PEER].drops == {}


def test_names_come_from_the_table_of_reasons() -> None:
    with Rig() as rig:
        rig.outbound(ip(4, dst="224.0.0.251") / udp(b"x"))
        assert rig.counters(UNKNOWN_PEER).last_drop in {name for name, _, _ in DROP_REASONS}
