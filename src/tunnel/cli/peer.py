"""``tunnel peer``: lists, adds and removes the peers of a running node."""

from __future__ import annotations

from pathlib import Path

import click

from tunnel.cli import output
from tunnel.cli.control import node_options, request


@click.group(no_args_is_help=False)
def peer() -> None:
    """List, add and remove the peers of a running node."""


@peer.command("list")
@node_options
def list_(name: str | None, control: Path | None, as_json: bool) -> None:
    """List the peers and their prefixes."""
    peers = request("peers", name=name, control=control)
    if as_json:
        output.print_json(peers)
        return
    output.print_table(
        ("peer", "address", "mac", "prefixes"),
        (
            (
                one["endpoint"],
                one["address"] or "unresolved",
                one["mac"] or "any",
                ", ".join(one["prefixes"]),
            )
            for one in peers
        ),
    )


@peer.command()
@click.argument("peer", metavar="ENDPOINT=PREFIX[,PREFIX...][,mac=MAC]")
@node_options
def add(peer: str, name: str | None, control: Path | None, as_json: bool) -> None:
    """
    Add a peer, until the node ends or reloads its file.

    The argument has the format of "tunnel up --peer". Traffic of other peers is not interrupted.
    """
    changed = request("peer_add", name=name, control=control, peer=peer)
    output.print_changes(changed, as_json=as_json)


@peer.command()
@click.argument("endpoint")
@node_options
def remove(endpoint: str, name: str | None, control: Path | None, as_json: bool) -> None:
    """
    Remove a peer.

    ENDPOINT is the peer's address or name, with :PORT unless that is 8472. Traffic of other peers
    is not interrupted.
    """
    changed = request("peer_remove", name=name, control=control, endpoint=endpoint)
    output.print_changes(changed, as_json=as_json)
