"""``tunnel down``: stops a running node."""

from __future__ import annotations

from pathlib import Path

import click

from tunnel.cli import output
from tunnel.cli.control import node_options, request

_TIMEOUT = 60.0  # seconds: removing many kernel routes takes long


@click.command()
@node_options
def down(name: str | None, control: Path | None, as_json: bool) -> None:
    """
    Stop a running node, as SIGTERM does.

    Returns after the node has removed its device, addresses and kernel routes.
    """
    ended = request("down", name=name, control=control, timeout=_TIMEOUT)
    if as_json:
        output.print_json(ended)
    else:
        click.echo(f"{ended['name']} is down")
