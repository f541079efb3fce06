"""How a node acquires and keeps its subnet, with a store in memory."""

import ipaddress
import random
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tunnel.cluster.lease import (
    Acquired,
    Claim,
    Delete,
    Doubled,
    Exhausted,
    LeaseEvent,
    Lost,
    Put,
    Read,
    StoreRequest,
    Wait,
)
from tunnel.cluster.network import Network, Pool
from tunnel.cluster.record import Lease, Record, leases_of
from tunnel.cluster.stores.base import Batch, Change, Entry, Snapshot
from tunnel.types import Mac, Prefix, parse_prefix

DIRECTORY = "/coreos.com/network/subnets/"
NETWORK = Network((Pool.of(parse_prefix("10.5.0.0/16")),))
DUAL = Network((*NETWORK.pools, Pool.of(parse_prefix("fd00:5::/48"))))
OURS = Record(
    address=ipaddress.IPv4Address("192.0.2.1"), mac=Mac.parse("02:00:5e:00:53:01"), vni=1, node="n1"
)


def nets(*texts: str) -> tuple[Prefix, ...]:
    return tuple(map(parse_prefix, texts))


def key(name: str) -> str:
    return DIRECTORY + name


def theirs(number: int, *, node: str | None = None) -> Record:
    """The record of another node."""
    return Record(
        address=ipaddress.IPv4Address("198.51.100.0") + number,
        mac=Mac(bytes([2, 0, 0, 1, number >> 8, number & 255])),
        vni=1,
        node=f"other{number}" if node is None else node,
    )


# A store, and nodes that use it.


@dataclass
class Memory:
    """A store with revisions and leases, and the changes that a watch reports."""

    revision: int = 1
    now: float = 0.0
    entries: dict[str, Entry] = field(default_factory=dict)
    leases: dict[int, float] = field(default_factory=dict)
    batches: list[Batch] = field(default_factory=list)

    def read(self) -> Snapshot:
        return Snapshot(self.revision, dict(self.entries))

    def write(self, key: str, value: bytes, *, lease: int | None = None) -> int:
        self.revision += 1
        there = self.entries.get(key)
        created = there.created if there else self.revision
        self.entries[key] = Entry(value, self.revision, lease, created)
        self.batches.append(Batch(self.revision, (Change(key, self.entries[key]),)))
        return self.revision

    def erase(self, key: str) -> None:
        self.revision += 1
        del self.entries[key]
        self.batches.append(Batch(self.revision, (Change(key, None),)))

    def put(self, put: Put) -> int | None:
        """The new revision, None for a conflict."""
        there = self.entries.get(put.key)
        if (there.revision if there else 0) != put.expect:
            return None
        lease = None
        if put.ttl is not None:
            lease = len(self.leases) + 1
            self.leases[lease] = self.now + put.ttl
        return self.write(put.key, put.value, lease=lease)

    def delete(self, delete: Delete) -> bool:
        there = self.entries.get(delete.key)
        if there is not None and there.revision != delete.expect:
            return False
        if there is not None:
            self.erase(delete.key)
        return True

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for name, entry in list(self.entries.items()):
            if entry.lease is not None and self.leases[entry.lease] <= self.now:
                self.erase(name)

    def of(self, record: Record) -> list[str]:
        """The names of the keys with a node's id."""
        return [
            one.key.removeprefix(DIRECTORY)
            for one in leases_of(self.entries, directory=DIRECTORY)
            if one.record and one.record.node == record.node
        ]


@dataclass
class Node:
    """A node that performs the steps of its claim."""

    store: Memory
    claim: Claim
    told: list[LeaseEvent] = field(default_factory=list)
    puts: int = 0
    seen: int = 0  # of the store's batches
    asked: Snapshot | None = None  # the answer is on its way

    def ask(self) -> None:
        """Begins a read, whose answer arrives at its next turn."""
        if self.asked is None and self.claim.step(now=self.store.now) == Read():
            self.asked = self.store.read()

    def turn(self, *, away: bool = False) -> bool:
        """Performs one step; False if there is none."""
        store, claim, now = self.store, self.claim, self.store.now
        if self.asked is not None:
            self.told += claim.read(self.asked, now=now)
            self.asked = None
            return True
        step = claim.step(now=now)
        if isinstance(step, Wait):
            return False
        if away:
            claim.away(now=now)
        elif isinstance(step, Read):
            self.told += claim.read(store.read(), now=now)
        elif isinstance(step, Put):
            self.puts += 1
            revision = store.put(step)
            if revision is None:
                claim.conflict(now=now)
            else:
                self.told += claim.wrote(step, revision)
        elif store.delete(step):
            claim.deleted(step)
        else:
            claim.conflict(now=now)
        return True

    def watch(self) -> None:
        for batch in self.store.batches[self.seen :]:
            self.claim.changed(batch)
        self.seen = len(self.store.batches)

    def run(self, *, seconds: float = 0) -> list[LeaseEvent]:
        """Performs steps until there is none for `seconds`. Returns the events."""
        before, end = len(self.told), self.store.now + seconds
        for _ in range(10_000):
            self.watch()
            if self.turn():
                continue
            step = self.claim.step(now=self.store.now)
            assert isinstance(step, Wait)
            if step.until is None or step.until > end:
                self.store.pass_time(end - self.store.now)
                self.watch()
                return self.told[before:]
            self.store.pass_time(step.until - self.store.now)
        raise AssertionError("it never rests")


def node(
    store: Memory,
    record: Record = OURS,
    *,
    network: Network = NETWORK,
    prefer: Iterable[str] = (),
    seed: int = 1,
    ttl: int = 86400,
    margin: float | None = None,
) -> Node:
    claim = Claim(
        network,
        record,
        directory=DIRECTORY,
        random=random.Random(seed),
        prefer=nets(*prefer),
        ttl=ttl,
        margin=margin,
    )
    return Node(store, claim)


def reserved(store: Memory, name: str, record: Record) -> None:
    store.write(key(name), replace(record, mac=None, backend="").text())


# Acquiring.


def test_the_first_one_gets_one_of_the_first_hundred() -> None:
    store = Memory()
    one = node(store)
    (news,) = one.run()
    (subnet,) = one.claim.subnets
    assert news == Acquired((subnet,), ())
    assert NETWORK.fits([subnet])
    assert int(subnet.network_address) <= int(ipaddress.IPv4Address("10.5.100.0"))
    (entry,) = store.entries.values()
    assert entry.value == OURS.text()
    assert entry.lease is not None
    assert one.puts == 1


def test_with_two_families_one_of_each_is_taken() -> None:
    store = Memory()
    one = node(store, network=DUAL)
    one.run()
    assert DUAL.fits(one.claim.subnets)
    (name,) = store.of(OURS)
    assert "&" in name


@pytest.mark.parametrize(
    ("there", "prefer", "expected"),
    [
        # What we had before, if it is free and fits.
        ({}, ["10.5.7.0/24"], "10.5.7.0-24"),
        ({"10.5.7.0-24": theirs(1)}, ["10.5.7.0/24", "10.5.8.0/24"], "10.5.8.0-24"),
        ({"10.5.7.128-25": theirs(1)}, ["10.5.7.0/24", "10.5.8.0/24"], "10.5.8.0-24"),
        ({}, ["10.6.7.0/24", "10.5.8.0/25", "10.5.9.0/24"], "10.5.9.0-24"),
        # What has our id, wherever we were then.
        ({"10.5.3.0-24": replace(OURS, address=None, mac=None)}, ["10.5.7.0/24"], "10.5.3.0-24"),
        ({"10.5.3.0-24": OURS, "10.5.4.0-24": OURS}, ["10.5.4.0/24"], "10.5.4.0-24"),
        # Flannel's at our address, but rather our own.
        ({"10.5.3.0-24": replace(OURS, node="")}, [], "10.5.3.0-24"),
        ({"10.5.3.0-24": replace(OURS, node=""), "10.5.4.0-24": OURS}, [], "10.5.4.0-24"),
        # Not what is at our address and somebody else's.
        ({"10.5.3.0-24": replace(OURS, node="n2")}, ["10.5.7.0/24"], "10.5.7.0-24"),
        # What has our id and does not fit any more is given back.
        ({"10.6.3.0-24": OURS}, ["10.5.7.0/24"], "10.5.7.0-24"),
        ({"10.5.7.0-25": OURS}, ["10.5.7.0/24"], "10.5.7.0-24"),
    ],
)
def test_in_which_order(there: dict[str, Record], prefer: list[str], expected: str) -> None:
    store = Memory()
    for name, record in there.items():
        store.leases[99] = 1e9
        store.write(key(name), record.text(), lease=99)
    one = node(store, prefer=prefer)
    one.run()
    assert store.of(OURS) == [expected]
    assert store.entries[key(expected)].value == OURS.text()
    for name, record in there.items():  # nobody else was touched
        if record.node == "n2" or "other" in record.node:
            assert store.entries[key(name)].value == record.text()


def test_a_restart_takes_over_its_own_key() -> None:
    store = Memory()
    one = node(store)
    one.run()
    again = node(store, seed=2)
    again.run()
    assert again.claim.subnets == one.claim.subnets
    assert len(store.entries) == 1
    assert again.puts == 1  # nobody knows how long the old lease is for


def test_an_unreadable_record_still_has_its_subnet() -> None:
    store = Memory()
    small = Network((Pool.of(parse_prefix("10.5.0.0/22")),))
    for name in ("10.5.1.0-24", "10.5.2.0-24"):
        store.write(key(name), b"nonsense")
    one = node(store, network=small)
    one.run()
    assert one.claim.subnets == nets("10.5.3.0/24")


def test_exhaustion_is_reported_once_and_tried_again() -> None:
    store = Memory()
    small = Network((Pool.of(parse_prefix("10.5.0.0/22")),))
    for number in (1, 2, 3):
        store.write(key(f"10.5.{number}.0-24"), theirs(number).text())
    one = node(store, network=small)
    (news,) = one.run(seconds=300)
    assert isinstance(news, Exhausted)
    assert "10.5.0.0/22: all of 3 are taken (release" in news.why
    store.erase(key("10.5.2.0-24"))
    (news,) = one.run(seconds=31)
    assert news == Acquired(nets("10.5.2.0/24"), ())


def test_two_keys_that_overlap_do_not_both_stay() -> None:
    """With two families a key guards only itself: the oldest record keeps the subnet."""
    store = Memory()
    one = node(store, network=DUAL, prefer=["10.5.7.0/24", "fd00:5:0:7::/64"])
    two = node(store, theirs(2), network=DUAL, prefer=["10.5.7.0/24", "fd00:5:0:8::/64"])
    for step in range(2):  # both read before either writes
        assert one.turn()
        assert two.turn()
        del step
    assert len(store.entries) == 2
    two.run()
    one.run()
    assert one.claim.subnets == nets("10.5.7.0/24", "fd00:5:0:7::/64")
    assert two.claim.subnets[0] != one.claim.subnets[0]
    assert two.claim.subnets[1] == parse_prefix("fd00:5:0:8::/64")
    assert len(store.entries) == 2
    # What was never safe was never told.
    assert [type(news) for news in two.told] == [Acquired]


@pytest.mark.parametrize("network", ["10.0.0.0/20", "dual"])
@pytest.mark.parametrize("seed", range(10))
def test_fifty_nodes_race_for_a_20_and_all_get_one(network: str, seed: int) -> None:
    pool = Pool.of(parse_prefix("10.0.0.0/20"), length=26)
    pools = (pool, Pool.of(parse_prefix("fd00::/48"))) if network == "dual" else (pool,)
    store = Memory()
    nodes = [
        node(store, theirs(number), network=Network(pools), seed=seed * 100 + number)
        for number in range(50)
    ]
    order = random.Random(seed)
    while not all(one.claim.subnets and not one.turn() for one in nodes):
        for one in order.sample(nodes, len(nodes)):
            one.turn()
        store.pass_time(order.random())
        assert store.now < 600
    everything = [subnet for one in nodes for subnet in one.claim.subnets]
    assert len(set(everything)) == len(everything) == 50 * len(pools)
    assert len(store.entries) == 50


# Reservations.


@pytest.mark.parametrize(
    "record", [Record(node="n1"), Record(address=OURS.address), replace(OURS, vni=None)]
)
def test_a_reservation_is_taken_and_stays_one(record: Record) -> None:
    store = Memory()
    reserved(store, "10.5.3.0-24", record)
    one = node(store, prefer=["10.5.7.0/24"])
    one.run(seconds=3 * 86400)
    assert one.claim.subnets == nets("10.5.3.0/24")
    (entry,) = store.entries.values()
    assert entry.lease is None
    assert entry.value == OURS.text()
    assert one.puts == 1
    assert one.claim.until is None
    again = node(store)
    again.run()
    assert again.claim.subnets == nets("10.5.3.0/24")
    assert again.puts == 0


def test_a_reservation_precedes_earlier_subnets() -> None:
    store = Memory()
    node(store, prefer=["10.5.7.0/24"]).run()
    reserved(store, "10.5.3.0-24", Record(node="n1"))
    one = node(store, prefer=["10.5.7.0/24"])
    one.run()
    assert one.claim.subnets == nets("10.5.3.0/24")
    assert store.of(OURS) == ["10.5.3.0-24"]


def test_a_reservation_made_meanwhile_moves_no_node() -> None:
    store = Memory()
    one = node(store, prefer=["10.5.7.0/24"])
    one.run()
    reserved(store, "10.5.3.0-24", Record(node="n1"))
    one.run(seconds=86400)
    assert one.claim.subnets == nets("10.5.7.0/24")


def test_all_that_is_reserved_for_us_stays_reserved() -> None:
    store = Memory()
    for name in ("10.5.3.0-24", "10.5.4.0-24"):
        reserved(store, name, Record(node="n1"))
    one = node(store)
    one.run(seconds=86400)
    assert one.claim.subnets == nets("10.5.3.0/24")
    assert len(store.entries) == 2


def test_of_many_leases_with_our_id_one_stays() -> None:
    store = Memory(leases={99: 1e9})
    for number in range(3, 8):
        store.write(key(f"10.5.{number}.0-24"), OURS.text(), lease=99)
    node(store, prefer=["10.5.5.0/24"]).run()
    assert store.of(OURS) == ["10.5.5.0-24"]


def test_another_nodes_reservation_is_left_alone() -> None:
    store = Memory()
    reserved(store, "10.5.3.0-24", theirs(1))
    before = dict(store.entries)
    one = node(store, prefer=["10.5.3.0/24"])
    one.run()
    assert one.claim.subnets != nets("10.5.3.0/24")
    assert before.items() <= store.entries.items()


# Keeping.


def test_it_is_renewed_before_its_end_and_never_lost() -> None:
    store = Memory()
    one = node(store)
    assert len(one.run(seconds=10 * 86400)) == 1
    assert one.puts == 11
    assert len(store.of(OURS)) == 1


@pytest.mark.parametrize(
    ("ttl", "margin", "low", "high"),
    [
        (86400, None, 82440, 82800),
        (86400, 7200, 78480, 79200),
        # As asked for: one minute after the start, not half a day.
        (86400, 1439 * 60, 54, 60),
        (3601, 3600, 0.9, 1),
        # Without a margin, half of a short lease.
        (3601, None, 1620.45, 1800.5),
        (10, None, 4.5, 5),
    ],
)
def test_when_it_is_renewed(ttl: int, margin: float | None, low: float, high: float) -> None:
    one = node(Memory(), ttl=ttl, margin=margin)
    one.run()
    step = one.claim.step(now=0)
    assert isinstance(step, Wait)
    assert step.until is not None
    assert low <= step.until <= high
    assert one.claim.until == ttl


def test_a_deleted_key_is_put_again_and_reported() -> None:
    store = Memory()
    one = node(store)
    one.run()
    before = one.claim.subnets
    store.erase(key(store.of(OURS)[0]))
    lost, acquired = one.run()
    assert isinstance(lost, Lost)
    assert "was deleted" in lost.why
    assert acquired == Acquired(before, before)


def test_a_key_that_another_node_took_stays_with_it() -> None:
    """Flannel's renewals are not guarded."""
    store = Memory()
    one = node(store)
    one.run()
    before = one.claim.subnets
    (name,) = store.of(OURS)
    store.write(key(name), theirs(3, node="").text())
    lost, acquired = one.run()
    assert isinstance(lost, Lost)
    assert "now belongs to 198.51.100.3" in lost.why
    assert isinstance(acquired, Acquired)
    assert acquired.before == before != acquired.subnets
    assert store.entries[key(name)].value == theirs(3, node="").text()


def test_a_renewal_in_a_race_with_a_thief_loses() -> None:
    store = Memory()
    one = node(store)
    one.run()
    (name,) = store.of(OURS)
    store.write(key(name), theirs(3).text())
    store.now = 82800  # the watch has not told it yet
    assert isinstance(one.claim.step(now=store.now), Put)
    assert one.turn()
    assert store.entries[key(name)].value == theirs(3).text()
    assert isinstance(one.run(seconds=1)[0], Lost)


def test_flannels_record_at_our_address_is_taken_over_again() -> None:
    store = Memory()
    one = node(store)
    one.run()
    (name,) = store.of(OURS)
    store.write(key(name), replace(OURS, node="", mac=theirs(1).mac).text())
    assert one.run() == []
    assert store.of(OURS) == [name]


def test_the_record_of_this_node_may_change() -> None:
    store = Memory()
    node(store).run()
    moved = replace(OURS, address=ipaddress.IPv4Address("192.0.2.99"))
    again = node(store, moved)
    again.run()
    (entry,) = store.entries.values()
    assert entry.value == moved.text()


def test_our_own_echo_is_no_news() -> None:
    store = Memory()
    one = node(store)
    one.run()
    one.watch()
    assert isinstance(one.claim.step(now=0), Wait)


def test_a_change_while_it_looks_is_looked_at() -> None:
    store = Memory()
    one = node(store)
    one.run()
    (name,) = store.of(OURS)
    one.claim.missed()
    one.ask()
    store.write(key(name), theirs(3).text())
    one.watch()
    assert isinstance(one.run()[0], Lost)
    assert store.entries[key(name)].value == theirs(3).text()


@pytest.mark.parametrize("lag", [False, True])
def test_a_second_key_of_this_node_is_deleted(lag: bool) -> None:
    """A write that seemed lost may arrive late; the watch may report it after a renewal."""
    store = Memory(leases={99: 1e9})
    one = node(store, prefer=["10.5.7.0/24"])
    one.run()
    store.write(key("10.5.3.0-24"), OURS.text(), lease=99)
    if lag:
        store.now = 82800
        assert one.turn()
    assert one.run() == []
    assert store.of(OURS) == ["10.5.7.0-24"]


def test_two_hosts_with_one_id_do_not_write_without_end() -> None:
    store = Memory()
    copy = replace(OURS, address=ipaddress.IPv4Address("192.0.2.99"))
    one, other = node(store), node(store, copy, seed=2)
    one.run()
    while store.now < 600:
        for host in (one, other):
            host.run(seconds=1)
    assert one.puts + other.puts < 60
    assert Doubled("192.0.2.99") in one.told
    assert Doubled("192.0.2.1") in other.told
    assert not any(isinstance(news, Lost) for news in one.told + other.told)


def test_a_store_that_was_put_back_from_a_backup() -> None:
    """Its revisions are lower than those that the node has seen, and its record is missing."""
    store = Memory(revision=1000)
    one = node(store)
    one.run()
    before = one.claim.subnets
    one.store = older = Memory(revision=2)
    one.claim.missed()
    one.seen = 0
    lost, acquired = one.run(seconds=86400)
    assert isinstance(lost, Lost)
    assert acquired == Acquired(before, before)
    assert older.of(OURS) == [str(before[0]).replace("/", "-")]
    assert one.puts == 3


def test_reading_again_writes_nothing() -> None:
    store = Memory()
    one = node(store)
    one.run()
    for _ in range(3):
        assert one.claim.read(store.read(), now=store.now) == []
        assert one.run() == []
    assert one.puts == 1


# The store is away.


def pauses(one: Node, count: int) -> list[float]:
    found = []
    for _ in range(count):
        assert one.turn(away=True)
        step = one.claim.step(now=one.store.now)
        assert isinstance(step, Wait)
        assert step.until is not None
        found.append(step.until - one.store.now)
        one.store.now = step.until
    return found


def test_pauses_grow_and_are_not_all_alike() -> None:
    found = pauses(node(Memory()), 30)
    assert found[0] <= 0.05
    assert all(15 <= pause <= 30 for pause in found[-10:])
    assert len(set(found)) == 30
    assert max(pauses(node(Memory(), ttl=8), 30)) <= 1


def test_a_day_without_the_store_changes_nothing_and_afterwards_all_is_as_before() -> None:
    store = Memory()
    one = node(store)
    one.run()
    (name,) = store.of(OURS)
    store.now = 82800
    for _ in range(20):
        one.turn(away=True)
        store.now += 31
    assert one.claim.subnets == nets(name.replace("-", "/"))
    store.now += 86400
    store.pass_time(0)  # it is back, and the lease has run out
    assert store.entries == {}
    lost, acquired = one.run(seconds=31)
    assert isinstance(lost, Lost)
    assert isinstance(acquired, Acquired)
    assert acquired.subnets == acquired.before
    assert store.of(OURS) == [name]


def test_back_in_time_it_looks_first_and_renews() -> None:
    store = Memory()
    one = node(store)
    one.run()
    store.now = 82800
    one.turn(away=True)
    store.now += 1
    assert isinstance(one.claim.step(now=store.now), Read)
    assert one.run() == []
    assert one.puts == 2


@pytest.mark.parametrize("renewal", [False, True])
def test_a_put_whose_answer_was_lost_is_found(renewal: bool) -> None:
    store = Memory()
    one = node(store)
    if renewal:
        one.run()
        store.now = 82800
    else:
        one.turn()
    step = one.claim.step(now=store.now)
    assert isinstance(step, Put)
    assert store.put(step)
    one.claim.away(now=store.now)
    one.run(seconds=1)
    assert len(store.entries) == 1
    assert len(one.told) == 1
    assert one.claim.until is not None
    assert one.claim.until > store.now + 86000


# Any order of events.


class Cluster(RuleBasedStateMachine):
    """Three of our nodes and one without rules, with lost answers, watches that lag, and clocks
    that advance."""

    names = st.sampled_from(["10.5.1.0-24", "10.5.2.0-24", "10.5.3.0-24", "10.5.2.0-25"])

    @initialize(dual=st.booleans())
    def begin(self, dual: bool) -> None:
        pools = (Pool.of(parse_prefix("10.5.0.0/21")),)
        six = (Pool.of(parse_prefix("fd00:5::/62")),) if dual else ()
        self.store = Memory()
        self.us = [theirs(number) for number in range(3)]
        self.nodes = [
            node(self.store, record, network=Network((*pools, *six)), seed=number)
            for number, record in enumerate(self.us)
        ]

    @rule(which=st.integers(0, 2), times=st.integers(1, 4))
    def act(self, which: int, times: int) -> None:
        one = self.nodes[which]
        for _ in range(times):
            if one.asked is None:
                self.check_guard(self.us[which], one.claim.step(now=self.store.now))
            one.turn()

    @rule(which=st.integers(0, 2), done=st.booleans())
    def lose_answer(self, which: int, done: bool) -> None:
        one = self.nodes[which]
        one.asked = None
        step = one.claim.step(now=self.store.now)
        self.check_guard(self.us[which], step)
        if isinstance(step, Put) and done:
            self.store.put(step)
        if isinstance(step, Delete) and done:
            self.store.delete(step)
        if not isinstance(step, Wait):
            one.claim.away(now=self.store.now)

    @rule(which=st.integers(0, 2))
    def watch(self, which: int) -> None:
        self.nodes[which].watch()

    @rule(which=st.integers(0, 2))
    def ask(self, which: int) -> None:
        self.nodes[which].ask()

    @rule(which=st.integers(0, 2))
    def miss(self, which: int) -> None:
        """A gap in its watch."""
        self.nodes[which].seen = len(self.store.batches)
        self.nodes[which].claim.missed()

    @rule(seconds=st.sampled_from([0.1, 10.0, 3600.0, 86400.0]))
    def wait(self, seconds: float) -> None:
        self.store.pass_time(seconds)

    @rule(name=names, who=st.integers(0, 4), leased=st.booleans())
    def meddle(self, name: str, who: int, leased: bool) -> None:
        record = self.us[who] if who < 3 else theirs(50, node="" if who == 3 else None)
        self.store.leases[-1] = self.store.now + 50_000
        self.store.write(key(name), record.text(), lease=-1 if leased else None)

    @rule(data=st.data())
    def vandalize(self, data: st.DataObject) -> None:
        if self.store.entries:
            name = data.draw(st.sampled_from(sorted(self.store.entries)))
            if data.draw(st.booleans()):
                self.store.erase(name)
            else:
                self.store.write(name, b"nonsense")

    @rule(which=st.integers(0, 2))
    def restart(self, which: int) -> None:
        old = self.nodes[which]
        self.nodes[which] = Node(
            self.store,
            Claim(
                old.claim._network,
                self.us[which],
                directory=DIRECTORY,
                random=random.Random(which),
                prefer=old.claim.subnets,
            ),
            seen=len(self.store.batches),
        )

    def check_guard(self, record: Record, step: StoreRequest) -> None:
        """A node overwrites and deletes only its own records."""
        if not isinstance(step, (Put, Delete)):
            return
        there = self.store.entries.get(step.key)
        if there is None or there.revision != step.expect:
            return
        lease = Lease.read(step.key.removeprefix(DIRECTORY), there, key=step.key)
        assert lease.record is not None
        assert record.is_same_node(lease.record)
        if isinstance(step, Put):
            assert (step.ttl is None) == (there.lease is None)  # reservations stay so
        else:
            assert there.lease is not None

    def teardown(self) -> None:
        """Undisturbed, every node settles: with its own subnets, or with none free."""
        if not hasattr(self, "store"):
            return
        for _ in range(60):
            for one in self.nodes:
                one.run(seconds=31)
        for one, record in zip(self.nodes, self.us, strict=True):
            if one.claim.key is None:
                assert any(isinstance(news, (Exhausted, Lost)) for news in one.told)
                continue
            entry = self.store.entries[one.claim.key]
            assert entry.value == record.text()
            leased = [
                name
                for name in self.store.of(record)
                if self.store.entries[key(name)].lease is not None
            ]
            assert len(leased) <= 1
        held = [subnet for one in self.nodes if one.claim.key for subnet in one.claim.subnets]
        assert len(set(held)) == len(held)


TestCluster = Cluster.TestCase
TestCluster.settings = settings(max_examples=60, stateful_step_count=30)
