"""``tunnel down``: ends a running node."""

from __future__ import annotations

from pathlib import Path

import click

from tunnel.cli import node

_PATIENCE = 60.0  # seconds; many kernel routes take some to remove


@click.command()
@node.options
def down(name: str | None, control: Path | None, as_json: bool) -> None:
    """
    End a running node, as SIGTERM does.

    Returns when its device, addresses and kernel routes are gone.
    """
    ended = node.ask("down", name=name, control=control, timeout=_PATIENCE)
    if as_json:
        node.print_json(ended)
    else:
        click.echo(f"{ended['name']} is down")
