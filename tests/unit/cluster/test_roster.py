"""Records of all kinds, in every order, made into peers."""

import ipaddress
import random
import time
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnel.cluster.network import Network, Pool
from tunnel.cluster.record import Record
from tunnel.cluster.roster import LINGER, Difference, Roster
from tunnel.cluster.stores.base import Batch, Change, Entry, Snapshot
from tunnel.config.rules import conflicts
from tunnel.types import Endpoint, Mac, Peer, Prefix, parse_prefix

DIRECTORY = "/coreos.com/network/subnets/"
NETWORK = Network((Pool.of(parse_prefix("10.5.0.0/16")), Pool.of(parse_prefix("fd00:5::/48"))))
OURS = Record(
    address=ipaddress.IPv4Address("192.0.2.1"),
    address6=ipaddress.IPv6Address("2001:db8::1"),
    node="us",
)


def mac(number: int) -> Mac:
    return Mac(bytes([2, 0, 0, 1, number >> 8, number & 255]))


def ours(number: int) -> Record:
    """The record of one of our nodes, with IPv4."""
    address = ipaddress.IPv4Address("198.18.0.0") + number
    return Record(address=address, mac=mac(number), vni=1, node=f"n{number}")


def dual(number: int, *, node: str) -> Record:
    return replace(
        ours(number),
        address6=ipaddress.IPv6Address("2001:db8::") + number,
        mac6=mac(1000 + number),
        node=node,
    )


def peer(address: str, *subnets: str, mac: Mac | None = None, port: int = 8472) -> Peer:
    return Peer(Endpoint(address, port), subnets, mac=mac)


def roster(record: Record = OURS, *static: Peer) -> Roster:
    return Roster(NETWORK, record, directory=DIRECTORY, static=static)


def snapshot(records: Mapping[str, Record | bytes], *, revision: int = 1000) -> Snapshot:
    """The records, written in this order."""
    return Snapshot(
        revision,
        {
            DIRECTORY + name: Entry(
                one if isinstance(one, bytes) else one.text(), number, 1, created=number
            )
            for number, (name, one) in enumerate(records.items(), 1)
        },
    )


def put(name: str, record: Record | bytes, *, revision: int, created: int | None = None) -> Change:
    value = record if isinstance(record, bytes) else record.text()
    return Change(DIRECTORY + name, Entry(value, revision, 1, created or revision))


def gone(name: str) -> Change:
    return Change(DIRECTORY + name, None)


def by_endpoint(peers: tuple[Peer, ...]) -> dict[Endpoint, Peer]:
    return {one.endpoint: one for one in peers}


# One record.


@pytest.mark.parametrize(
    ("name", "record", "expected"),
    [
        ("10.5.2.0-24", ours(2), [peer("198.18.0.2", "10.5.2.0/24", mac=mac(2))]),
        ("10.5.2.0-24", replace(ours(2), node=""), [peer("198.18.0.2", "10.5.2.0/24", mac=mac(2))]),
        # Ours is one peer, flannel's one for each family.
        (
            "10.5.2.0-24&fd00:5:0:2::-64",
            dual(2, node="n2"),
            [peer("198.18.0.2", "10.5.2.0/24", "fd00:5:0:2::/64", mac=mac(2))],
        ),
        (
            "10.5.2.0-24&fd00:5:0:2::-64",
            dual(2, node=""),
            [
                peer("198.18.0.2", "10.5.2.0/24", mac=mac(2)),
                peer("2001:db8::2", "fd00:5:0:2::/64", mac=mac(1002)),
            ],
        ),
        # Ours goes over whatever we have in common.
        (
            "10.5.2.0-24&fd00:5:0:2::-64",
            replace(dual(2, node="n2"), address=None, mac=None),
            [peer("2001:db8::2", "10.5.2.0/24", "fd00:5:0:2::/64", mac=mac(1002))],
        ),
        (
            "0.0.0.0-0&fd00:5:0:2::-64",
            ours(2),
            [peer("198.18.0.2", "fd00:5:0:2::/64", mac=mac(2))],
        ),
        # Without a MAC the peer is asked for it.
        ("10.5.2.0-24", replace(ours(2), mac=None), [peer("198.18.0.2", "10.5.2.0/24")]),
        ("10.5.2.0-24", b'{"PublicIP":"198.18.0.2","BackendType":"vxlan"}', [
            peer("198.18.0.2", "10.5.2.0/24")
        ]),
        # Not somebody else's, or not in use.
        ("10.5.2.0-24", replace(ours(2), node="us"), []),
        ("10.5.2.0-24", replace(ours(2), node="", address=OURS.address), []),
    ],
)  # fmt: skip
def test_a_record_is_a_peer(name: str, record: Record | bytes, expected: list[Peer]) -> None:
    difference = roster().read(snapshot({name: record}), now=0)
    assert difference == Difference(add=tuple(expected))


def test_a_reservation_that_is_not_in_use_is_no_problem() -> None:
    record = replace(ours(2), backend="", mac=None)
    entry = Entry(record.text(), 1, None, created=1)
    assert roster().read(Snapshot(1, {DIRECTORY + "10.5.2.0-24": entry}), now=0) == Difference()


@pytest.mark.parametrize(
    ("name", "record", "problem"),
    [
        ("nonsense", ours(2), "is not a subnet"),
        ("10.5.2.0-24", b"nonsense", "10.5.2.0-24: 'nonsense' is not JSON"),
        ("10.5.2.0-24", replace(ours(2), backend="host-gw"), "its backend is 'host-gw'"),
        # As flannel's udp backend writes it.
        ("10.5.2.0-24", replace(ours(2), node="", mac=None, backend=""), "backend is not named"),
        ("10.5.2.0-24", replace(ours(2), vni=7), "its VNI 7 is not 1"),
        ("10.5.2.0-24", replace(ours(2), address=OURS.address), "is this node's address"),
        ("10.5.2.0-24", replace(ours(2), address=None, mac=None), "both have an address"),
        ("fd00:5:0:2::-64", ours(2), "is not a subnet"),
        ("0.0.0.0-0&fd00:5:0:2::-64", replace(ours(2), node=""), "both have an IPv6 address"),
    ],
)
def test_an_unusable_record_is_reported_once(
    name: str, record: Record | bytes, problem: str
) -> None:
    one = roster()
    difference = one.read(snapshot({name: record}), now=0)
    (text,) = difference.problems
    assert problem in text
    assert "(left out)" in text or "like 10" in text
    assert one.peers == ()
    assert list(one.problems) == [text]
    # Again it is told only when it was all right meanwhile.
    value = record if isinstance(record, bytes) else record.text()
    assert one.changed(Batch(1001, (put(name, value, revision=1001),))) == Difference()
    assert one.changed(Batch(1002, (gone(name),))) == Difference()
    assert not one.problems
    assert one.changed(Batch(1003, (put(name, value, revision=1003),))).problems == (text,)


def test_half_of_a_flannel_node_is_better_than_nothing() -> None:
    """The node reaches its IPv4 address, but not its IPv6 address."""
    one = roster(replace(OURS, address6=None))
    name = "10.5.2.0-24&fd00:5:0:2::-64"
    difference = one.read(snapshot({name: dual(2, node="")}), now=0)
    assert difference.add == (peer("198.18.0.2", "10.5.2.0/24", mac=mac(2)),)
    assert len(difference.problems) == 1


def test_the_port_is_the_networks() -> None:
    one = Roster(replace(NETWORK, port=4789), OURS, directory=DIRECTORY)
    (found,) = one.read(snapshot({"10.5.2.0-24": ours(2)}), now=0).add
    assert found.endpoint == Endpoint("198.18.0.2", 4789)


def test_a_vni_is_compared_as_far_as_flannel_writes_it() -> None:
    one = Roster(replace(NETWORK, vni=70000), OURS, directory=DIRECTORY)
    records = {"10.5.2.0-24": replace(ours(2), vni=70000), "10.5.3.0-24": replace(ours(3), vni=1)}
    difference = one.read(snapshot(records), now=0)
    assert [found.endpoint.host for found in difference.add] == ["198.18.0.2"]
    assert "its VNI 1 is not 70000" in difference.problems[0]


def test_other_keys_of_the_store_are_none_of_its_business() -> None:
    found = Snapshot(5, {"/coreos.com/network/config": Entry(b"{}", 1)})
    one = roster()
    assert one.read(found, now=0) == Difference()
    assert one.snapshot == found


# Changes.


def test_changes_come_as_differences() -> None:
    one = roster()
    before = snapshot({"10.5.2.0-24": ours(2), "10.5.3.0-24": ours(3)})
    assert len(one.read(before, now=0).add) == 2
    assert one.read(before, now=0) == Difference()

    renewed = put("10.5.2.0-24", ours(2), revision=1001, created=1)
    assert one.changed(Batch(1001, (renewed,))) == Difference()

    other = peer("198.18.0.2", "10.5.2.0/24", mac=mac(9))
    change = put("10.5.2.0-24", replace(ours(2), mac=mac(9)), revision=1002)
    assert one.changed(Batch(1002, (change,))) == Difference(change=(other,))

    moved = put("10.5.2.0-24", replace(ours(4), node="n2"), revision=1003)
    assert one.changed(Batch(1003, (moved,))) == Difference(
        add=(peer("198.18.0.4", "10.5.2.0/24", mac=mac(4)),), remove=(other.endpoint,)
    )
    assert one.changed(Batch(1004, (gone("10.5.3.0-24"),))).remove == (Endpoint("198.18.0.3"),)
    assert [found.endpoint.host for found in one.peers] == ["198.18.0.4"]


def test_a_batch_is_one_difference_and_its_last_word_counts() -> None:
    one = roster()
    steps = (
        put("10.5.2.0-24", ours(2), revision=2),
        put("10.5.3.0-24", ours(3), revision=3),
        gone("10.5.2.0-24"),
        put("10.5.3.0-24", replace(ours(3), mac=mac(9)), revision=5),
    )
    difference = one.changed(Batch(7, steps))
    assert one.snapshot.revision == 7
    assert list(one.snapshot.entries.values()) == [steps[-1].entry]
    assert difference == Difference(add=(peer("198.18.0.3", "10.5.3.0/24", mac=mac(9)),))


def test_after_a_gap_whole_values_are_compared() -> None:
    one = roster()
    one.read(snapshot({"10.5.2.0-24": ours(2), "10.5.3.0-24": ours(3)}), now=0)
    after = {
        "10.5.2.0-24": replace(ours(2), mac=mac(9)),
        "10.5.3.0-24": replace(ours(7), node="n3"),
        "10.5.4.0-24": ours(4),
    }
    difference = one.read(snapshot(after, revision=2000), now=0)
    assert {found.endpoint.host for found in difference.add} == {"198.18.0.7", "198.18.0.4"}
    assert difference.change == (peer("198.18.0.2", "10.5.2.0/24", mac=mac(9)),)
    assert difference.remove == (Endpoint("198.18.0.3"),)


def test_a_member_missing_after_a_gap_stays_for_a_while() -> None:
    """The store lost its content, or leases expired: running nodes write their records again."""
    one = roster()
    one.read(snapshot({"10.5.2.0-24": ours(2), "10.5.3.0-24": ours(3)}), now=0)
    assert one.read(Snapshot(2000, {}), now=100) == Difference()
    assert one.next_tick(100) == 100 + LINGER
    back = put("10.5.2.0-24", ours(2), revision=2001)
    assert one.changed(Batch(2001, (back,))) == Difference()
    assert one.tick(now=100 + LINGER - 1) == Difference()
    assert one.tick(now=100 + LINGER) == Difference(remove=(Endpoint("198.18.0.3"),))
    assert one.next_tick(200) is None


def test_a_member_deleted_after_an_outage_stays_for_a_while() -> None:
    """Its lease expired because it was cut off from the store, as it may still be."""
    one = roster()
    one.read(snapshot({"10.5.2.0-24": ours(2), "10.5.3.0-24": ours(3)}), now=0)
    both = (gone("10.5.2.0-24"), gone("10.5.3.0-24"))
    assert one.changed(Batch(2000, both), until=160) == Difference()
    back = put("10.5.2.0-24", ours(2), revision=2001)
    assert one.changed(Batch(2001, (back,)), until=161) == Difference()
    # Reported again, as after another outage, it does not linger longer.
    assert one.changed(Batch(2002, (gone("10.5.3.0-24"),)), until=999) == Difference()
    assert one.next_tick(100) == 160
    assert one.tick(now=160).remove == (Endpoint("198.18.0.3"),)


def test_a_lingering_member_is_kept_on_disk() -> None:
    """A node that restarts while the store is away has that peer as well."""
    one, again = roster(), roster()
    before = snapshot({"10.5.2.0-24": ours(2)})
    one.read(before, now=0)
    one.read(Snapshot(2000, {}), now=100)
    assert one.snapshot == replace(before, revision=2000)
    assert again.read(one.snapshot, now=0).add == one.peers
    one.tick(now=100 + LINGER)
    assert one.snapshot.entries == {}


def test_a_lingering_member_blocks_no_subnet() -> None:
    one = roster()
    one.read(snapshot({"10.5.2.0-24": ours(2)}), now=0)
    one.read(Snapshot(2000, {}), now=100)
    # A longer prefix would win over a living one.
    difference = one.changed(Batch(2001, (put("10.5.0.0-22", ours(5), revision=2001),)))
    assert difference.add == (peer("198.18.0.5", "10.5.0.0/22", mac=mac(5)),)
    assert difference.remove == (Endpoint("198.18.0.2"),)


def test_the_new_owner_of_a_lingering_subnet_gets_it_at_once() -> None:
    one = roster()
    both = {"10.5.2.0-24": ours(2), "10.5.2.0-24&fd00:5:0:3::-64": ours(3)}
    found = snapshot(both)
    one.read(found, now=0)
    second = {key: entry for key, entry in found.entries.items() if "&" in key}
    difference = one.read(Snapshot(2000, second), now=100)
    assert difference.change == (peer("198.18.0.3", "10.5.2.0/24", "fd00:5:0:3::/64", mac=mac(3)),)
    assert difference.remove == (Endpoint("198.18.0.2"),)


def test_a_member_that_returns_after_the_next_gap_stays() -> None:
    one = roster()
    before = snapshot({"10.5.2.0-24": ours(2)})
    one.read(before, now=0)
    one.read(Snapshot(2000, {}), now=100)
    assert one.read(replace(before, revision=3000), now=110) == Difference()
    assert one.next_tick(110) is None


def test_a_lingering_member_survives_a_change_of_this_node() -> None:
    one = roster()
    one.read(snapshot({"10.5.2.0-24": ours(2)}), now=0)
    one.read(Snapshot(2000, {}), now=100)
    assert one.set_own_subnets([parse_prefix("10.5.9.0/24")]) == Difference()
    taken = one.set_own_subnets([parse_prefix("10.5.2.0/24")])
    assert taken.remove == (Endpoint("198.18.0.2"),)


def test_a_lingering_member_that_is_deleted_is_removed() -> None:
    one = roster()
    one.read(snapshot({"10.5.2.0-24": ours(2)}), now=0)
    one.read(Snapshot(2000, {}), now=100)
    assert one.changed(Batch(2001, (gone("10.5.2.0-24"),))).remove == (Endpoint("198.18.0.2"),)
    assert one.next_tick(100) is None


def test_a_second_gap_gives_no_second_while() -> None:
    one = roster()
    one.read(snapshot({"10.5.2.0-24": ours(2)}), now=0)
    one.read(Snapshot(2000, {}), now=100)
    one.read(Snapshot(2001, {}), now=130)
    assert one.next_tick(130) == 100 + LINGER


def test_members_on_disk_are_replaced_by_those_in_the_store() -> None:
    one = roster()
    one.read(snapshot({"10.5.2.0-24": ours(2), "10.5.3.0-24": ours(3)}), now=0)
    again = roster()
    assert set(again.read(one.snapshot, now=0).add) == set(one.peers)
    later = snapshot({"10.5.2.0-24": ours(2)}, revision=3000)
    assert again.read(later, now=5) == Difference()
    assert again.tick(now=5 + LINGER).remove == (Endpoint("198.18.0.3"),)


# Where they disagree.


def test_the_longer_prefix_has_the_subnet() -> None:
    one = roster()
    wide = {"10.0.0.0-8": ours(8), "10.5.2.0-24": ours(2)}
    difference = one.read(snapshot(wide), now=0)
    assert difference.add == (peer("198.18.0.2", "10.5.2.0/24", mac=mac(2)),)
    (problem,) = difference.problems
    assert problem == (
        f"{DIRECTORY}10.0.0.0-8: 10.0.0.0/8 is that of {DIRECTORY}10.5.2.0-24 (left out)"
    )
    # And the other has it as soon as that is gone.
    difference = one.changed(Batch(1001, (gone("10.5.2.0-24"),)))
    assert difference.add == (peer("198.18.0.8", "10.0.0.0/8", mac=mac(8)),)
    assert difference.remove == (Endpoint("198.18.0.2"),)
    assert one.problems == ()


def test_of_equal_ones_the_first_stays_renewals_or_not() -> None:
    one = roster()
    names = "10.5.2.0-24&fd00:5:0:2::-64", "10.5.2.0-24&fd00:5:0:3::-64"
    both = {names[0]: ours(2), names[1]: ours(3)}
    difference = one.read(snapshot(both), now=0)
    first = peer("198.18.0.2", "10.5.2.0/24", "fd00:5:0:2::/64", mac=mac(2))
    second = peer("198.18.0.3", "fd00:5:0:3::/64", mac=mac(3))
    assert set(difference.add) == {first, second}
    renewed = put(names[0], ours(2), revision=5000, created=1)
    assert one.changed(Batch(5000, (renewed,))) == Difference()


def test_the_subnets_of_this_node_precede_records() -> None:
    one = roster()
    one.read(snapshot({"10.5.2.0-24": ours(2)}), now=0)
    own = parse_prefix("10.5.2.0/24")
    difference = one.set_own_subnets([own])
    assert difference.remove == (Endpoint("198.18.0.2"),)
    assert "10.5.2.0/24 is this node's" in difference.problems[0]
    assert one.set_own_subnets([own]) == Difference()
    assert one.set_own_subnets([]).add == (peer("198.18.0.2", "10.5.2.0/24", mac=mac(2)),)


def test_one_endpoint_is_one_peer() -> None:
    one = roster()
    records = {"10.5.2.0-24": ours(2), "10.5.3.0-24": replace(ours(2), node="n22", mac=mac(22))}
    difference = one.read(snapshot(records), now=0)
    assert difference.add == (peer("198.18.0.2", "10.5.2.0/24", "10.5.3.0/24", mac=mac(22)),)
    assert "198.18.0.2:8472 is in several records" in difference.problems[0]
    difference = one.changed(Batch(1001, (gone("10.5.3.0-24"),)))
    assert difference.change == (peer("198.18.0.2", "10.5.2.0/24", mac=mac(2)),)


def test_nested_subnets_of_one_endpoint_do_not_conflict() -> None:
    one = roster()
    difference = one.read(snapshot({"10.5.2.0-24": ours(2), "10.5.2.0-25": ours(2)}), now=0)
    assert difference == Difference(
        add=(peer("198.18.0.2", "10.5.2.0/24", "10.5.2.0/25", mac=mac(2)),)
    )


def test_configured_peers_stand() -> None:
    static = peer("203.0.113.9", "10.5.2.0/24", mac=mac(99))
    one = roster(OURS, static)
    assert one.peers == (static,)
    difference = one.read(snapshot({"10.5.2.0-24": ours(2), "10.5.3.0-24": ours(3)}), now=0)
    assert difference.add == (peer("198.18.0.3", "10.5.3.0/24", mac=mac(3)),)
    assert "is the configured peer 203.0.113.9:8472's" in difference.problems[0]
    difference = one.configure([])
    assert difference.remove == (static.endpoint,)
    assert difference.add == (peer("198.18.0.2", "10.5.2.0/24", mac=mac(2)),)


def test_a_record_adds_to_a_configured_peer_at_the_same_place() -> None:
    static = peer("198.18.0.2", "192.168.7.0/24", mac=mac(99))
    one = roster(OURS, static)
    difference = one.read(snapshot({"10.5.2.0-24": ours(2)}), now=0)
    both = peer("198.18.0.2", "192.168.7.0/24", "10.5.2.0/24", mac=mac(99))
    assert difference == Difference(change=(both,))
    assert one.changed(Batch(1001, (gone("10.5.2.0-24"),))) == Difference(change=(static,))


# Anything, in any order.

NAMES = st.sampled_from(
    ["10.5.2.0-24", "10.5.2.0-25", "10.5.0.0-22", "10.5.3.0-24", "10.5.2.0-24&fd00:5:0:2::-64",
     "0.0.0.0-0&fd00:5:0:2::-64", "0.0.0.0-0&fd00:5::-62", "config", "10.5.4.0-24"]
)  # fmt: skip
RECORDS = st.one_of(
    st.builds(ours, st.integers(1, 4)),
    st.builds(dual, st.integers(1, 4), node=st.sampled_from(["", "us", "n7", "n8"])),
    st.just(replace(ours(3), backend="")),
    st.just(b"nonsense"),
)
STATIC = [peer("203.0.113.9", "10.5.3.128/25"), peer("198.18.0.2", "192.168.7.0/24")]


@settings(max_examples=150)
@given(st.data())
def test_however_it_came_about_it_is_the_same(data: st.DataObject) -> None:
    one = roster(OURS, *STATIC)
    applied = by_endpoint(one.peers)
    entries: dict[str, Entry] = {}
    own: list[Prefix] = []
    now = 0.0
    for revision in range(2, data.draw(st.integers(2, 12))):
        match data.draw(st.sampled_from(["put", "put", "delete", "read", "own", "tick"])):
            case "put":
                change = put(data.draw(NAMES), data.draw(RECORDS), revision=revision)
                assert change.entry
                before = entries.get(change.key)
                created = before.created if before else revision
                change = replace(change, entry=replace(change.entry, created=created))
                assert change.entry
                entries[change.key] = change.entry
                difference = one.changed(Batch(revision, (change,)))
            case "delete":
                key = DIRECTORY + data.draw(NAMES)
                entries.pop(key, None)
                until = data.draw(st.sampled_from([None, now + LINGER]))
                difference = one.changed(Batch(revision, (Change(key, None),)), until=until)
            case "read":
                for key in data.draw(st.sets(st.sampled_from(sorted(entries)))) if entries else ():
                    del entries[key]
                difference = one.read(Snapshot(revision, dict(entries)), now=now)
            case "own":
                own = [parse_prefix(data.draw(st.sampled_from(["10.5.4.0/24", "10.5.2.0/24"])))]
                difference = one.set_own_subnets(own)
            case _:
                now += LINGER / 2
                difference = one.tick(now=now)
        for endpoint in difference.remove:
            del applied[endpoint]
        for found in difference.add:
            assert found.endpoint not in applied
            applied[found.endpoint] = found
        for found in difference.change:
            assert applied[found.endpoint] != found
            applied[found.endpoint] = found
        assert applied == by_endpoint(one.peers)
        # The tunnel takes all of them.
        peers = dict(enumerate(one.peers))
        assert not list(conflicts(peers, subnets=own, local=[Endpoint("192.0.2.1")]))
    one.tick(now=now + LINGER)
    fresh = roster(OURS, *STATIC)
    fresh.set_own_subnets(own)
    fresh.read(Snapshot(99, entries), now=0)
    assert {found: set(found.prefixes) for found in fresh.peers} == {
        found: set(found.prefixes) for found in one.peers
    }
    assert set(one.problems) == set(fresh.problems)


def test_five_thousand_records() -> None:
    """All at once, then ten changes each, then a gap with nearly no change."""
    chance = random.Random(1)
    names = [f"10.{5 + n // 250}.{n % 250}.0-24" for n in range(5000)]
    wide = Network((Pool.of(parse_prefix("10.0.0.0/8")),))
    one = Roster(wide, OURS, directory=DIRECTORY)
    before = snapshot({name: ours(n + 1) for n, name in enumerate(names)}, revision=5000)
    assert len(one.read(before, now=0).add) == 5000

    begin = time.process_time()
    for revision in range(5001, 5501):
        number = chance.randrange(5000)
        record = replace(ours(number + 1), mac=mac(chance.randrange(1, 60_000)))
        change = put(names[number], record, revision=revision)
        difference = one.changed(Batch(revision, (change,)))
        assert len(difference.change) <= 1
    # Ten a second must not be felt; what is measured is about 0.3 ms each.
    assert time.process_time() - begin < 500 * 0.005

    entries = dict(one.snapshot.entries)
    del entries[DIRECTORY + names[7]]
    begin = time.process_time()
    assert one.read(Snapshot(6000, entries), now=0) == Difference()
    assert time.process_time() - begin < 0.2
    assert one.tick(now=LINGER).remove == (Endpoint("198.18.0.8"),)
    peers = dict(enumerate(one.peers))
    assert len(peers) == 4999
    assert not list(conflicts(peers, subnets=[], local=[]))
