"""``tunnel reload``: a running node reads its file again."""

from __future__ import annotations

from pathlib import Path

import click

from tunnel.cli import node

_PATIENCE = 60.0  # seconds


@click.command()
@node.options
def reload(name: str | None, control: Path | None, as_json: bool) -> None:
    """
    Have a running node read its --config file again, as SIGHUP does.

    Peers that came, went or changed are applied; packets of all others go on. Who was let in by
    "tunnel peer add" and is not in the file goes. A file with a mistake changes nothing, and
    neither does one that differs in more than its peers: that takes a restart.
    """
    changed = node.ask("reload", name=name, control=control, timeout=_PATIENCE)
    if as_json:
        node.print_json(changed)
        return
    lines = [f"- {endpoint}" for endpoint in changed["removed"]]
    lines += [f"+ {endpoint}" for endpoint in changed["added"]]
    click.echo("\n".join(lines) or "nothing changed")
