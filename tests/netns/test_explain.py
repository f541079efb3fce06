"""``tunnel explain`` against nodes that move packets: the wire carries what it predicts."""

import asyncio
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN

from examples.pods.cluster import cluster
from tests.netns.node import control_socket
from tests.netns.test_overlay import pair
from tests.netns.test_service import until_up
from tests.netns.traffic import inside
from tests.unit.cli.test_node_verbs import check
from tunnel import Client
from tunnel.testing.lab import Host, Lab

PAPER = Path(__file__).parents[2] / "docs" / "life-of-a-packet.md"

_ETH_P_ALL = 3
_PATIENCE = 60.0  # seconds


def explain(host: Host, address: str, source: str | None = None, **words: Any) -> Any:
    """What the host's node says, at its control socket."""

    found = ask(host, "explain", address=address, source=source, **words)
    check("explain", found)
    return found


def ask(host: Host, call: str, **words: Any) -> Any:
    async def conversation() -> Any:
        async with Client(control_socket(host)) as node:
            return await node.call(call, **words)

    return asyncio.run(conversation())


def steps(found: Any) -> dict[str, Any]:
    return {step["step"]: step for step in found["steps"]}


def end(host: Host, address: str, source: str | None = None) -> tuple[str, str, str]:
    """Where the way ends: the step, why, and what to do."""
    found = explain(host, address, source)
    last = found["steps"][-1]
    assert found["ends"] == last["step"]
    return last["step"], last["why"], last["next"]


@contextmanager
def watching(host: Host) -> Iterator[socket.socket]:
    """Frames that arrive at a host's eth0."""
    with inside(host), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind(("eth0", _ETH_P_ALL))
        sock.settimeout(_PATIENCE)
        yield sock


def carried(sock: socket.socket, sport: int) -> Ether:
    """The frame whose inner UDP datagram comes from that port."""
    while True:
        frame = Ether(sock.recv(65536))
        if UDP not in frame or frame[UDP].dport != 8472:
            continue
        inner = VXLAN(bytes(frame[UDP].payload))[Ether]
        if UDP in inner and inner[UDP].sport == sport:
            return frame


def send(host: Host, source: str, sport: int, address: str, dport: int, *, size: int) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with inside(host), socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind((source, sport))
        sock.sendto(bytes(size), (address, dport))


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("outer", [4, 6])
def test_what_it_says_is_what_is_on_the_wire(lab: Lab, outer: int, workers: str) -> None:
    a, b = pair(lab)
    for node, other in ((a, b), (b, a)):
        # Trains would be seen as one long datagram here.
        node.up("--workers", workers, "--offload", "tso,uso", peers=[other.at(outer)])
    for number in range(8):
        inner, sport = (4, 6)[number % 2], 30_000 + number
        here, there = (a.ipv4, b.ipv4) if inner == 4 else (a.ipv6, b.ipv6)
        size = 300 if number < 6 else 3000  # what is cut goes by another hash: it has no ports
        flow: dict[str, Any] = {"protocol": "udp", "sport": sport, "dport": 9, "size": size}
        found = explain(a.host, there, **flow)
        assert found["ends"] is None
        layers = {one["name"]: one["fields"] for one in found["headers"]}
        with watching(b.host) as sock:
            send(a.host, here, sport, there, 9, size=size - (28 if inner == 4 else 48))
            frame = carried(sock, sport)
        ip = frame[IP] if outer == 4 else frame[IPv6]
        drawn = layers[f"outer IPv{outer}"]
        assert (drawn["source"], drawn["destination"]) == (ip.src, ip.dst)
        assert drawn["length"] == str(ip.len if outer == 4 else ip.plen + 40)
        assert drawn["ttl"] == str(ip.ttl if outer == 4 else ip.hlim)
        if outer == 4:
            assert drawn["df"] == str(int("DF" in ip.flags))
        udp = layers["UDP"]
        assert str(frame[UDP].sport) in udp["source"].split(" or ")
        assert len(udp["source"].split(" or ")) <= int(workers)
        assert (udp["destination"], udp["length"]) == (str(frame[UDP].dport), str(frame[UDP].len))
        vxlan = VXLAN(bytes(frame[UDP].payload))
        assert layers["VXLAN"] == {"flags": f"{int(vxlan.flags):02x}", "vni": str(vxlan.vni)}
        ether = vxlan[Ether]
        assert layers["Ethernet"] == {
            "source": ether.src,
            "destination": ether.dst,
            "type": f"{ether.type:04x}",
        }
        inside_it = ether[IP] if inner == 4 else ether[IPv6]
        drawn = layers[f"inner IPv{inner}"]
        assert (drawn["source"], drawn["destination"]) == (inside_it.src, inside_it.dst)
        assert (drawn["sport"], drawn["dport"]) == (str(sport), "9")
        assert drawn["length"] == str(inside_it.len if inner == 4 else inside_it.plen + 40)
        # And at the other end.
        home = explain(b.host, there, here, **flow)
        assert (home["direction"], home["ends"]) == ("inbound", None)
        assert steps(home)["kernel route"]["entry"].startswith(f"local {there}")


def test_where_it_ends(lab: Lab) -> None:
    a, b = pair(lab)
    gone = "192.0.2.77=10.244.77.0/24"
    a.up(peers=[b.at(4), gone, "203.0.113.9=10.244.9.0/24", "nobody.invalid=10.244.8.0/24"])
    b.up(peers=[a.at(4)])
    host = a.host
    route = f"{b.prefixes[0]} dev tunnel1"
    assert steps(explain(host, b.ipv4))["kernel route"]["entry"].startswith(route)
    shown = host.run([sys.executable, "-m", "tunnel", "explain", b.ipv4]).stdout
    assert f" 2  kernel route  {route} proto 84 scope link\n" in shown

    host.run("ip route add 10.99.0.0/16 dev tunnel1")
    assert end(host, "10.99.0.1")[0] == "route"
    drops = {one["reason"]: one["count"] for one in ask(host, "drops")}
    assert drops["no_route"] == 0  # nothing was sent
    assert end(host, "9.9.9.9")[:2] == ("kernel route", "no kernel route matches 9.9.9.9")
    assert end(host, "10.244.8.1")[0] == "name"
    assert end(host, "10.244.9.1")[0] == "underlay"
    # A neighbour that does not answer, once the kernel has sent a request.
    host.run("sysctl -w net.ipv4.neigh.eth0.retrans_time_ms=20")
    send(host, a.ipv4, 1, "10.244.77.1", 9, size=1)
    while explain(host, "10.244.77.1")["ends"] != "underlay":
        pass
    assert "does not answer ARP on eth0" in end(host, "10.244.77.1")[1]

    host.run("ip route add blackhole 10.244.2.64/26")
    assert "blackhole" in end(host, "10.244.2.65")[1]
    host.run("ip route add 10.244.2.128/25 dev eth0")
    step, why, what = end(host, "10.244.2.200")
    assert (step, what) == (
        "kernel route",
        "see all matching routes: ip route show match 10.244.2.200",
    )
    assert "leaves through eth0, although peer 192.0.2.2:8472 owns 10.244.2.0/24" in why

    assert end(host, b.ipv4, host.ipv4)[0] == "peer checks"
    assert end(host, a.ipv4, "10.5.5.5")[0] == "source check"
    assert "does not forward IPv4" in end(host, "10.244.1.7", b.ipv4)[1]
    host.run("sysctl -w net.ipv4.ip_forward=1")
    assert end(host, "10.244.1.7", b.ipv4)[0] == "kernel route"
    host.run("ip link set tunnel1 down")
    step, why, what = end(host, b.ipv4)
    assert (step, what) == (
        "kernel route",
        "set it up, and the node restores the route: ip link set tunnel1 up",
    )
    assert "tunnel1 is down" in why


def test_a_pod_behind_a_bridge(lab: Lab) -> None:
    """Both ways of a packet between a pod here and the other node."""
    a, b = pair(lab)
    for node, other in ((a, b), (b, a)):
        node.up(peers=[other.at(4)])
    pod, host = lab.host("pod"), a.host
    host.run("sysctl -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
    host.run("ip link add cni0 type bridge")
    host.run(f"ip link add veth9 type veth peer name eth0 netns {pod.pid}")
    host.run("ip link set veth9 master cni0 up")
    for address, own, length in (
        ("10.244.1.1", "10.244.1.9", 24),
        ("fd00:244:1::1", "fd00:244:1::9", 64),
    ):
        six = "nodad" if ":" in own else ""
        host.run(f"ip address add {address}/{length} dev cni0 {six}")
        pod.run(f"ip address add {own}/{length} dev eth0 {six}")
    host.run("ip link set cni0 up")
    pod.run("ip link set eth0 up")
    pod.run("ip route add default via 10.244.1.1")
    pod.run("ip route add default via fd00:244:1::1")
    for far, own in ((b.ipv4, "10.244.1.9"), (b.ipv6, "fd00:244:1::9")):
        pod.ping(far)
        out = explain(host, far, own)
        assert out["ends"] is None
        assert steps(out)["packet"]["why"] == "arrives on cni0; this host forwards it"
        home = explain(host, own, far)
        assert home["ends"] is None
        last = steps(home)["neighbour"]
        assert f"{own} dev cni0 lladdr " in last["entry"]
        assert "its port veth9, whose other end is in another network namespace" in last["why"]


@pytest.mark.parametrize("outer", [4, 6])
def test_frames_by_the_fdb(lab: Lab, outer: int) -> None:
    """TAP mode: neighbour and FDB entry, as they then are on the wire."""
    a, b = pair(lab)
    for node, other in ((a, b), (b, a)):
        node.up("--mode", "tap", "--workers", "1", peers=[other.at(outer)])
    for inner in (4, 6):
        here, there = (a.ipv4, b.ipv4) if inner == 4 else (a.ipv6, b.ipv6)
        a.host.ping(there, count=2)
        flow: dict[str, Any] = {"protocol": "udp", "sport": 30_000 + inner, "dport": 9, "size": 200}
        found = explain(a.host, there, **flow)
        assert found["ends"] is None
        assert f"via {there} dev tunnel1" in steps(found)["kernel route"]["entry"]
        layers = {one["name"]: one["fields"] for one in found["headers"]}
        with watching(b.host) as sock:
            send(a.host, here, 30_000 + inner, there, 9, size=200 - (28 if inner == 4 else 48))
            frame = carried(sock, 30_000 + inner)
        ether = VXLAN(bytes(frame[UDP].payload))[Ether]
        ends = (layers["Ethernet"]["source"], layers["Ethernet"]["destination"])
        assert ends == (ether.src, ether.dst)
        assert layers["UDP"]["source"] == str(frame[UDP].sport)
        assert f"lladdr {ether.dst} PERMANENT" in steps(found)["neighbour"]["entry"]
        address = b.host.ipv4 if outer == 4 else f"[{b.host.ipv6}]"
        assert steps(found)["fdb"]["entry"] == f"{ether.dst} -> {address}:8472 static"
        assert explain(b.host, there, here)["ends"] is None


def test_frames_by_way_of_a_bridge(lab: Lab) -> None:
    """The TAP device is a port of a bridge, and one subnet is on both sides."""
    a, b = lab.host("a"), lab.host("b")
    lab.link(a, b)
    for host, other, number in ((a, b, 1), (b, a, 2)):
        # Each owns a subnet; that of the bridges is nobody's.
        words = ["up", "--mode", "tap", "--peer", other.ipv4, "--subnet", f"10.8.{number}.0/24"]
        process = host.popen([sys.executable, "-m", "tunnel", *words])
        assert process.stdout is not None
        assert process.stdout.readline()
        # Of its own; it would take that of its port, which is the VTEP's.
        host.run(f"ip link add br0 address 02:00:00:00:00:0{number} type bridge")
        host.run("ip link set tunnel1 master br0")
        host.run(f"ip address add 10.7.0.{number}/24 dev br0")
        host.run("ip link set br0 up")
    assert end(a, "10.7.0.2")[:2] == (
        "neighbour",
        "not resolved yet: the kernel asks by ARP or NDP, and every peer gets the request",
    )
    a.ping("10.7.0.2")
    found = explain(a, "10.7.0.2")
    assert found["ends"] is None
    assert "tunnel1 is a port of this bridge" in steps(found)["kernel route"]["why"]
    entry = r"02:00:00:00:00:02 -> 192\.0\.2\.2:8472 learned \d s ago"
    assert re.fullmatch(entry, steps(found)["fdb"]["entry"])
    home = explain(b, "10.7.0.2", "10.7.0.1")
    assert home["ends"] is None
    assert steps(home)["outer source"]["entry"] == "any peer"


@pytest.mark.parametrize("mode", ["tun", "tap"])
def test_the_paper_shows_a_real_run(mode: str) -> None:
    """docs/life-of-a-packet.md, but for what differs from run to run."""
    told = r"^```\n(node [ab]\$ tunnel explain .*?)\n```$"
    paper = re.findall(told, PAPER.read_text(), flags=re.DOTALL | re.MULTILINE)
    papers = {"tun": paper[:2], "tap": paper[2:4]}
    with cluster(mode=mode) as made:
        for node, other in ((made.a.host, made.b), (made.b.host, made.a)):
            until_up(node, f"{other.host.ipv4}:8472")
        made.a.pods[0].host.ping(made.b.pods[0].ipv4)
        shown = [f"{command}\n{said.rstrip()}" for command, said in made.explained()]
        assert [common(one) for one in shown] == [common(one) for one in papers[mode]]
        if mode == "tun":
            process = made.a.host.popen([sys.executable, "-m", "tunnel", "explain", "9.9.9.9"])
            assert (
                f"node a$ tunnel explain 9.9.9.9\n{process.communicate()[0].rstrip()}" == paper[4]
            )


def common(text: str) -> str:
    """Without what is by chance: MACs of veth pairs, ports, times, how many CPUs there are."""
    for pattern in (
        r"(?<=\d  worker).*\n.*",
        r"(\d+ or )*\d+(?= > 8472)",
        r"(?<=veth)[0-9a-f]{8}",
        r"(?<=round trip )[\d.]+ m?s",
        r"([0-9a-f]{2}:){5}[0-9a-f]{2} (REACHABLE|STALE|DELAY|PROBE)",
        r"(?<=MAC )([0-9a-f]{2}:){5}[0-9a-f]{2}$",
    ):
        text = re.sub(pattern, "*", text, flags=re.MULTILINE)
    return text
