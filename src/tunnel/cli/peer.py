"""``tunnel peer``: who a running node's peers are, and changing that."""

from __future__ import annotations

from pathlib import Path

import click
from rich.table import Column, Table

from tunnel.cli import node


@click.group(no_args_is_help=False)
def peer() -> None:
    """List, add and remove the peers of a running node."""


@peer.command("list")
@node.options
def list_(name: str | None, control: Path | None, as_json: bool) -> None:
    """Say who the peers are and what they own."""
    peers = node.ask("peers", name=name, control=control)
    if as_json:
        node.print_json(peers)
        return
    columns = [Column(title, overflow="fold") for title in ("peer", "address", "mac", "prefixes")]
    table = Table(*columns, box=None, pad_edge=False)
    for one in peers:
        table.add_row(
            one["endpoint"],
            one["address"] or "unresolved",
            one["mac"] or "any",
            ", ".join(one["prefixes"]),
        )
    node.console().print(table)


@peer.command()
@click.argument("peer", metavar="ENDPOINT=PREFIX[,PREFIX...][,mac=MAC]")
@node.options
def add(peer: str, name: str | None, control: Path | None, as_json: bool) -> None:
    """
    Let a peer in, until the node ends or reloads its file.

    It is written as "tunnel up --peer" takes it. Packets of other peers go on.
    """
    changed = node.ask("peer_add", name=name, control=control, peer=peer)
    if as_json:
        node.print_json(changed)
    else:
        click.echo("\n".join(f"+ {endpoint}" for endpoint in changed["added"]))


@peer.command()
@click.argument("endpoint")
@node.options
def remove(endpoint: str, name: str | None, control: Path | None, as_json: bool) -> None:
    """
    Let a peer go.

    ENDPOINT is its address or name, with :PORT unless that is 8472. Packets of other peers go on.
    """
    changed = node.ask("peer_remove", name=name, control=control, endpoint=endpoint)
    if as_json:
        node.print_json(changed)
    else:
        click.echo("\n".join(f"- {gone}" for gone in changed["removed"]))
