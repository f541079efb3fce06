"""``tunnel bench``: measures an overlay, to a peer or between two hosts on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from ipaddress import ip_address

import click
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tunnel.testing import bench as measures
from tunnel.testing.cpu_time import holders_of
from tunnel.testing.lab import Host, Lab, LabError, need_privilege

Results = Mapping[str, dict[str, float]]
"""Name of a path -> numbers by their key in ``UNITS``."""


@click.command()
@click.argument("peer", required=False)
@click.option(
    "--server", is_flag=True, help="Answer the measurements of other hosts, until Ctrl-C."
)
@click.option(
    "--port",
    type=click.IntRange(1, 65534),
    default=measures.PORT,
    show_default=True,
    metavar="N",
    help="Port of the server; it also uses the next one.",
)
@click.option(
    "--seconds",
    type=click.IntRange(1, 3600),
    default=3,
    show_default=True,
    metavar="N",
    help="Duration of each run.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench(peer: str | None, server: bool, port: int, seconds: int, as_json: bool) -> None:
    """
    Measure an overlay: TCP, UDP, requests, and their CPU time.

    \b
    On one node:     tunnel bench --server
    On another one:  tunnel bench PEER

    PEER is the overlay address of the first node. Without PEER, creates two hosts on this machine
    (as "tunnel demo" does) and measures the bare veth pair and an overlay between them. Needs
    iperf3 on both sides (apt-get install iperf3).
    """
    if server:
        if peer:
            raise click.UsageError(f"--server takes no PEER ({peer}): it listens on all addresses")
        measures.serve(port, ready=lambda: _print_ready(port))
    elif peer:
        if not _is_address(peer):
            raise click.UsageError(
                f"PEER {peer} is not an IP address (give the other node's, in the overlay)"
            )
        path = measures.MeasuredPath(
            "overlay", peer, measures.start_here, _processes_to(peer), port
        )
        _print(_measure([path], seconds=seconds), as_json=as_json)
    else:
        _print(_between_two_hosts(port, seconds=seconds), as_json=as_json)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _print_ready(port: int) -> None:
    click.echo(f"answering on ports {port} and {port + 1} (stop with Ctrl-C)")


def _processes_to(peer: str) -> list[int]:
    """Returns the processes that hold the device to which the kernel routes the peer."""
    found = measures.start_here(["ip", "-json", "route", "get", peer])
    stdout, stderr = found.communicate()
    if found.returncode:
        raise measures.BenchError(f"no route to {peer}: {stderr.strip()} (give an overlay address)")
    return holders_of(json.loads(stdout)[0]["dev"])


def _between_two_hosts(port: int, *, seconds: int) -> Results:
    need_privilege([sys.executable, "-m", "tunnel", *sys.argv[1:]])
    with Lab() as lab:
        a, b = lab.host("a"), lab.host("b")
        lab.link(a, b)
        nodes = [
            _ready(
                here,
                f"{sys.executable} -m tunnel up --local {here.ipv4} --subnet 10.244.{i}.0/24 "
                f"--peer {there.ipv4}=10.244.{3 - i}.0/24",
            )
            for i, here, there in ((1, a, b), (2, b, a))
        ]
        _ready(b, f"{sys.executable} -m tunnel bench --server --port {port}")
        paths = [
            measures.MeasuredPath("bare veth", b.ipv4, a.popen, port=port),
            measures.MeasuredPath(
                "overlay", "10.244.2.0", a.popen, [node.pid for node in nodes], port
            ),
        ]
        return _measure(paths, seconds=seconds)


def _ready(host: Host, command: str) -> subprocess.Popen[str]:
    """Starts a command on a host, and returns it when it has printed its first line."""
    process = host.popen(command)
    assert process.stdout is not None
    if not process.stdout.readline():
        raise LabError(f"{command} on host {host.name}: {process.communicate()[1].strip()}")
    return process


def _measure(paths: Sequence[measures.MeasuredPath], *, seconds: int) -> Results:
    """Measures the paths in turns, so that other load on this machine affects all alike."""
    results: Results = {path.name: {} for path in paths}
    turns: list[tuple[Callable[..., dict[str, float]], measures.MeasuredPath]] = [
        (measure, path) for measure in measures.MEASURES.values() for path in paths
    ]
    # Progress goes to stderr: stdout holds the result alone.
    for measure, path in track(turns, "measuring", console=Console(stderr=True), transient=True):
        results[path.name].update(measure(path, seconds=seconds))
    return results


def _print(results: Results, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(results, indent=2))
        return
    table = Table("")
    for name in results:
        table.add_column(name, justify="right")
    for key, unit in measures.UNITS.items():
        numbers = [found.get(key) for found in results.values()]
        if any(number is not None for number in numbers):
            table.add_row(
                unit, *("" if n is None else f"{n:.3g}" if n < 100 else f"{n:.0f}" for n in numbers)
            )
    Console(highlight=False).print(table)
