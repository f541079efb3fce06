"""What the verbs that talk to a running node have in common."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console

from tunnel.rpc.client import TIMEOUT, Client, find

Verb = TypeVar("Verb", bound=Callable[..., Any])

PIPED_WIDTH = 200
"""Columns where there is no terminal: what reads a pipe wants all of it."""


def options(verb: Verb) -> Verb:
    """``--name``, ``--control`` and ``--json``, which come as name, control and as_json."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        click.option(
            "--control",
            type=click.Path(readable=False, path_type=Path),
            metavar="PATH",
            envvar="TUNNEL_CONTROL",
            help="The node's control socket.  [default: the one in /run/tunnel or "
            "$XDG_RUNTIME_DIR/tunnel]",
        ),
        click.option("--name", envvar="TUNNEL_NAME", help="Which node, where there are several."),
    ):
        verb = option(verb)
    return verb


def ask(
    call: str,
    *,
    name: str | None,
    control: Path | None,
    timeout: float = TIMEOUT,
    **args: object,
) -> Any:
    """What a node answers. Raises TunnelError."""

    async def conversation() -> Any:
        async with Client(control or find(name), timeout=timeout) as node:
            return await node.call(call, **args)

    return asyncio.run(conversation())


def print_json(result: object) -> None:
    click.echo(json.dumps(result, indent=2))


def console() -> Console:
    """For tables and text that is as wide as it is."""
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    # An IPv6 address in brackets is no markup.
    width = PIPED_WIDTH if piped else None
    return Console(highlight=False, markup=False, emoji=False, width=width)


def duration(seconds: float) -> str:
    """``42 s``, ``12 min``, ``3 h 12 min``, ``5 d 3 h``."""
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if minutes < 1:
        return f"{int(seconds)} s"
    if hours < 1:
        return f"{minutes} min"
    if hours < 48:
        return f"{hours} h {minutes % 60} min"
    return f"{hours // 24} d {hours % 24} h"


def trip(seconds: float | None) -> str:
    """A round trip for people."""
    if seconds is None:
        return "-"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.2f} s"
