"""``tunnel route``: which peer owns what."""

from __future__ import annotations

from pathlib import Path

import click
from rich.table import Column, Table

from tunnel.cli import node

_KERNEL = {True: "yes", False: "missing", None: "-"}


@click.group(no_args_is_help=False)
def route() -> None:
    """Look at the routes of a running node."""


@route.command("list")
@node.options
def list_(name: str | None, control: Path | None, as_json: bool) -> None:
    """
    Say which overlay prefix belongs to which peer.

    "kernel" is whether the kernel routes the prefix into the device: where it is missing,
    somebody took that route away.
    """
    routes = node.ask("routes", name=name, control=control)
    if as_json:
        node.print_json(routes)
        return
    columns = [Column(title, overflow="fold") for title in ("prefix", "peer", "kernel")]
    table = Table(*columns, box=None, pad_edge=False)
    for one in routes:
        table.add_row(one["prefix"], one["peer"], _KERNEL[one["kernel"]])
    node.console().print(table)
