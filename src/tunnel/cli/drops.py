"""``tunnel drops``: why packets were dropped, and what to do."""

from __future__ import annotations

from pathlib import Path

import click

from tunnel.cli import output
from tunnel.cli.control import node_options, request


@click.command()
@click.option("--all", "everything", is_flag=True, help="Include reasons that never occurred.")
@node_options
def drops(everything: bool, name: str | None, control: Path | None, as_json: bool) -> None:
    """
    Show how many packets were dropped since the node started, why, and what to do.

    Each dropped packet is counted under one reason.
    """
    reasons = request("drops", name=name, control=control)
    shown = [one for one in reasons if everything or one["count"]]
    if as_json:
        output.print_json(shown)
    elif not shown:
        click.echo("no packet was dropped")
    else:
        output.print_table(
            ("reason", "", "packets", "meaning, and what to do"),
            ((one["reason"], one["direction"], str(one["count"]), one["meaning"]) for one in shown),
            right={"packets"},
        )
