"""Nodes that are processes of their own, and what their users see of the overlay."""

import itertools
import json
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from tests.netns.node import Node
from tests.netns.traffic import exchange, inside, numbered
from tunnel.testing.lab import Host, Lab, LabError
from tunnel.types import ANY_VTEP_MAC, DEFAULT_PORT

OVERHEAD = {4: 50, 6: 70}
OFFLOADS = ["none", "tso,uso", "trains", "gro", "auto"]
SMALL = 4 << 20

# Lets a peer in and out again as fast as it can, until told to stop.
CHURN = """
import asyncio, json, signal, sys
from tunnel import Peer, Tunnel

async def main():
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with Tunnel(
        subnets=["10.244.1.0/24", "fd00:244:1::/64"],
        peers=["192.0.2.2=10.244.2.0/24,fd00:244:2::/64"],
        workers=sys.argv[1],
    ) as tunnel:
        print(tunnel.describe(), flush=True)
        third = Peer("192.0.2.3", ["10.244.3.0/24", "fd00:244:3::/64"])
        rounds = 0
        while not stop.is_set():
            await tunnel.add_peer(third)
            await asyncio.sleep(0.01)
            await tunnel.remove_peer(third)
            rounds += 1
        drops = {str(end): dict(peer.drops) for end, peer in tunnel.stats.peers.items()}
        print(json.dumps({"rounds": rounds, "drops": drops}))

asyncio.run(main())
"""


def pair(lab: Lab, *, mtu: int = 1500) -> tuple[Node, Node]:
    """Two linked nodes, not up yet."""
    a, b = Node(lab.host("a"), 1), Node(lab.host("b"), 2)
    lab.link(a.host, b.host, mtu=mtu)
    return a, b


def mesh(lab: Lab, names: str = "abc") -> list[Node]:
    """Nodes on one switch, not up yet."""
    nodes = [Node(lab.host(name), number) for number, name in enumerate(names, start=1)]
    lab.switch(*(node.host for node in nodes))
    return nodes


def up_all(*nodes: Node, outer: int = 4, words: tuple[str, ...] = ()) -> None:
    for node in nodes:
        node.up(*words, peers=[other.at(outer) for other in nodes if other is not node])


def ping_all(*nodes: Node) -> None:
    for near, far in itertools.permutations(nodes, 2):
        near.host.ping(far.ipv4)
        near.host.ping(far.ipv6)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("outer", [4, 6])
def test_families(lab: Lab, outer: int, loop: str) -> None:
    """IPv4 and IPv6 inside of each: the same content arrives, and nothing is dropped."""
    a, b = pair(lab)
    up_all(a, b, outer=outer, words=("--loop", loop))
    ping_all(a, b)
    for address in (b.ipv4, b.ipv6):
        with numbered(b.host, a.host, a.ipv6):
            exchange(a.host, b.host, address)
    assert (a.down(), b.down()) == ({}, {})


@pytest.mark.parametrize("outer", [4, 6])
def test_mtu_is_what_the_underlay_carries(lab: Lab, outer: int) -> None:
    a, b = pair(lab, mtu=1400)
    up_all(a, b, outer=outer)
    mtu = 1400 - OVERHEAD[outer]
    assert f"mtu {mtu}" in a.ready
    a.host.run(f"ping -c 1 -W 1 -M do -s {mtu - 28} {b.ipv4}")
    a.host.run(f"ping -c 1 -W 1 -M do -s {mtu - 48} {b.ipv6}")
    for size, address in ((mtu - 27, b.ipv4), (mtu - 47, b.ipv6)):
        with pytest.raises(LabError, match="too long"):
            a.host.run(f"ping -c 1 -W 1 -M do -s {size} {address}")
    assert (a.down(), b.down()) == ({}, {})


def test_fragments_pass(lab: Lab) -> None:
    """A datagram larger than the MTU arrives and leaves as fragments."""
    a, b = pair(lab)
    up_all(a, b)
    for address in (b.ipv4, b.ipv6):
        assert "20008 bytes from" in a.host.run(f"ping -c 1 -W 1 -s 20000 {address}").stdout
    assert (a.down(), b.down()) == ({}, {})


def test_ttl_counts_routers_alone(lab: Lab) -> None:
    """A host behind a node: the node's kernel is a router, the overlay is a wire."""
    a, b, behind = mesh(lab)
    up_all(a, b)
    a.host.run(["sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"])
    a.host.run(f"ip route add 10.244.1.7 via {behind.host.ipv4}")
    behind.host.run("ip address add 10.244.1.7/32 dev lo")
    behind.host.run(f"ip route add 10.244.2.0/24 via {a.host.ipv4} src 10.244.1.7")
    assert "ttl=64" in a.host.run(f"ping -c 1 -W 1 {b.ipv4}").stdout
    assert "1 received" in a.host.run(f"ping -c 1 -W 1 -t 1 {b.ipv4}").stdout
    assert "ttl=63" in behind.host.run(f"ping -c 1 -W 1 {b.ipv4}").stdout
    with pytest.raises(LabError, match="Time to live exceeded"):
        behind.host.run(f"ping -c 1 -W 1 -t 1 {b.ipv4}")
    exchange(behind.host, b.host, b.ipv4, size=SMALL)
    assert (a.down(), b.down()) == ({}, {})


@pytest.mark.parametrize(
    ("route", "stray", "said"),
    [
        ("10.0.0.0/8", "10.9.9.9", "Destination Host Unreachable"),
        ("fd00::/16", "fd00:9::9", "Destination unreachable: Address unreachable"),
    ],
)
def test_no_owner_is_said_at_once(lab: Lab, route: str, stray: str, said: str) -> None:
    """A kernel route may cover more than the peers own."""
    a, b = pair(lab)
    up_all(a, b)
    a.host.run(f"ip route add {route} dev tunnel1")
    process = a.host.popen(f"ping -c 1 -W 5 {stray}")
    output, _ = process.communicate(timeout=30)
    assert said in output
    assert a.down() == {"no_route": 1}
    assert b.down() == {}


def test_peers_of_both_underlay_families(lab: Lab) -> None:
    a, b, c = mesh(lab)
    a.up(peers=[b.at(4), c.at(6)])
    b.up(peers=[a.at(4)])
    c.up(peers=[a.at(6)])
    assert "mtu 1430" in a.ready
    ping_all(a, b)
    ping_all(a, c)
    exchange(a.host, b.host, b.ipv6, size=SMALL)
    exchange(c.host, a.host, a.ipv4, size=SMALL)
    assert [node.down() for node in (a, b, c)] == [{}, {}, {}]


def test_three_nodes_fully_meshed(lab: Lab) -> None:
    nodes = mesh(lab)
    up_all(*nodes)
    ping_all(*nodes)
    with ExitStack() as streams:
        for near, far in itertools.permutations(nodes, 2):
            streams.enter_context(numbered(near.host, far.host, far.ipv4, pause=0.002))
        for near, far in itertools.combinations(nodes, 2):
            exchange(near.host, far.host, far.ipv6, size=SMALL)
    assert [node.down() for node in nodes] == [{}, {}, {}]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_peer_comes_and_goes_under_load(lab: Lab, workers: str) -> None:
    """The others lose nothing: not one datagram of the streams both ways, and no byte."""
    a, b, c = mesh(lab)
    churn = a.host.popen([sys.executable, "-c", CHURN, workers])
    assert churn.stdout is not None
    assert churn.stdout.readline()
    b.up(peers=[a.at(4)])
    c.up(peers=[a.at(4)])
    # So that there is traffic to the peer at the moment it goes, too.
    flood = a.host.popen(f"ping -q -i 0.002 {c.ipv4}")
    with (
        numbered(a.host, b.host, b.ipv4, pause=0.0002),
        numbered(b.host, a.host, a.ipv6, pause=0.0002),
    ):
        exchange(a.host, b.host, b.ipv6)
        exchange(b.host, a.host, a.ipv4)
    flood.send_signal(signal.SIGINT)
    churn.terminate()
    stdout, stderr = churn.communicate(timeout=30)
    assert (churn.returncode, stderr) == (0, "")
    said = json.loads(stdout)
    assert said["rounds"] >= 20
    assert said["drops"] == {"192.0.2.2:8472": {}}
    assert b.down() == {}


@pytest.mark.parametrize(
    ("left", "right"), [*zip(OFFLOADS, OFFLOADS, strict=True), *itertools.combinations(OFFLOADS, 2)]
)
def test_offloads_change_no_content(lab: Lab, left: str, right: str) -> None:
    """Each with itself and with each other: TCP and UDP both ways, over both families."""
    a, b = pair(lab)
    a.up("--offload", left, peers=[b.at(4)])
    b.up("--offload", right, peers=[a.at(4)])
    for node, offload in ((a, left), (b, right)):
        assert ("trains 127" in node.ready) == (offload in ("trains", "auto"))
        assert ("device tso+uso" in node.ready) == (offload in ("tso,uso", "auto"))
    with numbered(a.host, b.host, b.ipv6), numbered(b.host, a.host, a.ipv4):
        exchange(a.host, b.host, b.ipv4, size=SMALL)
        exchange(b.host, a.host, a.ipv6, size=SMALL)
    assert (a.down(), b.down()) == ({}, {})


def test_a_name_that_nobody_knows_harms_no_other(lab: Lab) -> None:
    a, b = pair(lab)
    a.up(peers=["nobody.invalid=10.244.9.0/24", b.at(4)])
    b.up(peers=[a.at(4)])
    ping_all(a, b)
    with pytest.raises(LabError):
        a.host.ping("10.244.9.1")
    assert a.down() == {"unresolved": 1}


def test_killed_and_started_again(lab: Lab) -> None:
    a, b = pair(lab)
    up_all(a, b)
    for _ in range(3):
        a.kill()
        a.up(peers=[b.at(4)])
        ping_all(a, b)
    exchange(a.host, b.host, b.ipv4, size=SMALL)
    assert (a.down(), b.down()) == ({}, {})


@pytest.mark.parametrize("offload", ["none", "auto"])
@pytest.mark.parametrize("outer", [4, 6])
def test_the_underlay_shrinks(lab: Lab, outer: int, offload: str) -> None:
    """No black hole: a sender of large packets gets ICMP, or its packets are fragmented."""
    a, b = pair(lab)
    up_all(a, b, outer=outer, words=("--offload", offload))
    for node in (a, b):
        node.host.run("ip link set eth0 mtu 1400")
    for address in (b.ipv4, b.ipv6):
        exchange(a.host, b.host, address, size=SMALL)
        # The first packets may be lost to ICMP errors, one each way.
        a.host.run(f"ping -c 4 -i 0.1 -W 1 -s 20000 {address}")
    for drops in (a.down(), b.down()):
        assert drops.keys() <= {"too_big"}


@pytest.mark.parametrize("outer", [4, 6])
def test_a_router_on_the_way_takes_less(lab: Lab, outer: int) -> None:
    """Fragments over IPv4; over IPv6 it reports the MTU, and the node informs the sender."""
    a, b = Node(lab.host("a"), 1), Node(lab.host("b"), 2)
    route_between(lab, (a.host, 1500), (b.host, 1400))
    up_all(a, b, outer=outer)
    ping_all(a, b)
    for address in (b.ipv4, b.ipv6):
        exchange(a.host, b.host, address, size=SMALL)
    assert a.down().keys() <= {"too_big"}
    assert b.down() == {}


def test_ports_of_their_own(lab: Lab) -> None:
    """And one that sends from its port alone."""
    a, b = pair(lab)
    a.up("--port", "4789", peers=[b.at(4)])
    b.up("--source-ports", "1", peers=[a.at(4).replace("=", ":4789=", 1)])
    ping_all(a, b)
    exchange(a.host, b.host, b.ipv4, size=SMALL)
    assert (a.down(), b.down()) == ({}, {})


def test_the_underlay_goes_and_comes_back(lab: Lab) -> None:
    a, b = pair(lab)
    up_all(a, b)
    a.host.run("ip link set eth0 down")
    with pytest.raises(LabError):
        a.host.ping(b.ipv4)
    a.host.run("ip link set eth0 up")
    ping_all(a, b)
    assert (a.down(), b.down()) == ({"unreachable": 1}, {})


def test_garbage_from_a_peer_harms_nothing(lab: Lab) -> None:
    """Random bytes, and VXLAN headers with random bytes behind, while TCP runs."""
    a, b = pair(lab)
    up_all(a, b)
    with garbage(b.host, to=a.host.ipv4):
        exchange(a.host, b.host, b.ipv4)
        exchange(b.host, a.host, a.ipv6)
    reasons = {"short_frame", "no_vni", "other_vni", "ethertype", "other_mac", "bad_inner"}
    assert reasons <= set(a.down())
    assert b.down() == {}


def route_between(lab: Lab, *ends: tuple[Host, int]) -> None:
    """Joins hosts by a router, each over a link of its own MTU."""
    router = lab.host("router")
    for number, (host, mtu) in enumerate(ends):
        port = f"port{number}"
        router.run(
            f"ip link add {port} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {host.pid}"
        )
        router.run(f"ip address add fe80::1/64 dev {port} nodad")
        router.run(f"ip link set {port} up")
        router.run(f"ip route add {host.ipv4} dev {port}")
        router.run(f"ip route add {host.ipv6} dev {port}")
        host.run(f"ip address add {host.ipv4}/32 dev eth0")
        host.run(f"ip address add {host.ipv6}/128 dev eth0 nodad")
        host.run("ip link set eth0 up")
        host.run("ip -4 route add default via inet6 fe80::1 dev eth0")
        host.run("ip -6 route add default via fe80::1 dev eth0")
    for switch in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        router.run(["sh", "-c", f"echo 1 >/proc/sys/net/{switch}"])


@contextmanager
def garbage(host: Host, *, to: str) -> Iterator[None]:
    """Sends it from the host, some 5,000 datagrams a second, while the block runs."""
    with inside(host):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sender, ThreadPoolExecutor(1) as pool:
        sender.connect((to, DEFAULT_PORT))
        stop = threading.Event()
        sending = pool.submit(_send_garbage, sender, stop)
        try:
            yield
        finally:
            stop.set()
        sending.result()


def _send_garbage(sender: socket.socket, stop: threading.Event) -> None:
    dice = random.Random(8472)
    vxlan, other_vni = (bytes.fromhex(f"08000000 {vni} 00") for vni in ("000001", "000002"))
    other = bytes.fromhex("02005e0053fe 02005e0053ff 0800")
    right = ANY_VTEP_MAC.packed + other[6:]
    # Each is right for longer than the one before.
    starts = (
        b"",
        bytes(8),
        other_vni,
        vxlan,
        vxlan + other,
        vxlan + right,
        vxlan + right + b"\x45",
    )
    while not stop.is_set():
        for start in starts:
            sender.send(start + dice.randbytes(dice.randrange(1400)))
        time.sleep(0.001)
