"""``tunnel drops``: why packets were not forwarded, and what to do."""

from __future__ import annotations

from pathlib import Path

import click
from rich.table import Table

from tunnel.cli import node


@click.command()
@click.option("--all", "everything", is_flag=True, help="Also reasons that never occurred.")
@node.options
def drops(everything: bool, name: str | None, control: Path | None, as_json: bool) -> None:
    """
    Say why packets were dropped since the node is up, how many, and what to do.

    A packet that is dropped is counted under one reason.
    """
    reasons = node.ask("drops", name=name, control=control)
    shown = [one for one in reasons if everything or one["count"]]
    if as_json:
        node.print_json(shown)
    elif not shown:
        click.echo("no packet was dropped")
    else:
        node.console().print(_table(shown))


def _table(reasons: list[dict[str, object]]) -> Table:
    table = Table("reason", "", box=None, pad_edge=False)
    table.add_column("packets", justify="right")
    table.add_column("what it means, what to do", overflow="fold")
    for one in reasons:
        table.add_row(
            str(one["reason"]), str(one["direction"]), str(one["count"]), str(one["meaning"])
        )
    return table
