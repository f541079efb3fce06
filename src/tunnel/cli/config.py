"""``tunnel config check``."""

from __future__ import annotations

from pathlib import Path

import click

from tunnel.config import ClusterConfig, ConfigFile, faults, read_config


@click.group(no_args_is_help=False)
def config() -> None:
    """Work with configuration files."""


@config.command()
@click.argument("path", metavar="FILE", type=click.Path(readable=False, path_type=Path))
@click.pass_context
def check(context: click.Context, path: Path) -> None:
    """
    Print every fault in FILE, with its line and key.

    Checks everything that does not depend on the host. Exit code 0 if there is no fault, 2 if
    there is one.
    """
    file = ConfigFile.read(path)
    found = sorted(faults(file.options), key=file.line)
    if found:
        click.echo("\n".join(file.describe(error) for error in found))
        context.exit(2)
    checked = read_config(file.options)
    if isinstance(checked, ClusterConfig):
        store = checked.store or ", ".join(checked.etcd_endpoints)
        click.echo(f"{path}: ok: {checked.node.name}, store: {store}")
    else:
        click.echo(f"{path}: ok: {checked.name}, vni {checked.vni}, peers: {len(checked.peers)}")
