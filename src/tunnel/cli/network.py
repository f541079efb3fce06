"""``tunnel network``: the network of a cluster in its store, and the subnets of its nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.table import Table
from rich.text import Text

from tunnel.cli import output
from tunnel.cli.options import option_groups
from tunnel.cluster.network import Pool
from tunnel.cluster.registry import Registry, SubnetHolder, make_network, make_owner, open_store
from tunnel.config.merged import MergedOptions
from tunnel.errors import ConfigError
from tunnel.types import Address, Prefix, parse_address, parse_prefix

T = TypeVar("T")
Verb = TypeVar("Verb", bound=Callable[..., Any])


@click.group(no_args_is_help=False)
def network() -> None:
    """
    Manage the network of a cluster in its store.

    The store is etcd, with flannel's keys, or a shared directory.
    """


def _options(verb: Verb) -> Verb:
    verb = click.option("--json", "as_json", is_flag=True, help="Print JSON.")(verb)
    verb = click.option(
        "--config",
        type=click.Path(readable=False, path_type=Path),
        metavar="FILE",
        help='Read the store from a file of "tunnel up --config". Flags override it.',
    )(verb)
    return option_groups("store")(verb)


def _run(
    request: Callable[[Registry], Awaitable[T]], *, config: Path | None, options: dict[str, Any]
) -> T:
    """The result of `request`. Raises TunnelError."""
    cluster = MergedOptions.from_click(config, options).read_store()

    async def run() -> T:
        async with open_store(cluster) as store:
            return await request(Registry(store, prefix=cluster.etcd_prefix))

    return asyncio.run(run())


@network.command()
@click.option(
    "--network",
    "networks",
    multiple=True,
    required=True,
    metavar="PREFIX",
    help="Prefix of the overlay. Repeat it for the other address family.",
)
@click.option(
    "--subnet-len",
    type=int,
    metavar="N",
    help="Prefix length of a node's IPv4 subnet.  [default: 24]",
)
@click.option(
    "--subnet-min", metavar="ADDR", help="First IPv4 subnet for nodes.  [default: the second]"
)
@click.option(
    "--subnet-max", metavar="ADDR", help="Last IPv4 subnet for nodes.  [default: the last]"
)
@click.option(
    "--ipv6-subnet-len",
    type=int,
    metavar="N",
    help="Prefix length of a node's IPv6 subnet.  [default: 64]",
)
@click.option(
    "--ipv6-subnet-min", metavar="ADDR", help="First IPv6 subnet for nodes.  [default: the second]"
)
@click.option(
    "--ipv6-subnet-max", metavar="ADDR", help="Last IPv6 subnet for nodes.  [default: the last]"
)
@click.option(
    "--vni", type=int, default=1, show_default=True, metavar="N", help="VNI of the overlay."
)
@click.option(
    "--port", type=int, default=8472, show_default=True, metavar="N", help="UDP port of every node."
)
@click.option(
    "--mtu",
    type=int,
    metavar="N",
    help="MTU of the underlay.  [default: that of each node's interface]",
)
@click.option(
    "--replace",
    is_flag=True,
    help="Write over a different network. Every node has to be restarted.",
)
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
    **options: Any,
) -> None:
    """
    Write the config of the network, for which nodes wait.

    \b
      tunnel network init --network 10.244.0.0/16 --etcd-endpoints http://192.0.2.9:2379
    """
    lengths = {6: options.pop("ipv6_subnet_len"), 4: options.pop("subnet_len")}
    ends = {
        version: [_parse_optional(options.pop(f"{prefix}subnet_{end}")) for end in ("min", "max")]
        for version, prefix in {4: "", 6: "ipv6_"}.items()
    }
    made = make_network(networks, lengths=lengths, ends=ends, vni=vni, port=port, mtu=mtu)
    _run(lambda registry: registry.create(made, replace=replace), config=config, options=options)
    _show(as_json=as_json, config=config, options=options)


def _parse_optional(text: str | None) -> Address | None:
    return None if text is None else parse_address(text)


@network.command()
@_options
def show(config: Path | None, as_json: bool, **options: Any) -> None:
    """
    Show the config of the network, and its faults.

    Exit code 1 if it has any.
    """
    _show(as_json=as_json, config=config, options=options)


def _show(*, as_json: bool, config: Path | None, options: dict[str, Any]) -> None:
    found, remarks = _run(lambda registry: registry.show(), config=config, options=options)
    if as_json:
        values = {"vni": found.vni, "port": found.port, "mtu": found.mtu} if found else {}
        pools = [_pool_as_json(pool) for pool in found.pools] if found else []
        output.print_json({"valid": bool(found), "pools": pools, **values, "remarks": remarks})
    elif found:
        for pool in found.pools:
            subnets = f"{pool.size} subnets of /{pool.length}, {pool.first} to {pool.last}"
            click.echo(f"{pool.network}: {subnets}")
        mtu = f", underlay mtu {found.mtu}" if found.mtu else ""
        click.echo(f"vni {found.vni}, port {found.port}{mtu}")
    if not as_json:
        for remark in remarks:
            click.echo(remark if found else f"wrong: {remark}")
    if found is None:
        click.get_current_context().exit(1)


def _pool_as_json(pool: Pool) -> dict[str, Any]:
    return {
        "network": str(pool.network),
        "subnet_length": pool.length,
        "first": str(pool.first),
        "last": str(pool.last),
        "subnets": pool.size,
    }


@network.command()
@_options
def leases(config: Path | None, as_json: bool, **options: Any) -> None:
    """Show which node has which subnet, and until when unless the node renews it."""
    found = _run(lambda registry: registry.leases(), config=config, options=options)
    if as_json:
        output.print_json([_holder_as_json(holder) for holder in found])
        return
    if not found:
        click.echo("no node has a subnet")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("subnet", "node", "address", "MAC", "state", "ends in"):
        # In a narrow terminal ids are folded, never cut off.
        table.add_column(title, overflow="fold", no_wrap=title in ("MAC", "state", "ends in"))
    for holder in found:
        table.add_row(*map(Text, _row(holder)))
    output.console().print(table)


def _row(holder: SubnetHolder) -> tuple[str, ...]:
    addresses = [str(address) for address in (holder.address, holder.address6) if address]
    return (
        ", ".join(map(str, holder.subnets)),
        holder.node or _describe_backend(holder) or "-",
        ", ".join(addresses) or "-",
        holder.mac or "-",
        holder.state,
        "never" if holder.remaining is None else output.duration(holder.remaining),
    )


def _describe_backend(holder: SubnetHolder) -> str:
    """What has the subnet of a record without a node id."""
    if holder.backend:
        return f"({holder.backend})"
    return "(udp or alloc)" if holder.state == "lease" else ""


def _holder_as_json(holder: SubnetHolder) -> dict[str, Any]:
    return {
        "subnets": [str(subnet) for subnet in holder.subnets],
        "node": holder.node,
        "address": str(holder.address) if holder.address else None,
        "address6": str(holder.address6) if holder.address6 else None,
        "mac": holder.mac or None,
        "backend": holder.backend,
        "state": holder.state,
        "remaining": holder.remaining,
    }


@network.command()
@click.argument("subnets", metavar="SUBNET...", nargs=-1, required=True)
@click.option(
    "--node",
    "owner",
    metavar="ID",
    default="",
    help='The node, by the id in "tunnel network leases".',
)
@click.option(
    "--for", "address", metavar="ADDR", default="", help="The node, by its public address."
)
@_options
def reserve(
    subnets: tuple[str, ...],
    owner: str,
    address: str,
    config: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """
    Reserve a subnet for a node, or one of each family, until it is released.

    The node gets it at its next start, and keeps it however long it is stopped.
    """
    if bool(owner) == bool(address):
        raise ConfigError("no node is given (give --node ID, or --for ADDR)")
    wanted = tuple(sorted(map(parse_prefix, subnets), key=lambda subnet: subnet.version))
    record = make_owner(node=owner, address=address)
    _run(lambda registry: registry.reserve(wanted, owner=record), config=config, options=options)
    _print_change("added", wanted, as_json=as_json)


@network.command()
@click.argument("subnets", metavar="SUBNET...", nargs=-1, required=True)
@click.option(
    "--force", is_flag=True, help="Also release the lease of a node, if it will not return."
)
@_options
def release(
    subnets: tuple[str, ...], force: bool, config: Path | None, as_json: bool, **options: Any
) -> None:
    """Release a reservation: other nodes may get the subnet."""
    wanted = [parse_prefix(one) for one in subnets]
    released = _run(
        lambda registry: registry.release(wanted, force=force), config=config, options=options
    )
    _print_change("removed", released, as_json=as_json)


def _print_change(what: str, subnets: Iterable[Prefix], *, as_json: bool) -> None:
    output.print_changes({what: [str(subnet) for subnet in subnets]}, as_json=as_json)
