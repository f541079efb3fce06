"""``tunnel neighbour``: lists the MAC and endpoint behind each prefix."""

from __future__ import annotations

from pathlib import Path

import click

from tunnel.cli import output
from tunnel.cli.control import node_options, request


@click.group(no_args_is_help=False)
def neighbour() -> None:
    """List the VTEPs behind the prefixes of the overlay."""


@neighbour.command("list")
@node_options
def list_(name: str | None, control: Path | None, as_json: bool) -> None:
    """
    List the MAC and the endpoint to which packets for a prefix go, as "ip neigh" does.

    The word after the endpoint is the source of the MAC: "configured", "control" (the peer's
    control frames), "resolved" (the peer's answer to ARP or NDP) or "unknown". Every node accepts
    02:76:74:65:70:00. With --mode tap, "via" is the address of the VTEP, the next hop of the
    kernel's route.
    """
    neighbours = request("neighbours", name=name, control=control)
    if as_json:
        output.print_json(neighbours)
        return
    for one in neighbours:
        via = f" via {one['via']}" if one["via"] else ""
        device = f" dev {one['device']}" if one["device"] else ""
        click.echo(
            f"{one['prefix'] or '-'}{via}{device} lladdr {one['mac']} dst {one['peer']} "
            f"{one['source']} {one['state']}"
        )
