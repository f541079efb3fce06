"""
All contestants on every kind of link, into ``benchmarks/results/``: what ``make bench`` runs.

Takes about 35 minutes; ``--rounds 1 --mtu 1500`` is a short trial. The result of each link is
written when it is complete, so an interrupted run keeps the links before.
"""

import json
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from math import ceil
from pathlib import Path

import click
from rich.console import Console

from benchmarks import rounds
from benchmarks.contestant import Contestant
from benchmarks.contestants import CONTESTANTS
from benchmarks.passport import iperf3_version, make_passport
from benchmarks.quick import Names
from benchmarks.report import print_rows
from benchmarks.tables import RESULTS
from tunnel.errors import TunnelError
from tunnel.testing.lab import need_privilege


@click.command()
@click.option("--rounds", "count", type=click.IntRange(1), default=4, show_default=True)
@click.option("--seconds", type=click.IntRange(1), default=1, show_default=True, help="Per run.")
@click.option("--only", type=Names(list(CONTESTANTS)), default=",".join(CONTESTANTS))
@click.option("--measure", type=Names(list(rounds.MEASURES)), default=",".join(rounds.MEASURES))
@click.option("--mtu", "mtus", type=int, multiple=True, default=(1500, 9000), show_default=True)
@click.option("--directory", type=click.Path(path_type=Path), default=RESULTS)
def main(
    *,
    count: int,
    seconds: int,
    only: Sequence[str],
    measure: Sequence[str],
    mtus: Sequence[int],
    directory: Path,
) -> None:
    """Measure all contestants in turns, with and without offloads on the veth, for each MTU."""
    directory.mkdir(parents=True, exist_ok=True)
    links = [(mtu, offloads) for mtu in mtus for offloads in (True, False)]
    minutes = [_minutes(_accepting(only, mtu=mtu), measure, count, seconds) for mtu, _ in links]
    try:
        need_privilege([sys.executable, "-m", "benchmarks.full", *sys.argv[1:]])
        for i, (mtu, offloads) in enumerate(links):
            click.echo(
                f"link {i + 1} of {len(links)}: about {ceil(sum(minutes[i:]))} minutes to go"
            )
            with rounds.lineup(
                _accepting(only, mtu=mtu), mtu=mtu, veth_offloads=offloads
            ) as lineup:
                title = f"MTU {mtu}, {'with' if offloads else 'without'} offloads"
                results = rounds.run(lineup, measure, rounds=count, seconds=seconds, title=title)
            _write(directory, lineup, results, mtu=mtu, offloads=offloads)
    except TunnelError as error:
        raise click.ClickException(str(error)) from error


def _accepting(names: Sequence[str], *, mtu: int) -> Mapping[str, Contestant]:
    """Returns the contestants that use a link of this MTU: one that accepts no packet of more than
    1500 bytes would only be measured twice."""
    known = {name: CONTESTANTS[name] for name in names}
    return {name: one for name, one in known.items() if one.max_mtu > 1500 or mtu <= 1500}


def _minutes(names: Collection[str], measures: Sequence[str], count: int, seconds: int) -> float:
    plan = rounds.turns(list(names), measures, rounds=count)
    return sum(rounds.cost(measure, seconds=seconds) for measure, _ in plan) / 60


def _write(
    directory: Path, lineup: rounds.Lineup, results: rounds.Results, *, mtu: int, offloads: bool
) -> None:
    link = {"mtu": mtu, "offloads": offloads}
    passport = make_passport(
        "benchmarks.full", iperf3=iperf3_version(), said=lineup.ready_lines, absent=lineup.absent
    )
    result: Mapping[str, object] = {"passport": passport, "link": link, "samples": results}
    day, name = time.strftime("%Y-%m-%d"), f"mtu{mtu}-{'offloads' if offloads else 'plain'}"
    file = directory / f"{day}-paths-{name}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    console = Console(highlight=False, soft_wrap=True)
    print_rows(results)
    for missing, why in lineup.absent.items():
        console.print(f"{missing} is left out: {why}", markup=False)
    console.print(f"written to {file}", markup=False)


if __name__ == "__main__":
    main()
