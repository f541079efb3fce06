"""
Pods of two nodes talk to each other and to the world, through real CNI plugins.

    make demo-pods
    python -m examples.pods tap    # the same with TAP devices

At the end each node explains the path of one packet, step by step. The exit code is 1 if a
connection fails.
"""

from __future__ import annotations

import sys

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from examples.pods.cluster import Cluster, Connection, cluster
from tunnel.errors import TunnelError
from tunnel.testing.lab import LabError, need_privilege


def main(mode: str = "tun") -> int:
    console = Console(highlight=False)
    try:
        need_privilege([sys.executable, "-m", "examples.pods", mode])
        with cluster(mode=mode) as made:
            console.print(_nodes(made), "")
            table, failures = _connections(made)
            console.print(table)
            for command, said in made.explained():
                console.print("", escape(command), escape(said.rstrip()), sep="\n", soft_wrap=True)
    except TunnelError as error:
        failures = [str(error)]
    for failure in failures:
        print(f"demo-pods: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _nodes(made: Cluster) -> Table:
    """Returns the content of each subnet.env, and the addresses that the plugins assigned."""
    table = Table("", "node a", "node b", box=None, pad_edge=False)
    nodes = (made.a, made.b)
    for name in made.a.runtime.subnet_env:
        table.add_row(name, *(node.runtime.subnet_env[name] for node in nodes))
    for number in (0, 1):
        pods = [node.pods[number] for node in nodes]
        for title, address in ((f"pod {number + 1}", "ipv4"), ("", "ipv6")):
            table.add_row(title, *(getattr(pod, address) for pod in pods))
    return table


def _connections(made: Cluster) -> tuple[Table, list[str]]:
    """Returns each connection with its result, and the failures."""
    table = Table("TCP from", "at", "is seen as", box=None, pad_edge=False)
    failures = []
    for connection in made.connections():
        seen, failure = _try(connection)
        place = f"[{connection.address}]" if ":" in connection.address else connection.address
        table.add_row(connection.what, escape(f"{place}:{connection.port}"), seen)
        failures += [failure] if failure else []
    return table, failures


def _try(connection: Connection) -> tuple[str, str]:
    """Returns the source address that the server sees, and the failure, if any."""
    try:
        seen = connection.go()
    except LabError as error:
        return "[bold]no connection[/]", f"{connection.what}: {str(error).splitlines()[-1]}"
    wrong = (
        f"{connection.what}: is seen as {seen}, not {connection.seen_as}"
        if seen != connection.seen_as
        else ""
    )
    return seen, wrong


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
