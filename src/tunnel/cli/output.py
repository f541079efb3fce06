"""How verbs print: JSON, tables and durations."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

PIPED_WIDTH = 200
"""Columns of output that is not a terminal: a pipe gets every column of a table."""


def print_json(result: object) -> None:
    click.echo(json.dumps(result, indent=2))


def console() -> Console:
    """Returns a console for tables, as wide as the terminal."""
    from rich.console import Console  # noqa: PLC0415 - a tenth of a second that JSON does not need

    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    width = PIPED_WIDTH if piped else None
    # Without markup: rich would take an IPv6 address in brackets for a style.
    return Console(highlight=False, markup=False, emoji=False, width=width)


def duration(seconds: float) -> str:
    """Returns ``42 s``, ``12 min``, ``3 h 12 min`` or ``5 d 3 h``."""
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if minutes < 1:
        return f"{int(seconds)} s"
    if hours < 1:
        return f"{minutes} min"
    if hours < 48:
        return f"{hours} h {minutes % 60} min"
    return f"{hours // 24} d {hours % 24} h"


def round_trip(seconds: float | None) -> str:
    """Returns ``0.213 ms``, ``1.20 s``, or ``-`` for None."""
    if seconds is None:
        return "-"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.2f} s"


def print_table(
    titles: Sequence[str], rows: Iterable[Sequence[str]], *, right: Container[str] = ()
) -> None:
    """Prints a table whose cells wrap; the columns in `right` are aligned to the right."""
    from rich.table import Table  # noqa: PLC0415 - as above

    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, overflow="fold", justify="right" if title in right else "left")
    for row in rows:
        table.add_row(*row)
    console().print(table)


def print_changes(
    changed: Mapping[str, Sequence[str]], *, as_json: bool, nothing: str | None = None
) -> None:
    """Prints the ``removed`` and ``added`` of a change, one a line; `nothing` if both are empty."""
    if as_json:
        print_json(changed)
        return
    lines = [f"- {one}" for one in changed.get("removed", ())]
    lines += [f"+ {one}" for one in changed.get("added", ())]
    for line in lines:
        click.echo(line)
    if not lines and nothing:
        click.echo(nothing)
