"""``tunnel explain``: the way of one packet, step by step."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import click

from tunnel.cli import node

_STEP = 14  # columns of a step's name
_WIDTH = 100


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
@node.options
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
    found = node.ask(
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
        node.print_json(found)
    else:
        click.echo("\n".join(picture(found)))
    context.exit(found["ends"] is not None)


def picture(walk: dict[str, Any]) -> list[str]:
    """The walk for people, in lines."""
    lines = [f"{walk['packet']}, {walk['direction']}", ""]
    for number, step in enumerate(walk["steps"], start=1):
        ends = step["verdict"] == "ends"
        lines.append(f"{number:2}  {step['step']:{_STEP}}{step['entry']}")
        lines += _folded(f"{'ENDS HERE: ' if ends else ''}{step['why']}")
        if step["next"]:
            lines += [f"{'':{_STEP + 4}}{step['next']}"]  # not folded: it is there to be pasted
        if step["step"] == "headers":
            lines += _drawn(walk["headers"])
    return lines


def _folded(text: str) -> list[str]:
    indent = " " * (_STEP + 4)
    return textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent)


def _drawn(layers: list[dict[str, Any]]) -> list[str]:
    """A line a header, outermost first, in a frame."""
    rows = [
        (one["name"], str(one["bytes"]), ", ".join(f"{k} {v}" for k, v in one["fields"].items()))
        for one in layers
    ]
    wide = max(len(fields) for _, _, fields in rows)
    indent, rule = " " * (_STEP + 4), f"+{'-' * 12}+{'-' * 5}+{'-' * (wide + 2)}+"
    lines = [f"{indent}| {name:10} | {size:>3} | {fields:{wide}} |" for name, size, fields in rows]
    return [f"{indent}{rule}", *lines, f"{indent}{rule}"]
