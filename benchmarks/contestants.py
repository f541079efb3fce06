"""
Ways from one host to another over the same link, each with addresses of its own.

All stand side by side, so that rounds can take turns; who is not measured has nothing to
do. Contestant number N has 10.N.1.1 on the first host and 10.N.2.1 on the second.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunnel.lab import Host, LabError

_PATIENCE = 10.0
"""Seconds until the two hosts must reach each other."""

_MTU = 1450
"""What VXLAN leaves of a 1500-byte underlay; openvpn gets the same, to send equal segments."""


@dataclass(frozen=True)
class Contestant:
    """
    Attributes:
        target: The second host's address.
        daemons: The user-space processes that move the packets, of both hosts.
        said: What it said about itself when it was ready.
    """

    name: str
    target: str
    daemons: Sequence[subprocess.Popen[str]] = ()
    said: str = ""

    def cpu_seconds(self) -> float:
        """User and system time of the daemons so far; the kernel's work in soft
        interrupts is not in it (nor, for the kernel's vxlan, anything at all)."""
        return sum(_cpu_seconds(daemon.pid) for daemon in self.daemons)


def _cpu_seconds(pid: int) -> float:
    # What follows the command name, which may hold spaces, starts at field 3; see proc(5).
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def veth(a: Host, b: Host) -> Contestant:
    return Contestant("veth", b.ipv4)


def kernel(a: Host, b: Host) -> Contestant:
    """The kernel's vxlan device, set up as flannel does: nothing is learned."""
    for host, number, peer, peer_number in ((a, 1, b, 2), (b, 2, a, 1)):
        mac, peer_mac = f"02:00:5e:00:53:0{number}", f"02:00:5e:00:53:0{peer_number}"
        host.run(
            f"ip link add vxlan1 address {mac} mtu {_MTU} type vxlan id 1 "
            f"local {host.ipv4} dev eth0 dstport 4789 nolearning"
        )
        host.run(f"ip address add 10.1.{number}.1/32 dev vxlan1")
        host.run("ip link set vxlan1 up")
        gateway = f"10.1.{peer_number}.1"
        host.run(f"ip neigh replace {gateway} lladdr {peer_mac} dev vxlan1 nud permanent")
        host.run(f"bridge fdb replace {peer_mac} dev vxlan1 dst {peer.ipv4} self permanent")
        host.run(f"ip route replace 10.1.{peer_number}.0/24 via {gateway} dev vxlan1 onlink")
    return Contestant("kernel vxlan", "10.1.2.1")


def tunnel(a: Host, b: Host) -> Contestant:
    return _tunnel(a, b, name="tunnel", number=2, port=8472, offload="auto")


def tunnel_without_offloads(a: Host, b: Host) -> Contestant:
    return _tunnel(a, b, name="tunnel, none", number=3, port=8473, offload="none")


def _tunnel(a: Host, b: Host, *, name: str, number: int, port: int, offload: str) -> Contestant:
    daemons, said = [], ""
    for host, here, peer, there in ((a, 1, b, 2), (b, 2, a, 1)):
        daemon = host.popen(
            f"{sys.executable} -m tunnel up --name tunnel{number} --local {host.ipv4} "
            f"--port {port} --offload {offload} --subnet 10.{number}.{here}.0/24 "
            f"--address 10.{number}.{here}.1/32 "
            f"--peer {peer.ipv4}:{port}=10.{number}.{there}.0/24"
        )
        assert daemon.stdout is not None
        said = daemon.stdout.readline().strip()
        if not said:
            raise LabError(f"tunnel up failed: {daemon.communicate()[1].strip()}")
        daemons.append(daemon)
    return Contestant(name, f"10.{number}.2.1", daemons, said)


def openvpn(a: Host, b: Host) -> Contestant:
    """Point to point without TLS, which openvpn up to 2.6 allows; nothing is encrypted."""
    daemons = []
    for host, here, peer, there in ((a, 1, b, 2), (b, 2, a, 1)):
        daemons.append(
            host.popen(
                f"openvpn --dev openvpn --dev-type tun --ifconfig 10.4.{here}.1 10.4.{there}.1 "
                f"--local {host.ipv4} --remote {peer.ipv4} --tun-mtu {_MTU} --mssfix 0 "
                "--cipher none --auth none --verb 1"
            )
        )
    return Contestant("openvpn, no cipher", "10.4.2.1", daemons)


CONTESTANTS: dict[str, Callable[[Host, Host], Contestant]] = {
    "veth": veth,
    "kernel": kernel,
    "tunnel": tunnel,
    "none": tunnel_without_offloads,
    "openvpn": openvpn,
}


def start(name: str, a: Host, b: Host) -> Contestant:
    """
    One contestant, running, the second host reachable through it.

    Raises:
        LabError: It did not come up; with what its daemons said.
    """
    contestant = CONTESTANTS[name](a, b)
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            a.ping(contestant.target)
            return contestant
        except LabError as error:
            if time.monotonic() < deadline:
                continue
            for daemon in contestant.daemons:
                daemon.terminate()
            said = " / ".join("".join(daemon.communicate()) for daemon in contestant.daemons)
            raise LabError(f"{contestant.name} does not work: {error} {said}".strip()) from error
