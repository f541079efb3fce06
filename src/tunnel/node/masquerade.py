"""
Masquerade for containers: rules of a table of our own, as ``nft -j`` reads them
(libnftables-json(5)).

    install(device, networks, subnets)  ->  commands of one transaction  ->  nft

What they say is what flannel's rules say, in fewer words. Within the overlay everybody is seen as
who he is; what leaves it has an address of this host, without which no answer would come back. What
enters it from outside keeps its source if it is for containers of this node, and has an address of
this node if it is for others', so that the answer comes back the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tunnel.types import Prefix

Commands = list[dict[str, Any]]
"""What ``nft -j -f -`` takes under the key ``nftables``."""

FAMILY = "inet"  # one table for both; since Linux 5.2 it can hold NAT

_SOURCE_NAT = 100  # the priority that nft calls srcnat
_MULTICAST = {4: ("224.0.0.0", 4), 6: ("ff00::", 8)}


def table_of(device: str) -> str:
    """The table's name. A device may be called "filter" or "nat" as an admin's table is."""
    return f"tunnel-{device}"


def install(device: str, *, networks: Iterable[Prefix], subnets: Iterable[Prefix]) -> Commands:
    """
    Puts the table as it has to be in place of whatever is there: all of it, or nothing changes.

    Args:
        networks: Of the whole overlay, each with the rules of its family.
        subnets: Of this node, within them.
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
    """Takes the table away. What is not there cannot be deleted, so it is made first."""
    table = {"table": {"family": FAMILY, "name": table_of(device)}}
    return [{"add": table}, {"delete": table}]


def contents(listing: Mapping[str, Any]) -> list[Any]:
    """
    What ``nft -j list table`` has said, without what differs each time the same is installed.
    Different versions of nft spell one rule differently, so compare only what it said itself.
    """
    return [
        {kind: {key: value for key, value in one.items() if key != "handle"}}
        for entry in listing.get("nftables", [])
        for kind, one in entry.items()
        if kind != "metainfo"
    ]


def _rules(network: Prefix, subnets: Iterable[Prefix]) -> Iterable[tuple[str, list[Any]]]:
    """Comment and expression of each, the first that fits decides."""
    source, destination = _match("saddr", network), _match("daddr", network)
    multicast = _prefix(*_MULTICAST[network.version])
    # Two hosts behind one address may choose one port at the same time: by chance they seldom do.
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
