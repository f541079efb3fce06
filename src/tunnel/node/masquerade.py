"""
Masquerade rules for containers, in a table of their own, as ``nft -j`` reads them
(libnftables-json(5)).

    install(device, networks, subnets)  ->  commands of one transaction  ->  nft

They do what flannel's rules do. A packet within the overlay keeps its source. A packet that leaves
the overlay gets an address of this host, for no answer would reach the container's. A packet that
enters it keeps its source when it is for a container of this node, and gets an address of this node
when it is for another node's, so that the answer comes back the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tunnel.types import Prefix

Commands = list[dict[str, Any]]
"""What ``nft -j -f -`` reads under the key ``nftables``."""

FAMILY = "inet"  # one table for IPv4 and IPv6; since Linux 5.2 it can hold NAT

_SOURCE_NAT = 100  # the priority that nft calls srcnat
_MULTICAST = {4: ("224.0.0.0", 4), 6: ("ff00::", 8)}


def table_of(device: str) -> str:
    """The table's name. A device may be named "filter" or "nat", as an administrator's table is."""
    return f"tunnel-{device}"


def install(device: str, *, networks: Iterable[Prefix], subnets: Iterable[Prefix]) -> Commands:
    """
    Replaces the table, in one transaction: all of it, or nothing changes.

    Args:
        networks: Prefixes of the whole overlay, each with the rules of its family.
        subnets: This node's subnets, within the networks.
    """
    table = table_of(device)
    chain = {"family": FAMILY, "table": table, "name": "postrouting"}
    hook = {"type": "nat", "hook": "postrouting", "prio": _SOURCE_NAT, "policy": "accept"}
    own = list(subnets)
    rules = [
        {"family": FAMILY, "table": table, "chain": "postrouting", "expr": expr, "comment": comment}
        for network in networks
        for comment, expr in _rules(network, [one for one in own if one.version == network.version])
    ]
    return [
        *remove(device),
        {"add": {"table": {"family": FAMILY, "name": table}}},
        {"add": {"chain": {**chain, **hook}}},
        *({"add": {"rule": rule}} for rule in rules),
    ]


def remove(device: str) -> Commands:
    """Deletes the table. A missing one cannot be deleted, so it is added first."""
    table = {"table": {"family": FAMILY, "name": table_of(device)}}
    return [{"add": table}, {"delete": table}]


def contents(listing: Mapping[str, Any]) -> list[Any]:
    """
    The output of ``nft -j list table`` without handles, which differ after each installation.

    Versions of nft write one rule differently: compare only outputs of the same program.
    """
    return [
        {kind: {key: value for key, value in one.items() if key != "handle"}}
        for entry in listing.get("nftables", [])
        for kind, one in entry.items()
        if kind != "metainfo"
    ]


def _rules(network: Prefix, subnets: Iterable[Prefix]) -> Iterable[tuple[str, list[Any]]]:
    """Comment and expression of each; the first that matches decides."""
    source, destination = _match("saddr", network), _match("daddr", network)
    multicast = _prefix(*_MULTICAST[network.version])
    # Two hosts behind one address may use one port at the same time; random ports seldom collide.
    masquerade = {"masquerade": {"flags": "fully-random"}}
    yield "within the overlay", [source, destination, {"return": None}]
    elsewhere = _match("daddr", network, right=multicast, op="!=")
    yield "leaves the overlay", [source, elsewhere, masquerade]
    for subnet in subnets:
        yield "for containers here", [_match("daddr", subnet), {"return": None}]
    yield "for containers elsewhere", [destination, masquerade]


def _match(field: str, prefix: Prefix, *, right: Any = None, op: str = "==") -> dict[str, Any]:
    protocol = "ip" if prefix.version == 4 else "ip6"
    left = {"payload": {"protocol": protocol, "field": field}}
    right = right or _prefix(str(prefix.network_address), prefix.prefixlen)
    return {"match": {"op": op, "left": left, "right": right}}


def _prefix(address: str, length: int) -> dict[str, Any]:
    return {"prefix": {"addr": address, "len": length}}
