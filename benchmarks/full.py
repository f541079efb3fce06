"""
Everybody on every kind of link, into ``benchmarks/results/``: what ``make bench`` runs.

About an hour on two cores; ``--rounds 1 --mtu 1500`` to try it.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
from rich.console import Console

from benchmarks import rounds
from benchmarks.contestants import CONTESTANTS
from benchmarks.passport import iperf3_version, make_passport
from benchmarks.quick import Words
from benchmarks.report import print_rows
from tunnel.errors import TunnelError
from tunnel.lab import need_privilege

RESULTS = Path(__file__).parent / "results"


@click.command()
@click.option("--rounds", "count", type=click.IntRange(1), default=5, show_default=True)
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
    directory.mkdir(exist_ok=True)
    try:
        need_privilege([sys.executable, "-m", "benchmarks.full", *sys.argv[1:]])
        for mtu in mtus:
            for offloads in (True, False):
                with rounds.field(only, mtu=mtu, veth_offloads=offloads) as field:
                    results = rounds.run(field, measure, rounds=count, seconds=seconds)
                _keep(directory, field, results, mtu=mtu, offloads=offloads)
    except TunnelError as error:
        raise click.ClickException(str(error)) from error


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
        console.print(f"{missing} did not come up: {why}", markup=False)
    console.print(f"kept in {file}", markup=False)


if __name__ == "__main__":
    main()
