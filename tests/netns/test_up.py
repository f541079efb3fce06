"""``tunnel up`` as a process on two hosts: its output, its signals and its exit codes."""

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

from tests.netns.member import until
from tunnel.testing.lab import Host, Lab

TUNNEL = str(Path(sys.executable).with_name("tunnel"))
NO_PRIVILEGE = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--"]
UP_A = "up --subnet 10.1.0.0/24 --subnet fd01::/64 --peer 192.0.2.2=10.2.0.0/24,fd02::/64"
UP_B = "up --subnet 10.2.0.0/24 --subnet fd02::/64 --peer 192.0.2.1=10.1.0.0/24,fd01::/64"


@dataclass
class Node:
    """A running ``tunnel up`` and the line that it printed when it was ready."""

    process: subprocess.Popen[str]
    ready: str

    @classmethod
    def start(cls, host: Host, arguments: str, *, prefix: Sequence[str] = ()) -> Self:
        process = host.popen([*prefix, TUNNEL, *arguments.split()])
        assert process.stdout is not None
        ready = process.stdout.readline().strip()
        assert ready, process.communicate()
        return cls(process, ready)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> str:
        """Sends it a signal; returns what it printed."""
        self.process.send_signal(number)
        output, errors = self.process.communicate(timeout=30)
        assert (self.process.returncode, errors) == (0, "")
        return output

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def error_of(host: Host, arguments: str, *, prefix: Sequence[str] = ()) -> str:
    """The error line of a node that must not start."""
    process = host.popen([*prefix, TUNNEL, *arguments.split()])
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 2, (output, errors)
    (line,) = errors.splitlines()
    return line


@pytest.fixture
def hosts(lab: Lab) -> tuple[Host, Host]:
    a, b = lab.host("a"), lab.host("b")
    lab.link(a, b)
    return a, b


def links_and_routes(host: Host) -> str:
    command = "ip -o link | cut -d: -f2; ip route; ip -6 route"
    # The peer's end of the cable may come up or go down meanwhile.
    return host.run(["sh", "-c", command]).stdout.replace("linkdown ", "")


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize(("underlay", "mtu"), [("ipv4", 1450), ("ipv6", 1430)])
def test_two_hosts_reach_each_other(
    hosts: tuple[Host, Host], loop: str, underlay: str, mtu: int
) -> None:
    a, b = hosts
    before = links_and_routes(a)
    at = (a.ipv4, b.ipv4) if underlay == "ipv4" else (a.ipv6, b.ipv6)
    one = Node.start(a, UP_A.replace("192.0.2.2", at[1]) + f" --loop {loop}")
    two = Node.start(b, UP_B.replace("192.0.2.1", at[0]) + f" --loop {loop}")
    assert re.fullmatch(
        rf"tunnel1: vni 1, \S+:8472, mtu {mtu}, 1 peer, device tso\+uso, trains \d+, gro, "
        r"\d+ workers?",
        one.ready,
    )
    a.ping("10.2.0.0", count=3)
    b.ping("fd01::", count=3)
    a.run(f"ping -c 1 -W 1 -M do -s {mtu - 28} 10.2.0.0")
    for node, number in ((one, signal.SIGTERM), (two, signal.SIGINT)):
        assert "drops: none" in node.stop(number)
    assert links_and_routes(a) == before


def test_peers_of_both_underlay_families(lab: Lab) -> None:
    a, b, c = lab.host("a"), lab.host("b"), lab.host("c")
    lab.switch(a, b, c)
    to_c = f"--peer {c.ipv6}=10.3.0.0/24"
    nodes = [
        Node.start(a, f"{UP_A} {to_c}"),
        Node.start(b, UP_B),
        Node.start(c, f"up --subnet 10.3.0.0/24 --peer {a.ipv6}=10.1.0.0/24"),
    ]
    assert "192.0.2.1:8472, [2001:db8::1]:8472, mtu 1430, 2 peers" in nodes[0].ready
    a.ping("10.2.0.0")
    a.ping("10.3.0.0")
    for node in nodes:
        node.stop()


def test_a_killed_node_starts_again(hosts: tuple[Host, Host]) -> None:
    a, b = hosts
    other = Node.start(b, UP_B)
    for _ in range(2):
        node = Node.start(a, UP_A)
        a.ping("10.2.0.0")
        node.kill()
    node = Node.start(a, UP_A)
    a.ping("10.2.0.0")
    node.stop()
    other.stop()


def test_a_persistent_device_left_by_a_killed_node(hosts: tuple[Host, Host]) -> None:
    a, b = hosts
    other = Node.start(b, UP_B)
    a.run("ip tuntap add tunnel1 mode tun")
    node = Node.start(a, UP_A)
    node.kill()
    assert "10.2.0.0/24" in links_and_routes(a)
    node = Node.start(a, UP_A.replace("10.1.0.0/24", "10.1.0.0/25"))
    a.ping("10.2.0.0")
    node.stop()
    assert "tunnel1" in links_and_routes(a)
    assert "10.2.0.0/24" not in links_and_routes(a)
    other.stop()


def test_systemd_is_notified(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    a, _ = hosts
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(10)
        node = Node.start(a, UP_A, prefix=["env", f"NOTIFY_SOCKET={tmp_path / 'notify'}"])
        assert notify.recv(100) == b"READY=1"
        node.stop()
        assert notify.recv(100) == b"STOPPING=1"


def test_a_deleted_device_ends_the_node_with_one_line(hosts: tuple[Host, Host]) -> None:
    a, _ = hosts
    node = Node.start(a, UP_A)
    a.run("ip link delete tunnel1")
    _, errors = node.process.communicate(timeout=30)
    assert node.process.returncode == 1
    assert "device tunnel1 no longer works" in errors.splitlines()[-1]
    assert "Traceback" not in errors


FAULTS = {
    "a bridge of that name": (
        "ip link add tunnel1 type bridge",
        "",
        "device tunnel1 exists and is not a TUN device",
    ),
    "a kernel vxlan device": (
        "ip link add vx0 up type vxlan id 9 dstport 8472",
        "",
        "UDP port 8472 is in use by the kernel's vxlan device vx0",
    ),
    "another kernel route": (
        "ip route add 10.2.0.0/24 dev eth0",
        "",
        "kernel route 10.2.0.0/24 exists already, via device eth0",
    ),
    "too large an mtu": ("true", "--mtu 1500", "mtu 1500 is more than the underlay carries"),
    "an address of another host": (
        "true",
        "--local 192.0.2.99",
        "local address 192.0.2.99 is not on this",
    ),
    "this node as its own peer": (
        "true",
        "--peer 192.0.2.1=10.9.0.0/24",
        "peer 192.0.2.1:8472 is this node",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_failed_start_is_one_line_and_leaves_nothing(hosts: tuple[Host, Host], case: str) -> None:
    a, _ = hosts
    command, flags, text = FAULTS[case]
    a.run(command)
    before = links_and_routes(a)
    assert text in error_of(a, f"{UP_A} {flags}")
    assert links_and_routes(a) == before


def test_a_second_node_does_not_start(hosts: tuple[Host, Host]) -> None:
    a, _ = hosts
    node = Node.start(a, UP_A)
    assert "device tunnel1 is in use by another process" in error_of(a, UP_A)
    assert "UDP port 8472 on 192.0.2.1 is in use" in error_of(a, f"{UP_A} --name other")
    node.stop()


def test_without_privilege(hosts: tuple[Host, Host]) -> None:
    a, _ = hosts
    line = error_of(a, UP_A, prefix=NO_PRIVILEGE)
    assert "cannot open /dev/net/tun: permission denied" in line
    assert 'run with CAP_NET_ADMIN, or inside "unshare -Urn"' in line
    # An existing device can be opened, but not configured.
    a.run("ip tuntap add tunnel1 mode tun user root")
    line = error_of(a, UP_A, prefix=NO_PRIVILEGE)
    assert line.endswith('(run with CAP_NET_ADMIN, or inside "unshare -Urn")')


def test_without_a_device_no_privilege_is_needed(hosts: tuple[Host, Host]) -> None:
    a, _ = hosts
    program = """
import asyncio
from tunnel import Tunnel

async def main():
    one = Tunnel(device=None, local="127.0.0.1", peers=["127.0.0.2=10.2.0.0/16"])
    two = Tunnel(device=None, local="127.0.0.2", peers=["127.0.0.1=10.1.0.0/16"])
    async with one, two:
        packet = bytes.fromhex("45000014000000004011000a0a0100010a020001")
        await one.send(packet)
        assert await two.receive() == packet

asyncio.run(main())
"""
    process = a.popen([*NO_PRIVILEGE, sys.executable, "-c", program])
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors


def test_signals_during_start_up(hosts: tuple[Host, Host]) -> None:
    """A name that does not resolve delays the start; a signal still ends it."""
    a, _ = hosts
    before = links_and_routes(a)
    process = a.popen([TUNNEL, *f"{UP_A} --peer no-such-host.invalid=10.9.0.0/24".split()])
    until(lambda: "tunnel1" in a.run("ip link").stdout)  # the device comes first
    process.terminate()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert links_and_routes(a) == before
