"""``tunnel fdb``: behind which peer each MAC is, and changing that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tunnel.cli import node

_vlan = click.option("--vlan", type=int, metavar="N", help="Of frames with this tag, 1 to 4094.")


@click.group(no_args_is_help=False)
def fdb() -> None:
    """List, add and remove MACs of a node with --mode tap."""


@fdb.command("list")
@node.options
def list_(name: str | None, control: Path | None, as_json: bool) -> None:
    """
    Say, in the manner of "bridge fdb", behind which peer each MAC is.

    Learned entries say how long ago a frame from there was seen; the others are static.
    """
    entries = node.ask("fdb", name=name, control=control)
    if as_json:
        node.print_json(entries)
        return
    for one in entries:
        vlan = f" vlan {one['vlan']}" if one["vlan"] else ""
        seen = "static" if one["static"] else f"learned {node.duration(one['age'])} ago"
        click.echo(f"{one['mac']}{vlan} dst {one['peer']} {seen}")


@fdb.command()
@click.argument("mac")
@click.argument("peer")
@_vlan
@node.options
def add(
    *, mac: str, peer: str, vlan: int | None, name: str | None, control: Path | None, as_json: bool
) -> None:
    """
    Put a static entry: frames for MAC go to PEER.

    PEER is its endpoint, its host alone, or an overlay address of its. The entry goes with it.
    """
    changed = node.ask("fdb_add", name=name, control=control, mac=mac, peer=peer, vlan=vlan)
    _tell(changed, as_json=as_json)


@fdb.command()
@click.argument("mac")
@_vlan
@node.options
def remove(
    mac: str, vlan: int | None, name: str | None, control: Path | None, as_json: bool
) -> None:
    """Remove an entry, static or learned."""
    changed = node.ask("fdb_remove", name=name, control=control, mac=mac, vlan=vlan)
    _tell(changed, as_json=as_json)


@fdb.command()
@click.option("--learned", is_flag=True, help="Only those that were learned.")
@node.options
def flush(learned: bool, name: str | None, control: Path | None, as_json: bool) -> None:
    """Remove all entries but those of the peers themselves."""
    changed = node.ask("fdb_flush", name=name, control=control, learned=learned)
    _tell(changed, as_json=as_json)


def _tell(changed: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        node.print_json(changed)
        return
    for entry in changed.get("added", ()):
        click.echo(f"+ {entry}")
    for entry in changed.get("removed", ()):
        click.echo(f"- {entry}")
