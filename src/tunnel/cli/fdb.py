"""``tunnel fdb``: lists and changes the peer behind each MAC."""

from __future__ import annotations

from pathlib import Path

import click

from tunnel.cli import output
from tunnel.cli.control import node_options, request

_vlan = click.option(
    "--vlan", type=int, metavar="N", help="VLAN of the entry, 1 to 4094.  [default: untagged]"
)


@click.group(no_args_is_help=False)
def fdb() -> None:
    """List, add and remove MACs of a node with --mode tap."""


@fdb.command("list")
@node_options
def list_(name: str | None, control: Path | None, as_json: bool) -> None:
    """
    List each MAC and the peer behind it, as "bridge fdb" does.

    A learned entry shows the time since the last frame from that MAC; all others are static.
    """
    entries = request("fdb", name=name, control=control)
    if as_json:
        output.print_json(entries)
        return
    for one in entries:
        vlan = f" vlan {one['vlan']}" if one["vlan"] else ""
        kind = "static" if one["static"] else f"learned {output.duration(one['age'])} ago"
        click.echo(f"{one['mac']}{vlan} dst {one['peer']} {kind}")


@fdb.command()
@click.argument("mac")
@click.argument("peer")
@_vlan
@node_options
def add(
    *, mac: str, peer: str, vlan: int | None, name: str | None, control: Path | None, as_json: bool
) -> None:
    """
    Add a static entry: frames for MAC go to PEER.

    PEER is its endpoint, its host alone, or an overlay address within its prefixes. Removing the
    peer removes the entry.
    """
    changed = request("fdb_add", name=name, control=control, mac=mac, peer=peer, vlan=vlan)
    output.print_changes(changed, as_json=as_json)


@fdb.command()
@click.argument("mac")
@_vlan
@node_options
def remove(
    mac: str, vlan: int | None, name: str | None, control: Path | None, as_json: bool
) -> None:
    """Remove an entry, static or learned."""
    changed = request("fdb_remove", name=name, control=control, mac=mac, vlan=vlan)
    output.print_changes(changed, as_json=as_json)


@fdb.command()
@click.option("--learned", is_flag=True, help="Remove learned entries only.")
@node_options
def flush(learned: bool, name: str | None, control: Path | None, as_json: bool) -> None:
    """Remove all entries except those of the peers' VTEPs."""
    changed = request("fdb_flush", name=name, control=control, learned=learned)
    output.print_changes(changed, as_json=as_json)
