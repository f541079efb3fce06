"""What doctor makes of report, as a table; what a firewall does to a datagram, as another."""

import errno
import ipaddress
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.test_node_verbs import check
from tests.unit.rpc.test_server import served
from tunnel import Config, Endpoint, Mac, Peer, TunnelError
from tunnel.cli import main
from tunnel.diagnostics.doctor import Finding, Level, diagnose, examine
from tunnel.diagnostics.firewall import INBOUND, OUTBOUND, Datagram, Firewall
from tunnel.diagnostics.host_report import HostReport, PeerPath, config_of
from tunnel.linux import hostinfo
from tunnel.rpc.codec import decode
from tunnel.status import PeerState, PeerStatus, Status, Traffic

OURS, THEIRS = ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("192.0.2.2")
END = Endpoint("192.0.2.2")
PEER = Peer(END, ["10.244.2.0/24"])
PATH = PeerPath(END, THEIRS, OURS, "eth0", "eth0", 1450)
CONFIG = Config(subnets=["10.244.1.0/24"], peers=[PEER])
STARTING = HostReport(
    CONFIG,
    peer_paths=(PATH,),
    forwarding=frozenset({4, 6}),
    buffers=(8 << 20, 8 << 20),
    wanted_buffer=8 << 20,
)
ASYMMETRIC = replace(
    STARTING,
    peer_paths=(replace(PATH, device="eth1"),),
    strict_devices=frozenset({"eth0"}),
)
LOOPBACK_SOURCE = replace(
    STARTING,
    peer_paths=(replace(PATH, source_device="lo"),),
    strict_devices=frozenset({"eth0", "lo"}),
)
HEARD = PeerStatus(
    endpoint=END,
    address=THEIRS,
    mac=None,
    prefixes=PEER.prefixes,
    state=PeerState.UP,
    state_age=9.0,
    rtt=0.001,
    loss=0.0,
    path_mtu=1450,
    trains=True,
    outbound=Traffic(7, 700),
    inbound=Traffic(7, 700),
    drops={},
    last_drop=None,
)
STATUS = Status(
    name="tunnel1",
    device="tunnel1",
    vni=1,
    endpoints=("192.0.2.1:8472",),
    mac=Mac.parse("02:00:5e:00:53:01"),
    mtu=1450,
    offloads=frozenset({"tso", "uso", "trains", "gro"}),
    workers=1,
    uptime=10.0,
    peers=(HEARD,),
    drops={},
    subnets=CONFIG.subnets,
)
RUNNING = replace(
    STARTING,
    status=STATUS,
    device_mtu=1450,
    trains={END: True},
    prefix_devices={PEER.prefixes[0]: "tunnel1"},
)
QUIET = Traffic()


def running(**changes: Any) -> HostReport:
    return replace(RUNNING, status=replace(STATUS, **changes))


def with_peer(**changes: Any) -> HostReport:
    """The node runs, and of its one peer it knows that."""
    return replace(running(peers=(replace(HEARD, **changes),)), trains={})


RULE = {
    "nftables": [
        {
            "chain": {
                "family": "ip",
                "table": "t",
                "name": "i",
                "type": "filter",
                "hook": "input",
                "policy": "drop",
            }
        }
    ]
}

FAULTS: dict[str, tuple[HostReport, str, Level, str]] = {
    "no privilege": (replace(STARTING, net_admin=False), "privileges", Level.FAILED, "NET_ADMIN"),
    "no file": (replace(STARTING, tun_error=errno.ENOENT), "tun", Level.FAILED, "does not exist"),
    "no right": (replace(STARTING, tun_error=errno.EACCES), "tun", Level.FAILED, "denied"),
    "vxlan": (
        replace(STARTING, port_error="in use", vxlan_device="vx0"),
        "port",
        Level.FAILED,
        "ip link delete vx0",
    ),
    "a process": (
        replace(STARTING, port_error="in use", port_owners={7: "socat"}),
        "port",
        Level.FAILED,
        "in use by socat (pid 7) (choose another --port, or stop it: kill 7",
    ),
    "another address": (
        replace(STARTING, port_error="local address 192.0.2.9 is not on this host (choose one)"),
        "port",
        Level.FAILED,
        "local address 192.0.2.9 is not on this host (choose one)",
    ),
    "a firewall": (
        replace(STARTING, ruleset=RULE),
        "firewall",
        Level.FAILED,
        "nft insert rule ip t i udp dport 8472 accept",
    ),
    "no peer, a firewall": (
        replace(STARTING, ruleset=RULE, peer_paths=()),
        "firewall",
        Level.FAILED,
        "from any host",
    ),
    "a secret firewall": (
        replace(STARTING, ruleset_error="nft is not installed"),
        "firewall",
        Level.WARNING,
        "nft is not installed",
    ),
    "another firewall": (
        replace(STARTING, legacy_rules=True),
        "firewall",
        Level.WARNING,
        "iptables-legacy -S",
    ),
    "no name": (
        replace(STARTING, peer_paths=(PeerPath(Endpoint("b.example")),)),
        "routes",
        Level.FAILED,
        "getent hosts b.example",
    ),
    "no route": (
        replace(STARTING, peer_paths=(PeerPath(END, THEIRS),)),
        "routes",
        Level.FAILED,
        "no route to 192.0.2.2",
    ),
    "astray": (
        replace(RUNNING, prefix_devices={PEER.prefixes[0]: "eth1"}),
        "routes",
        Level.FAILED,
        "10.244.2.0/24 leave through eth1",
    ),
    "strict, perhaps": (
        replace(
            STARTING,
            peer_paths=(replace(PATH, device="eth1"),),
            strict_devices=frozenset({"eth0"}),
        ),
        "reverse-path",
        Level.WARNING,
        "filter of eth0 may drop packets from 192.0.2.2, because the route back leads to eth1",
    ),
    "strict, surely": (
        replace(
            STARTING,
            peer_paths=(replace(PATH, device="eth1"),),
            strict_devices=frozenset({"eth0"}),
            filtered=3,
        ),
        "reverse-path",
        Level.FAILED,
        "(3 packets so far)",
    ),
    "no forwarding": (
        replace(STARTING, forwarding=frozenset({6})),
        "forwarding",
        Level.WARNING,
        "net.ipv4.ip_forward=1",
    ),
    "too large": (
        replace(STARTING, config=Config(mtu=1451, peers=[PEER])),
        "mtu",
        Level.FAILED,
        "1451 is more than the route to 192.0.2.2:8472 carries (1450)",
    ),
    "raised": (replace(RUNNING, device_mtu=9000), "mtu", Level.FAILED, "9000 is more"),
    "a narrow path": (with_peer(path_mtu=1350), "mtu", Level.WARNING, "carries 1350 bytes"),
    "a bad kernel": (
        replace(STARTING, missing_offloads=("trains off: kernels 7.0 to 7.1.4 corrupt them",)),
        "offloads",
        Level.WARNING,
        "7.1.4",
    ),
    "an offload lost": (
        running(offloads=frozenset({"tso", "trains", "gro"})),
        "offloads",
        Level.WARNING,
        "not in use: uso",
    ),
    "small buffers": (
        replace(STARTING, buffers=(8 << 20, 212_992)),
        "buffers",
        Level.WARNING,
        "a receive buffer of 208 instead of 8192 KiB",
    ),
    "a full queue": (
        replace(RUNNING, device_drops=3),
        "overflows",
        Level.WARNING,
        "tunnel1 has dropped 3 packets",
    ),
    "full sockets": (
        replace(RUNNING, socket_drops=1),
        "overflows",
        Level.WARNING,
        "sockets have dropped 1 datagram because",
    ),
    "no clock": (replace(STARTING, clock_synchronised=False), "clock", Level.WARNING, "timesyncd"),
    "another namespace": (
        replace(RUNNING, device_mtu=None),
        "node",
        Level.FAILED,
        "not in this network namespace",
    ),
    "set down": (
        replace(RUNNING, device_up=False, prefix_devices={PEER.prefixes[0]: "eth0"}),
        "node",
        Level.FAILED,
        "ip link set tunnel1 up",
    ),
    "silent": (
        with_peer(state=PeerState.SILENT, state_age=30.0),
        "peers",
        Level.FAILED,
        "has been silent for 30 s: 7 packets sent, 7 received",
    ),
    "never heard": (
        with_peer(state=PeerState.UNKNOWN, inbound=QUIET),
        "peers",
        Level.FAILED,
        "has never answered: 7 packets sent, none received",
    ),
    "a kernel's, never heard": (
        with_peer(
            state=PeerState.UNKNOWN, inbound=QUIET, mac=Mac.parse("02:00:5e:00:53:02"), trains=True
        ),
        "peers",
        Level.FAILED,
        "has never answered",
    ),
    "a stranger": (
        running(drops={"unknown_source": 5, "multicast": 9}),
        "drops",
        Level.WARNING,
        "unknown_source: 5 packets",
    ),
    "damaged trains": (
        replace(RUNNING, trains={END: False}),
        "trains",
        Level.FAILED,
        "192.0.2.2:8472 arrive damaged",
    ),
    "no answer": (
        replace(RUNNING, trains={END: None}),
        "trains",
        Level.FAILED,
        "not the self-test",
    ),
    "no trains": (
        with_peer(trains=False),
        "trains",
        Level.WARNING,
        "no trains go to 192.0.2.2:8472",
    ),
}


def trouble(report: HostReport) -> list[Finding]:
    return [one for one in diagnose(report) if one.level is not Level.OK]


@pytest.mark.parametrize("case", FAULTS)
def test_each_fault_is_one_finding(case: str) -> None:
    report, name, level, text = FAULTS[case]
    (finding,) = trouble(report)
    assert (finding.check, finding.level) == (name, level)
    assert text in f"{finding.text} ({finding.advice})"
    assert finding.advice


@pytest.mark.parametrize(
    "report",
    [
        STARTING,
        RUNNING,
        HostReport(Config()),
        replace(STARTING, clock_synchronised=None),
        replace(
            STARTING,
            peer_paths=(replace(PATH, source_device="lo"),),
            strict_devices=frozenset({"eth0", "lo"}),
        ),
        with_peer(state=PeerState.UNKNOWN, mac=Mac.parse("02:00:5e:00:53:02")),
        replace(
            running(device=None, peers=(), offloads=frozenset({"trains"})),
            prefix_devices={},
            trains={},
        ),
    ],
)
def test_without_a_fault_every_finding_is_ok(report: HostReport) -> None:
    assert trouble(report) == []


def test_many_peers_behind_one_rule_are_one_finding() -> None:
    ends = [Endpoint(f"192.0.2.{n}") for n in range(2, 9)]
    peer_paths = tuple(PeerPath(end, end.address, OURS, "eth0", "eth0", 1450) for end in ends)
    (finding,) = trouble(replace(STARTING, peer_paths=peer_paths, ruleset=RULE))
    assert finding.text.endswith("from 192.0.2.2:8472 and 6 more")


# The firewall.


def chain(name: str, *, hook: str = "", **words: Any) -> dict[str, Any]:
    base = {"type": "filter", "hook": hook, "prio": 0, "policy": "accept"} if hook else {}
    return {"chain": {"family": "inet", "table": "t", "name": name, **base, **words}}


def rule(*statements: dict[str, Any], chain: str = "in") -> dict[str, Any]:
    return {
        "rule": {
            "family": "inet",
            "table": "t",
            "chain": chain,
            "handle": 7,
            "expr": list(statements),
        }
    }


def match(left: str, right: Any, *, op: str = "==") -> dict[str, Any]:
    kind, key = left.split()
    words = {"key": key} if kind in ("meta", "ct") else {"protocol": kind, "field": key}
    name = kind if kind in ("meta", "ct") else "payload"
    return {"match": {"op": op, "left": {name: words}, "right": right}}


ACCEPT: dict[str, Any] = {"accept": None}
DROP: dict[str, Any] = {"drop": None}
PORT = match("udp dport", 8472)
SET = {"set": {"family": "inet", "table": "t", "name": "s", "elem": [53, {"range": [8000, 9000]}]}}
LIMIT: dict[str, Any] = {"limit": {"rate": 5, "per": "second"}}
COMMENT = {"xt": {"type": "match", "name": "comment"}}
REJECT = {"xt": {"type": "target", "name": "REJECT"}}
UNKNOWN: dict[str, Any] = {
    "match": {"op": "==", "left": {"fib": {"result": "type", "flags": ["saddr"]}}, "right": "local"}
}

PASSES: dict[str, list[dict[str, Any]]] = {
    "no rule": [],
    "another port": [rule(match("udp dport", 53), DROP)],
    "another protocol": [rule(match("tcp dport", 8472), DROP)],
    "another family": [rule(match("ip6 saddr", "2001:db8::2"), DROP)],
    "another device": [rule(match("meta iifname", "wlan*"), DROP)],
    "another source": [
        rule(match("ip saddr", {"prefix": {"addr": "198.51.100.0", "len": 24}}), DROP)
    ],
    "accepted before": [rule(PORT, ACCEPT), rule(DROP)],
    "in a set": [
        SET,
        rule(match("udp dport", "@s"), ACCEPT),
        rule(DROP),
    ],
    "not from there": [rule(match("ip saddr", "192.0.2.2", op="!="), DROP)],
    "returns": [
        chain("sub"),
        rule({"jump": {"target": "sub"}}),
        rule(PORT, {"return": None}, chain="sub"),
        rule(DROP, chain="sub"),
    ],
    "established alone": [rule(match("ct state", ["established", "invalid"], op="in"), DROP)],
    "by map": [rule({"vmap": {"key": PORT["match"]["left"], "data": {"set": [[8472, ACCEPT]]}}})],
    "a drop under a condition": [rule(UNKNOWN, DROP)],
    "round and round": [rule({"jump": {"target": "in"}})],
}

EATS: dict[str, tuple[list[dict[str, Any]], bool]] = {
    "all": ([rule(DROP)], True),
    "the port": ([rule(PORT, {"counter": {"packets": 0, "bytes": 0}}, DROP)], True),
    "rejected": ([rule(PORT, {"reject": {"type": "icmp", "expr": "port-unreachable"}})], True),
    "a larger port": ([rule(match("th dport", 1023, op=">"), DROP)], True),
    "behind a jump": (
        [chain("sub"), rule({"jump": {"target": "sub"}}), rule(PORT, DROP, chain="sub")],
        True,
    ),
    "by map": (
        [rule({"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [["new", DROP]]}}})],
        True,
    ),
    "unless accepted": ([rule(UNKNOWN, ACCEPT), rule(DROP)], False),
    "unless accepted further down": (
        [
            chain("sub"),
            rule(UNKNOWN, {"jump": {"target": "sub"}}),
            rule(DROP),
            rule(ACCEPT, chain="sub"),
        ],
        False,
    ),
    "by iptables": ([rule(COMMENT, REJECT)], True),
    "above a rate": ([rule(PORT, LIMIT, DROP)], False),
}

SEEN = Datagram(8472, 4, THEIRS, OURS, "eth0")


def losses(entries: list[dict[str, Any]]) -> Iterator[tuple[int | None, bool]]:
    firewall = Firewall({"nftables": [{"metainfo": {}}, chain("in", hook="input"), *entries]})
    for blocker in firewall.blockers(SEEN, hooks=INBOUND):
        yield blocker.handle, blocker.certain


@pytest.mark.parametrize("case", PASSES)
def test_rules_that_let_it_pass(case: str) -> None:
    assert list(losses(PASSES[case])) == []


@pytest.mark.parametrize("case", EATS)
def test_rules_that_eat_it(case: str) -> None:
    entries, sure = EATS[case]
    assert list(losses(entries)) == [(7, sure)]


@pytest.mark.parametrize(
    ("words", "hooks", "lost"),
    [
        ({"policy": "drop"}, INBOUND, True),
        ({"policy": "drop"}, OUTBOUND, False),
        ({"policy": "drop", "hook": "output"}, OUTBOUND, True),
        ({"policy": "drop", "family": "ip6"}, INBOUND, False),
        ({"policy": "drop", "family": "bridge"}, INBOUND, False),
        ({"policy": "drop", "type": "nat"}, INBOUND, False),
        ({"policy": "drop", "family": "netdev", "hook": "ingress", "dev": "eth0"}, INBOUND, True),
        ({"policy": "drop", "family": "netdev", "hook": "ingress", "dev": ["x"]}, INBOUND, False),
    ],
)
def test_chains_that_it_meets(words: dict[str, Any], hooks: tuple[str, ...], lost: bool) -> None:
    firewall = Firewall({"nftables": [chain("in", **{"hook": "input", **words})]})
    found = firewall.blockers(SEEN, hooks=hooks)
    assert [(blocker.handle, blocker.certain) for blocker in found] == (
        [(None, True)] if lost else []
    )


# The host.


def test_sockets_and_their_owners_are_read() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind(("::1", 0))
        (found,) = hostinfo.udp_sockets(sock.getsockname()[1])
        assert (str(found.address), found.drops) == ("::1", 0)
        assert found.inode == os.fstat(sock.fileno()).st_ino
        assert os.getpid() in hostinfo.owners({found.inode})


def test_missing_values_are_unknown() -> None:
    assert hostinfo.sysctl("no/such/switch") is None
    assert hostinfo.clock_is_synchronised() in (True, False, None)
    assert hostinfo.reverse_path_drops() >= 0


# A node that runs.


async def test_a_status_survives_a_round_trip(tmp_path: Path) -> None:
    async with served(tmp_path / "one.sock") as (one, node):
        await one.ping(one.peers[0])
        words = json.loads(json.dumps(await node.call("status")))
        status = decode(Status, words)
        now = one.status()
        for one_told in (status, await node.status()):
            assert replace(one_told, uptime=0, peers=()) == replace(now, uptime=0, peers=())
        (told,), (known,) = status.peers, now.peers
        assert replace(told, state_age=0, rtt=None, loss=None, path_mtu=None) == replace(
            known, state_age=0, rtt=None, loss=None, path_mtu=None
        )
        config = config_of(status)
        assert (config.port, config.peers) == (one.config.port, one.config.peers)
        findings = await examine(status=status)
        assert {one.check for one in findings} >= {"node", "firewall", "routes", "peers"}


@pytest.mark.parametrize("words", [{}, {"name": "x"}, {"peers": 7}])
def test_a_status_of_another_version_is_one_line(words: dict[str, Any]) -> None:
    with pytest.raises(TunnelError, match="compare tunnel --version"):
        decode(Status, words)


# The verb.


def test_the_output_matches_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "--json", "--name", "nobody", "--port", "8479"])
    report = json.loads(capsys.readouterr().out)
    check("doctor", report)
    assert code == (0 if report["healthy"] else 1)
    assert report["node"] is None


def test_words_that_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--mtu", "17"]) == 2
    assert capsys.readouterr().err == "tunnel: mtu 17 is out of range (68 to 65535)\n"
    assert main(["doctor", "--control", "/no/such.sock"]) == 2
    assert "control socket /no/such.sock does not exist" in capsys.readouterr().err
