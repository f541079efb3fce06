"""
Rounds: contestants take turns on one link, so that what disturbs this machine disturbs all alike.

Both hosts and the load share its cores: only the ratios carry over to another machine.
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
"""What was measured (a key of ``bench.UNITS``) -> one number a round."""

Results = dict[str, Samples]
"""Contestant -> samples."""

BASELINE = "kernel"


@dataclass(frozen=True)
class Field:
    """The contestants that came up, what they said of themselves, and who did not, or broke
    since, and why."""

    near: Host
    paths: dict[str, bench.MeasuredPath]
    said: dict[str, str]
    absent: dict[str, str]


@contextmanager
def field(
    contestants: Mapping[str, Contestant], *, mtu: int = 1500, veth_offloads: bool = True
) -> Iterator[Field]:
    """Two hosts, a server on the second, and all contestants side by side."""
    paths: dict[str, bench.MeasuredPath] = {}
    said: dict[str, str] = {}
    absent: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as directory, Lab() as lab:
        a, b = lab.host("a"), lab.host("b")
        lab.link(a, b, mtu=mtu, offloads=veth_offloads)
        serve(b)
        for number, (name, contestant) in enumerate(contestants.items(), start=1):
            own = Path(directory) / name
            own.mkdir()
            site = Site(a, b, number, min(mtu - OVERHEAD, contestant.most_mtu), own)
            try:
                paths[name], words = contestant.bring_up(site)
            except LabError as error:
                absent[name] = str(error)
                continue
            if words:
                said[name] = words
        yield Field(a, paths, said, absent)


def serve(host: Host) -> None:
    """``tunnel bench --server`` on a host, ready."""
    server = host.popen([sys.executable, "-m", "tunnel", "bench", "--server"])
    assert server.stdout is not None
    if not server.stdout.readline():
        raise LabError(f"tunnel bench --server failed: {server.communicate()[1].strip()}")


def ping(field: Field, name: str, *, seconds: int) -> dict[str, float]:
    """Of echo requests, 200 a second."""
    trips = field.near.ping(field.paths[name].target, count=200 * seconds, interval=0.005)
    return {"ping": statistics.median(trips) * 1000}


MEASURES: Mapping[str, Callable[..., dict[str, float]]] = {
    **{
        name: lambda field, contestant, *, seconds, measure=measure: measure(
            field.paths[contestant], seconds=seconds
        )
        for name, measure in bench.MEASURES.items()
    },
    "ping": ping,
}


RUNS = {"tcp1": 2, "tcp4": 2, "rates": len(bench.RATES)}
"""How many runs a measure takes, where it is not one."""

SELDOM = {"rates"}
"""In every third round only: many runs, of which none is a goal."""

RUN_SECONDS = 0.15
"""What a run takes beside its seconds: programs that start and end."""


def turns(
    names: Sequence[str], measures: Sequence[str], *, rounds: int
) -> Iterator[tuple[str, str]]:
    """(measure, contestant), one after the other. Every other round goes backwards, so that
    nobody always follows the same one."""
    for i in range(rounds):
        for measure in measures:
            if i % 3 == 0 or measure not in SELDOM:
                yield from ((measure, name) for name in (names if i % 2 == 0 else names[::-1]))


def cost(measure: str, *, seconds: int) -> float:
    """Seconds that a turn takes, about."""
    return RUNS.get(measure, 1) * (seconds + RUN_SECONDS)


def run(
    field: Field, measures: Sequence[str], *, rounds: int, seconds: int, title: str = "rounds"
) -> Results:
    """All turns. Who breaks is absent from then on, and keeps what was measured."""
    results: Results = {name: {} for name in field.paths}
    plan = list(turns(list(field.paths), measures, rounds=rounds))
    with progress() as bar:
        whole = sum(cost(measure, seconds=seconds) for measure, _ in plan)
        task = bar.add_task(title, total=whole)
        for measure, name in plan:
            if name not in field.absent:
                try:
                    found = MEASURES[measure](field, name, seconds=seconds)
                except TunnelError as error:
                    field.absent[name] = f"broke: {error}"
                else:
                    for key, value in found.items():
                        results[name].setdefault(key, []).append(value)
            bar.advance(task, cost(measure, seconds=seconds))
    return results


def progress() -> Progress:
    """A bar with the time left, on stderr, gone at the end."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)


def print_table(results: Results, *, title: str = "") -> None:
    """Contestants in columns where there are few, in rows where there are many."""
    table = Table("", title=f"{title}median, ratio to the kernel's vxlan, least - most")
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
    """Of medians, to the kernel's vxlan; none for a loss, which has no scale."""
    middle, base = median(results, name, key), median(results, BASELINE, key)
    return middle / base if middle is not None and base and not key.endswith("_loss") else None


def _cell(results: Results, name: str, key: str) -> str:
    middle = median(results, name, key)
    if middle is None:
        return ""
    times = ratio(results, name, key)
    ending = f" x {times:.2f}" if times is not None else ""
    values = results[name][key]
    return f"{short(middle)}{ending}\n{short(min(values))} - {short(max(values))}"
