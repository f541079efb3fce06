"""``tunnel route``: lists which peer has which prefix."""

from __future__ import annotations

from pathlib import Path

import click

from tunnel.cli import output
from tunnel.cli.control import node_options, request

_KERNEL = {True: "yes", False: "missing", None: "-"}


@click.group(no_args_is_help=False)
def route() -> None:
    """List the routes of a running node."""


@route.command("list")
@node_options
def list_(name: str | None, control: Path | None, as_json: bool) -> None:
    """
    List the prefixes of the overlay and their peers.

    The column "kernel" says whether the kernel routes the prefix to the device; "missing" means
    that another program removed the kernel's route.
    """
    routes = request("routes", name=name, control=control)
    if as_json:
        output.print_json(routes)
        return
    output.print_table(
        ("prefix", "peer", "kernel"),
        ((one["prefix"], one["peer"], _KERNEL[one["kernel"]]) for one in routes),
    )
