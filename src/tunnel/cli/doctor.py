"""``tunnel doctor``: checks what usually goes wrong, and says what to do about it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import click

from tunnel.cli import output
from tunnel.cli.up import up
from tunnel.config.cluster import ClusterConfig
from tunnel.config.merged import MergedOptions
from tunnel.config.node import Config
from tunnel.config.options import OPTIONS
from tunnel.diagnostics.doctor import Finding, Level, examine, try_peers
from tunnel.rpc.client import Client
from tunnel.rpc.socket_paths import find, is_served, nodes
from tunnel.status import Status
from tunnel.types import Endpoint

_COLOURS = {Level.OK: "green", Level.WARNING: "yellow", Level.FAILED: "red"}


@click.command(
    params=[
        param
        for param in up.params
        if param.name == "config" or (param.name or "").replace("_", "-") in OPTIONS
    ],
    context_settings={"auto_envvar_prefix": "TUNNEL"},
)
@click.option(
    "--control",
    type=click.Path(readable=False, path_type=Path),
    metavar="PATH",
    help="Control socket of a running node.  [default: that of the node of this name]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def doctor(
    context: click.Context,
    /,
    config: Path | None,
    control: Path | None,
    as_json: bool,
    **flags: object,
) -> None:
    """
    Check what usually goes wrong, and say what to do.

    Checks the node that runs here (--name selects one of several) and the host around it, and
    tests whether trains of datagrams reach its peers undamaged; the node stops sending trains to a
    peer that gets them damaged. If no node runs, checks what "tunnel up" with the same options
    would need.

    Exits with 1 if a check failed; a warning does not count.
    """
    options = MergedOptions.from_click(config, flags)
    read, given = options.read(), options.flags
    node_config = read.node if isinstance(read, ClusterConfig) else read
    is_named = bool(config or given)
    is_configured = bool(config or given.keys() - {"name"})
    path = control or _find_running(node_config.name if is_named else None)
    use_config = is_configured or not path
    status, findings = asyncio.run(_examine(path, node_config if use_config else None))
    if as_json:
        output.print_json(_as_json(status, findings))
    else:
        _print(findings)
    context.exit(any(one.level is Level.FAILED for one in findings))


def _find_running(name: str | None) -> Path | None:
    """Returns the control socket of the running node of this name, or without a name of the only
    one; None if there is none. Raises TunnelError if there are several."""
    served = {one: path for one, path in nodes().items() if is_served(path)}
    if name is None and len(served) > 1:
        return find()
    return served.get(name) if name else next(iter(served.values()), None)


async def _examine(path: Path | None, config: Config | None) -> tuple[Status | None, list[Finding]]:
    """Examines this host as this process sees it, which may differ from what the node sees."""
    if path is None:
        return None, await examine(config)
    async with Client(path) as client:

        async def try_trains(endpoint: Endpoint) -> bool:
            return bool((await client.call("try_trains", peer=str(endpoint)))["trains"])

        status, trains = await try_peers(client.status, try_trains=try_trains)
    return status, await examine(config, status=status, trains=trains)


def _as_json(status: Status | None, findings: Sequence[Finding]) -> dict[str, object]:
    return {
        "node": status.name if status else None,
        "healthy": not any(one.level is Level.FAILED for one in findings),
        "findings": [
            {"check": one.check, "level": one.level.value, "text": one.text, "advice": one.advice}
            for one in findings
        ],
    }


def _print(findings: Sequence[Finding]) -> None:
    for one in findings:
        level = click.style(f"{one.level.value:7}", fg=_COLOURS[one.level])
        click.echo(f"{level}  {one.check:12}  {one.text}")
        if one.advice:  # on its own line, so that a command is easy to copy
            click.echo(f"{'':23}{one.advice}")
