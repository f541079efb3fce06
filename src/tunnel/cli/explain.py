"""``tunnel explain``: the way of one packet, step by step."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import click

from tunnel.cli import output
from tunnel.cli.control import node_options, request

_STEP = 14  # columns of a step's name
_INDENT = " " * (_STEP + 4)
_WIDTH = 100
_ENDED = "the packet does not arrive"
_END = {
    "outbound": "nothing on this side stops the packet",
    "inbound": "the packet arrives",
}


@click.command()
@click.argument("address", metavar="ADDRESS")
@click.option(
    "--from", "source", metavar="ADDRESS", help="Its source.  [default: as the kernel chooses]"
)
@click.option(
    "--size",
    type=int,
    default=84,
    show_default=True,
    metavar="BYTES",
    help="Of the whole inner packet.",
)
@click.option(
    "--protocol",
    type=click.Choice(["icmp", "tcp", "udp"]),
    default="icmp",
    show_default=True,
    help="What is in it.",
)
@click.option("--sport", type=int, default=40_000, show_default=True, help="TCP or UDP port.")
@click.option("--dport", type=int, default=80, show_default=True, help="TCP or UDP port.")
@node_options
@click.pass_context
def explain(  # noqa: PLR0917 - click names them
    context: click.Context,
    address: str,
    source: str | None,
    size: int,
    protocol: str,
    sport: int,
    dport: int,
    name: str | None,
    control: Path | None,
    as_json: bool,
) -> None:
    """
    Walk the way of a packet to ADDRESS, and name what decides at each step.

    Kernel and node are asked what they would do; nothing is sent. Where ADDRESS is on this side,
    --from says whose packet it is, and the way is that from the peer to here. Exit code 1 where
    the way ends before the packet has arrived.
    """
    found = request(
        "explain",
        name=name,
        control=control,
        address=address,
        source=source,
        size=size,
        protocol=protocol,
        sport=sport,
        dport=dport,
    )
    if as_json:
        output.print_json(found)
    else:
        click.echo("\n".join(picture(found)))
    context.exit(found["ends"] is not None)


def picture(walk: dict[str, Any]) -> list[str]:
    """The walk for people, in lines."""
    lines = [f"{walk['packet']}, {walk['direction']}", ""]
    for number, step in enumerate(walk["steps"], start=1):
        lines.append(f"{number:2}  {step['step']:{_STEP}}{step['entry']}")
        lines += _folded(f"{'ENDS HERE: ' if step['verdict'] == 'ends' else ''}{step['why']}")
        if step["next"]:
            lines.append(f"{_INDENT}{step['next']}")  # not folded: it is there to be pasted
        if step["step"] == "headers":
            lines += _stacked(walk["headers"])
    return [*lines, "", _END[walk["direction"]] if walk["ends"] is None else _ENDED]


def _folded(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)


def _stacked(layers: list[dict[str, Any]]) -> list[str]:
    """The headers one above the other, outermost first, each with its bytes and values."""
    rule = f"{_INDENT}+{'-' * 12}+"
    lines = [rule]
    for one in layers:
        fields = dict(one["fields"])
        ends = f"{fields.pop('source')} > {fields.pop('destination')}" if "source" in fields else ""
        values = [ends, *(f"{name} {value}" for name, value in fields.items())]
        text = ", ".join(value for value in values if value)
        lines += [f"{_INDENT}| {one['name']:10} | {one['bytes']:2}  {text}", rule]
    return lines
