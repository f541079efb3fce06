"""``tunnel status``: the state of a running node and its peers, once or every second."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from tunnel.cli import output
from tunnel.cli.control import node_options, request
from tunnel.errors import TunnelError
from tunnel.rpc.client import Client
from tunnel.rpc.socket_paths import find

_INTERVAL = 1.0  # seconds


@click.command()
@click.option("--watch", is_flag=True, help="Refresh every second, with rates, until Ctrl-C.")
@node_options
def status(watch: bool, name: str | None, control: Path | None, as_json: bool) -> None:
    """
    Show the state of a running node and of its peers.

    State, round trip and loss come from echoes through the data path: a few a minute, and one a
    second while "tunnel status" is used. A peer that never answered an echo is "unknown"; a kernel
    vxlan device always is. A narrow terminal shows the most important columns only.
    """
    if watch:
        with suppress(KeyboardInterrupt):
            asyncio.run(_watch(control or find(name), as_json=as_json))
        return
    now = request("status", name=name, control=control)
    if as_json:
        output.print_json(now)
        return
    from tunnel.cli.status_view import view  # noqa: PLC0415 - JSON needs no rich

    output.console().print(view(now))


async def _watch(path: Path, *, as_json: bool) -> None:
    """Prints one status a second: JSON lines, or a view that replaces the previous one."""
    if as_json:
        async for now in _statuses(path):
            click.echo(json.dumps(now))
        return
    from rich.live import Live  # noqa: PLC0415 - as above

    from tunnel.cli.status_view import view  # noqa: PLC0415

    before: Mapping[str, Any] | None = None
    with Live(console=output.console(), auto_refresh=False) as live:
        async for now in _statuses(path):
            live.update(view(now, before=before), refresh=True)
            before = now


async def _statuses(path: Path) -> AsyncIterator[Mapping[str, Any]]:
    async with Client(path) as node:
        while True:
            try:
                yield await node.call("status")
            except TunnelError as error:
                # The node ended after the start of the command: exit code 1, not 2.
                raise click.ClickException(str(error)) from error
            await asyncio.sleep(_INTERVAL)
