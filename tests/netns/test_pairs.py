"""Every kind of VTEP with every other: TUN, TAP and the kernel's, over IPv4 and IPv6."""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.netns.node import Node
from tests.netns.test_kernel_vxlan import KERNEL_MAC, OUR_MAC, flannel_up
from tests.netns.traffic import exchange
from tunnel.testing.lab import Host, Lab, LabError

SMALL = 4 << 20
PATIENCE = 20.0  # seconds

# A layer-2 neighbour's multicast means nothing to a TUN node.
NOISE: dict[tuple[str, str], set[str]] = {
    ("tun", "tun"): set(),
    ("tun", "tap"): {"group_mac"},
    ("tap", "tap"): set(),
}


def linked(lab: Lab, *, mtu: int = 1500) -> tuple[Node, Node]:
    """Two nodes, not up yet."""
    a, b = Node(lab.host("a"), 1), Node(lab.host("b"), 2)
    lab.link(a.host, b.host, mtu=mtu)
    return a, b


def tell(host: Host, *words: str) -> Any:
    """What a node on a host answers to a verb."""
    return json.loads(host.run([sys.executable, "-m", "tunnel", *words, "--json"]).stdout)


def until(true: Callable[[], bool]) -> None:
    """Waits for what other processes are about to do."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)


def reaches(host: Host, address: str) -> bool:
    try:
        host.run(f"ping -n -c 1 -W 0.2 {address}")
    except LabError:
        return False
    return True


def check_traffic(a: Node, b: Node, *, first: bool = True) -> None:
    """Both families, both ways, and what arrives is what was sent."""
    for near, far in ((a, b), (b, a)):
        for address in (far.ipv4, far.ipv6):
            if first:
                until(lambda near=near, address=address: reaches(near.host, address))  # type: ignore[misc]
            near.host.ping(address, count=3)
    exchange(a.host, b.host, b.ipv4, size=SMALL)
    exchange(b.host, a.host, a.ipv6, size=SMALL)


@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize(("left", "right"), list(NOISE))
def test_nodes(lab: Lab, left: str, right: str, outer: int) -> None:
    """Only the owners of prefixes are configured."""
    a, b = linked(lab)
    a.up("--mode", left, peers=[b.at(outer)])
    b.up("--mode", right, peers=[a.at(outer)])
    check_traffic(a, b)
    assert a.down().keys() | b.down().keys() <= NOISE[left, right]
    for host in (a.host, b.host):
        for what in ("link", "-4 route", "-6 route", "neigh show nud all"):
            assert "tunnel1" not in host.run(f"ip {what}").stdout


@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("mode", ["tun", "tap"])
def test_flannels_node(lab: Lab, mode: str, outer: int) -> None:
    """The kernel's device with permanent neighbours and a static FDB, as flannel sets it up."""
    ours, kernel = linked(lab)
    flannel_up(kernel, ours, outer=outer)
    ours.up("--mode", mode, "--mac", OUR_MAC, peers=[kernel.at(outer, mac=KERNEL_MAC)])
    check_traffic(ours, kernel, first=False)
    assert ours.down() == {}


def by_hand(kernel: Node, ours: Node, *, outer: int) -> None:
    """A kernel vxlan device in a common subnet, with only a remote: it asks and learns."""
    local, remote = (
        (kernel.host.ipv4, ours.host.ipv4) if outer == 4 else (kernel.host.ipv6, ours.host.ipv6)
    )
    kernel.host.run(
        f"ip link add vxlan1 type vxlan id 1 local {local} remote {remote} dev eth0 dstport 8472"
    )
    give_address(kernel, "vxlan1")


def give_address(node: Node, device: str) -> None:
    """One of the common subnet."""
    node.ipv4, node.ipv6 = addresses_of(node)
    node.prefixes = (f"{node.ipv4}/32", f"{node.ipv6}/128")
    node.host.run(f"ip address add {node.ipv4}/24 dev {device}")
    node.host.run(f"ip address add {node.ipv6}/64 dev {device} nodad")
    node.host.run(f"ip link set {device} up")


def addresses_of(node: Node) -> tuple[str, str]:
    number = node.ipv4.split(".")[2]
    return f"10.9.0.{number}", f"fd09::{number}"


def common(node: Node) -> list[str]:
    """The arguments that give a node an address in the common subnet."""
    node.ipv4, node.ipv6 = addresses_of(node)
    return ["--address", f"{node.ipv4}/24", "--address", f"{node.ipv6}/64"]


@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("speaks_first", ["ours", "kernel"])
@pytest.mark.parametrize("mode", ["tun", "tap"])
def test_a_kernel_device_by_hand(lab: Lab, mode: str, speaks_first: str, outer: int) -> None:
    """No MAC is configured on either side."""
    ours, kernel = linked(lab)
    words = common(ours)
    by_hand(kernel, ours, outer=outer)
    peer = kernel.at(outer)
    ours.prefixes = ()
    ours.up("--mode", mode, *words, peers=[peer])
    near, far = (ours, kernel) if speaks_first == "ours" else (kernel, ours)
    until(lambda: reaches(near.host, far.ipv4))
    check_traffic(ours, kernel)
    (four, six) = tell(ours.host, "neighbour", "list")
    assert four["mac"] == six["mac"] == mac_of(kernel.host, "vxlan1")
    assert four["source"] == "resolved"
    assert ours.down().keys() <= NOISE["tun", "tap"]


def mac_of(host: Host, device: str) -> str:
    return str(json.loads(host.run(f"ip -j link show {device}").stdout)[0]["address"])


@pytest.mark.parametrize("mode", ["tun", "tap"])
def test_a_kernel_device_that_gets_another_mac(lab: Lab, mode: str) -> None:
    """It sends a request when it returns, which announces its MAC."""
    ours, kernel = linked(lab)
    words = common(ours)
    by_hand(kernel, ours, outer=4)
    ours.prefixes, peer = (), kernel.at(4)
    ours.up("--mode", mode, *words, peers=[peer])
    until(lambda: reaches(ours.host, kernel.ipv4))
    kernel.host.run("ip link set vxlan1 down")
    kernel.host.run(f"ip link set vxlan1 address {KERNEL_MAC}")
    kernel.host.run("ip link set vxlan1 up")
    until(lambda: reaches(kernel.host, ours.ipv4))
    ours.host.ping(kernel.ipv4)
    assert {one["mac"] for one in tell(ours.host, "neighbour", "list")} == {KERNEL_MAC}


def test_a_bridged_kernel_device_and_nobody_owns_anything(lab: Lab) -> None:
    """A TAP node and a kernel device on one Ethernet, with broadcast ARP."""
    ours, kernel = linked(lab)
    words = common(ours)
    by_hand(kernel, ours, outer=4)
    ours.prefixes = ()
    ours.up("--mode", "tap", *words, peers=[kernel.host.ipv4])
    check_traffic(ours, kernel)
    assert f"lladdr {mac_of(kernel.host, 'vxlan1')}" in ours.host.run("ip neigh").stdout
    entries = tell(ours.host, "fdb", "list")
    assert [(one["mac"], one["static"]) for one in entries] == [
        (mac_of(kernel.host, "vxlan1"), False)
    ]
    assert ours.down() == {}
