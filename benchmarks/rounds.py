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
from rich.progress import track
from rich.table import Table

from benchmarks.contestant import OVERHEAD, Site
from benchmarks.contestants import CONTESTANTS
from tunnel import bench
from tunnel.lab import Host, Lab, LabError

Samples = dict[str, list[float]]
"""What was measured (a key of ``bench.UNITS``) -> one number a round."""

Results = dict[str, Samples]
"""Contestant -> samples."""

BASELINE = "kernel"


@dataclass(frozen=True)
class Field:
    """The contestants that came up, what they said of themselves, and who did not, and why."""

    near: Host
    paths: Mapping[str, bench.Path]
    said: Mapping[str, str]
    absent: Mapping[str, str]


@contextmanager
def field(names: Sequence[str], *, mtu: int, veth_offloads: bool) -> Iterator[Field]:
    """Two hosts, a server on the second, and all contestants side by side."""
    paths, said, absent = {}, {}, {}
    with tempfile.TemporaryDirectory() as directory, Lab() as lab:
        a, b = lab.host("a"), lab.host("b")
        lab.link(a, b, mtu=mtu, offloads=veth_offloads)
        serve(b)
        for name in names:
            contestant = CONTESTANTS[name]
            own = Path(directory) / name
            own.mkdir()
            number = list(CONTESTANTS).index(name) + 1
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


def run(field: Field, measures: Sequence[str], *, rounds: int, seconds: int) -> Results:
    """Every other round goes backwards, so that nobody always follows the same one."""
    results: Results = {name: {} for name in field.paths}
    order = list(field.paths)
    for _ in track(range(rounds), "rounds", console=Console(stderr=True), transient=True):
        for measure in measures:
            for name in order:
                for key, value in MEASURES[measure](field, name, seconds=seconds).items():
                    results[name].setdefault(key, []).append(value)
        order.reverse()
    return results


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


def short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _cell(results: Results, name: str, key: str) -> str:
    middle = median(results, name, key)
    if middle is None:
        return ""
    base = median(results, BASELINE, key)
    ratio = f" x {middle / base:.2f}" if base else ""
    values = results[name][key]
    return f"{short(middle)}{ratio}\n{short(min(values))} - {short(max(values))}"
