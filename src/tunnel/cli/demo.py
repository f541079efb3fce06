"""``tunnel demo``: an overlay between two hosts on this machine, and its speed."""

from __future__ import annotations

import json
import select
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tunnel.testing.lab import Host, Lab, LabError, need_privilege

_ROUNDS = 2
_PINGS = 25
_HANG_TIMEOUT = 100.0
"""Seconds after which a step counts as hung. Each takes a fraction of one, but other programs may
use the CPU."""


@dataclass
class _Measurement:
    """What was measured on one path from the first host to the second."""

    name: str
    ipv4: str
    ipv6: str
    gbit_s: list[float] = field(default_factory=list)
    ipv4_ms: list[float] = field(default_factory=list)
    ipv6_ms: list[float] = field(default_factory=list)

    def medians(self) -> dict[str, float]:
        return {
            "tcp_gbit_s": round(statistics.median(self.gbit_s), 3),
            "ping_ipv4_us": round(statistics.median(self.ipv4_ms) * 1000),
            "ping_ipv6_us": round(statistics.median(self.ipv6_ms) * 1000),
        }


@dataclass
class _Node:
    """``tunnel up`` on one host; `ready` is the first line that it printed."""

    host: Host
    process: subprocess.Popen[str]
    ready: str

    def stop(self) -> str:
        """Stops it as systemd does; returns its drops, ``none`` or ``reason=count ...``."""
        self.process.terminate()
        stdout, stderr = self.process.communicate(timeout=_HANG_TIMEOUT)
        _, found, drops = stdout.rpartition("drops: ")
        if self.process.returncode or not found:
            name = self.host.name
            raise LabError(
                f"tunnel up on host {name} failed when it was stopped: {_last_line(stderr)}"
            )
        return drops.strip()


@click.command()
@click.option(
    "--seconds",
    type=click.FloatRange(1, 3600),
    default=8.0,
    show_default=True,
    help="Duration of all TCP runs together.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def demo(seconds: float, as_json: bool) -> None:
    """
    Show an overlay between two hosts on this machine.

    The hosts are network namespaces joined by a veth pair, and "tunnel up" runs on each. Measures
    the bare veth pair and the overlay in turns, and removes everything at the end.
    """
    need_privilege([sys.executable, "-m", "tunnel", *sys.argv[1:]])
    with Lab() as lab:
        a, b = lab.host("a"), lab.host("b")
        lab.link(a, b)
        nodes = [_up(a, number=1, peer=b, peer_number=2), _up(b, number=2, peer=a, peer_number=1)]
        bare = _Measurement("bare veth", b.ipv4, b.ipv6)
        overlay = _Measurement("overlay", _ipv4(2), _ipv6(2))
        _measure(a, b, [bare, overlay], seconds=seconds)
        drops = [node.stop() for node in nodes]
    if as_json:
        click.echo(json.dumps(_result(bare, overlay, nodes, drops), indent=2))
    else:
        _print(bare, overlay, nodes, drops)


def _ipv4(number: int) -> str:
    return f"10.244.{number}.1"


def _ipv6(number: int) -> str:
    return f"fd00:244:{number}::1"


def _up(host: Host, *, number: int, peer: Host, peer_number: int) -> _Node:
    """Starts ``tunnel up`` on a host, and returns it when it is ready."""
    command = [sys.executable, "-m", "tunnel", "up", "--local", host.ipv4]
    command += ["--subnet", f"10.244.{number}.0/24", "--subnet", f"fd00:244:{number}::/64"]
    command += ["--address", f"{_ipv4(number)}/32", "--address", f"{_ipv6(number)}/128"]
    prefixes = f"10.244.{peer_number}.0/24,fd00:244:{peer_number}::/64"
    process = host.popen([*command, "--peer", f"{peer.ipv4}={prefixes}"])
    return _Node(host, process, _first_line(process, of=f"tunnel up on host {host.name}"))


def _first_line(process: subprocess.Popen[str], *, of: str) -> str:
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], _HANG_TIMEOUT)[0]:
        raise LabError(f"{of} printed nothing within {_HANG_TIMEOUT:g} s")
    line = process.stdout.readline().strip()
    if not line:
        _, stderr = process.communicate(timeout=_HANG_TIMEOUT)
        raise LabError(f"{of} failed: {_last_line(stderr)}")
    return line


def _last_line(text: str) -> str:
    """Returns the line of a traceback that says what happened."""
    return (text.strip().splitlines() or ["no output"])[-1]


def _measure(a: Host, b: Host, paths: list[_Measurement], *, seconds: float) -> None:
    """Measures the paths in turns, so that other load on this machine affects all alike."""
    each = seconds / (_ROUNDS * len(paths))
    # Progress goes to stderr: stdout holds the result alone.
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=seconds)
        for _ in range(_ROUNDS):
            for path in paths:
                progress.update(task, description=f"TCP, {path.name}")
                path.ipv4_ms += a.ping(path.ipv4, count=_PINGS)
                path.ipv6_ms += a.ping(path.ipv6, count=_PINGS)
                path.gbit_s.append(_tcp(a, b, path.ipv4, seconds=each, progress=progress))


def _tcp(a: Host, b: Host, address: str, *, seconds: float, progress: Progress) -> float:
    """Returns the Gbit/s from one host to the other, as the receiver counts them."""
    receiver = b.popen(_python(f"receive({address!r})"))
    port = int(_first_line(receiver, of=f"the receiver on host {b.name}"))
    sender = a.popen(_python(f"send({address!r}, {port}, seconds={seconds})"))
    deadline = time.monotonic() + seconds + _HANG_TIMEOUT
    while sender.poll() is None:
        if time.monotonic() > deadline:
            raise LabError(f"TCP to {address} did not end within {seconds + _HANG_TIMEOUT:g} s")
        time.sleep(0.1)
        progress.advance(progress.task_ids[0], 0.1)
    _, stderr = sender.communicate()
    if sender.returncode:
        raise LabError(f"TCP to {address} failed: {_last_line(stderr)}")
    stdout, _ = receiver.communicate(timeout=_HANG_TIMEOUT)
    received, duration = stdout.split()
    return int(received) * 8 / float(duration) / 1e9


def _python(call: str) -> list[str]:
    return [sys.executable, "-c", f"from tunnel.cli.demo import receive, send; {call}"]


def receive(address: str) -> None:
    """Prints a port, accepts one TCP connection on it, and prints its bytes and seconds."""
    with socket.create_server((address, 0)) as server:
        print(server.getsockname()[1], flush=True)
        connection, _ = server.accept()
        with connection:
            start, received, buffer = time.monotonic(), 0, bytearray(1 << 20)
            while count := connection.recv_into(buffer):
                received += count
            print(received, time.monotonic() - start)


def send(address: str, port: int, *, seconds: float) -> None:
    """Sends zeros over TCP for a number of seconds."""
    with socket.create_connection((address, port)) as connection:
        deadline, zeros = time.monotonic() + seconds, bytes(1 << 20)
        while time.monotonic() < deadline:
            connection.sendall(zeros)


def _result(
    bare: _Measurement, overlay: _Measurement, nodes: list[_Node], drops: list[str]
) -> dict[str, object]:
    counts = [dict(word.split("=") for word in line.split() if "=" in word) for line in drops]
    return {
        "bare": bare.medians(),
        "overlay": overlay.medians(),
        "nodes": [
            {
                "ready": node.ready,
                "drops": {reason: int(number) for reason, number in count.items()},
            }
            for node, count in zip(nodes, counts, strict=True)
        ],
    }


def _print(bare: _Measurement, overlay: _Measurement, nodes: list[_Node], drops: list[str]) -> None:
    table = Table("", bare.name, overlay.name, "ratio")
    for column in table.columns[1:]:
        column.justify = "right"
    units = ("TCP, one stream, Gbit/s", "round trip IPv4, us", "round trip IPv6, us")
    for unit, x, y in zip(units, bare.medians().values(), overlay.medians().values(), strict=True):
        table.add_row(unit, f"{x:g}", f"{y:g}", f"{y / x:.2f}")
    for node, line in zip(nodes, drops, strict=True):
        # The ready line ends with the device and the offloads in use.
        _, device, offloads = node.ready.partition("device ")
        table.add_row(
            f"offloads, host {node.host.name}", "", (device + offloads).replace(", ", "\n")
        )
        table.add_row(f"drops, host {node.host.name}", "", line.replace(" ", "\n"))
    Console(highlight=False).print(table)
