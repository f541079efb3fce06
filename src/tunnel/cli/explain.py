"""``tunnel explain``: the path of one packet, step by step."""

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
_ARRIVED = {
    "outbound": "nothing on this side stops the packet",
    "inbound": "the packet arrives",
}


@click.command()
@click.argument("address", metavar="ADDRESS")
@click.option(
    "--from", "source", metavar="ADDRESS", help="Source address.  [default: the kernel's choice]"
)
@click.option(
    "--size",
    type=int,
    default=84,
    show_default=True,
    metavar="BYTES",
    help="Size of the whole inner packet.",
)
@click.option(
    "--protocol",
    type=click.Choice(["icmp", "tcp", "udp"]),
    default="icmp",
    show_default=True,
    help="Protocol of the packet.",
)
@click.option(
    "--sport", type=int, default=40_000, show_default=True, help="Source port of TCP or UDP."
)
@click.option(
    "--dport", type=int, default=80, show_default=True, help="Destination port of TCP or UDP."
)
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
    Trace the path of a packet to ADDRESS, and name what decides each step.

    Asks the kernel and the node what they would do; sends nothing. If ADDRESS is on this
    side, the packet comes from a peer, and --from gives its source. Exits with 1 if the path ends
    before the packet arrives.
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
        click.echo("\n".join(draw(found)))
    context.exit(found["ends"] is not None)


def draw(trace: dict[str, Any]) -> list[str]:
    """Returns the lines that show a trace to people."""
    lines = [f"{trace['packet']}, {trace['direction']}", ""]
    for number, step in enumerate(trace["steps"], start=1):
        lines.append(f"{number:2}  {step['step']:{_STEP}}{step['entry']}")
        lines += _wrapped(f"{'ENDS HERE: ' if step['verdict'] == 'ends' else ''}{step['why']}")
        if step["next"]:
            lines.append(f"{_INDENT}{step['next']}")  # not wrapped, so that it can be pasted
        if step["step"] == "headers":
            lines += _stacked(trace["headers"])
    return [*lines, "", _ARRIVED[trace["direction"]] if trace["ends"] is None else _ENDED]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)


def _stacked(layers: list[dict[str, Any]]) -> list[str]:
    """Returns the headers one above the other, outermost first, each with its size and fields."""
    rule = f"{_INDENT}+{'-' * 12}+"
    lines = [rule]
    for one in layers:
        fields = dict(one["fields"])
        ends = f"{fields.pop('source')} > {fields.pop('destination')}" if "source" in fields else ""
        values = [ends, *(f"{name} {value}" for name, value in fields.items())]
        text = ", ".join(value for value in values if value)
        lines += [f"{_INDENT}| {one['name']:10} | {one['bytes']:2}  {text}", rule]
    return lines
