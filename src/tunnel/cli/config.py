"""``tunnel config check``."""

from __future__ import annotations

from pathlib import Path

import click

from tunnel.config.cluster import ClusterConfig, faults, read_config
from tunnel.config.tomlfile import ConfigFile


@click.group(no_args_is_help=False)
def config() -> None:
    """Work with configuration files."""


@config.command()
@click.argument("path", metavar="FILE", type=click.Path(readable=False, path_type=Path))
@click.pass_context
def check(context: click.Context, path: Path) -> None:
    """
    Say everything that is wrong with FILE, by line and key.

    Checks what can be checked without a look at the machine. Exit code 0 if nothing is
    wrong, 2 if something is.
    """
    file = ConfigFile.read(path)
    wrong = sorted(faults(file.words), key=file.line)
    if wrong:
        click.echo("\n".join(file.describe(error) for error in wrong))
        context.exit(2)
    made = read_config(file.words)
    if isinstance(made, ClusterConfig):
        where = made.store or ", ".join(made.etcd_endpoints)
        click.echo(f"{path}: ok: {made.node.name}, store: {where}")
    else:
        click.echo(f"{path}: ok: {made.name}, vni {made.vni}, peers: {len(made.peers)}")
