"""
This overlay beside plain veth, the kernel's vxlan and openvpn, on one veth pair.

    make bench-quick
    python -m benchmarks.quick --only kernel,tunnel --measure tcp1,ping --rounds 2

Contestants take turns, so that what disturbs this machine disturbs all alike. Both hosts
and the load share its cores: only the ratios carry over to another machine.
"""

import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import iperf
from benchmarks.contestants import CONTESTANTS, Contestant, start
from tunnel.errors import TunnelError
from tunnel.lab import Host, Lab, need_privilege

Samples = dict[str, list[float]]
"""What was measured -> one number a round."""

UNITS = {
    "tcp1": "TCP 1 stream, Gbit/s",
    "tcp1 back": "the same, back",
    "tcp4": "TCP 4 streams, Gbit/s",
    "tcp4 back": "the same, back",
    "udp64": "UDP 64 B, kpps",
    "ping": "ping, us",
    "cpu1": "CPU s/GB, 1 stream",
    "cpu4": "CPU s/GB, 4 streams",
}

GOALS: Sequence[tuple[str, str, str, float]] = (
    ("tcp1", "tunnel", "kernel", 0.55),
    ("tcp4", "tunnel", "kernel", 0.4),
    ("udp64", "tunnel", "kernel", 0.85),
    ("tcp1", "tunnel", "none", 2.5),
    ("tcp1", "tunnel", "openvpn", 8.0),
)
"""The least ratio of one measure between two contestants that we accept."""

CPU_GOAL = 1.8
"""The most CPU seconds per transferred GB, both daemons together."""


class Words(click.ParamType[Sequence[str]]):
    """Some of a list of words, separated by commas."""

    name = "words"

    def __init__(self, known: Sequence[str]) -> None:
        self.known = known

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Sequence[str]:
        words = str(value).split(",")
        for word in words:
            if word not in self.known:
                self.fail(f"{word!r} is none of {', '.join(self.known)}", param, ctx)
        return words


def measure_tcp(
    a: Host, b: Host, contestant: Contestant, *, streams: int, seconds: int
) -> dict[str, float]:
    """Both directions; what the daemons spent on them is their CPU time per GB."""
    before = contestant.cpu_seconds()
    there = iperf.tcp(a, b, contestant.target, streams=streams, reverse=False, seconds=seconds)
    back = iperf.tcp(a, b, contestant.target, streams=streams, reverse=True, seconds=seconds)
    values = {f"tcp{streams}": there.gbit_s, f"tcp{streams} back": back.gbit_s}
    if contestant.daemons:
        used = contestant.cpu_seconds() - before
        values[f"cpu{streams}"] = used / ((there.bytes + back.bytes) / 1e9)
    return values


def measure_udp64(a: Host, b: Host, contestant: Contestant, *, seconds: int) -> dict[str, float]:
    received = iperf.udp(a, b, contestant.target, size=64, seconds=seconds)
    return {"udp64": received.bytes / 64 / received.seconds / 1000}


def measure_ping(a: Host, b: Host, contestant: Contestant, *, seconds: int) -> dict[str, float]:
    trips = a.ping(contestant.target, count=200 * seconds, interval=0.005)
    return {"ping": statistics.median(trips) * 1000}


MEASURES: Mapping[str, Callable[..., dict[str, float]]] = {
    "tcp1": partial(measure_tcp, streams=1),
    "tcp4": partial(measure_tcp, streams=4),
    "udp64": measure_udp64,
    "ping": measure_ping,
}


@click.command()
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--seconds", type=click.IntRange(1), default=2, show_default=True, help="Per run.")
@click.option("--only", type=Words(list(CONTESTANTS)), default=",".join(CONTESTANTS))
@click.option("--measure", type=Words(list(MEASURES)), default=",".join(MEASURES))
@click.option("--veth-offloads/--no-veth-offloads", default=True, show_default=True)
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write the result there.")
def main(
    *,
    rounds: int,
    seconds: int,
    only: Sequence[str],
    measure: Sequence[str],
    veth_offloads: bool,
    file: Path | None,
) -> None:
    """Measure contestants in turns on one veth pair; medians, spread and ratios."""
    try:
        need_privilege([sys.executable, "-m", "benchmarks.quick", *sys.argv[1:]])
        with Lab() as lab:
            a, b = lab.host("a"), lab.host("b")
            lab.link(a, b, offloads=veth_offloads)
            contestants = {name: start(name, a, b) for name in only}
            results = run(a, b, contestants, measure, rounds=rounds, seconds=seconds)
    except TunnelError as error:
        raise click.ClickException(str(error)) from error
    passport = make_passport(contestants)
    report(results, contestants, passport)
    if file:
        file.write_text(json.dumps({"passport": passport, "samples": results}, indent=2) + "\n")


def run(
    a: Host,
    b: Host,
    contestants: Mapping[str, Contestant],
    measures: Sequence[str],
    *,
    rounds: int,
    seconds: int,
) -> dict[str, Samples]:
    """Contestant -> samples. Every other round goes backwards, so that nobody always
    follows the same one."""
    results: dict[str, Samples] = {name: {} for name in contestants}
    order = list(contestants)
    for _ in track(range(rounds), "rounds", console=Console(stderr=True), transient=True):
        for measure in measures:
            for name in order:
                values = MEASURES[measure](a, b, contestants[name], seconds=seconds)
                for unit, value in values.items():
                    results[name].setdefault(unit, []).append(value)
        order.reverse()
    return results


def make_passport(contestants: Mapping[str, Contestant]) -> dict[str, Any]:
    """When, where, on what and of what these numbers are."""
    models = [
        line.partition(": ")[2]
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _say("git describe --always --dirty"),
        "machine": f"{os.cpu_count()} x {models[0] if models else platform.machine()}",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "iperf3": _say("iperf3 --version").partition("\n")[0],
        "command": shlex.join(["python", "-m", "benchmarks.quick", *sys.argv[1:]]),
        "baseline": "kernel vxlan in the same run",
        "said": {name: one.said for name, one in contestants.items() if one.said},
    }


def _say(command: str) -> str:
    return subprocess.run(
        shlex.split(command), capture_output=True, text=True, check=False
    ).stdout.strip()


def report(
    results: Mapping[str, Samples],
    contestants: Mapping[str, Contestant],
    passport: Mapping[str, Any],
) -> None:
    console = Console(highlight=False, soft_wrap=True)
    table = Table("", title="median, ratio to the kernel's vxlan, least - most")
    for name in results:
        table.add_column(contestants[name].name, justify="right")
    for measure, unit in UNITS.items():
        cells = [_cell(results, name, measure) for name in results]
        if any(cells):
            table.add_row(unit, *cells)
    console.print(table)
    console.print("CPU: both daemons, TCP runs; the kernel's soft interrupts are not in it.")
    for line in goals(results):
        console.print(line)
    for word, value in passport.items():
        console.print(f"{word}: {value}", markup=False)


def _cell(results: Mapping[str, Samples], name: str, measure: str) -> str:
    values = results[name].get(measure)
    if not values:
        return ""
    median = statistics.median(values)
    base = results.get("kernel", {}).get(measure)
    ratio = f" x {median / statistics.median(base):.2f}" if base else ""
    return f"{_short(median)}{ratio}\n{_short(min(values))} - {_short(max(values))}"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def goals(results: Mapping[str, Samples]) -> list[str]:
    """What was asked for beside what was reached, for all that was measured."""
    lines = []
    for measure, name, base, goal in GOALS:
        ours = results.get(name, {}).get(measure)
        theirs = results.get(base, {}).get(measure)
        if ours and theirs:
            ratio = statistics.median(ours) / statistics.median(theirs)
            verdict = "reached" if ratio >= goal else "MISSED"
            lines.append(f"{UNITS[measure]}: {ratio:.2f} of {base}, goal {goal}: {verdict}")
    for measure in ("cpu1", "cpu4"):
        if values := results.get("tunnel", {}).get(measure):
            median = statistics.median(values)
            verdict = "reached" if median <= CPU_GOAL else "MISSED"
            lines.append(f"{UNITS[measure]}: {median:.2f}, goal at most {CPU_GOAL}: {verdict}")
    return lines


if __name__ == "__main__":
    main()
