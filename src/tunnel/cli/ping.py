"""``tunnel ping``: measures round trips to a peer through the data path."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import click

from tunnel.cli import output
from tunnel.cli.control import node_options
from tunnel.rpc.client import Client
from tunnel.rpc.socket_paths import find

_INTERVAL = 0.2  # seconds
_NOT_SENT = ("unresolved", "no_route")  # stages at which another echo fails as well


@click.command()
@click.argument("peer", metavar="NODE")
@click.option(
    "-c",
    "--count",
    type=click.IntRange(1, 100_000),
    default=4,
    show_default=True,
    metavar="N",
    help="Number of echoes.",
)
@click.option(
    "--size",
    type=click.IntRange(0, 65_000),
    default=0,
    metavar="BYTES",
    help="Size of the inner packet, which must arrive unfragmented.  [default: the smallest]",
)
@node_options
@click.pass_context
def ping(  # noqa: PLR0917 - click names them
    context: click.Context,
    peer: str,
    count: int,
    size: int,
    name: str | None,
    control: Path | None,
    as_json: bool,
) -> None:
    """
    Measure round trips to NODE through the data path.

    NODE is a peer's endpoint, its host alone, or an overlay address within its prefixes. Says at
    which stage an echo failed. Exit code 1 if no echo was answered. Ctrl-C prints the summary.
    """
    answers: list[dict[str, Any]] = []
    pings = _ping(control or find(name), peer, answers, count=count, size=size, quiet=as_json)
    try:
        asyncio.run(pings)
    except KeyboardInterrupt:
        if not answers:
            raise
    trips = [one["rtt"] for one in answers if one["rtt"] is not None]
    if as_json:
        output.print_json(_summary(answers, trips))
    else:
        click.echo(f"{len(trips)} of {len(answers)} answered{_spread(trips)}")
    if not trips:
        context.exit(1)


async def _ping(
    path: Path, peer: str, answers: list[dict[str, Any]], *, count: int, size: int, quiet: bool
) -> None:
    """Appends each answer to `answers`, which keeps them if the loop is interrupted."""
    async with Client(path) as node:
        while len(answers) < count:
            if answers:
                await asyncio.sleep(_INTERVAL)
            answer = await node.call("ping", peer=peer, size=size)
            answers.append(answer)
            if not quiet:
                click.echo(f"{answer['peer']}: {answer['why'] or output.round_trip(answer['rtt'])}")
            if answer["stage"] in _NOT_SENT:
                break


def _summary(answers: list[dict[str, Any]], trips: list[float]) -> dict[str, Any]:
    failed = [one for one in answers if one["stage"]]
    last = failed[-1] if failed else {"stage": None, "why": None}
    return {
        "peer": answers[0]["peer"],
        "size": answers[0]["size"],
        "sent": len(answers),
        "answered": len(trips),
        "rtt": [one["rtt"] for one in answers],
        "stage": last["stage"],
        "why": last["why"],
    }


def _spread(trips: list[float]) -> str:
    if not trips:
        return ""
    least, mean, most = min(trips), sum(trips) / len(trips), max(trips)
    return f", least/mean/most {' / '.join(output.round_trip(one) for one in (least, mean, most))}"
