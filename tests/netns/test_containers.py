"""Masquerade and subnet.env of a node: the kernel's rules, and the address others see."""

import json
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.netns.node import Node
from tests.netns.traffic import inside
from tunnel.testing.lab import Host, Lab

NETWORKS = ("--network", "10.244.0.0/16", "--network", "fd00:244::/32")
PEER = "192.0.2.2=10.244.2.0/24,fd00:244:2::/64"
CONTAINERS = ("10.244.1.5", "fd00:244:1::5")
FILE = "/run/tunnel/made/subnet.env"  # the host's own, in a directory that is not there yet
RULES = 8


@dataclass(frozen=True)
class Place:
    """A node, and a neighbour that knows nothing of overlays."""

    node: Node
    outside: Host

    @property
    def host(self) -> Host:
        return self.node.host

    def up(self, *words: str) -> None:
        self.node.up(*words, *NETWORKS, peers=[PEER])

    def seen(self, container: str) -> str:
        """The address with which the neighbour sees a container of the node."""
        six = ":" in container
        family = socket.AF_INET6 if six else socket.AF_INET
        there = self.outside.ipv6 if six else self.outside.ipv4
        with inside(self.outside):
            receiver = socket.socket(family, socket.SOCK_DGRAM)
        with inside(self.host):
            sender = socket.socket(family, socket.SOCK_DGRAM)
        with receiver, sender:
            receiver.settimeout(5)
            receiver.bind((there, 0))
            sender.bind((container, 0))
            sender.sendto(b"?", receiver.getsockname())
            return str(receiver.recvfrom(1)[1][0])

    def is_masqueraded(self) -> bool:
        seen = [self.seen(container) for container in CONTAINERS]
        assert seen in ([self.host.ipv4, self.host.ipv6], list(CONTAINERS))
        return seen != list(CONTAINERS)


@pytest.fixture
def place(lab: Lab) -> Place:
    a, outside = lab.host("a"), lab.host("outside")
    lab.link(a, outside)
    for address in CONTAINERS:
        a.run(f"ip address add {address} dev lo")
    return Place(Node(a, 1), outside)


def table(host: Host, name: str = "tunnel-tunnel1") -> list[str]:
    """The comments of its rules, in order; empty if there is no such table."""
    listing = json.loads(host.run("nft -j list ruleset").stdout)["nftables"]
    found = (entry["rule"] for entry in listing if "rule" in entry)
    return [rule.get("comment", "") for rule in found if rule["table"] == name]


def until_restored(host: Host) -> None:
    counts = f"nft list ruleset | grep -c comment | grep -qx {RULES}"
    host.run(["sh", "-c", f"until {counts}; do sleep 0.02; done"], timeout=30)


def read(host: Host, path: str = FILE) -> str:
    return host.run(["cat", path]).stdout


def test_who_leaves_the_overlay_is_seen_as_the_node(place: Place) -> None:
    place.up()
    assert not place.is_masqueraded()
    place.node.down()
    place.up("--ip-masq")
    assert place.is_masqueraded()
    assert len(table(place.host)) == RULES
    place.node.down()
    assert place.host.run("nft list ruleset").stdout == ""


@pytest.mark.parametrize("words", [("--workers=1", "--loop=asyncio"), ("--workers=2",)])
@pytest.mark.parametrize(
    "change",
    [
        "flush ruleset",
        "flush table inet tunnel-tunnel1",
        "delete table inet tunnel-tunnel1",
        "insert rule inet tunnel-tunnel1 postrouting accept",
    ],
)
def test_what_somebody_changes_is_put_right(
    place: Place, change: str, words: tuple[str, ...]
) -> None:
    place.up("--ip-masq", *words)
    before = place.host.run("nft list ruleset").stdout
    place.host.run(f"nft {change}")
    place.host.run(["sh", "-c", 'until test "$(nft list ruleset)" = "$0"; do :; done', before[:-1]])
    assert place.is_masqueraded()
    until_nothing_is_lent(place.node.pid)


def until_nothing_is_lent(pid: int) -> None:
    """Only nft was given what it needs; no thread of the node passes anything on."""
    lent = {1}
    deadline = time.monotonic() + 2
    while lent != {0} and time.monotonic() < deadline:
        texts = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status")]
        lines = [line.split() for text in texts for line in text.splitlines()]
        lent = {int(line[1], 16) for line in lines if line[0] in ("CapInh:", "CapAmb:")}
    assert lent == {0}


def test_who_is_set_against_it_makes_it_no_busier(place: Place) -> None:
    place.up("--ip-masq")
    place.host.run(
        ["sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10; do nft flush ruleset; sleep 0.05; done"]
    )
    until_restored(place.host)
    assert place.is_masqueraded()
    _, said = stopped(place.node)
    assert 1 <= said.count("restored the masquerade rules") <= 3


def test_tables_of_others_are_left_alone(place: Place) -> None:
    place.host.run("nft add table inet filter")
    place.host.run(
        "nft add chain inet filter postrouting { type nat hook postrouting priority 0; }"
    )
    place.host.run("nft add rule inet filter postrouting ip saddr 192.0.2.77 counter masquerade")
    before = place.host.run("nft -a list ruleset").stdout
    # A device may have the name of somebody's table.
    place.up("--ip-masq", "--name", "filter")
    assert len(table(place.host, "tunnel-filter")) == RULES
    place.node.down()
    assert place.host.run("nft -a list ruleset").stdout == before


def test_a_second_start_finds_what_a_killed_one_left(place: Place) -> None:
    place.up("--ip-masq")
    before = table(place.host)
    place.node.kill()
    assert table(place.host) == before
    place.up("--ip-masq")
    assert table(place.host) == before
    place.node.down()
    assert table(place.host) == []


def test_two_nodes_of_a_host_have_a_table_each(place: Place) -> None:
    place.up("--ip-masq")
    other = Node(place.host, 9)
    other.up(
        *("--vni", "9", "--port", "9999", "--ip-masq", *NETWORKS),
        peers=["192.0.2.9=10.244.8.0/24"],
    )
    assert len(table(place.host)) == len(table(place.host, "tunnel-tunnel9")) == RULES
    other.down()
    assert table(place.host, "tunnel-tunnel9") == []
    assert len(table(place.host)) == RULES
    assert place.is_masqueraded()


def stopped(node: Node) -> tuple[str, str]:
    """All of its output."""
    assert node._process is not None
    node._process.send_signal(signal.SIGTERM)
    return node._process.communicate(timeout=30)


def refused(place: Place, *words: str) -> str:
    """The one line with which it does not start."""
    command = [sys.executable, "-m", "tunnel", "up", "--subnet", "10.244.1.0/24"]
    process = place.host.popen([*command, "--network", "10.244.0.0/16", *words])
    out, errors = process.communicate(timeout=30)
    assert (process.returncode, out, errors.count("\n")) == (2, "", 1)
    assert "tunnel1" not in place.host.run("ip link").stdout
    return errors


def test_without_nft_it_says_so_before_anything_is_made(place: Place) -> None:
    nft = place.host.run(["sh", "-c", "command -v nft"]).stdout.strip()
    place.host.run(["mount", "--bind", "/dev/null", nft])
    said = refused(place, "--ip-masq")
    assert said.startswith("tunnel: cannot find nft, which --ip-masq needs (install the package ")


def test_what_nft_refuses_is_told(place: Place) -> None:
    nft = place.host.run(["sh", "-c", "command -v nft"]).stdout.strip()
    fake = "/run/tunnel/nft"
    says = "#!/bin/sh\\necho Error: No such thing >&2; exit 1"
    place.host.run(["sh", "-c", f"printf '{says}' >{fake}; chmod 755 {fake}"])
    place.host.run(["mount", "--bind", fake, nft])
    said = refused(place, "--ip-masq")
    assert said.startswith("tunnel: cannot set nftables rules: No such thing (run with CAP_NET_")


def test_subnet_env_is_written_by_nobody_and_stays(place: Place) -> None:
    place.up("--ip-masq", "--subnet-file", FILE)
    said = read(place.host)
    assert said.splitlines()[0::2] == [
        "FLANNEL_NETWORK=10.244.0.0/16",
        "FLANNEL_IPV6_NETWORK=fd00:244::/32",
        "FLANNEL_MTU=1450",
    ]
    stat = ["stat", "-c", "%a %U %i", FILE]
    before = place.host.run(stat).stdout
    assert before.startswith("644 nobody ")
    place.node.down()
    assert read(place.host) == said
    place.up("--ip-masq", "--subnet-file", FILE)
    assert place.host.run(stat).stdout == before
    assert place.host.run("ls -A /run/tunnel/made").stdout == "subnet.env\n"


def test_a_smaller_mtu_is_written_again(place: Place) -> None:
    place.host.run("ip route add 192.0.2.77/32 dev eth0 mtu 1400")
    place.up("--subnet-file", FILE)
    assert "FLANNEL_MTU=1450\n" in read(place.host)
    place.host.run([sys.executable, "-m", "tunnel", "peer", "add", "192.0.2.77=10.244.7.0/24"])
    assert "FLANNEL_MTU=1350\n" in read(place.host)


def test_where_it_may_not_write_it_says_what_to_do(place: Place) -> None:
    place.host.run("mkdir -m 755 /run/tunnel/roots")
    said = refused(place, "--subnet-file", "/run/tunnel/roots/subnet.env")
    assert said.startswith("tunnel: cannot write /run/tunnel/roots/subnet.env: permission denied (")
