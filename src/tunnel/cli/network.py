"""``tunnel network``: what a cluster has agreed upon in its store, and who has which subnet."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.table import Table
from rich.text import Text

from tunnel.cli import output
from tunnel.cli.options import option_groups
from tunnel.cluster.registry import Registry, SubnetHolder, make_network, make_owner, open_store
from tunnel.config.merged import MergedOptions
from tunnel.errors import ConfigError
from tunnel.types import parse_address, parse_prefix

T = TypeVar("T")
Verb = TypeVar("Verb", bound=Callable[..., Any])


@click.group(no_args_is_help=False)
def network() -> None:
    """
    Look after the network that a cluster's nodes find in a store.

    The store is etcd, with the keys that flannel has, or a directory.
    """


def _options(verb: Verb) -> Verb:
    verb = click.option("--json", "as_json", is_flag=True, help="Print JSON.")(verb)
    verb = click.option(
        "--config",
        type=click.Path(readable=False, path_type=Path),
        metavar="FILE",
        help='The store as the file of "tunnel up --config" names it; flags override it.',
    )(verb)
    return option_groups("store")(verb)


def _ask(
    question: Callable[[Registry], Awaitable[T]], *, config: Path | None, words: dict[str, Any]
) -> T:
    """What the store answers. Raises TunnelError."""
    made = MergedOptions.from_click(config, words).read_store()

    async def conversation() -> T:
        async with open_store(made) as store:
            return await question(Registry(store, prefix=made.etcd_prefix))

    return asyncio.run(conversation())


@network.command()
@click.option(
    "--network",
    "networks",
    multiple=True,
    required=True,
    metavar="PREFIX",
    help="The whole overlay's prefix, one of each family.",
)
@click.option("--subnet-len", type=int, metavar="N", help="Of each node's.  [default: 24]")
@click.option("--subnet-min", metavar="ADDR", help="The first.  [default: the second there is]")
@click.option("--subnet-max", metavar="ADDR", help="The last.  [default: the last there is]")
@click.option("--ipv6-subnet-len", type=int, metavar="N", help="The same.  [default: 64]")
@click.option("--ipv6-subnet-min", metavar="ADDR", help="The same for IPv6.")
@click.option("--ipv6-subnet-max", metavar="ADDR", help="The same for IPv6.")
@click.option("--vni", type=int, default=1, show_default=True, metavar="N", help="Which overlay.")
@click.option(
    "--port", type=int, default=8472, show_default=True, metavar="N", help="Everybody's UDP port."
)
@click.option("--mtu", type=int, metavar="N", help="The underlay's.  [default: each node's own]")
@click.option("--replace", is_flag=True, help="Write over another one; nodes have to be restarted.")
@_options
def init(
    *,
    networks: tuple[str, ...],
    vni: int,
    port: int,
    mtu: int | None,
    replace: bool,
    config: Path | None,
    as_json: bool,
    **words: Any,
) -> None:
    """
    Write the network's config, which nodes wait for.

    \b
      tunnel network init --network 10.244.0.0/16 --etcd-endpoints http://192.0.2.9:2379
    """
    families = [parse_prefix(one) for one in networks]
    lengths = {6: words.pop("ipv6_subnet_len"), 4: words.pop("subnet_len")}
    ends = {
        family: tuple(
            None if text is None else parse_address(text)
            for text in (words.pop(f"{prefix}subnet_min"), words.pop(f"{prefix}subnet_max"))
        )
        for family, prefix in {4: "", 6: "ipv6_"}.items()
    }
    made = make_network(families, lengths=lengths, ends=ends, vni=vni, port=port, mtu=mtu)
    _ask(lambda registry: registry.create(made, replace=replace), config=config, words=words)
    _show(as_json=as_json, config=config, words=words)


@network.command()
@_options
def show(config: Path | None, as_json: bool, **words: Any) -> None:
    """
    Show the network's config, and what is wrong with it.

    Exit code 1 if something is.
    """
    _show(as_json=as_json, config=config, words=words)


def _show(*, as_json: bool, config: Path | None, words: dict[str, Any]) -> None:
    found, remarks = _ask(lambda registry: registry.show(), config=config, words=words)
    pools = [
        {
            "network": str(pool.network),
            "subnet_length": pool.length,
            "first": str(pool.first),
            "last": str(pool.last),
            "subnets": pool.size,
        }
        for pool in (found.pools if found else ())
    ]
    facts = {"vni": found.vni, "port": found.port, "mtu": found.mtu} if found else {}
    if as_json:
        output.print_json({"valid": bool(found), "pools": pools, **facts, "remarks": remarks})
    else:
        for pool in pools:
            click.echo(
                f"{pool['network']}: {pool['subnets']} subnets of /{pool['subnet_length']}, "
                f"{pool['first']} to {pool['last']}"
            )
        if found:
            mtu = f", underlay mtu {found.mtu}" if found.mtu else ""
            click.echo(f"vni {found.vni}, port {found.port}{mtu}")
        for remark in remarks:
            click.echo(remark if found else f"wrong: {remark}")
    if found is None:
        click.get_current_context().exit(1)


@network.command()
@_options
def leases(config: Path | None, as_json: bool, **words: Any) -> None:
    """Show who has which subnet, and for how long if he does not renew it."""
    found = _ask(lambda registry: registry.leases(), config=config, words=words)
    if as_json:
        output.print_json([_plain(one) for one in found])
        return
    if not found:
        click.echo("no subnet is taken")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("subnet", "node", "address", "MAC", "state", "ends in"):
        # Where there is no room for all of them ids are folded, and none is cut off.
        table.add_column(title, overflow="fold", no_wrap=title in ("MAC", "state", "ends in"))
    for one in found:
        addresses = [str(address) for address in (one.address, one.address6) if address]
        row = (
            ", ".join(map(str, one.subnets)),
            one.node or (one.backend and f"({one.backend})") or "-",
            ", ".join(addresses) or "-",
            one.mac or "-",
            one.state,
            "never" if one.remaining is None else output.duration(one.remaining),
        )
        table.add_row(*map(Text, row))
    output.console().print(table)


def _plain(one: SubnetHolder) -> dict[str, Any]:
    return {
        "subnets": [str(subnet) for subnet in one.subnets],
        "node": one.node,
        "address": str(one.address) if one.address else None,
        "address6": str(one.address6) if one.address6 else None,
        "mac": one.mac or None,
        "backend": one.backend,
        "state": one.state,
        "remaining": one.remaining,
    }


@network.command()
@click.argument("subnets", metavar="SUBNET...", nargs=-1, required=True)
@click.option(
    "--node", "owner", metavar="ID", default="", help='Whose: see "tunnel network leases".'
)
@click.option("--for", "address", metavar="ADDR", default="", help="Whose, by its public address.")
@_options
def reserve(
    subnets: tuple[str, ...],
    owner: str,
    address: str,
    config: Path | None,
    as_json: bool,
    **words: Any,
) -> None:
    """
    Keep a subnet for a node, or one of each family, until it is released.

    Its node gets it when it is started next, and keeps it however long it is away.
    """
    if bool(owner) == bool(address):
        raise ConfigError("whose? (give --node ID, or --for ADDR)")
    wanted = tuple(sorted((parse_prefix(one) for one in subnets), key=lambda one: one.version))
    record = make_owner(node=owner, address=address)
    _ask(lambda registry: registry.reserve(wanted, owner=record), config=config, words=words)
    _changed("added", wanted, as_json=as_json)


@network.command()
@click.argument("subnets", metavar="SUBNET...", nargs=-1, required=True)
@click.option("--force", is_flag=True, help="A node's lease as well, if that is gone for good.")
@_options
def release(
    subnets: tuple[str, ...], force: bool, config: Path | None, as_json: bool, **words: Any
) -> None:
    """Let a reservation go: others may get that subnet."""
    wanted = [parse_prefix(one) for one in subnets]
    gone = _ask(lambda registry: registry.release(wanted, force=force), config=config, words=words)
    _changed("removed", gone, as_json=as_json)


def _changed(what: str, subnets: tuple[Any, ...], *, as_json: bool) -> None:
    if as_json:
        output.print_json({what: [str(one) for one in subnets]})
    else:
        click.echo("\n".join(f"{'+' if what == 'added' else '-'} {one}" for one in subnets))
