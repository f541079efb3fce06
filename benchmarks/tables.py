"""Tables of results that are not rounds: printed, and written with their passport."""

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.passport import make_passport

RESULTS = Path(__file__).parent / "results"

Cell = str | int | Sequence[float]
"""A text, or one number for each measurement."""

Rows = Sequence[Sequence[Cell]]
"""The first row is the head."""


def text(cell: Cell) -> str:
    """Returns the median, and the spread if there are several numbers."""
    if isinstance(cell, str | int):
        return str(cell)
    middle = short(statistics.median(cell))
    return f"{middle} ({short(min(cell))} - {short(max(cell))})" if len(cell) > 1 else middle


def short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def show(tables: Mapping[str, Rows]) -> None:
    for title, (head, *rows) in tables.items():
        table = Table(*map(text, head), title=title)
        for row in rows:
            table.add_row(*map(text, row))
        Console(highlight=False, soft_wrap=True).print(table)


def keep(tables: Mapping[str, Rows], *, module: str, directory: Path) -> None:
    """Writes the tables to a file of today."""
    directory.mkdir(parents=True, exist_ok=True)
    name = f"{time.strftime('%Y-%m-%d')}-tables-{module.rpartition('.')[2]}.json"
    result = {"passport": make_passport(module), "tables": tables}
    (directory / name).write_text(json.dumps(result, indent=1) + "\n")
