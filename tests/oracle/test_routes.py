"""Peers, routes and counters: which peer gets a packet, and that sums never decrease."""

import ipaddress
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnel._native import Forwarder

from .rig import Peer, Rig, packed
from .wire import OURS, PEER_MAC, frame, ip, udp

Prefix = ipaddress.IPv4Network | ipaddress.IPv6Network
Route = tuple[bytes, int, int]


def lpm_twin(routes: dict[Prefix, int], address: str) -> int:
    """The value of the longest prefix that contains the address, by linear search."""
    parsed = ipaddress.ip_address(address)
    holding = [prefix for prefix in routes if prefix.version == parsed.version and parsed in prefix]
    return routes[max(holding, key=lambda prefix: prefix.prefixlen)] if holding else -1


def as_list(routes: dict[Prefix, int]) -> list[Route]:
    return [
        (prefix.network_address.packed, prefix.prefixlen, index) for prefix, index in routes.items()
    ]


@pytest.fixture(scope="module")
def forwarder() -> Forwarder:
    """A forwarder for look-ups only: no descriptor is used."""
    forwarder = Forwarder(
        device=-1,
        output=-1,
        vnet_header=False,
        coalesce_tcp=False,
        coalesce_udp=False,
        vni=1,
        mac=PEER_MAC,
        segments=1,
    )
    for index in range(300):
        forwarder.set_peer(index, None, 8472, PEER_MAC)
    return forwarder


def prefixes(version: int, *, clustered: bool) -> st.SearchStrategy[Prefix]:
    """Random prefixes; clustered ones differ in few bits, so that many are nested or adjacent."""
    bits = 32 if version == 4 else 128
    bases = [0, 0x0A000000 << (bits - 32), (1 << bits) - 1]
    address = st.integers(0, (1 << bits) - 1)
    if clustered:
        flips = st.lists(st.integers(0, bits - 1), max_size=4)
        address = st.builds(
            lambda base, flip: base ^ sum({1 << bit for bit in flip}), st.sampled_from(bases), flips
        )

    def prefix(value: int, length: int) -> Prefix:
        host_bits = bits - length
        value = value >> host_bits << host_bits
        if version == 4:
            return ipaddress.IPv4Network((value, length))
        return ipaddress.IPv6Network((value, length))

    return st.builds(prefix, address, st.integers(0, bits))


TABLES = st.dictionaries(
    st.one_of([prefixes(version, clustered=near) for version in (4, 6) for near in (True, False)]),
    st.integers(0, 299),
    max_size=40,
)


@settings(max_examples=300)
@given(routes=TABLES, seed=st.integers(0, 2**32))
def test_lookup_agrees_with_a_linear_search(
    forwarder: Forwarder, routes: dict[Prefix, int], seed: int
) -> None:
    """For both ends of every prefix, the addresses just outside, and random ones."""
    forwarder.set_routes(as_list(routes))
    chance = random.Random(seed)
    addresses = {str(ipaddress.ip_address(chance.getrandbits(32))) for _ in range(5)}
    for prefix in routes:
        first, last = int(prefix.network_address), int(prefix.broadcast_address)
        highest = 2**prefix.max_prefixlen - 1
        inside = chance.randint(first, last)
        for value in (first, last, max(0, first - 1), min(highest, last + 1), inside):
            kind = ipaddress.IPv4Address if prefix.version == 4 else ipaddress.IPv6Address
            addresses.add(str(kind(value)))
    for address in addresses:
        assert forwarder.lookup(packed(address)) == lpm_twin(routes, address), address


def test_many_routes_take_at_most_twice_the_time_of_few(forwarder: Forwarder) -> None:
    """Compares 10,000 prefixes with 10, with the cost of the call: the best of many rounds. All of
    them must be found."""
    chance = random.Random(1)
    networks = {chance.getrandbits(24) << 8 for _ in range(10000)}
    routes = [(network.to_bytes(4, "big"), 24, network % 300) for network in networks]
    probes = [(network + chance.randrange(256), network % 300) for network in networks]

    def seconds(addresses: list[bytes]) -> float:
        best = 1.0
        for _ in range(30):
            start = time.perf_counter()
            for address in addresses:
                forwarder.lookup(address)
            best = min(best, time.perf_counter() - start)
        return best

    addresses = [address.to_bytes(4, "big") for address, _ in probes]
    forwarder.set_routes(routes)
    assert [forwarder.lookup(address) for address in addresses] == [owner for _, owner in probes]
    many = seconds(addresses[:1000])
    forwarder.set_routes(routes[:10])
    assert many < 2 * seconds(addresses[:1000])


def test_routes_are_replaced_at_once_or_not_at_all() -> None:
    with Rig() as rig:
        rig.add_peer()
        good = (packed("10.0.0.0"), 8, 0)
        rig.forwarder.set_routes([good])
        bad: list[Route] = [
            (packed("10.0.0.1"), 8, 0),  # host bits
            (packed("10.0.0.0"), 33, 0),
            (packed("10.0.0.0"), -1, 0),
            (packed("fd00::"), 129, 0),
            (packed("10.0.0.0"), 8, 1),  # no such peer
            (packed("10.0.0.0"), 8, -1),
            (packed("10.0.0.0"), 8, 65535),
            (b"\n\0\0", 8, 0),
        ]
        for route in bad:
            with pytest.raises(ValueError, match=r"route|address"):
                rig.forwarder.set_routes([(packed("11.0.0.0"), 8, 0), route])
            assert rig.forwarder.lookup(packed("10.1.1.1")) == 0
            assert rig.forwarder.lookup(packed("11.1.1.1")) == -1
        rig.forwarder.set_routes([])
        assert rig.forwarder.lookup(packed("10.1.1.1")) == -1


def to(address: str) -> bytes:
    version = 6 if ":" in address else 4
    return bytes(ip(version, src=OURS[version], dst=address) / udp(b"data"))


def of(address: str, *, sport: int = 1000) -> bytes:
    version = 6 if ":" in address else 4
    return frame(ip(version, src=address) / udp(b"data", sport=sport))


@pytest.mark.parametrize("family", [4, 6])
def test_packets_go_to_the_peer_with_the_longest_prefix(family: int) -> None:
    with Rig(family=family) as rig:
        a, b, c = (rig.add_peer() for _ in range(3))
        rig.forwarder.set_routes([*rig.routes, (packed("10.0.1.128"), 25, 2)])
        rig.outbound(*map(to, ["10.0.1.1", "10.0.2.1", "10.0.1.129", "fd00:2::1", "10.0.1.127"]))
        assert a.packets(2) == [to("10.0.1.1"), to("10.0.1.127")]
        assert b.packets(2) == [to("10.0.2.1"), to("fd00:2::1")]
        assert c.packets(1) == [to("10.0.1.129")]


def test_replacing_a_peer_keeps_its_counters() -> None:
    with Rig() as rig:
        a, b = rig.add_peer(), rig.add_peer()
        rig.outbound(to("10.0.1.1"))
        before = rig.counters(0)
        rig.forwarder.set_peer(0, packed(b.address), b.port, b.mac)
        assert rig.counters(0) == before
        rig.outbound(to("10.0.1.1"))
        assert (len(a.take(1)), len(b.take(1))) == (1, 1)
        assert rig.counters(0).outbound_packets == 2
        # Its old address belongs to no peer now, its new one does.
        a.send(of("10.0.1.1"))
        b.send(of("10.0.1.1"))
        assert len(rig.inbound()) == 1
        assert rig.drops(-1) == {"unknown_source": 1}


def test_packets_to_a_peer_without_an_address_are_dropped() -> None:
    with Rig() as rig:
        a = rig.add_peer()
        rig.forwarder.set_peer(0, None, 8472, a.mac)
        rig.outbound(to("10.0.1.1"))
        assert rig.drops(0) == {"unresolved": 1}
        a.send(of("10.0.1.1"))
        assert rig.inbound() == []
        assert rig.drops(-1) == {"unknown_source": 1}
        rig.forwarder.set_peer(0, packed(a.address), a.port, a.mac)
        rig.outbound(to("10.0.1.1"))
        assert a.packets(1) == [to("10.0.1.1")]


def test_a_family_without_sockets_cannot_send() -> None:
    with Rig() as rig:
        rig.add_peer()
        rig.forwarder.set_sockets(4, [])
        rig.outbound(to("10.0.1.1"))
        assert rig.drops(0) == {"unresolved": 1}


def test_a_peer_is_removed_after_its_routes() -> None:
    with Rig() as rig:
        a = rig.add_peer()
        with pytest.raises(ValueError, match="peer 0 still has routes"):
            rig.forwarder.remove_peer(0)
        rig.forwarder.set_routes([])
        rig.forwarder.remove_peer(0)
        for index in (0, 1, -1, 65535):
            with pytest.raises(ValueError, match="there is no peer"):
                rig.forwarder.remove_peer(index)
        a.send(of("10.0.1.1"))
        assert rig.inbound() == []
        assert rig.drops(-1) == {"unknown_source": 1}


def test_counters_of_removed_peers_are_kept() -> None:
    with Rig() as rig:
        a = rig.add_peer()
        rig.outbound(to("10.0.1.1"), to("10.0.1.1"), to("10.9.9.9"))
        a.send(of("10.0.1.1"))
        a.send(of("10.0.9.1"))
        rig.inbound()
        assert rig.counters(0)[:4] == (2, 64, 1, 32)
        assert (rig.forwarder.sent()[0], rig.forwarder.received()[0]) == (2, 1)
        assert rig.drops(0) == {"spoofed": 1}
        rig.forwarder.set_routes([])
        rig.forwarder.remove_peer(0)
        assert rig.counters(-2)[:4] == (2, 64, 1, 32)
        assert rig.drops(-2) == {"spoofed": 1}
        assert rig.drops(-1) == {"no_route": 1}
        rig.forwarder.set_peer(0, packed(a.address), a.port, a.mac)
        assert rig.counters(0)[:4] == (0, 0, 0, 0)
        assert rig.drops(0) == {}


@settings(max_examples=50)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["out", "in", "remove", "put", "spoof"]), st.integers(0, 3)),
        max_size=40,
    )
)
def test_sums_never_decrease(steps: list[tuple[str, int]]) -> None:
    """Peers are added and removed: each packet stays counted exactly once."""
    with Rig() as rig:
        peers = [rig.add_peer() for _ in range(4)]
        present = set(range(4))
        seen = 0

        def total() -> int:
            rows = [rig.counters(index) for index in (-2, -1, *present)]
            return sum(
                row.outbound_packets + row.inbound_packets + sum(row.drops.values()) for row in rows
            )

        for step, index in steps:
            peer = peers[index]
            if step == "remove" and index in present:
                present.remove(index)
                rig.forwarder.set_routes([route for route in rig.routes if route[2] in present])
                rig.forwarder.remove_peer(index)
            elif step == "put":
                present.add(index)
                rig.forwarder.set_peer(index, packed(peer.address), peer.port, peer.mac)
                rig.forwarder.set_routes([route for route in rig.routes if route[2] in present])
            elif step == "out":
                rig.outbound(to(f"10.0.{index + 1}.1"))
                seen += 1
            elif step in {"in", "spoof"}:
                peer.send(of("192.0.2.1" if step == "spoof" else f"10.0.{index + 1}.1"))
                rig.inbound()
                seen += 1
            assert total() == seen


@pytest.mark.parametrize("family", [4, 6])
def test_peers_behind_one_address(family: int) -> None:
    """NAT, or several nodes on one host: outbound the port tells them apart, inbound the inner
    source, whatever the outer port is."""
    with Rig(family=family) as rig:
        address = "127.0.7.9" if family == 4 else "::1"
        a, b = rig.add_peer(address=address), rig.add_peer(address=address)
        rig.outbound(to("10.0.1.1"), to("10.0.2.1"))
        assert (a.packets(), b.packets()) == ([to("10.0.1.1")], [to("10.0.2.1")])
        a.send(of("10.0.1.1"))
        b.send(of("10.0.2.1"))
        b.send(of("10.0.1.1"))
        rig.inbound()
        assert rig.counters(0).inbound_packets == 2
        assert rig.counters(1).inbound_packets == 1
        rig.forwarder.set_routes([route for route in rig.routes if route[2] == 1])
        rig.forwarder.remove_peer(0)
        a.send(of("10.0.2.1"))
        assert len(rig.inbound()) == 1
        assert rig.counters(1).inbound_packets == 2


def test_a_peer_sends_from_any_port() -> None:
    """A kernel vxlan device chooses a source port for each flow."""
    with Rig() as rig:
        a = rig.add_peer()
        for sport in range(5):
            a.socket = rig.open_socket(a.address)
            a.send(of("10.0.1.1", sport=sport))
        assert len(rig.inbound()) == 5


def test_many_peers() -> None:
    """More than the first table has space for; some are removed again."""
    with Rig() as rig:
        forwarder, count = rig.forwarder, 1000
        addresses = [f"127.9.{n // 250}.{1 + n % 250}" for n in range(count)]
        routes = [(packed(f"10.{n // 256}.{n % 256}.0"), 24, n) for n in range(count)]
        for n, address in enumerate(addresses):
            forwarder.set_peer(n, packed(address), 8472, PEER_MAC)
        forwarder.set_routes(routes)
        for n in range(0, count, 3):
            forwarder.set_routes([route for route in routes if route[2] % 3 or route[2] > n])
            forwarder.remove_peer(n)
        for n in (1, 500, 998, 999):
            peer = Peer(rig, n, address=addresses[n], mac=PEER_MAC)
            peer.send(frame(ip(4, src=f"10.{n // 256}.{n % 256}.7") / udp(b"x")))
        assert len(rig.inbound()) == 3
        assert rig.drops(-1) == {"unknown_source": 1}


@pytest.mark.parametrize("index", [-1, 65535, 70000])
def test_an_index_out_of_range_is_refused(index: int) -> None:
    with Rig() as rig, pytest.raises(ValueError, match="out of range"):
        rig.forwarder.set_peer(index, None, 8472, PEER_MAC)
