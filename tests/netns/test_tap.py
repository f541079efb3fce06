"""TAP mode: what the kernel has on the device, bridges, tags, jumbo frames, DHCP."""

import json
import re
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.netns.node import Node
from tests.netns.test_pairs import check_traffic, linked, reaches, tell, until
from tests.netns.traffic import exchange, inside, numbered
from tunnel.testing.lab import Host, Lab

SMALL = 4 << 20
EXPERIMENTAL = 0x88B6  # EtherType that nobody speaks


def up(*nodes: Node, mode: str = "tap", words: tuple[str, ...] = ()) -> None:
    for node in nodes:
        node.up("--mode", mode, *words, peers=[other.at(4) for other in nodes if other is not node])


def state(host: Host) -> list[str]:
    """Addresses, kernel routes and permanent neighbours on the device."""
    words = ("-o address show", "route show", "-6 route show", "neigh show nud permanent")
    lines = [
        line
        for word in words
        for line in host.run(
            f"ip {word.replace('show', 'show dev tunnel1', 1)}"
        ).stdout.splitlines()
    ]
    return sorted(re.sub(r"^\d+: | +tentative|\\.*", "", line).strip() for line in lines)


def ours(host: Host) -> list[str]:
    """What stands for the peers in that."""
    return [line for line in state(host) if "proto 84" in line]


# Routed, as flannel has it.


def test_the_kernel_has_what_flannels_has(lab: Lab) -> None:
    """Neighbour, route, address; and the MAC is the VTEP's."""
    a, b = linked(lab)
    up(a, b)
    theirs = tell(b.host, "status")["mac"]
    until(lambda: len(ours(a.host)) == 4)
    assert ours(a.host) == [
        f"10.244.2.0 lladdr {theirs} PERMANENT proto 84",
        "10.244.2.0/24 via 10.244.2.0 proto 84 onlink",
        f"fd00:244:2:: lladdr {theirs} PERMANENT proto 84",
        "fd00:244:2::/64 via fd00:244:2:: proto 84 metric 1024 onlink pref medium",
    ]
    assert f"ether {tell(a.host, 'status')['mac']}" in a.host.run("ip link show tunnel1").stdout
    assert a.host.run("cat /proc/sys/net/ipv6/conf/tunnel1/accept_ra").stdout == "0\n"
    (entry,) = tell(a.host, "fdb", "list")
    assert (entry["mac"], entry["static"], entry["peer"]) == (theirs, True, "192.0.2.2:8472")


def test_it_goes_with_the_peer_and_comes_with_it(lab: Lab) -> None:
    a, b = linked(lab)
    up(a, b)
    until(lambda: len(ours(a.host)) == 4)
    before = state(a.host)
    a.host.run(f"{sys.executable} -m tunnel peer remove {b.host.ipv4}")
    assert (ours(a.host), tell(a.host, "fdb", "list")) == ([], [])
    a.host.run(f"{sys.executable} -m tunnel peer add {b.at(4)}")
    until(lambda: state(a.host) == before)
    a.host.ping(b.ipv4)


def test_a_node_that_comes_back_with_another_mac(lab: Lab) -> None:
    """Its first echo announces its MAC: all old entries are replaced."""
    a, b = linked(lab)
    up(a, b)
    until(lambda: len(ours(a.host)) == 4)
    (before,) = tell(a.host, "fdb", "list")
    b.down()
    b.up("--mode", "tap", "--mac", "02:00:5e:00:53:77", peers=[a.at(4)])
    until(lambda: all("02:00:5e:00:53:77" in line for line in ours(a.host) if "lladdr" in line))
    (after,) = tell(a.host, "fdb", "list")
    assert before["mac"] != after["mac"] == "02:00:5e:00:53:77"
    check_traffic(a, b)
    assert a.down() == {}


def test_a_default_route_goes_by_the_vteps_link_local_address(lab: Lab) -> None:
    """No host has its network address; IPv4 then has an IPv6 next hop."""
    a, b = linked(lab)
    peer = a.at(4)
    a.prefixes = ()
    words = ("--address", f"{a.ipv4}/32", "--address", f"{a.ipv6}/128")
    a.up("--mode", "tap", *words, peers=[f"{b.host.ipv4}=0.0.0.0/0,::/0"])
    b.up("--mode", "tap", peers=[peer])
    for address in (b.ipv4, b.ipv6):
        until(lambda address=address: reaches(a.host, address))  # type: ignore[misc]
    assert "default via inet6 fe80::" in a.host.run("ip route show dev tunnel1").stdout
    exchange(a.host, b.host, b.ipv4, size=SMALL)
    assert a.down().keys() | b.down().keys() <= {"multicast"}


def test_a_name_that_nobody_knows_harms_no_other(lab: Lab) -> None:
    a, b = linked(lab)
    a.up("--mode", "tap", peers=["nobody.invalid=10.244.9.0/24", b.at(4)])
    b.up("--mode", "tap", peers=[a.at(4)])
    check_traffic(a, b)
    assert a.down().keys() <= {"unresolved"}  # what was flooded


@pytest.mark.parametrize("mode", ["tun", "tap"])
@pytest.mark.parametrize(
    "harm",
    [
        "ip link set tunnel1 down && ip link set tunnel1 up",
        "ip route flush dev tunnel1 proto 84; ip -6 route flush dev tunnel1 proto 84",
        "ip neigh flush dev tunnel1 nud permanent",
        "ip address flush dev tunnel1 scope global",
    ],
    ids=lambda harm: harm.split()[1],
)
def test_what_is_taken_away_comes_back(lab: Lab, mode: str, harm: str) -> None:
    a, b = linked(lab)
    up(a, b, mode=mode)
    until(lambda: len(ours(a.host)) == (4 if mode == "tap" else 2))
    before = state(a.host)
    a.host.run(["sh", "-c", harm])
    until(lambda: state(a.host) == before)
    for address in (b.ipv4, b.ipv6):
        a.host.ping(address)
    assert a.down() == {}


def test_nothing_comes_back_while_the_link_is_down(lab: Lab) -> None:
    a, b = linked(lab)
    up(a, b)
    until(lambda: len(ours(a.host)) == 4)
    a.host.run("ip link set tunnel1 down")
    time.sleep(0.3)  # longer than it takes where there is something to do
    assert ours(a.host) == []
    a.host.run("ip link set tunnel1 up")
    until(lambda: len(ours(a.host)) == 4)


def test_a_persistent_device_stays_and_is_left_clean(lab: Lab) -> None:
    a, b = linked(lab)
    a.host.run("ip tuntap add tunnel1 mode tap")
    up(a, b, words=("--workers", "1"))
    until(lambda: len(ours(a.host)) == 4)
    a.down()
    assert not [line for line in state(a.host) if "proto 84" in line or "scope global" in line]
    with pytest.raises(AssertionError, match="is not a TUN device"):
        a.up("--mode", "tun", "--workers", "1", peers=[b.at(4)])


def test_jumbo(lab: Lab) -> None:
    a, b = linked(lab, mtu=9000)
    up(a, b)
    assert "mtu 8950" in a.ready
    check_traffic(a, b)
    a.host.run(f"ping -c 1 -W 1 -M do -s 8922 {b.ipv4}")
    a.host.run(f"ping -c 1 -W 1 -M do -s 8902 {b.ipv6}")
    assert a.down() == {}


@pytest.mark.parametrize("offload", ["none", "tso,uso", "trains", "gro"])
def test_offloads_change_no_content(lab: Lab, offload: str) -> None:
    a, b = linked(lab)
    a.up("--mode", "tap", "--offload", offload, peers=[b.at(4)])
    b.up("--mode", "tap", peers=[a.at(4)])
    until(lambda: reaches(a.host, b.ipv4))
    with numbered(a.host, b.host, b.ipv6), numbered(b.host, a.host, a.ipv4):
        exchange(a.host, b.host, b.ipv4, size=SMALL)
        exchange(b.host, a.host, a.ipv6, size=SMALL)
    assert (a.down(), b.down()) == ({}, {})


# Bridged: one Ethernet.


def bridged(lab: Lab, names: str = "abc") -> tuple[list[Node], list[Host]]:
    """Nodes on one switch, and a host behind a bridge of each."""
    nodes = [Node(lab.host(name), number) for number, name in enumerate(names, start=1)]
    lab.switch(*(node.host for node in nodes))
    for node in nodes:
        node.prefixes = ()
        node.up("--mode", "tap", peers=[one.host.ipv4 for one in nodes if one is not node])
    return nodes, [attach(lab, node.host, number) for number, node in enumerate(nodes, start=1)]


def attach(lab: Lab, node: Host, number: int) -> Host:
    """Bridges the device with a veth to a new host."""
    behind = lab.host(f"{node.name}-pod")
    node.run("ip link add br0 type bridge")
    node.run(f"ip link add pod0 mtu 1450 type veth peer name eth0 mtu 1450 netns {behind.pid}")
    for port in ("tunnel1", "pod0"):
        node.run(f"ip link set {port} master br0 up")
    node.run("ip link set br0 up")
    behind.run(f"ip link set eth0 address 02:00:5e:00:00:0{number}")
    join(behind, number)
    return behind


def join(host: Host, number: int) -> None:
    host.ipv4, host.ipv6 = f"10.9.0.{number}", f"fd09::{number}"
    host.run(f"ip address add {host.ipv4}/24 dev eth0")
    host.run(f"ip address add {host.ipv6}/64 dev eth0 nodad")
    host.run("ip link set eth0 up")


def frame(host: Host, *, destination: bytes = b"\xff" * 6, source: bytes = b"") -> bytes:
    own = bytes.fromhex(mac_of(host).replace(":", ""))
    return destination + (source or own) + EXPERIMENTAL.to_bytes(2) + bytes(46)


def mac_of(host: Host) -> str:
    return str(json.loads(host.run("ip -j link show eth0").stdout)[0]["address"])


@contextmanager
def plugged(host: Host) -> Iterator[socket.socket]:
    """Sends frames, and receives those of our EtherType."""
    with inside(host):
        plug = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(EXPERIMENTAL))
    with plug:
        plug.bind(("eth0", EXPERIMENTAL))
        plug.settimeout(0.3)
        yield plug


def count(plug: socket.socket) -> int:
    """Frames that arrive until none does."""
    frames = 0
    while True:
        try:
            plug.recv(2048)
        except TimeoutError:
            return frames
        frames += 1


def test_three_bridges_are_one_ethernet_without_a_loop(lab: Lab) -> None:
    _, pods = bridged(lab)
    for near in pods:
        for far in pods:
            if near is not far:
                until(lambda near=near, far=far: reaches(near, far.ipv4))  # type: ignore[misc]
                near.ping(far.ipv6)
    exchange(pods[0], pods[1], pods[1].ipv4, size=SMALL)
    exchange(pods[1], pods[2], pods[2].ipv6, size=SMALL)
    with ExitStack() as stack:
        plugs = [stack.enter_context(plugged(pod)) for pod in pods]
        for _ in range(100):
            plugs[0].send(frame(pods[0]))
            plugs[0].send(frame(pods[0], destination=b"\x01\x00\x5e\x00\x00\x2a"))
            plugs[0].send(frame(pods[0], destination=b"\x02\x00\x5e\x00\x00\x99"))
        with ThreadPoolExecutor(3) as pool:
            # Broadcast and multicast reach each host once, and come back to nobody. So does what is
            # for nobody known, but that the network card of the other host does not take it.
            assert list(pool.map(count, plugs)) == [0, 300, 300]


def test_a_mac_that_moves_is_found_long_before_its_entry_ages(lab: Lab) -> None:
    """A host moves from one node to another, with its MAC and addresses, and sends a packet."""
    _, (here, there, elsewhere) = bridged(lab)
    until(lambda: reaches(here, there.ipv4))
    there.run("ip link set eth0 down")
    elsewhere.run("ip link set eth0 down")
    elsewhere.run(f"ip link set eth0 address {mac_of(there)}")
    elsewhere.run("ip address flush dev eth0")
    join(elsewhere, 2)
    moved = time.monotonic()
    elsewhere.run(["sh", "-c", f"ping -c 1 -W 1 {here.ipv4} || true"])
    until(lambda: reaches(here, elsewhere.ipv4))
    assert time.monotonic() - moved < 20


@contextmanager
def tapped(host: Host) -> Iterator[socket.socket]:
    """Sends frames and receives all frames, without tags (packet(7), PACKET_AUXDATA)."""
    with inside(host):
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
    with tap:
        tap.bind(("eth0", 0))
        tap.setsockopt(263, 8, 1)
        tap.settimeout(2)
        yield tap


def tags(tap: socket.socket, wanted: int) -> list[int]:
    """VLANs of the next frames of the test's EtherType that others sent."""
    found: list[int] = []
    while len(found) < wanted:
        data, (control,), _, address = tap.recvmsg(2048, 256)
        if data[12:14] == EXPERIMENTAL.to_bytes(2) and address[2] != socket.PACKET_OUTGOING:
            found.append(int.from_bytes(control[2][16:18], sys.byteorder))
    return found


def test_tagged_frames_keep_their_tag_and_are_learned_with_it(lab: Lab) -> None:
    (node, _), (here, there) = bridged(lab, "ab")
    with tapped(here) as left, tapped(there) as right:
        for near, far, sender, target in ((right, left, there, here), (left, right, here, there)):
            whole = frame(sender, destination=bytes.fromhex(mac_of(target).replace(":", "")))
            for vlan in (10, 20, 4094):
                near.send(whole[:12] + b"\x81\x00" + vlan.to_bytes(2) + whole[12:])
            near.send(whole)
            assert tags(far, 4) == [10, 20, 4094, 0]
    entries = tell(node.host, "fdb", "list")
    vlans = {one["vlan"] for one in entries if one["mac"] == mac_of(there)}
    assert vlans == {10, 20, 4094, None}


def test_a_flood_of_macs_from_one_peer_stays_within_its_share(lab: Lab) -> None:
    """Others' entries and packets stay what they were, and memory does as well."""
    (node, _, _), (here, there, attacker) = bridged(lab)
    until(lambda: reaches(here, there.ipv4))
    until(lambda: reaches(here, attacker.ipv4))
    before = memory(node)
    with numbered(there, here, here.ipv4, pause=0.01), plugged(attacker) as plug:
        target = bytes.fromhex(mac_of(here).replace(":", ""))
        for number in range(100_000):
            source = b"\x02" + (number * 2654435761 % 2**32).to_bytes(5)
            plug.send(target + source + EXPERIMENTAL.to_bytes(2) + bytes(46))
            if number % 500 == 0:
                time.sleep(0.005)
    entries = tell(node.host, "fdb", "list")
    theirs, flooder = (
        [one for one in entries if one["peer"] == f"192.0.2.{number}:8472"] for number in (2, 3)
    )
    assert mac_of(there) in {one["mac"] for one in theirs}
    assert 1000 < len(flooder) <= 8192 + 2
    assert memory(node) - before < 8 << 20
    here.ping(there.ipv4, count=10)


def memory(node: Node) -> int:
    """What the process has in use, in bytes."""
    status = Path(f"/proc/{node.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) << 10


DHCP_SERVER = """
start 10.9.0.100
end 10.9.0.100
interface eth0
lease_file {path}/leases
pidfile {path}/server.pid
option subnet 255.255.255.0
option router 10.9.0.1
"""


def test_dhcp(lab: Lab, tmp_path: Path) -> None:
    """Debian's server behind one node, its client behind another."""
    _, (server, client) = bridged(lab, "ab")
    client.run("ip address flush dev eth0")
    (tmp_path / "server.conf").write_text(DHCP_SERVER.format(path=tmp_path))
    (tmp_path / "leases").touch()
    script = tmp_path / "bound"
    script.write_text('#!/bin/sh\n[ "$1" != bound ] || ip address add $ip/$mask dev $interface\n')
    script.chmod(0o755)
    server.popen(f"udhcpd -f {tmp_path}/server.conf")
    client.run(f"udhcpc -i eth0 -n -q -f -t 20 -T 1 -s {script}", timeout=20)
    client.ping(server.ipv4)
    assert "10.9.0.100/24" in client.run("ip address show dev eth0").stdout
