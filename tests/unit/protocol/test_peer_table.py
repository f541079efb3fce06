"""Every rule of Membership, with a clock that the test moves."""

import ipaddress
import logging
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.errors import ConfigError, PeerNotFoundError, UnderlayError
from tunnel.protocol.peer_table import (
    AddKernelRoute,
    ForgetPeer,
    PeerTable,
    PutPeer,
    PutRoutes,
    RemoveKernelRoute,
    Resolve,
)
from tunnel.types import Address, Endpoint, Peer, Prefix

OURS = [ipaddress.ip_network("10.244.1.0/24")]
US = Endpoint("192.0.2.1")
TWO = Peer("192.0.2.2", ["10.244.2.0/24", "fd00:2::/64"])
THREE = Peer("192.0.2.3", ["10.244.3.0/24"])
NAMED = Peer("node4.example", ["10.244.4.0/24"])
OTHER_NAMED = Peer("node5.example", ["10.244.5.0/24"])
NOWHERE = UnderlayError("its name has no address: unknown")


def ip(text: str) -> Address:
    return ipaddress.ip_address(text)


def net(text: str) -> Prefix:
    return ipaddress.ip_network(text)


def put_routes(*routes: tuple[Prefix, int]) -> PutRoutes:
    return PutRoutes(
        tuple((one.network_address.packed, one.prefixlen, index) for one, index in routes)
    )


def made(*peers: Peer) -> PeerTable:
    table = PeerTable(subnets=OURS, local=[US])
    table.add(peers, now=0)
    return table


def test_peers_are_put_before_routes_and_these_before_kernel_routes_and_questions() -> None:
    table = PeerTable(subnets=OURS, local=[US])
    assert table.add([TWO, NAMED], now=0) == [
        PutPeer(0, TWO, ip("192.0.2.2")),
        PutPeer(1, NAMED, None),
        put_routes((net("10.244.2.0/24"), 0), (net("fd00:2::/64"), 0), (net("10.244.4.0/24"), 1)),
        AddKernelRoute(net("10.244.2.0/24")),
        AddKernelRoute(net("fd00:2::/64")),
        AddKernelRoute(net("10.244.4.0/24")),
        Resolve(NAMED.endpoint),
    ]
    assert table.indices == {TWO.endpoint: 0, NAMED.endpoint: 1}


def test_nothing_added_nothing_done() -> None:
    assert made().add([], now=0) == []


def test_removal_goes_the_other_way_round() -> None:
    table = made(TWO, THREE)
    assert table.remove(TWO.endpoint, now=1) == [
        RemoveKernelRoute(net("10.244.2.0/24")),
        RemoveKernelRoute(net("fd00:2::/64")),
        put_routes(
            (net("10.244.3.0/24"), 1),
        ),
        ForgetPeer(0),
    ]
    assert table.indices == {THREE.endpoint: 1}


def test_who_is_not_there_cannot_be_removed() -> None:
    with pytest.raises(PeerNotFoundError, match=r"192\.0\.2\.2:4789 does not exist"):
        made(TWO).remove(Endpoint("192.0.2.2", 4789), now=0)


def test_the_lowest_free_index_is_used_again() -> None:
    table = made(TWO, THREE, NAMED)
    table.remove(THREE.endpoint, now=0)
    table.remove(TWO.endpoint, now=0)
    table.add([THREE, OTHER_NAMED, TWO], now=0)
    assert table.indices == {
        NAMED.endpoint: 2,
        THREE.endpoint: 0,
        OTHER_NAMED.endpoint: 1,
        TWO.endpoint: 3,
    }


@given(st.lists(st.integers(0, 9)))
def test_indices_are_always_the_lowest_that_were_free(toggles: list[int]) -> None:
    table = PeerTable(subnets=())
    everyone = [Peer(f"192.0.2.{n + 1}", [f"10.{n}.0.0/16"]) for n in range(10)]
    used: dict[int, int] = {}
    for n in toggles:
        if n in used:
            table.remove(everyone[n].endpoint, now=0)
            del used[n]
        else:
            table.add([everyone[n]], now=0)
            used[n] = min(set(range(11)) - set(used.values()))
    assert table.indices == {everyone[n].endpoint: index for n, index in used.items()}


@pytest.mark.parametrize(
    ("peer", "says"),
    [
        (
            Peer("192.0.2.2", ["10.9.0.0/16"]),
            "exists already, with 10.244.2.0/24, fd00",
        ),
        (Peer("192.0.2.1", ["10.9.0.0/16"]), "this node itself"),
        (Peer("192.0.2.9", ["10.244.2.128/25"]), "overlaps 10.244.2.0/24 of peer 192.0.2.2:8472"),
        (Peer("192.0.2.9", ["10.0.0.0/8"]), "this node"),
        (Peer("192.0.2.9", ["10.244.1.1/32"]), "10.244.1.0/24 of this node"),
    ],
)
def test_all_or_none_are_added(peer: Peer, says: str) -> None:
    table = made(TWO)
    with pytest.raises(ConfigError, match=says):
        table.add([THREE, peer], now=0)
    assert table.indices == {TWO.endpoint: 0}
    assert table.add([THREE], now=0)[0] == PutPeer(1, THREE, ip("192.0.2.3"))


def test_a_prefix_is_free_again_after_its_owner_left() -> None:
    table = made(TWO)
    table.remove(TWO.endpoint, now=0)
    table.add([Peer("192.0.2.9", TWO.prefixes)], now=0)


def test_a_thousand_peers_come_at_once() -> None:
    peers = [
        Peer(f"198.18.{n // 250}.{n % 250 + 1}", [f"10.{n // 256}.{n % 256}.0/24"])
        for n in range(1000)
    ]
    start = time.process_time()
    actions = PeerTable(subnets=()).add(peers, now=0)
    assert time.process_time() - start < 0.5
    assert len(actions) == 2001


def test_a_node_without_names_sleeps() -> None:
    table = made(TWO, THREE)
    assert table.next_tick(0) is None
    assert table.tick({0: 5}, now=100) == []


def test_a_name_that_was_found_is_used() -> None:
    table = made(NAMED)
    assert table.next_tick(0) is None  # the answer itself will come
    assert table.resolved(NAMED.endpoint, ip("192.0.2.4"), now=1) == [
        PutPeer(0, NAMED, ip("192.0.2.4"))
    ]
    assert table.next_tick(1) == 31


def test_a_silent_peer_is_asked_for_again_at_most_every_30_seconds() -> None:
    table = made(NAMED)
    table.resolved(NAMED.endpoint, ip("192.0.2.4"), now=0)
    assert table.tick({}, now=29.9) == []
    assert table.tick({}, now=30) == [Resolve(NAMED.endpoint)]
    assert table.tick({}, now=31) == []  # asked already
    assert table.next_tick(31) is None
    assert table.resolved(NAMED.endpoint, ip("192.0.2.4"), now=32) == []  # nothing new
    assert table.tick({}, now=61.9) == []
    assert table.tick({}, now=62) == [Resolve(NAMED.endpoint)]
    assert table.resolved(NAMED.endpoint, ip("192.0.2.44"), now=63) == [
        PutPeer(0, NAMED, ip("192.0.2.44"))
    ]


def test_a_peer_that_is_heard_is_left_alone() -> None:
    table = made(NAMED)
    table.resolved(NAMED.endpoint, ip("192.0.2.4"), now=0)
    assert table.tick({0: 1}, now=30) == []
    assert table.next_tick(30) == 60
    assert table.tick({0: 2}, now=60) == []
    assert table.tick({0: 2}, now=90) == [Resolve(NAMED.endpoint)]


def test_a_late_tick_is_due_now() -> None:
    table = made(NAMED)
    table.resolved(NAMED.endpoint, ip("192.0.2.4"), now=0)
    assert table.next_tick(100) == 100


def test_a_name_that_is_not_found_is_tried_again_ever_more_rarely() -> None:
    table = made(NAMED)
    now, waited = 0.0, []
    for _ in range(9):
        assert table.resolved(NAMED.endpoint, NOWHERE, now=now) == []
        due = table.next_tick(now)
        assert due is not None
        waited.append(due - now)
        assert table.tick({}, now=due) == [Resolve(NAMED.endpoint)]
        now = due
    assert waited == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    table.resolved(NAMED.endpoint, ip("192.0.2.4"), now=now)
    table.tick({}, now=now + 30)
    table.resolved(NAMED.endpoint, NOWHERE, now=now + 30)
    assert table.next_tick(now + 30) == now + 31  # it begins at 1 s again


def test_a_failure_keeps_the_old_address() -> None:
    table = made(NAMED)
    table.resolved(NAMED.endpoint, ip("192.0.2.4"), now=0)
    table.tick({}, now=30)
    assert table.resolved(NAMED.endpoint, NOWHERE, now=30) == []
    assert table.tick({0: 1}, now=31) == []  # it is back, at the address it had
    assert table.next_tick(31) == 61


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("192.0.2.1", "is this node"),
        ("192.0.2.2", "is 192.0.2.2:8472"),
        ("0.0.0.0", "not a unicast address"),
        ("fe80::1", "is link-local"),
    ],
)
def test_a_name_that_leads_nowhere_useful_is_tried_again(
    address: str, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    table = made(TWO, NAMED)
    assert table.resolved(NAMED.endpoint, ip(address), now=0) == []
    assert table.next_tick(0) == 1
    (record,) = caplog.records
    assert says in record.getMessage()


def test_the_log_has_each_trouble_with_a_name_once_and_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="tunnel")
    table = made(TWO, NAMED)
    late = UnderlayError("its name has no address: no answer")
    here = ip("192.0.2.4")
    for answer in [NOWHERE, NOWHERE, late, late, TWO.endpoint.address, here, here, NOWHERE, here]:
        assert answer is not None
        table.resolved(NAMED.endpoint, answer, now=0)
    assert [(one.levelname, one.getMessage()) for one in caplog.records] == [
        ("WARNING", "peer node4.example:8472: its name has no address: unknown"),
        ("WARNING", "peer node4.example:8472: its name has no address: no answer"),
        (
            "WARNING",
            "peer node4.example:8472: its name resolves to 192.0.2.2:8472, which is 192.0.2.2:8472",
        ),
        ("INFO", "peer node4.example:8472: its name resolves to 192.0.2.4"),
        ("WARNING", "peer node4.example:8472: its name has no address: unknown"),
        ("INFO", "peer node4.example:8472: its name resolves to 192.0.2.4"),
    ]


def test_nobody_is_added_where_a_name_leads() -> None:
    table = made(NAMED)
    table.resolved(NAMED.endpoint, ip("192.0.2.2"), now=0)
    with pytest.raises(ConfigError, match=r"the name of node4\.example:8472 resolves to"):
        table.add([TWO], now=0)
    table.resolved(NAMED.endpoint, ip("192.0.2.4"), now=0)  # it moved away
    table.add([TWO], now=0)
    table.remove(NAMED.endpoint, now=0)
    table.add([Peer("192.0.2.4", ["10.9.0.0/16"])], now=0)


def test_an_answer_for_who_has_left_is_ignored() -> None:
    table = made(NAMED)
    table.remove(NAMED.endpoint, now=0)
    assert table.resolved(NAMED.endpoint, ip("192.0.2.4"), now=1) == []
    assert table.next_tick(1) is None


# Many at once.


def test_many_come_and_go_at_once() -> None:
    table = made(TWO, THREE)
    four = Peer("192.0.2.4", ["10.244.4.0/24"])
    actions = table.change(add=[four], remove=[TWO.endpoint], now=0)
    assert actions == [
        RemoveKernelRoute(net("10.244.2.0/24")),
        RemoveKernelRoute(net("fd00:2::/64")),
        # A removed peer's index is not reused while packets may still be on their way.
        PutPeer(2, four, ip("192.0.2.4")),
        put_routes((net("10.244.3.0/24"), 1), (net("10.244.4.0/24"), 2)),
        AddKernelRoute(net("10.244.4.0/24")),
        ForgetPeer(0),
    ]
    assert table.change(add=[NAMED], remove=[], now=0)[0] == PutPeer(0, NAMED, None)


def test_who_becomes_another_keeps_its_index_and_its_address() -> None:
    table = made(TWO, THREE)
    other = Peer(TWO.endpoint, ["10.244.2.0/24", "10.244.9.0/24"], mac="02:00:5e:00:53:02")
    assert table.change(add=[other], remove=[], now=0) == [
        RemoveKernelRoute(net("fd00:2::/64")),
        PutPeer(0, other, ip("192.0.2.2")),
        put_routes(
            (net("10.244.2.0/24"), 0),
            (net("10.244.9.0/24"), 0),
            (net("10.244.3.0/24"), 1),
        ),
        AddKernelRoute(net("10.244.9.0/24")),
    ]
    again = Peer(other.endpoint, other.prefixes, mac="02:00:5e:00:53:03")
    assert table.change(add=[again], remove=[], now=0) == [PutPeer(0, again, ip("192.0.2.2"))]


def test_a_prefix_that_moves_is_routed_all_the_time() -> None:
    table = made(TWO, THREE)
    heir = Peer("192.0.2.4", TWO.prefixes)
    actions = table.change(add=[heir], remove=[TWO.endpoint], now=0)
    assert not [one for one in actions if isinstance(one, RemoveKernelRoute)]
    # The kernel may lead it another way, as in TAP mode.
    assert [one.prefix for one in actions if isinstance(one, AddKernelRoute)] == [*TWO.prefixes]


def test_some_are_refused_and_the_others_are_not() -> None:
    table = made(TWO)
    come = [
        THREE,
        Peer("192.0.2.4", ["10.244.2.128/25"]),
        Peer(US, ["10.244.5.0/24"]),
        Peer("192.0.2.6", ["10.244.0.0/16"]),
    ]
    refused = table.find_conflicts(add=come)
    assert set(refused) == {one.endpoint for one in come[1:]}
    said = " ".join(map(str, refused.values()))
    assert "10.244.2.128/25 of peer 192.0.2.4:8472 overlaps 10.244.2.0/24 of peer" in said
    assert "peer 192.0.2.1:8472 is this node itself" in said
    heir = Peer("192.0.2.4", TWO.prefixes)
    assert table.find_conflicts(add=[heir], remove=[TWO.endpoint]) == {}


def test_a_place_that_a_name_leads_to_is_refused() -> None:
    table = made(NAMED)
    table.resolved(NAMED.endpoint, ip("192.0.2.2"), now=0)
    assert "resolves to" in str(table.find_conflicts(add=[TWO])[TWO.endpoint])
    assert table.find_conflicts(add=[TWO], remove=[NAMED.endpoint]) == {}


def test_our_subnets_can_become_others_if_nobody_has_them() -> None:
    table = made(TWO)
    with pytest.raises(ConfigError, match="overlaps"):
        table.set_subnets([net("10.244.0.0/16")])
    assert set(table.find_conflicts(add=[Peer("192.0.2.4", OURS)])) == {Endpoint("192.0.2.4")}
    table.set_subnets([net("10.244.9.0/24")])
    assert table.find_conflicts(add=[Peer("192.0.2.4", OURS)]) == {}


@given(st.lists(st.tuples(st.sampled_from("+-*"), st.integers(1, 5)), max_size=30))
def test_indices_are_never_used_twice(steps: list[tuple[str, int]]) -> None:
    """Many peers are added, removed and changed in one change."""
    table = made()
    used: dict[Endpoint, int] = {}
    for number, (how, count) in enumerate(steps):
        there = list(table.indices)
        gone = there[:count] if how in "-*" else []
        come = [Peer(f"198.51.{number}.{n + 1}", [f"10.{number}.{n}.0/24"]) for n in range(count)]
        come = come if how in "+*" else []
        for action in table.change(add=come, remove=gone, now=0):
            if isinstance(action, PutPeer):
                assert action.index not in used.values()
                used[action.peer.endpoint] = action.index
            elif isinstance(action, ForgetPeer):
                used = {end: index for end, index in used.items() if index != action.index}
        assert table.indices == used
