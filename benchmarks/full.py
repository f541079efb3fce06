"""
Everybody on every kind of link, into ``benchmarks/results/``: what ``make bench`` runs.

Some 35 minutes; ``--rounds 1 --mtu 1500`` to try it. Each link's result is written when it is
there, so a run that is cut off keeps what it has.
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
from benchmarks.quick import Words
from benchmarks.report import print_rows
from benchmarks.tables import RESULTS
from tunnel.errors import TunnelError
from tunnel.testing.lab import need_privilege


@click.command()
@click.option("--rounds", "count", type=click.IntRange(1), default=4, show_default=True)
@click.option("--seconds", type=click.IntRange(1), default=1, show_default=True, help="Per run.")
@click.option("--only", type=Words(list(CONTESTANTS)), default=",".join(CONTESTANTS))
@click.option("--measure", type=Words(list(rounds.MEASURES)), default=",".join(rounds.MEASURES))
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
    minutes = [_minutes(_taking(only, mtu=mtu), measure, count, seconds) for mtu, _ in links]
    try:
        need_privilege([sys.executable, "-m", "benchmarks.full", *sys.argv[1:]])
        for i, (mtu, offloads) in enumerate(links):
            click.echo(
                f"link {i + 1} of {len(links)}: about {ceil(sum(minutes[i:]))} minutes to go"
            )
            with rounds.field(_taking(only, mtu=mtu), mtu=mtu, veth_offloads=offloads) as field:
                title = f"MTU {mtu}, {'with' if offloads else 'without'} offloads"
                results = rounds.run(field, measure, rounds=count, seconds=seconds, title=title)
            _keep(directory, field, results, mtu=mtu, offloads=offloads)
    except TunnelError as error:
        raise click.ClickException(str(error)) from error


def _taking(names: Sequence[str], *, mtu: int) -> Mapping[str, Contestant]:
    """Those whom a larger link makes a difference to: who takes no packet of more than 1500 bytes
    would only be measured twice."""
    known = {name: CONTESTANTS[name] for name in names}
    return {name: one for name, one in known.items() if one.most_mtu > 1500 or mtu <= 1500}


def _minutes(names: Collection[str], measures: Sequence[str], count: int, seconds: int) -> float:
    plan = rounds.turns(list(names), measures, rounds=count)
    return sum(rounds.cost(measure, seconds=seconds) for measure, _ in plan) / 60


def _keep(
    directory: Path, field: rounds.Field, results: rounds.Results, *, mtu: int, offloads: bool
) -> None:
    link = {"mtu": mtu, "offloads": offloads}
    passport = make_passport(
        "benchmarks.full", iperf3=iperf3_version(), said=field.said, absent=field.absent
    )
    result: Mapping[str, object] = {"passport": passport, "link": link, "samples": results}
    day, name = time.strftime("%Y-%m-%d"), f"mtu{mtu}-{'offloads' if offloads else 'plain'}"
    file = directory / f"{day}-paths-{name}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    console = Console(highlight=False, soft_wrap=True)
    print_rows(results)
    for missing, why in field.absent.items():
        console.print(f"{missing} is left out: {why}", markup=False)
    console.print(f"kept in {file}", markup=False)


if __name__ == "__main__":
    main()
