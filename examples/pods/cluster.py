"""
Two nodes with two pods each, and an outside host without a route to pods.

         pod a1  pod a2                pod b1  pod b2
            \\     /                      \\     /
             cni0                          cni0
            node a ----------- switch ---- node b
                                  |
                               outside

All are network namespaces of this machine, removed when the ``with`` block ends.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from examples.pods.cni import Pod, Runtime
from tunnel.testing.lab import Host, Lab, LabError

NETWORKS = ("10.244.0.0/16", "fd00:244::/32")
SUBNET_FILE = "/run/tunnel/subnet.env"
WEB, MAPPED = 80, 8080
"""The port at which every host reports its client's address, and the port of node a that is mapped
to pod a1."""

_SERVER = """
import socket, sys
port = int(sys.argv[1])
server = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
print("ready", flush=True)
while True:
    connection, peer = server.accept()
    with connection:
        connection.sendall(peer[0].removeprefix("::ffff:").encode())
"""
_CLIENT = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5) as connection:
    print(connection.makefile().read())
"""


@dataclass(frozen=True)
class Node:
    """A host that runs ``tunnel up``; `ready` is the line it printed when it was ready."""

    host: Host
    ready: str
    subnets: tuple[str, str]
    runtime: Runtime
    pods: tuple[Pod, Pod]

    @property
    def ipv4(self) -> str:
        return self.subnets[0].partition("/")[0]

    @property
    def ipv6(self) -> str:
        return self.subnets[1].partition("/")[0]


@dataclass(frozen=True)
class Connection:
    """A TCP connection, and the source address that its server should see."""

    what: str
    source: Host
    address: str
    seen_as: str
    port: int = WEB

    def go(self) -> str:
        """Returns the source address that the server saw. Raises LabError without a connection."""
        command = [sys.executable, "-c", _CLIENT, self.address, str(self.port)]
        return self.source.run(command).stdout.strip()


@dataclass(frozen=True)
class Cluster:
    a: Node
    b: Node
    outside: Host

    def connections(self) -> Iterator[Connection]:
        """Yields every connection that must work, for both address families."""
        (a1, a2), (b1, _) = self.a.pods, self.b.pods
        a, b, outside = self.a.host, self.b.host, self.outside
        for pod, other, far, node, peer, out in (
            (a1.ipv4, a2.ipv4, b1.ipv4, self.a.ipv4, self.b.ipv4, outside.ipv4),
            (a1.ipv6, a2.ipv6, b1.ipv6, self.a.ipv6, self.b.ipv6, outside.ipv6),
        ):
            six = ":" in pod
            here, there = (a.ipv6, b.ipv6) if six else (a.ipv4, b.ipv4)
            yield Connection("pod a1 to pod a2, same node", a1.host, other, pod)
            yield Connection("pod a1 to pod b1, other node", a1.host, far, pod)
            yield Connection("pod a1 to node b, overlay", a1.host, peer, pod)
            yield Connection("pod a1 to node b, underlay", a1.host, there, here)
            yield Connection("node a to pod b1", a, far, node)
            yield Connection("pod a1 to outside", a1.host, out, here)
            yield Connection("outside to pod a1, by node a", outside, here, out, MAPPED)

    def explained(self) -> Iterator[tuple[str, str]]:
        """Yields for each node the command that explains a packet from pod a1 to pod b1, and its
        output. Raises LabError if the packet does not arrive."""
        a1, b1 = self.a.pods[0].ipv4, self.b.pods[0].ipv4
        words = ["explain", b1, "--from", a1, "--protocol", "tcp", "--dport", str(WEB)]
        for node in (self.a, self.b):
            said = node.host.run([sys.executable, "-m", "tunnel", *words]).stdout
            yield f"{node.host.name}$ {shlex.join(['tunnel', *words])}", said


@contextmanager
def cluster(*, mode: str = "tun") -> Iterator[Cluster]:
    """Raises LabError if something is missing here or does not start."""
    with Lab() as lab:
        a, b, outside = (lab.host(name) for name in ("node a", "node b", "outside"))
        lab.switch(a, b, outside)
        made = Cluster(
            _start(lab, a, number=1, peer=b, peer_number=2, mode=mode),
            _start(lab, b, number=2, peer=a, peer_number=1, mode=mode),
            outside,
        )
        nodes = (made.a, made.b)
        for host in (a, b, outside, *(pod.host for node in nodes for pod in node.pods)):
            _first_line(host, [sys.executable, "-c", _SERVER, str(WEB)])
        yield made
        for node in nodes:
            for pod in node.pods:
                node.runtime.remove(pod)


def _start(lab: Lab, host: Host, *, number: int, peer: Host, peer_number: int, mode: str) -> Node:
    subnets = _subnets(number)
    command = [sys.executable, "-m", "tunnel", "up", "--mode", mode]
    command += ["--ip-masq", "--subnet-file", SUBNET_FILE]
    for network, subnet in zip(NETWORKS, subnets, strict=True):
        command += ["--network", network, "--subnet", subnet]
    command += ["--peer", f"{peer.ipv4}={','.join(_subnets(peer_number))}"]
    ready = _first_line(host, command)
    runtime = Runtime(host, subnet_file=SUBNET_FILE)
    letter = host.name[-1]
    first = runtime.add(lab.host(f"pod {letter}1"), ports=((MAPPED, WEB),))
    second = runtime.add(lab.host(f"pod {letter}2"))
    return Node(host, ready, subnets, runtime, (first, second))


def _subnets(number: int) -> tuple[str, str]:
    return f"10.244.{number}.0/24", f"fd00:244:{number}::/64"


def _first_line(host: Host, command: list[str]) -> str:
    """Starts a command that runs as long as the host, and returns its first line."""
    process = host.popen(command)
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line:
        _, errors = process.communicate()
        raise LabError(f"{host.name}: {errors.strip()}")
    return line
