"""``tunnel neighbour``: behind which MAC and endpoint each prefix is."""

from __future__ import annotations

from pathlib import Path

import click

from tunnel.cli import node


@click.group(no_args_is_help=False)
def neighbour() -> None:
    """Look at the VTEPs behind the overlay's prefixes."""


@neighbour.command("list")
@node.options
def list_(name: str | None, control: Path | None, as_json: bool) -> None:
    """
    Say, in the manner of "ip neigh", to which MAC and endpoint packets for a prefix go.

    Behind the endpoint stands who told the MAC: its configuration, its control frames, or the
    peer when it was asked by ARP or NDP ("resolved"). 02:76:74:65:70:00 is any node's. With --mode
    tap "via" is the VTEP's address, which the kernel has as next hop.
    """
    neighbours = node.ask("neighbours", name=name, control=control)
    if as_json:
        node.print_json(neighbours)
        return
    for one in neighbours:
        via = f" via {one['via']}" if one["via"] else ""
        device = f" dev {one['device']}" if one["device"] else ""
        click.echo(
            f"{one['prefix'] or '-'}{via}{device} lladdr {one['mac']} dst {one['peer']} "
            f"{one['source']} {one['state']}"
        )
