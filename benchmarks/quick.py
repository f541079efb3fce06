"""
This overlay compared with a bare veth, the kernel's vxlan and openvpn, and its goals.

    make bench-quick
    python -m benchmarks.quick --only kernel,tunnel --measure tcp1,ping --rounds 2
"""

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from benchmarks import rounds
from benchmarks.contestants import CONTESTANTS
from benchmarks.passport import iperf3_version, make_passport
from benchmarks.rounds import Results, median
from tunnel.errors import TunnelError
from tunnel.testing import bench
from tunnel.testing.lab import need_privilege

QUICK = ("veth", "kernel", "tunnel", "loop", "none", "socat", "openvpn")
QUICK_MEASURES = ("tcp1", "tcp4", "udp64", "ping")

GOALS: Sequence[tuple[str, str, float]] = (
    ("tcp1", "kernel", 0.75),
    ("tcp4", "kernel", 0.6),
    ("udp64", "kernel", 1.0),
    ("tcp1", "none", 2.5),
    ("tcp1", "openvpn", 8.0),
)
"""Measure, contestant, and the least ratio of ours to it; for TCP, of both directions' mean."""

PING_GOAL = 1.5
"""The largest ratio of our ping to socat's."""

CPU_GOAL = 1.3
"""The most CPU seconds per transferred GB, of both daemons together."""


class Names(click.ParamType[Sequence[str]]):
    """Some of the known names, separated by commas."""

    name = "names"

    def __init__(self, known: Sequence[str]) -> None:
        self.known = known

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Sequence[str]:
        names = str(value).split(",")
        for name in names:
            if name not in self.known:
                self.fail(f"{name!r} is not one of {', '.join(self.known)}", param, ctx)
        return names


@click.command()
@click.option("--rounds", "count", type=click.IntRange(1), default=5, show_default=True)
@click.option("--seconds", type=click.IntRange(1), default=2, show_default=True, help="Per run.")
@click.option("--only", type=Names(list(CONTESTANTS)), default=",".join(QUICK))
@click.option("--measure", type=Names(list(rounds.MEASURES)), default=",".join(QUICK_MEASURES))
@click.option("--mtu", type=click.IntRange(1280, 65535), default=1500, show_default=True)
@click.option("--veth-offloads/--no-veth-offloads", default=True, show_default=True)
@click.option(
    "--json", "file", type=click.Path(path_type=Path), help="Write the result to this file."
)
def main(
    *,
    count: int,
    seconds: int,
    only: Sequence[str],
    measure: Sequence[str],
    mtu: int,
    veth_offloads: bool,
    file: Path | None,
) -> None:
    """Measure contestants in turns on one veth pair, and print medians, spread and ratios."""
    try:
        need_privilege([sys.executable, "-m", "benchmarks.quick", *sys.argv[1:]])
        contestants = {name: CONTESTANTS[name] for name in only}
        with rounds.lineup(contestants, mtu=mtu, veth_offloads=veth_offloads) as lineup:
            if lineup.absent:
                raise click.ClickException("; ".join(lineup.absent.values()))
            results = rounds.run(lineup, measure, rounds=count, seconds=seconds)
    except TunnelError as error:
        raise click.ClickException(str(error)) from error
    passport = make_passport("benchmarks.quick", iperf3=iperf3_version(), said=lineup.ready_lines)
    rounds.print_table(results)
    console = Console(highlight=False, soft_wrap=True)
    for line in [*goals(results), *(f"{key}: {value}" for key, value in passport.items())]:
        console.print(line, markup=False)
    if file:
        link = {"mtu": mtu, "offloads": veth_offloads}
        result = {"passport": passport, "link": link, "samples": results}
        file.write_text(json.dumps(result, indent=1) + "\n")
    if lineup.absent:
        raise click.ClickException("; ".join(lineup.absent.values()))


def goals(results: Results) -> list[str]:
    """Returns a line for each goal that was measured: result, goal, and whether it is met."""
    lines = []
    for key, base, goal in GOALS:
        ratios = [
            ours / theirs
            for direction in (key, f"{key}_back")
            if (ours := median(results, "tunnel", direction))
            and (theirs := median(results, base, direction))
        ]
        if ratios:
            mean = statistics.mean(ratios)
            verdict = "reached" if mean >= goal else "MISSED"
            both = f" (forth {ratios[0]:.2f}, back {ratios[1]:.2f})" if len(ratios) == 2 else ""
            unit = bench.UNITS[key].partition(",")[0]
            lines.append(f"{unit}: {mean:.2f}{both} of {base}, goal {goal}: {verdict}")
    ours, theirs = median(results, "tunnel", "ping"), median(results, "socat", "ping")
    if ours and theirs:
        verdict = "reached" if ours / theirs <= PING_GOAL else "MISSED"
        lines.append(f"ping: {ours / theirs:.2f} of socat, goal at most {PING_GOAL}: {verdict}")
    for key in ("cpu1", "cpu4"):
        if spent := median(results, "tunnel", key):
            verdict = "reached" if spent <= CPU_GOAL else "MISSED"
            lines.append(f"{bench.UNITS[key]}: {spent:.2f}, goal at most {CPU_GOAL}: {verdict}")
    return lines


if __name__ == "__main__":
    main()
