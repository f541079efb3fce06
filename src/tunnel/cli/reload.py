"""``tunnel reload``: makes a running node read its file again."""

from __future__ import annotations

from pathlib import Path

import click

from tunnel.cli import output
from tunnel.cli.control import node_options, request

_TIMEOUT = 60.0  # seconds


@click.command()
@node_options
def reload(name: str | None, control: Path | None, as_json: bool) -> None:
    """
    Make a running node read its --config file again, as SIGHUP does.

    Added, removed and changed peers are applied; traffic of all others is not interrupted. Peers
    from "tunnel peer add" that are not in the file are removed. Nothing changes if the file has a
    mistake, or differs in more than its peers, which needs a restart.
    """
    changed = request("reload", name=name, control=control, timeout=_TIMEOUT)
    output.print_changes(changed, as_json=as_json, nothing="nothing changed")
