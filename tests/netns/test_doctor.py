"""Each fault that doctor knows, made on a host and found; and a healthy pair, in which none is."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.netns.node import Node
from tests.netns.traffic import exchange
from tunnel import Endpoint, Tunnel
from tunnel.diagnostics.doctor import Finding, Level, examine
from tunnel.diagnostics.host_report import config_of
from tunnel.events import OffloadLost
from tunnel.testing.lab import Host, Lab, LabError

RELAY = Path(__file__).with_name("relay.py")
NO_PRIVILEGE = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--"]
PEER = ("--peer", "192.0.2.2=10.244.2.0/24")
SMALL = 4 << 20


def doctor(host: Host, *words: str, prefix: Sequence[str] = ()) -> dict[str, Any]:
    """What it says, with the exit code that belongs to it."""
    command = [*prefix, sys.executable, "-m", "tunnel", "doctor", "--json", *words]
    process = host.popen(command)
    output, errors = process.communicate(timeout=100)
    assert errors == ""
    report: dict[str, Any] = json.loads(output)
    assert process.returncode == (0 if report["healthy"] else 1)
    return report


def found(report: dict[str, Any], check: str) -> list[tuple[str, str]]:
    """Level and text of all that a check found."""
    return [(one["level"], one["text"]) for one in report["findings"] if one["check"] == check]


def paste(host: Host, report: dict[str, Any], check: str) -> None:
    """The command at the end of what a check advises, run as it stands."""
    (advice,) = [one["advice"] for one in report["findings"] if one["check"] == check]
    host.run(["sh", "-c", advice.rpartition(": ")[2]])


def trouble(report: dict[str, Any]) -> list[str]:
    """The checks that are not satisfied. Whether the machine's clock is right is not our doing."""
    findings = [one for one in report["findings"] if one["check"] != "clock"]
    return [one["check"] for one in findings if one["level"] != "ok"]


def chain(host: Host, words: str, *, table: str) -> None:
    """A chain of nftables, in force."""
    host.run(["nft", f"table {table} {{\n chain guard {{\n {words}\n }}\n}}"])


def write(host: Host, value: int, *switches: str) -> None:
    for switch in switches:
        host.run(["sh", "-c", f"echo {value} >/proc/sys/net/{switch}"])


@pytest.fixture
def hosts(lab: Lab) -> tuple[Host, Host]:
    """Two that are linked, and forward."""
    a, b = lab.host("a"), lab.host("b")
    lab.link(a, b)
    for host in (a, b):
        write(host, 1, "ipv4/ip_forward", "ipv6/conf/all/forwarding")
        write(host, 0, "ipv4/conf/all/rp_filter", "ipv4/conf/eth0/rp_filter")
    return a, b


@pytest.fixture
def pair(hosts: tuple[Host, Host]) -> tuple[Node, Node]:
    """A node on each of them, up."""
    a, b = Node(hosts[0], 1), Node(hosts[1], 2)
    a.up(peers=[b.at(4)])
    b.up(peers=[a.at(4)])
    return a, b


def test_before_a_node_is_up_nothing_is_wrong(hosts: tuple[Host, Host]) -> None:
    report = doctor(hosts[0], *PEER, "--subnet", "10.244.1.0/24")
    assert report["node"] is None
    assert trouble(report) == []


def test_a_healthy_pair_has_no_warning(pair: tuple[Node, Node]) -> None:
    for node, other in (pair, pair[::-1]):
        node.host.ping(other.ipv4)
        report = doctor(node.host)
        assert report["node"] == "tunnel1"
        assert trouble(report) == []
        assert found(report, "peers") == [("ok", "1 peer heard from")]
        assert found(report, "trains") == [("ok", "arrive undamaged at 1 peer")]


def test_people_get_a_line_for_each_check(pair: tuple[Node, Node]) -> None:
    output = pair[0].host.run([sys.executable, "-m", "tunnel", "doctor"]).stdout
    lines = output.splitlines()
    assert "ok       peers         1 peer heard from" in lines
    # Advice stands below what it is about, on a line of its own.
    assert all(line.startswith(("ok  ", "warning  ", " " * 23)) for line in lines)


FIREWALLS = {
    "a rule": (
        "type filter hook input priority 0; udp dport 8472 counter drop;",
        "the rule with handle 2 of chain inet doctor guard drops UDP to port 8472 from 192.0.2.2",
    ),
    "a range, in prerouting": (
        "type filter hook prerouting priority -300; "
        "udp dport 8000-9000 ip saddr 192.0.2.0/24 drop;",
        "the rule with handle 2 of chain inet doctor guard drops UDP to port 8472 from",
    ),
    "a policy": (
        "type filter hook input priority 0; policy drop; ct state established,related accept; "
        'iifname "lo" accept; tcp dport { 22, 80 } accept; meta l4proto icmp accept;',
        "the policy of chain inet doctor guard drops UDP to port 8472 from",
    ),
    "a reject, out": (
        "type filter hook output priority 0; meta l4proto udp th dport 8472 reject;",
        "the rule with handle 2 of chain inet doctor guard drops UDP to port 8472 to 192.0.2.2",
    ),
    "what is not understood": (
        "type filter hook input priority 0; policy drop; fib saddr type local accept;",
        "the policy of chain inet doctor guard may drop UDP to port 8472 from",
    ),
}


@pytest.mark.parametrize("case", FIREWALLS)
def test_a_firewall_that_eats_the_port(hosts: tuple[Host, Host], case: str) -> None:
    words, text = FIREWALLS[case]
    chain(hosts[0], words, table="inet doctor")
    report = doctor(hosts[0], *PEER)
    ((level, said),) = found(report, "firewall")
    assert text in said
    assert level == ("warning" if "may" in text else "failed")
    assert trouble(report) == ["firewall"]
    paste(hosts[0], report, "firewall")
    assert trouble(doctor(hosts[0], *PEER)) == []


def test_a_firewall_that_lets_the_port_pass(hosts: tuple[Host, Host]) -> None:
    rules = """
    table inet filter {
        set nodes { type ipv4_addr; flags interval; elements = { 192.0.2.0/25 } }
        chain overlay { ip saddr @nodes accept; }
        chain input {
            type filter hook input priority 0; policy drop;
            ct state vmap { established : accept, related : accept, invalid : drop };
            tcp dport 22 accept
            udp dport vmap { 53 : accept, 8472 : jump overlay };
        }
        chain output { type filter hook output priority 0; policy accept; tcp dport 25 drop; }
    }
    """
    hosts[0].run(["nft", rules])
    assert trouble(doctor(hosts[0], *PEER)) == []


def test_a_closed_port_is_seen_from_both_sides(pair: tuple[Node, Node]) -> None:
    a, b = pair
    closed = "type filter hook input priority 0; udp dport 8472 drop;"
    chain(b.host, closed, table="ip filter")
    for node, other in ((a, b), (b, a)):
        node.kill()
        node.up(peers=[other.at(4)])
    for node, sees_the_rule in ((a, "ok"), (b, "failed")):
        report = doctor(node.host)
        ((level, text),) = found(report, "peers")
        assert level == "failed"
        assert "has never answered" in text
        assert found(report, "firewall")[0][0] == sees_the_rule


def test_strict_reverse_path_filter(hosts: tuple[Host, Host]) -> None:
    a, b = hosts
    b.ping(a.ipv4)  # so that it knows where: the filter swallows ARP as well
    a.run("ip link add other type veth peer name end")
    a.run("ip link set end up")
    a.run("ip link set other up")
    a.run(f"ip route add {b.ipv4}/32 dev other src {a.ipv4}")
    assert trouble(doctor(a, *PEER)) == []
    write(a, 1, "ipv4/conf/eth0/rp_filter")
    ((level, _),) = found(doctor(a, *PEER), "reverse-path")
    assert level == "warning"
    with pytest.raises(LabError):
        b.ping(a.ipv4)
    ((level, text),) = found(report := doctor(a, *PEER), "reverse-path")
    assert level == "failed"
    assert text.startswith("the strict reverse-path filter of eth0 drops packets from 192.0.2.2")
    assert "so far" in text
    paste(a, report, "reverse-path")
    assert trouble(doctor(a, *PEER)) == []


def test_forwarding_off(hosts: tuple[Host, Host]) -> None:
    a, _ = hosts
    write(a, 0, "ipv4/ip_forward", "ipv6/conf/all/forwarding")
    report = doctor(a, *PEER, "--subnet", "10.244.1.0/24", "--subnet", "fd00:1::/64")
    assert found(report, "forwarding") == [
        ("warning", "IPv4 forwarding is off: in 10.244.1.0/24, peers reach this host only"),
        ("warning", "IPv6 forwarding is off: in fd00:1::/64, peers reach this host only"),
    ]
    assert trouble(doctor(a, *PEER, "--subnet", "10.244.1.1/32")) == []
    for subnet in ("10.244.1.0/24", "fd00:1::/64"):
        paste(a, doctor(a, *PEER, "--subnet", subnet), "forwarding")
        assert trouble(doctor(a, *PEER, "--subnet", subnet)) == []


def test_forwarding_off_where_a_node_runs(pair: tuple[Node, Node]) -> None:
    host = pair[0].host
    write(host, 0, "ipv4/ip_forward")
    report = doctor(host)
    assert trouble(report) == ["forwarding"]
    paste(host, report, "forwarding")
    assert trouble(doctor(host)) == []


def test_an_mtu_too_large(hosts: tuple[Host, Host]) -> None:
    report = doctor(hosts[0], *PEER, "--mtu", "1500")
    assert trouble(report) == ["mtu"]
    assert found(report, "mtu") == [
        ("failed", "mtu 1500 is more than the route to 192.0.2.2:8472 carries (1450)")
    ]


def test_an_mtu_raised_behind_our_back(pair: tuple[Node, Node]) -> None:
    host = pair[0].host
    host.run("ip link set tunnel1 mtu 9000")
    report = doctor(host)
    assert trouble(report) == ["mtu"]
    paste(host, report, "mtu")
    assert trouble(doctor(host)) == []


def test_a_port_that_a_kernel_vxlan_device_has(hosts: tuple[Host, Host]) -> None:
    hosts[0].run("ip link add vx0 up type vxlan id 9 dstport 8472")
    report = doctor(hosts[0], *PEER)
    assert trouble(report) == ["port"]
    assert found(report, "port") == [
        ("failed", "UDP port 8472 is in use by the kernel vxlan device vx0")
    ]
    paste(hosts[0], report, "port")
    assert trouble(doctor(hosts[0], *PEER)) == []


def test_a_port_that_a_process_has(hosts: tuple[Host, Host]) -> None:
    program = (
        "import socket as s, time; u = s.socket(s.AF_INET, s.SOCK_DGRAM); u.bind(('', 8472)); "
        "print(flush=True); time.sleep(60)"
    )
    process = hosts[0].popen([sys.executable, "-c", program])
    assert process.stdout is not None
    process.stdout.readline()
    ((level, text),) = found(report := doctor(hosts[0], *PEER), "port")
    assert level == "failed"
    assert f"(pid {process.pid})" in text
    paste(hosts[0], report, "port")
    process.communicate(timeout=100)
    assert trouble(doctor(hosts[0], *PEER)) == []


def test_no_route_and_no_name(hosts: tuple[Host, Host]) -> None:
    peers = ("--peer", "203.0.113.9=10.1.0.0/24", "--peer", "no-such-host.invalid=10.2.0.0/24")
    assert found(doctor(hosts[0], *peers), "routes") == [
        ("failed", "this host has no route to 203.0.113.9 of peer 203.0.113.9:8472"),
        ("failed", "the name of peer no-such-host.invalid:8472 has no address"),
    ]


def test_packets_that_a_kernel_route_leads_astray(pair: tuple[Node, Node]) -> None:
    pair[0].host.run("ip route add 10.244.2.128/25 via 192.0.2.2")
    report = doctor(pair[0].host)
    assert trouble(report) == ["routes"]
    assert "packets for 10.244.2.0/24 leave through eth0" in found(report, "routes")[0][1]


def test_a_device_that_was_set_down(pair: tuple[Node, Node]) -> None:
    host = pair[0].host
    host.run("ip link set tunnel1 down")
    report = doctor(host)
    assert trouble(report) == ["node"]
    assert "tunnel1 is down" in found(report, "node")[0][1]
    host.run("ip route add default via 192.0.2.2")  # where its packets go meanwhile
    assert trouble(doctor(host)) == ["node"]
    host.run("ip link set tunnel1 up")
    while trouble(doctor(host)):
        pass


def test_without_the_device_file(hosts: tuple[Host, Host]) -> None:
    hidden = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev/net && exec "$@"', "-"]
    report = doctor(hosts[0], *PEER, prefix=hidden)
    assert trouble(report) == ["tun"]
    assert "does not exist" in found(report, "tun")[0][1]


def test_without_privilege(hosts: tuple[Host, Host]) -> None:
    report = doctor(hosts[0], *PEER, prefix=NO_PRIVILEGE)
    assert found(report, "privileges") == [
        ("failed", "CAP_NET_ADMIN is missing, so no device can be created")
    ]


def test_tiny_socket_buffers(hosts: tuple[Host, Host]) -> None:
    """Whoever is root in a user namespace alone cannot go beyond what the machine allows, and
    here a node wants twice that, however much it is."""
    allowed = int(Path("/proc/sys/net/core/rmem_max").read_text())
    program = (
        "import sys; from tunnel.linux import udp; from tunnel.cli import main; "
        f"udp.BUFFER = {2 * allowed}; sys.exit(main(['doctor', '--json']))"
    )
    user = ["unshare", "--user", "--map-root-user", "--net", "--"]
    process = hosts[0].popen([*user, sys.executable, "-c", program])
    report = json.loads(process.communicate(timeout=100)[0])
    ((level, text),) = [one for one in found(report, "buffers") if "receive" in one[1]]
    assert level == "warning"
    assert f"a receive buffer of {allowed >> 10} instead of {2 * allowed >> 10} KiB" in text


def test_a_node_that_is_elsewhere(pair: tuple[Node, Node], tmp_path: Path) -> None:
    a, b = pair
    a.kill()
    a.up(
        "--user",
        "root",
        "--control",
        str(tmp_path / "a.sock"),
        "--name",
        "elsewhere",
        peers=[b.at(4)],
    )
    ((level, text),) = found(doctor(b.host, "--control", str(tmp_path / "a.sock")), "node")
    assert level == "failed"
    assert "elsewhere of the running node is not in this network namespace" in text


def test_a_peer_that_fell_silent(pair: tuple[Node, Node]) -> None:
    a, b = pair
    assert trouble(doctor(a.host)) == []
    b.kill()
    deadline = time.monotonic() + 100
    while "silent" not in str(found(report := doctor(a.host), "peers")):
        assert time.monotonic() < deadline, report
    assert not report["healthy"]


def test_who_sends_and_is_no_peer(lab: Lab) -> None:
    a, b, stranger = Node(lab.host("a"), 1), Node(lab.host("b"), 2), lab.host("c")
    lab.switch(a.host, b.host, stranger)
    a.up(peers=[b.at(4)])
    b.up(peers=[a.at(4)])
    send = "import socket; socket.socket(2, 2).sendto(b'x' * 40, ('192.0.2.1', 8472))"
    stranger.run([sys.executable, "-c", send])
    assert found(doctor(a.host), "drops") == [("warning", "unknown_source: 1 packet")]


def test_a_node_that_does_not_keep_up(pair: tuple[Node, Node]) -> None:
    a, b = pair
    flood = (
        "import socket; s = socket.socket(2, 2)\n"
        f"for _ in range(10_000): s.sendto(b'', ('{b.ipv4}', 9))"
    )
    os.kill(a.pid, signal.SIGSTOP)
    a.host.run([sys.executable, "-c", flood])
    os.kill(a.pid, signal.SIGCONT)
    ((level, text),) = found(doctor(a.host), "overflows")
    assert level == "warning"
    assert text.startswith("tunnel1 has dropped ")


# A path that corrupts trains.


@contextmanager
def relay(*words: str, host: Host | None = None) -> Iterator[None]:
    """The relay while the block runs, on a host or here."""
    command = [sys.executable, str(RELAY), *words]
    if host is None:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    else:
        process = host.popen(command)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    try:
        yield
    finally:
        process.kill()
        process.communicate()


def test_a_path_that_corrupts_trains(lab: Lab) -> None:
    """It is found, the peer gets no trains any more, and then all arrives."""
    a, b, between = Node(lab.host("a"), 1), Node(lab.host("b"), 2), lab.host("relay")
    lab.switch(a.host, b.host, between)
    for node in (a, b):
        write(node.host, 1, "ipv4/ip_forward", "ipv6/conf/all/forwarding")
    with relay(between.ipv4, "8472", a.host.ipv4, b.host.ipv4, host=between):
        for node, other in ((a, b), (b, a)):
            node.up(peers=[f"{between.ipv4}={','.join(other.prefixes)}"])
        for node in (a, b):
            report = doctor(node.host)
            assert trouble(report) == ["trains"]
            ((level, text),) = found(report, "trains")
            assert level == "failed"
            assert "arrive damaged" in text
        for near, far in ((a, b), (b, a)):
            exchange(near.host, far.host, far.ipv4, size=SMALL)
        report = doctor(a.host)
        assert report["healthy"]
        assert "no trains go to" in found(report, "trains")[0][1]


def tunnels(at: str, back: str, *, port: int) -> tuple[Tunnel, Tunnel]:
    """Two without a device, on loopback, with each other at these addresses."""
    return (
        Tunnel(device=None, local="127.0.0.1", port=port, peers=[f"{at}:{port}=10.2.0.0/16"]),
        Tunnel(device=None, local="127.0.0.2", port=port, peers=[f"{back}:{port}=10.1.0.0/16"]),
    )


def free_port() -> int:
    return random.randrange(20_000, 30_000)


async def test_trains_that_arrive_are_kept() -> None:
    """Loopback carries datagrams of which no sixteen are one train."""
    port = free_port()
    one, two = tunnels("127.0.0.2", "127.0.0.1", port=port)
    async with one, two, asyncio.timeout(30):
        assert one.mtu > 60_000
        assert await one.try_trains(f"127.0.0.2:{port}")
        assert await two.try_trains(f"127.0.0.1:{port}")
        assert "trains" in one.offloads
        (peer,) = one.status().peers
        assert peer.trains


async def test_trains_that_arrive_damaged_are_turned_off() -> None:
    port = free_port()
    one, two = tunnels("127.0.0.3", "127.0.0.3", port=port)
    endpoint = Endpoint("127.0.0.3", port)
    with relay("127.0.0.3", str(port), "127.0.0.1", "127.0.0.2"):
        async with one, two, asyncio.timeout(30):
            told = asyncio.create_task(next_lost(one))
            await asyncio.sleep(0)
            assert not await one.try_trains(endpoint)
            assert await told == OffloadLost("trains")
            assert "trains" not in one.offloads
            assert "trains" in two.offloads
            assert await one.ping(endpoint, size=1400) < 5
            findings = await examine(status=one.status(), trains={endpoint: False})
            assert Level.FAILED in levels(findings, "trains")


async def test_trains_to_who_does_not_answer_are_not_judged() -> None:
    port = free_port()
    one, _ = tunnels("127.0.0.2", "127.0.0.1", port=port)
    async with one, asyncio.timeout(30):
        with pytest.raises(TimeoutError):
            await one.try_trains(f"127.0.0.2:{port}")
        assert "trains" in one.offloads
        assert config_of(one.status()).peers == one.config.peers


async def next_lost(tunnel: Tunnel) -> OffloadLost | None:
    async for event in tunnel.events():
        if isinstance(event, OffloadLost):
            return event
    return None


def levels(findings: Sequence[Finding], check: str) -> set[Level]:
    return {one.level for one in findings if one.check == check}
