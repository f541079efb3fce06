"""
Rounds: contestants are measured in turns on one link, so that other load affects all alike.

Both hosts and the load share the cores of this machine: only ratios apply to another machine.
"""

import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks.contestant import OVERHEAD, Contestant, Site
from benchmarks.contestants import CONTESTANTS
from benchmarks.tables import short
from tunnel.errors import TunnelError
from tunnel.testing import bench
from tunnel.testing.lab import Host, Lab, LabError

Samples = dict[str, list[float]]
"""A key of ``bench.UNITS`` -> one number per round."""

Results = dict[str, Samples]
"""Contestant -> samples."""

BASELINE = "kernel"


@dataclass(frozen=True)
class Lineup:
    """
    The contestants on one link.

    Attributes:
        near: The host that sends.
        paths: Those that started.
        ready_lines: What they printed when they were ready.
        absent: Why others did not start, or have failed since.
    """

    near: Host
    paths: dict[str, bench.MeasuredPath]
    ready_lines: dict[str, str]
    absent: dict[str, str]


@contextmanager
def lineup(
    contestants: Mapping[str, Contestant], *, mtu: int = 1500, veth_offloads: bool = True
) -> Iterator[Lineup]:
    """Links two hosts, and starts a server on the second and all contestants between them."""
    paths: dict[str, bench.MeasuredPath] = {}
    ready_lines: dict[str, str] = {}
    absent: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as directory, Lab() as lab:
        a, b = lab.host("a"), lab.host("b")
        lab.link(a, b, mtu=mtu, offloads=veth_offloads)
        serve(b)
        for number, (name, contestant) in enumerate(contestants.items(), start=1):
            own = Path(directory) / name
            own.mkdir()
            site = Site(a, b, number, min(mtu - OVERHEAD, contestant.max_mtu), own)
            try:
                paths[name], ready_line = contestant.bring_up(site)
            except LabError as error:
                absent[name] = str(error)
                continue
            if ready_line:
                ready_lines[name] = ready_line
        yield Lineup(a, paths, ready_lines, absent)


def serve(host: Host) -> None:
    """Starts ``tunnel bench --server`` on a host, and returns when it is ready."""
    server = host.popen([sys.executable, "-m", "tunnel", "bench", "--server"])
    assert server.stdout is not None
    if not server.stdout.readline():
        raise LabError(f"tunnel bench --server failed: {server.communicate()[1].strip()}")


def ping(lineup: Lineup, name: str, *, seconds: int) -> dict[str, float]:
    """The median round trip of 200 echo requests per second."""
    rtts = lineup.near.ping(lineup.paths[name].target, count=200 * seconds, interval=0.005)
    return {"ping": statistics.median(rtts) * 1000}


MEASURES: Mapping[str, Callable[..., dict[str, float]]] = {
    **{
        name: lambda lineup, contestant, *, seconds, measure=measure: measure(
            lineup.paths[contestant], seconds=seconds
        )
        for name, measure in bench.MEASURES.items()
    },
    "ping": ping,
}


RUNS = {"tcp1": 2, "tcp4": 2, "rates": len(bench.RATES)}
"""Runs of a measure that takes more than one."""

RARE = {"rates"}
"""Measured in every third round only: it takes many runs and has no goal."""

RUN_SECONDS = 0.15
"""What a run takes besides its own duration, for programs to start and end."""


def turns(
    names: Sequence[str], measures: Sequence[str], *, rounds: int
) -> Iterator[tuple[str, str]]:
    """Yields (measure, contestant) in order. Every second round is reversed, so that no contestant
    always follows the same one."""
    for i in range(rounds):
        for measure in measures:
            if i % 3 == 0 or measure not in RARE:
                yield from ((measure, name) for name in (names if i % 2 == 0 else names[::-1]))


def cost(measure: str, *, seconds: int) -> float:
    """Returns about how many seconds a turn takes."""
    return RUNS.get(measure, 1) * (seconds + RUN_SECONDS)


def run(
    lineup: Lineup, measures: Sequence[str], *, rounds: int, seconds: int, title: str = "rounds"
) -> Results:
    """Runs all turns. A contestant that fails is absent from then on, and keeps its results."""
    results: Results = {name: {} for name in lineup.paths}
    plan = list(turns(list(lineup.paths), measures, rounds=rounds))
    with progress() as bar:
        total = sum(cost(measure, seconds=seconds) for measure, _ in plan)
        task = bar.add_task(title, total=total)
        for measure, name in plan:
            if name not in lineup.absent:
                try:
                    found = MEASURES[measure](lineup, name, seconds=seconds)
                except TunnelError as error:
                    lineup.absent[name] = f"failed: {error}"
                else:
                    for key, value in found.items():
                        results[name].setdefault(key, []).append(value)
            bar.advance(task, cost(measure, seconds=seconds))
    return results


def progress() -> Progress:
    """Returns a progress bar on stderr with the time left, which disappears at the end."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)


def print_table(results: Results, *, title: str = "") -> None:
    """Prints one column for each contestant."""
    table = Table("", title=f"{title}median, ratio to the kernel's vxlan, minimum - maximum")
    for name in results:
        table.add_column(CONTESTANTS[name].name, justify="right")
    for key, unit in bench.UNITS.items():
        cells = [_cell(results, name, key) for name in results]
        if any(cells):
            table.add_row(unit, *cells)
    Console(highlight=False, soft_wrap=True).print(table)


def median(results: Results, name: str, key: str) -> float | None:
    values = results.get(name, {}).get(key)
    return statistics.median(values) if values else None


def ratio(results: Results, name: str, key: str) -> float | None:
    """Returns the ratio of medians to the kernel's vxlan; None for a loss, which has no scale."""
    middle, base = median(results, name, key), median(results, BASELINE, key)
    return middle / base if middle is not None and base and not key.endswith("_loss") else None


def _cell(results: Results, name: str, key: str) -> str:
    middle = median(results, name, key)
    if middle is None:
        return ""
    factor = ratio(results, name, key)
    suffix = f" x {factor:.2f}" if factor is not None else ""
    values = results[name][key]
    return f"{short(middle)}{suffix}\n{short(min(values))} - {short(max(values))}"
