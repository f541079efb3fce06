"""
Pods of two nodes talk to each other and to the world, through real CNI plugins.

    make demo-pods
    python -m examples.pods tap    # the same with TAP devices

At the end the nodes tell the way of one packet, step by step. Exit code 1 if a way does not work.
"""

from __future__ import annotations

import sys

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from examples.pods.cluster import Cluster, PathTrace, cluster
from tunnel.errors import TunnelError
from tunnel.testing.lab import LabError, need_privilege


def main(mode: str = "tun") -> int:
    console = Console(highlight=False)
    try:
        need_privilege([sys.executable, "-m", "examples.pods", mode])
        with cluster(mode=mode) as made:
            console.print(_nodes(made), "")
            table, failures = _walks(made)
            console.print(table)
            for command, said in made.explained():
                console.print("", escape(command), escape(said.rstrip()), sep="\n", soft_wrap=True)
    except TunnelError as error:
        failures = [str(error)]
    for failure in failures:
        print(f"demo-pods: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _nodes(made: Cluster) -> Table:
    """What subnet.env of each node says, and what the plugins have made of it."""
    table = Table("", "node a", "node b", box=None, pad_edge=False)
    nodes = (made.a, made.b)
    for name in made.a.runtime.subnet_env:
        table.add_row(name, *(node.runtime.subnet_env[name] for node in nodes))
    for number in (0, 1):
        pods = [node.pods[number] for node in nodes]
        for title, address in ((f"pod {number + 1}", "ipv4"), ("", "ipv6")):
            table.add_row(title, *(getattr(pod, address) for pod in pods))
    return table


def _walks(made: Cluster) -> tuple[Table, list[str]]:
    """Each way with what came of it, and what was wrong."""
    table = Table("TCP from", "at", "is seen as", box=None, pad_edge=False)
    failures = []
    for walk in made.walks():
        seen, failure = _go(walk)
        place = f"[{walk.address}]" if ":" in walk.address else walk.address
        table.add_row(walk.what, escape(f"{place}:{walk.port}"), seen)
        failures += [failure] if failure else []
    return table, failures


def _go(walk: PathTrace) -> tuple[str, str]:
    """As whom he is seen, and what is wrong with that."""
    try:
        seen = walk.go()
    except LabError as error:
        return "[bold]nobody: no way[/]", f"{walk.what}: {str(error).splitlines()[-1]}"
    wrong = f"{walk.what}: is seen as {seen}, not {walk.seen_as}" if seen != walk.seen_as else ""
    return seen, wrong


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
