"""Every rule of Neighbours, with a clock that the test moves."""

import ipaddress
from collections.abc import Mapping

import pytest

from tunnel.protocol.neighbours import (
    CONFIRM,
    PAUSE,
    RETRY,
    MacLearned,
    Neighbours,
    SendSolicitation,
    gateway,
)
from tunnel.status import MacSource, Neighbour
from tunnel.types import Address, Endpoint, Mac, Peer

OURS = Mac.parse("02:00:5e:00:53:01")
THEIRS = Mac.parse("02:00:5e:00:53:02")
OTHER = Mac.parse("02:00:5e:00:53:03")
PEER = Peer("192.0.2.2", ["10.9.0.2/32", "fd09::2/128"])
END = PEER.endpoint
QUIET: Mapping[Endpoint, int] = {}


def ip(text: str) -> Address:
    return ipaddress.ip_address(text)


FOUR, SIX = ip("10.9.0.2"), ip("fd09::2")


def made(*peers: Peer, unique: bool = True) -> Neighbours:
    neighbours = Neighbours(mac=OURS, unique=unique)
    for peer in peers or (PEER,):
        neighbours.add(peer, now=0)
    return neighbours


def asked(neighbours: Neighbours, *, now: float, sent: int = 0) -> list[Address]:
    return [ask.address for ask in neighbours.tick({END: sent}, now=now)]


def test_it_is_asked_three_times_a_second_apart_and_then_rests() -> None:
    neighbours = made()
    for now in (0.0, 1.0, 2.0):
        assert neighbours.next_tick(now) == now
        assert neighbours.tick(QUIET, now=now) == [
            SendSolicitation(END, FOUR),
            SendSolicitation(END, SIX),
        ]
        assert neighbours.tick(QUIET, now=now) == []
    assert neighbours.next_tick(2) == 2 + RETRY
    assert asked(neighbours, now=2 + RETRY) == []  # nothing goes to it
    assert neighbours.next_tick(7) == 7 + RETRY
    assert asked(neighbours, now=12, sent=1) == [FOUR, SIX]
    assert neighbours.next_tick(12) == 12 + PAUSE


def test_a_resolved_peer_is_solicited_again_while_packets_go_to_it() -> None:
    neighbours = made()
    assert asked(neighbours, now=0) == [FOUR, SIX]
    assert neighbours.received_address(END, FOUR, THEIRS, now=0.1) == [
        MacLearned(END, THEIRS, None)
    ]
    assert neighbours.get(END, now=1.1) == Neighbour(THEIRS, MacSource.RESOLVED, 1.0)
    assert neighbours.next_tick(1) == 0.1 + CONFIRM
    assert asked(neighbours, now=31, sent=5) == [FOUR, SIX]
    assert neighbours.received_address(END, FOUR, THEIRS, now=31.1) == []
    assert asked(neighbours, now=62, sent=5) == []
    assert neighbours.get(END, now=62).mac == THEIRS  # stale is better than none


def test_a_changed_mac_is_reported() -> None:
    neighbours = made()
    neighbours.received_address(END, FOUR, THEIRS, now=0)
    assert neighbours.received_address(END, FOUR, OTHER, now=1) == [MacLearned(END, OTHER, THEIRS)]


def test_of_several_hosts_behind_a_vtep_the_first_asked_is_it() -> None:
    neighbours = made(Peer("192.0.2.2", ["10.9.0.0/28"]))
    assert asked(neighbours, now=0) == [ip("10.9.0.0"), ip("10.9.0.1"), ip("10.9.0.2")]
    assert neighbours.received_address(END, ip("10.9.0.9"), OTHER, now=0) == [
        MacLearned(END, OTHER, None)
    ]
    assert neighbours.received_address(END, ip("10.9.0.2"), THEIRS, now=0) == [
        MacLearned(END, THEIRS, OTHER)
    ]
    assert neighbours.received_address(END, ip("10.9.0.9"), OTHER, now=0) == []
    assert neighbours.received_address(END, ip("10.9.0.8"), OTHER, now=0) == []
    assert neighbours.get(END, now=0).mac == THEIRS


def test_one_that_does_not_answer_any_more_is_no_measure() -> None:
    neighbours = made(Peer("192.0.2.2", ["10.9.0.0/28"]))
    neighbours.received_address(END, ip("10.9.0.1"), THEIRS, now=0)
    for now in (30.0, 31.0, 32.0):
        assert asked(neighbours, now=now, sent=9)
    assert neighbours.received_address(END, ip("10.9.0.9"), OTHER, now=33) == [
        MacLearned(END, OTHER, THEIRS)
    ]


def test_a_control_frame_precedes_arp() -> None:
    neighbours = made()
    neighbours.received_address(END, FOUR, THEIRS, now=0)
    assert neighbours.received_frame(END, THEIRS, now=1) == [MacLearned(END, THEIRS, THEIRS)]
    assert neighbours.received_frame(END, OTHER, now=1) == [MacLearned(END, OTHER, THEIRS)]
    assert neighbours.received_frame(END, OTHER, now=1) == []
    assert neighbours.next_tick(1) is None
    assert neighbours.received_address(END, FOUR, THEIRS, now=2) == []
    assert neighbours.get(END, now=3) == Neighbour(OTHER, MacSource.CONTROL, 2)


def test_a_node_that_fell_silent_may_have_become_another() -> None:
    neighbours = made()
    neighbours.received_frame(END, THEIRS, now=0)
    neighbours.set_silent(END, now=60)
    assert asked(neighbours, now=60) == [FOUR, SIX]
    assert neighbours.received_address(END, FOUR, OTHER, now=61) == [MacLearned(END, OTHER, THEIRS)]


def test_a_configured_mac_precedes_everything() -> None:
    neighbours = made(Peer("192.0.2.2", PEER.prefixes, mac=THEIRS))
    assert neighbours.next_tick(0) is None
    assert (
        neighbours.received_frame(END, OTHER, now=1)
        == neighbours.received_address(END, FOUR, OTHER, now=1)
        == []
    )
    neighbours.set_silent(END, now=2)
    assert neighbours.next_tick(2) is None
    assert neighbours.get(END, now=3) == Neighbour(THEIRS, MacSource.CONFIGURED, 0)


def test_a_foreign_address_only_shows_that_the_peer_answers() -> None:
    neighbours = made()
    for now in (0, 1, 2):
        asked(neighbours, now=now)
    assert neighbours.received_address(END, ip("fe80::2"), THEIRS, now=3) == []
    assert asked(neighbours, now=3) == [FOUR, SIX]
    assert neighbours.received_address(END, ip("10.9.0.3"), THEIRS, now=3) == []
    assert neighbours.get(END, now=3).mac is None


@pytest.mark.parametrize(
    ("mac", "says"),
    [
        (OURS, "this node's own"),
        (Mac.parse("02:76:74:65:70:00"), "every node accepts"),
        (OTHER, "that of peer 192.0.2.3:8472"),
    ],
)
def test_a_mac_has_one_owner(mac: Mac, says: str, caplog: pytest.LogCaptureFixture) -> None:
    neighbours = made(PEER, Peer("192.0.2.3", mac=OTHER))
    for _ in range(3):
        assert neighbours.received_frame(END, mac, now=0) == []
        assert neighbours.received_address(END, FOUR, mac, now=0) == []
    (record,) = caplog.records
    assert says in record.getMessage()
    neighbours.remove(Endpoint("192.0.2.3"))
    assert bool(neighbours.received_frame(END, mac, now=1)) == (mac == OTHER)


def test_two_peers_may_share_a_mac_in_tun_mode() -> None:
    neighbours = made(PEER, Peer("2001:db8::2", ["10.7.0.0/16"]), unique=False)
    assert neighbours.received_address(END, FOUR, THEIRS, now=0)
    assert neighbours.received_address(Endpoint("2001:db8::2"), ip("10.7.0.1"), THEIRS, now=0)


def test_a_peer_without_prefixes_is_not_solicited() -> None:
    neighbours = made(Peer("192.0.2.2"))
    assert neighbours.next_tick(0) is None
    assert neighbours.received_frame(END, THEIRS, now=0) == [MacLearned(END, THEIRS, None)]
    everything = made(Peer("192.0.2.2", ["0.0.0.0/0", "::/0"]))
    assert everything.next_tick(0) is None
    assert everything.received_address(END, FOUR, THEIRS, now=0) == [MacLearned(END, THEIRS, None)]


def test_a_peer_at_another_address_keeps_its_mac_until_it_is_known_otherwise() -> None:
    neighbours = made()
    neighbours.received_address(END, FOUR, THEIRS, now=0)
    neighbours.add(PEER, now=5)
    assert neighbours.get(END, now=5).mac == THEIRS
    assert asked(neighbours, now=5) == [FOUR, SIX]
    assert neighbours.received_address(END, FOUR, OTHER, now=5) == [MacLearned(END, OTHER, THEIRS)]


def test_a_removed_peer_has_no_mac() -> None:
    neighbours = made()
    neighbours.remove(END)
    assert (
        neighbours.received_frame(END, THEIRS, now=0)
        == neighbours.received_address(END, FOUR, THEIRS, now=0)
        == []
    )
    assert neighbours.get(END, now=0) == Neighbour(None, MacSource.UNKNOWN, 0)
    assert neighbours.next_tick(0) is None


@pytest.mark.parametrize(
    ("prefix", "mac", "via"),
    [
        ("10.244.2.0/24", None, "10.244.2.0"),
        ("fd00:2::/64", THEIRS, "fd00:2::"),
        ("10.9.0.2/32", THEIRS, "10.9.0.2"),
        ("128.0.0.0/1", None, "128.0.0.0"),
        ("0.0.0.0/0", THEIRS, "fe80::5eff:fe00:5302"),
        ("0.0.0.0/1", THEIRS, "fe80::5eff:fe00:5302"),
        ("::/0", THEIRS, "fe80::5eff:fe00:5302"),
        ("0.0.0.0/0", None, None),
    ],
)
def test_gateways(prefix: str, mac: Mac | None, via: str | None) -> None:
    assert gateway(ipaddress.ip_network(prefix), mac) == (None if via is None else ip(via))
