"""
Three nodes that know only the address of an etcd find each other.

    make demo-cluster

The exit code is 1 if a node does not reach another.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from tunnel.errors import TunnelError
from tunnel.testing.lab import Host, Lab, LabError, need_privilege

TUNNEL = [sys.executable, "-m", "tunnel"]
NETWORK = "10.42.0.0/16"
PATIENCE = 20.0  # seconds


@dataclass(frozen=True)
class Node:
    """A host that runs ``tunnel up``; `ready` is the line it printed when it was ready."""

    host: Host
    ready: str
    address: str


def main() -> int:
    console = Console(highlight=False)
    failures: list[str] = []
    try:
        need_privilege([sys.executable, "-m", "examples.cluster"])
        with cluster() as (store, url, nodes):
            for node in nodes:
                console.print(f"{node.host.name}: {node.ready}", soft_wrap=True)
            leases = store.run([*TUNNEL, "network", "leases", "--etcd-endpoints", url])
            console.print(f"\n{leases.stdout}", soft_wrap=True)
            table, failures = _trips(nodes)
            console.print(table)
    except TunnelError as error:
        failures = [str(error)]
    for failure in failures:
        print(f"demo-cluster: {failure}", file=sys.stderr)
    return 1 if failures else 0


@contextmanager
def cluster() -> Iterator[tuple[Host, str, list[Node]]]:
    """Yields the host and URL of etcd, and the nodes. Raises LabError if something is missing."""
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        lab = stack.enter_context(Lab())
        hosts, store = [lab.host(f"node {letter}") for letter in "abc"], lab.host("store")
        lab.switch(*hosts, store)
        url = _start_etcd(store, directory)
        words = ["--etcd-endpoints", url]
        store.run([*TUNNEL, "network", "init", "--network", NETWORK, *words])
        yield store, url, [_start(host, words) for host in hosts]


def _start_etcd(host: Host, directory: str) -> str:
    url = f"http://{host.ipv4}:2379"
    host.popen(
        [
            "etcd",
            f"--data-dir={directory}",
            f"--listen-client-urls={url}",
            f"--advertise-client-urls={url}",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--logger=zap",
            f"--log-outputs={directory}/log",
        ]
    )
    asks = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1] + '/health', timeout=1)"
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            host.run([sys.executable, "-c", asks, url])
            return url
        except LabError:
            if time.monotonic() > deadline:
                raise


def _start(host: Host, words: list[str]) -> Node:
    command = [*TUNNEL, "up", "--iface", "eth0", "--state-dir", "/run/tunnel/state", *words]
    process = host.popen(command)
    assert process.stdout is not None
    ready = process.stdout.readline().strip()
    if not ready:
        _, errors = process.communicate()
        raise LabError(f"{host.name}: {errors.strip()}")
    shown = host.run("ip -4 -o address show tunnel1").stdout
    return Node(host, ready, shown.split("inet ")[1].partition("/")[0])


def _trips(nodes: list[Node]) -> tuple[Table, list[str]]:
    """Returns the round trips in milliseconds, and the failures."""
    table = Table(
        "ping from", *(f"to {node.host.name}" for node in nodes), box=None, pad_edge=False
    )
    failures = []
    for node in nodes:
        cells = []
        for other in nodes:
            try:
                cells.append(f"{_trip(node, other):.2f} ms")
            except LabError as error:
                cells.append("[bold]no answer[/]")
                failures.append(str(error).splitlines()[-1])
        table.add_row(f"{node.host.name} ({node.address})", *cells)
    return table, failures


def _trip(node: Node, other: Node) -> float:
    """Pings until the nodes have found each other."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return min(node.host.ping(other.address, count=3))
        except LabError:
            if time.monotonic() > deadline:
                raise


if __name__ == "__main__":
    sys.exit(main())
