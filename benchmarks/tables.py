"""Tables of results that are not rounds: shown, and kept with their passport."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.passport import make_passport

Rows = Sequence[Sequence[str | int | float]]
"""The first row is the head."""


def show(tables: dict[str, Rows]) -> None:
    for title, (head, *rows) in tables.items():
        table = Table(*(str(word) for word in head), title=title)
        for row in rows:
            table.add_row(*(str(word) for word in row))
        Console(highlight=False).print(table)


def keep(tables: dict[str, Rows], *, module: str, directory: Path) -> None:
    directory.mkdir(exist_ok=True)
    name = f"{time.strftime('%Y-%m-%d')}-tables-{module.rpartition('.')[2]}.json"
    result = {"passport": make_passport(module), "tables": tables}
    (directory / name).write_text(json.dumps(result, indent=1) + "\n")
