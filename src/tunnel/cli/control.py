"""The options and requests of the verbs that talk to a running node over its control socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from tunnel.rpc.client import TIMEOUT, Client
from tunnel.rpc.socket_paths import find

Verb = TypeVar("Verb", bound=Callable[..., Any])


def node_options(verb: Verb) -> Verb:
    """Adds ``--name``, ``--control`` and ``--json``, passed as name, control and as_json."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        click.option(
            "--control",
            type=click.Path(readable=False, path_type=Path),
            metavar="PATH",
            envvar="TUNNEL_CONTROL",
            help="Control socket of the node.  [default: the one in /run/tunnel or "
            "$XDG_RUNTIME_DIR/tunnel]",
        ),
        click.option("--name", envvar="TUNNEL_NAME", help="Node to ask, if there are several."),
    ):
        verb = option(verb)
    return verb


def request(
    call: str,
    *,
    name: str | None,
    control: Path | None,
    timeout: float = TIMEOUT,
    **args: object,
) -> Any:
    """Sends one request to a node and returns its result. Raises TunnelError."""

    async def conversation() -> Any:
        async with Client(control or find(name), timeout=timeout) as node:
            try:
                return await node.call(call, **args)
            finally:
                note_namespace(node)

    return asyncio.run(conversation())


def note_namespace(client: Client) -> None:
    """Prints a line on stderr if the node that has answered is in another network namespace."""
    node = client.node
    if node is not None and not node.is_here:
        click.echo(
            f"tunnel: {node.name} (pid {node.pid}) runs in another network namespace, {node.netns}",
            err=True,
        )
