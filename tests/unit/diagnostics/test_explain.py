"""The trace of one packet: each rule in a table, and the verb against a node without a device."""

import errno
import ipaddress
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment

from tests.unit.cli.test_node_verbs import Node, check, running
from tunnel import ConfigError
from tunnel.cli.explain import draw
from tunnel.diagnostics.flow import Flow
from tunnel.diagnostics.path_trace import (
    ForwardingDecision,
    Outcome,
    PathTrace,
    TraceInputs,
    TraceStep,
    trace,
)
from tunnel.rpc.codec import encode
from tunnel.status import PeerState, PeerStatus, Status, Traffic
from tunnel.types import ANY_VTEP_MAC, Endpoint, KernelNeighbour, KernelRoute, Mac, parse_prefix

A = ipaddress.ip_address
HEADERS = bytes.fromhex("08000000000001000200000000020200000000010800")
TAGGED = HEADERS[:20] + bytes.fromhex("810020070800")

PEER = PeerStatus(
    endpoint=Endpoint("192.0.2.2"),
    address=A("192.0.2.2"),
    mac=None,
    prefixes=(parse_prefix("10.244.2.0/24"), parse_prefix("10.244.2.128/25")),
    state=PeerState.UP,
    state_age=5.0,
    rtt=0.0012,
    loss=0.0,
    path_mtu=1450,
    trains=True,
    outbound=Traffic(),
    inbound=Traffic(),
    drops={},
    last_drop=None,
)
STATUS = Status(
    name="tunnel1",
    device="tunnel1",
    vni=1,
    endpoints=("192.0.2.1:8472",),
    mac=Mac.parse("02:00:00:00:00:01"),
    mtu=1450,
    offloads=frozenset({"tso", "uso", "trains", "gro"}),
    workers=1,
    uptime=60.0,
    peers=(PEER,),
    drops={},
    subnets=(parse_prefix("10.244.1.0/24"),),
)
FLOW = Flow(A("10.244.2.7"), A("10.244.1.0"))
INTO = KernelRoute("10.244.2.0/24 dev tunnel1 proto 84 scope link", "unicast", "tunnel1", mtu=1450)
OUT = TraceInputs(
    flow=FLOW,
    status=STATUS,
    inbound=False,
    mode="tun",
    kernel_route=INTO,
    decisions=(ForwardingDecision(PEER, port=40123, headers=HEADERS),),
    underlay_route=KernelRoute("192.0.2.0/24 dev eth0 proto kernel scope link", "unicast", "eth0"),
    underlay_neighbour=KernelNeighbour("eth0", "02:00:00:00:aa:02", "REACHABLE"),
    local_address=A("192.0.2.1"),
)
IN = TraceInputs(
    flow=Flow(A("10.244.1.9"), A("10.244.2.7")),
    status=STATUS,
    inbound=True,
    mode="tun",
    kernel_route=KernelRoute("10.244.1.0/24 dev cni0 proto kernel scope link", "unicast", "cni0"),
    kernel_neighbour=KernelNeighbour(
        "cni0", "02:00:00:00:00:09", "REACHABLE", "veth9", namespace=True
    ),
    owner=PEER,
)
VTEP = KernelRoute(
    "10.244.2.0/24 via 10.244.2.0 dev tunnel1 proto 84 onlink",
    "unicast",
    "tunnel1",
    A("10.244.2.0"),
)
TAP = replace(
    OUT,
    mode="tap",
    kernel_route=VTEP,
    kernel_neighbour=KernelNeighbour("tunnel1", "02:00:00:00:00:02", "PERMANENT"),
    fdb_entry="02:00:00:00:00:02 -> 192.0.2.2:8472 static",
)


def steps(inputs: TraceInputs) -> list[str]:
    return [step.step for step in trace(inputs).steps]


def last(inputs: TraceInputs) -> TraceStep:
    """The step at which the way ends."""
    found = trace(inputs)
    assert found.ends == found.steps[-1].step
    assert all(step.verdict is Outcome.GOES_ON for step in found.steps[:-1])
    return found.steps[-1]


def step(inputs: TraceInputs, name: str) -> TraceStep:
    return next(one for one in trace(inputs).steps if one.step == name)


def peer(**words: Any) -> TraceInputs:
    """The way out, with a peer that is in another state."""
    other = replace(PEER, **words)
    return replace(OUT, decisions=(replace(OUT.decisions[0], peer=other),))


def refused(error: int, **words: Any) -> TraceInputs:
    return replace(OUT, kernel_route=KernelRoute(error=error), **words)


def test_the_whole_way_out() -> None:
    found = trace(OUT)
    assert found.ends is None
    assert steps(OUT) == [
        "packet",
        "kernel route",
        "device",
        "route",
        "path",
        "worker",
        "headers",
        "underlay",
        "peer",
        "peer checks",
    ]
    assert [(one.name, one.bytes) for one in found.headers] == [
        ("outer IPv4", 20),
        ("UDP", 8),
        ("VXLAN", 8),
        ("Ethernet", 14),
        ("inner IPv4", 20),
    ]
    outer, udp, vxlan, ethernet, inner = (one.fields for one in found.headers)
    assert (outer["source"], outer["destination"]) == ("192.0.2.1", "192.0.2.2")
    assert outer["length"] == str(84 + 50)
    assert (udp["source"], udp["destination"], udp["length"]) == ("40123", "8472", str(84 + 30))
    assert vxlan == {"flags": "08", "vni": "1"}
    assert ethernet == {
        "source": "02:00:00:00:00:01",
        "destination": "02:00:00:00:00:02",
        "type": "0800",
    }
    assert (inner["protocol"], inner["length"]) == ("icmp", "84")
    # The entry that decides is the longest prefix.
    assert step(OUT, "route").entry == "10.244.2.0/24 -> 192.0.2.2:8472"
    upper = replace(OUT, flow=replace(FLOW, destination=A("10.244.2.200")))
    assert step(upper, "route").entry == "10.244.2.128/25 -> 192.0.2.2:8472"


def test_the_whole_way_in() -> None:
    assert steps(IN) == [
        "packet",
        "outer source",
        "vni",
        "mac",
        "source check",
        "device",
        "kernel route",
        "neighbour",
    ]
    assert trace(IN).ends is None
    assert trace(IN).headers == ()
    assert "veth9, whose other end is in another network namespace" in step(IN, "neighbour").why
    local = replace(
        IN, kernel_route=KernelRoute("local 10.244.1.0 dev lo table 255", "local", "lo")
    )
    assert trace(local).steps[-1].why == "an address of this host: the packet has arrived"


ANY_HEADERS = HEADERS[:8] + ANY_VTEP_MAC.packed + HEADERS[14:]
TO_ANY = replace(
    OUT,
    decisions=(
        ForwardingDecision(replace(PEER, state=PeerState.UNKNOWN), port=1, headers=ANY_HEADERS),
    ),
)
OTHER = replace(PEER, endpoint=Endpoint("192.0.2.3"), prefixes=(parse_prefix("10.244.3.0/24"),))
NAMED = replace(PEER, endpoint=Endpoint("b.example"))
SILENT = {"state": PeerState.SILENT, "state_age": 42.0}
LOOP = KernelRoute("10.244.2.0/24 dev tunnel1", "unicast", "tunnel1")
DEFAULT = KernelRoute("default via 192.0.2.254 dev eth0", "unicast", "eth0", A("192.0.2.254"))
DEAD = KernelNeighbour("eth0", "", "FAILED")
NO_NEIGHBOUR = replace(OUT, underlay_neighbour=DEAD)
DROPPED = (ForwardingDecision(PEER, reason="too_big", meaning="..."),)
UNRESOLVED = (ForwardingDecision(replace(NAMED, address=None), reason="unresolved"),)
NOBODY = (ForwardingDecision(reason="no_route", meaning="no peer owns the destination"),)
TWO_WORKERS = (*OUT.decisions, ForwardingDecision(PEER, port=5, headers=HEADERS))
ELSEWHERE = Flow(A("9.9.9.9"), A("10.244.1.0"))
FROM_POD: dict[str, Any] = {"ingress": "cni0", "flow": Flow(A("10.244.2.7"), A("10.244.1.5"))}


@pytest.mark.parametrize(
    ("inputs", "at", "why", "what"),
    [
        (replace(OUT, ingress=None), "packet", "not an address of this host", "ip route"),
        (
            refused(errno.ENETUNREACH),
            "kernel route",
            "10.244.2.0/24 of peer 192.0.2.2:8472 is missing",
            "ip route add 10.244.2.0/24 dev tunnel1 proto 84",
        ),
        (
            refused(errno.ENETUNREACH, flow=ELSEWHERE, decisions=NOBODY),
            "kernel route",
            "no kernel route matches 9.9.9.9",
            "ip route get 9.9.9.9",
        ),
        (refused(errno.EHOSTUNREACH), "kernel route", "unreachable", "ip route get 10.244.2.7"),
        (refused(errno.EACCES), "kernel route", "prohibit", "ip route get 10.244.2.7"),
        (refused(errno.EINVAL), "kernel route", "blackhole", "ip route get 10.244.2.7"),
        (refused(errno.ENOBUFS), "kernel route", "errno 105", "ip route get 10.244.2.7"),
        (
            refused(errno.EINVAL, **FROM_POD),
            "kernel route",
            "the reverse-path filter of cni0",
            "ip route get 10.244.1.5",
        ),
        (
            refused(errno.EHOSTUNREACH, forwarding=False, **FROM_POD),
            "kernel route",
            "does not forward IPv4",
            "sysctl -w net.ipv4.ip_forward=1",
        ),
        (
            refused(errno.ENETUNREACH, **FROM_POD),
            "kernel route",
            "10.244.2.0/24 of peer 192.0.2.2:8472 is missing",
            "ip route add 10.244.2.0/24 dev tunnel1 proto 84",
        ),
        (
            replace(OUT, kernel_route=KernelRoute("local 10.244.2.7 dev lo", "local", "lo")),
            "kernel route",
            "is an address of this host",
            "",
        ),
        (
            replace(OUT, kernel_route=DEFAULT),
            "kernel route",
            "leaves through eth0, although peer 192.0.2.2:8472 owns 10.244.2.0/24",
            "ip route show match 10.244.2.7",
        ),
        (
            replace(OUT, kernel_route=DEFAULT, flow=ELSEWHERE, decisions=NOBODY),
            "kernel route",
            "leaves through eth0, not the overlay",
            "tunnel route list",
        ),
        # Where nothing else matches, and where a default route does.
        (
            refused(errno.ENETUNREACH, device_up=False),
            "kernel route",
            "tunnel1 is down, so the kernel has removed the route for 10.244.2.0/24",
            "ip link set tunnel1 up",
        ),
        (
            replace(OUT, kernel_route=DEFAULT, device_up=False),
            "kernel route",
            "tunnel1 is down",
            "ip link set tunnel1 up",
        ),
        (replace(OUT, device_up=False), "device", "is down", "ip link set tunnel1 up"),
        (
            replace(
                OUT,
                ingress="cni0",
                flow=replace(FLOW, size=1500, protocol="tcp"),
                status=replace(STATUS, offloads=frozenset()),
            ),
            "device",
            "1500 bytes exceed the MTU: the kernel drops the packet",
            "ping -M do -s 1422 10.244.2.7",
        ),
        (
            replace(OUT, flow=ELSEWHERE, decisions=NOBODY),
            "route",
            "no peer owns the destination",
            "tunnel peer add ENDPOINT=9.9.9.9",
        ),
        (
            replace(
                OUT,
                decisions=(ForwardingDecision(replace(NAMED, address=None), reason="unresolved"),),
            ),
            "name",
            "no address",
            "getent hosts b.example",
        ),
        (
            replace(OUT, decisions=DROPPED, flow=replace(FLOW, protocol="tcp", size=1440)),
            "path",
            "its sender gets ICMP",
            "tunnel ping 192.0.2.2:8472 --size 1450",
        ),
        (
            replace(OUT, underlay_route=KernelRoute(error=101)),
            "underlay",
            "no route",
            "ip route get",
        ),
        (
            replace(OUT, underlay_route=LOOP),
            "underlay",
            "the tunnel again, in a loop",
            "ip route add",
        ),
        (
            NO_NEIGHBOUR,
            "underlay",
            "does not answer ARP on eth0",
            "ping -c 1 192.0.2.2",
        ),
        (
            replace(OUT, underlay_neighbour=DEAD, underlay_route=DEFAULT),
            "underlay",
            "192.0.2.254 does not answer",
            "ping -c 1 192.0.2.254",
        ),
        (peer(**SILENT, last_drop="other_vni"), "peer", "42 s; last drop of its", "tunnel ping"),
        (
            replace(OUT, flow=replace(FLOW, source=A("192.0.2.1"))),
            "peer checks",
            "not in this node's 10.244.1.0/24: the peer drops the packet as spoofed",
            "tunnel explain 10.244.2.7 --from 10.244.1.0",
        ),
        # A frame from an unknown address may pass, but not one from another peer's address.
        (
            replace(
                TAP,
                flow=replace(FLOW, source=A("10.244.3.1")),
                status=replace(STATUS, peers=(PEER, OTHER)),
            ),
            "peer checks",
            "the peer drops the packet as spoofed",
            "--from 10.244.1.0",
        ),
        (replace(IN, owner=None), "source check", "no peer owns it", "tunnel peer add"),
        (replace(IN, device_up=False), "device", "is down", "ip link set tunnel1 up"),
        (
            replace(IN, kernel_route=KernelRoute(error=errno.EHOSTUNREACH), forwarding=False),
            "kernel route",
            "does not forward IPv4",
            "sysctl -w net.ipv4.ip_forward=1",
        ),
        (replace(IN, forwarding=False), "kernel route", "does not forward IPv4", "sysctl"),
        (
            replace(IN, kernel_route=KernelRoute(error=errno.EINVAL)),
            "kernel route",
            "the reverse-path filter of tunnel1",
            "ip route get 10.244.2.7",
        ),
        (
            replace(IN, kernel_route=INTO),
            "kernel route",
            "leads back into the tunnel",
            "ip route show match 10.244.1.9",
        ),
        (
            replace(IN, kernel_route=KernelRoute(error=errno.ENETUNREACH)),
            "kernel route",
            "no kernel route matches 10.244.1.9",
            "ip route get 10.244.1.9 from 10.244.2.7 iif tunnel1",
        ),
        (
            replace(IN, kernel_neighbour=KernelNeighbour("cni0", "", "FAILED")),
            "neighbour",
            "no host on cni0 answers for 10.244.1.9",
            "ping -c 1 10.244.1.9",
        ),
        (
            replace(TAP, kernel_neighbour=KernelNeighbour("tunnel1", "", "FAILED"), decisions=()),
            "neighbour",
            "no host in the overlay answered for 10.244.2.0",
            "tunnel neighbour list",
        ),
        (
            replace(TAP, kernel_neighbour=None, decisions=()),
            "neighbour",
            "not resolved yet",
            "ping -c 1 10.244.2.7",
        ),
        (
            replace(TAP, decisions=(ForwardingDecision(reason="no_fdb", meaning="..."),)),
            "fdb",
            "no_fdb",
            "tunnel fdb add 02:00:00:00:00:02 PEER",
        ),
    ],
)
def test_where_it_ends(inputs: TraceInputs, at: str, why: str, what: str) -> None:
    end = last(inputs)
    assert end.step == at
    assert why in end.why
    assert what in end.next
    assert bool(end.next) == bool(what)


@pytest.mark.parametrize(
    ("inputs", "name", "why"),
    [
        (replace(OUT, **FROM_POD), "packet", "arrives on cni0; this host forwards it"),
        (replace(OUT, flow=replace(FLOW, size=9000, protocol="tcp")), "device", "super-packet"),
        (replace(OUT, flow=replace(FLOW, size=9000)), "device", "the kernel fragments it"),
        (peer(path_mtu=None), "path", "answers no probes"),
        (
            replace(peer(path_mtu=1000), flow=replace(FLOW, size=1200)),
            "path",
            "the underlay fragments the datagram",
        ),
        (
            replace(
                OUT, decisions=(*OUT.decisions, ForwardingDecision(PEER, port=5, headers=HEADERS))
            ),
            "worker",
            "the kernel's hash",
        ),
        (
            replace(OUT, underlay_neighbour=None, underlay_route=DEFAULT),
            "underlay",
            "via 192.0.2.254",
        ),
        (peer(state=PeerState.UNKNOWN), "peer", "never answered"),
        (peer(state=PeerState.UNKNOWN), "peer checks", "must know this node's address and VNI"),
        (TO_ANY, "peer checks", "a kernel vxlan device does not"),
        (TO_ANY, "headers", "every node accepts"),
        (peer(last_drop="spoofed"), "peer", "last drop of its packets here: spoofed"),
        (
            peer(endpoint=NAMED.endpoint),
            "name",
            "resolved again",
        ),
        (replace(IN, kernel_neighbour=None), "neighbour", "resolves the MAC on cni0"),
        (
            replace(IN, kernel_neighbour=KernelNeighbour("eth1", "02:00:00:00:00:09", "STALE")),
            "neighbour",
            "leaves through eth1",
        ),
        (
            replace(IN, owner=replace(PEER, drops={"spoofed": 3})),
            "source check",
            "so far: spoofed 3",
        ),
        (replace(TAP, mode="tap"), "neighbour", "set by the node"),
        (replace(TAP, mode="tap"), "fdb", "behind 192.0.2.2:8472"),
        (
            replace(TAP, flow=replace(FLOW, source=A("10.7.0.1"))),
            "peer checks",
            "a peer in TAP mode accepts it, others drop it as spoofed",
        ),
        (replace(IN, mode="tap"), "mac", "every destination MAC"),
        (replace(IN, mode="tap", owner=None), "outer source", "no peer owns the inner source"),
    ],
)
def test_what_is_said_on_the_way(inputs: TraceInputs, name: str, why: str) -> None:
    assert trace(inputs).ends is None
    assert why in step(inputs, name).why


def test_ways_of_frames() -> None:
    assert steps(TAP)[:5] == ["packet", "kernel route", "neighbour", "device", "fdb"]
    flooded = replace(TAP, decisions=(ForwardingDecision(flooded=True),))
    assert trace(flooded).headers == ()
    assert "each of 1 peers gets a copy" in trace(flooded).steps[-1].why
    bridged = replace(
        TAP,
        kernel_route=KernelRoute("10.244.2.0/24 dev br0", "unicast", "br0"),
        kernel_neighbour=KernelNeighbour("br0", "02:00:00:00:00:02", "REACHABLE", "tunnel1"),
        bridge="br0",
        decisions=(ForwardingDecision(PEER, port=1, headers=TAGGED),),
    )
    assert trace(bridged).ends is None
    ethernet = trace(bridged).headers[3]
    assert (ethernet.bytes, ethernet.fields["vlan"], ethernet.fields["type"]) == (18, "7", "0800")
    past = replace(
        bridged, kernel_neighbour=KernelNeighbour("br0", "02:00:00:00:00:02", "STALE", "eth1")
    )
    assert last(past).step == "neighbour"
    assert "behind port eth1, not tunnel1" in last(past).why
    assert last(past).next.endswith("bridge fdb show br br0")
    assert last(replace(bridged, bridge="")).step == "kernel route"


def test_without_a_device_the_program_is_one() -> None:
    program = replace(OUT, mode="", kernel_route=None)
    assert "device" not in steps(program)
    assert "the program passes packets" in step(program, "kernel route").why
    taken = replace(IN, mode="", kernel_route=None, kernel_neighbour=None)
    assert trace(taken).steps[-1].step == "device"


@pytest.mark.parametrize("protocol", ["icmp", "tcp", "udp"])
@pytest.mark.parametrize("version", [4, 6])
def test_the_packet_is_what_scapy_reads(version: int, protocol: str) -> None:
    there, here = ("10.2.0.1", "10.1.0.1") if version == 4 else ("fd02::1", "fd01::1")
    flow = Flow(A(there), A(here), size=100, protocol=protocol, sport=7, dport=53)
    parsed = (IP if version == 4 else IPv6)(flow.packet(1450))
    assert (parsed.src, parsed.dst) == (here, there)
    assert len(parsed) == 100
    assert (parsed.len if version == 4 else parsed.plen + 40) == 100
    layer = parsed.payload
    assert str(layer.name).lower().startswith(protocol)
    if protocol != "icmp":
        assert (layer.sport, layer.dport) == (7, 53)
    if protocol == "tcp":
        assert (layer.dataofs, str(layer.flags)) == (5, "A")
    if protocol == "udp":
        assert layer.len == 100 - (20 if version == 4 else 40)
    if version == 4:
        assert str(parsed.flags) == "DF"


@pytest.mark.parametrize("version", [4, 6])
def test_of_what_is_too_long_the_first_fragment(version: int) -> None:
    there, here = ("10.2.0.1", "10.1.0.1") if version == 4 else ("fd02::1", "fd01::1")
    flow = Flow(A(there), A(here), size=9000, protocol="udp", sport=7)
    packet = flow.packet(1402)
    parsed = (IP if version == 4 else IPv6)(packet)
    if version == 4:
        assert (len(packet), parsed.len) == (1396, 1396)  # 20 and a multiple of 8
        assert (str(parsed.flags), parsed.frag) == ("MF", 0)
    else:
        assert (len(packet), parsed.plen) == (1400, 1360)  # 48 and a multiple of 8
        assert (parsed.nh, parsed[IPv6ExtHdrFragment].nh, parsed[IPv6ExtHdrFragment].m) == (
            44,
            17,
            1,
        )
    assert (parsed[UDP].sport, parsed[UDP].len) == (7, 9000 - (20 if version == 4 else 40))


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ({"protocol": "sctp"}, "tcp, udp or icmp"),
        ({"source": A("fd00::1")}, "different families"),
        ({"size": 27}, "28 to 65535"),
        ({"size": 65536}, "28 to 65535"),
        ({"size": 39, "protocol": "tcp"}, "40 to 65535"),
        ({"sport": 0}, "sport 0"),
        ({"dport": 65536}, "dport 65536"),
    ],
)
def test_packets_that_cannot_be(words: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        replace(FLOW, **words)


def test_a_trace_is_drawn() -> None:
    shown = draw(told(trace(OUT)))
    assert shown[0] == "10.244.1.0 > 10.244.2.7 icmp echo, 84 bytes, outbound"
    assert " 2  kernel route  10.244.2.0/24 dev tunnel1 proto 84 scope link" in shown
    assert any("| UDP        |  8  40123 > 8472, length 114" in line for line in shown)
    assert max(len(line) for line in shown) <= 110
    assert shown[-1] == "nothing on this side stops the packet"
    ended = draw(told(trace(replace(OUT, device_up=False))))
    assert any("ENDS HERE: the device is down" in line for line in ended)
    assert ended[-1] == "the packet does not arrive"
    assert draw(told(trace(IN)))[-1] == "the packet arrives"


def told(way: PathTrace) -> Any:
    """As the control socket tells it."""
    found = json.loads(json.dumps(encode(way)))
    check("explain", found)
    return found


@pytest.fixture
def one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Node]:
    path = tmp_path / "one.sock"
    with running(path) as peer:
        yield Node(path, peer, capsys)


def test_the_verb(one: Node) -> None:
    found = one.json("explain", "10.2.0.7", "--from", "10.1.0.1", "--protocol", "udp")
    check("explain", found)
    assert (found["direction"], found["ends"]) == ("outbound", None)
    udp = found["headers"][1]["fields"]
    assert udp["destination"] == one.peer.rpartition(":")[2]
    assert "VXLAN" in one.tell("explain", "10.2.0.7", "--from", "10.1.0.1")
    nobodys = one.json("explain", "10.9.0.1", "--from", "10.1.0.1", code=1)
    assert nobodys["ends"] == "route"
    assert "ENDS HERE" in one.tell("explain", "10.9.0.1", "--from", "10.1.0.1", code=1)
    assert "add --from" in one.tell("explain", "10.2.0.7", code=2)
    assert "is not an IPv4 or IPv6 address" in one.tell("explain", "there", code=2)
    assert "28 to 65535" in one.tell(
        "explain", "10.2.0.7", "--from", "10.1.0.1", "--size", "1", code=2
    )
