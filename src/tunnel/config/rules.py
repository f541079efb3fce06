"""
The rules between options: which values are valid together.

Each function yields a ConfigError for each fault, with the key of the option to change. Values
of repeatable options are dicts by their index.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from tunnel.config.options import NODE_OPTIONS
from tunnel.errors import ConfigError
from tunnel.prefixes import OwnedPrefix, contains, overlaps
from tunnel.types import ANY_VTEP_MAC, Address, Endpoint, InterfaceAddress, Mac, Peer, Prefix

STORES = ("etcd-endpoints", "store")
"""The options that name a store. One of them makes the node a member of a cluster."""

SET_BY_STORE = ("vni", "port", "network")
"""The options that a member of a cluster reads from the store."""


def node_rules(
    *,
    local: Address | None,
    port: int,
    subnets: Mapping[int, Prefix],
    addresses: Mapping[int, InterfaceAddress],
    mtu: int | None,
    mac: Mac | None,
    peers: Mapping[int, Peer],
    mode: str,
    **_: object,
) -> Iterator[ConfigError]:
    """Faults between this node's addresses, its MTU and its peers."""
    inner = [*subnets.values(), *addresses.values()]
    inner += [prefix for peer in peers.values() for prefix in peer.prefixes]
    if mtu is not None and mtu < 1280 and any(prefix.version == 6 for prefix in inner):
        yield ConfigError(f"mtu {mtu} is too small for inner IPv6 (at least 1280)", key=("mtu",))
    if local is not None and peers:
        # A name may resolve to either family. With peers of both families the node sends from
        # two addresses, and `local` is one of them.
        hosts = [peer.endpoint.address for peer in peers.values()]
        if all(host is not None and host.version != local.version for host in hosts):
            yield ConfigError(
                f"local {local} is IPv{local.version}, but no peer is "
                f"(give an IPv{10 - local.version} address or leave it out)",
                key=("local",),
            )
    yield from _mac_faults(mac, peers)
    own = {Endpoint(str(local), port)} if local is not None else set()
    yield from conflicts(peers, subnets=subnets.values(), local=own, mode=mode)


def _mac_faults(mac: Mac | None, peers: Mapping[int, Peer]) -> Iterator[ConfigError]:
    if mac == ANY_VTEP_MAC:
        yield ConfigError(f"mac {mac} is accepted by every node (choose another)", key=("mac",))
    for index, peer in peers.items():
        if mac is not None and peer.mac == mac:
            yield ConfigError(
                f"mac {mac} of peer {peer.endpoint} is this node's own (each node needs its own)",
                key=("peer", index),
            )


def conflicts(
    peers: Mapping[int, Peer],
    *,
    subnets: Iterable[Prefix],
    local: Collection[Endpoint],
    mode: str = "tun",
) -> Iterator[ConfigError]:
    """
    Yields the faults that keep these peers from sharing a tunnel with this node.

    A fault is a peer that is this node itself, one that is given twice, one without a prefix in
    TUN mode, or a prefix with two owners; its key is ``("peer", index)``. Takes n log n time.

    Args:
        subnets: This node's own.
        local: This node's own endpoints.
    """
    seen: set[Endpoint] = set()
    for index, peer in peers.items():
        if mode == "tun" and not peer.prefixes:
            yield ConfigError(
                f"peer {peer.endpoint} has no prefix (like {peer.endpoint.host}=10.244.2.0/24)",
                key=("peer", index),
            )
        if peer.endpoint in local:
            yield ConfigError(
                f"peer {peer.endpoint} is this node itself (leave it out)", key=("peer", index)
            )
        if peer.endpoint in seen:
            yield ConfigError(
                f"peer {peer.endpoint} is given twice (give it once, with all its prefixes)",
                key=("peer", index),
            )
        seen.add(peer.endpoint)
    owned = [OwnedPrefix(prefix, -1) for prefix in subnets]
    owned += [OwnedPrefix(prefix, i) for i, peer in peers.items() for prefix in peer.prefixes]
    for earlier, later in overlaps(owned):
        owner = f"peer {peers[earlier.owner].endpoint}" if earlier.owner >= 0 else "this node"
        yield ConfigError(
            f"prefix {later.prefix} of peer {peers[later.owner].endpoint} overlaps "
            f"{earlier.prefix} of {owner} (a prefix has one owner)",
            key=("peer", later.owner),
        )


def frame_rules(*, mode: str, **values: object) -> Iterator[ConfigError]:
    """Faults of options that apply to Ethernet frames, in TUN mode."""
    for name, option in NODE_OPTIONS.items():
        if mode == "tun" and option.tap_default is not None and values[option.keyword] is not None:
            yield ConfigError(
                f"{name} is about Ethernet frames, and mode tun has none (give mode tap as well, "
                f"or leave {name} out)",
                key=(name,),
            )


def container_rules(
    *,
    subnets: Mapping[int, Prefix],
    networks: Mapping[int, Prefix],
    subnet_file: Path | None,
    ip_masq: bool,
    **_: object,
) -> Iterator[ConfigError]:
    """Faults between the overlay's networks, this node's subnets and the subnet file."""
    for name, given in (("subnet-file", subnet_file is not None), ("ip-masq", ip_masq)):
        if given and not networks:
            yield ConfigError(
                f"{name} needs the prefix of the whole overlay (give network, like 10.244.0.0/16)",
                key=(name,),
            )
    network_of: dict[int, Prefix] = {}
    for index, network in networks.items():
        first = network_of.setdefault(network.version, network)
        if first != network:
            yield ConfigError(
                f"network {network} is a second network beside {first} (give one that "
                "contains both)",
                key=("network", index),
            )
        own = {subnet for subnet in subnets.values() if subnet.version == network.version}
        if len(own) != 1 and subnet_file is not None:
            yield ConfigError(
                f"subnet-file holds one subnet in network {network}, not for {len(own)} "
                "(give one, or leave subnet-file out)",
                key=("network", index),
            )
    for index, subnet in subnets.items():
        yield from _subnet_faults(
            index, subnet, network_of=network_of, in_file=subnet_file is not None
        )


def _subnet_faults(
    index: int, subnet: Prefix, *, network_of: Mapping[int, Prefix], in_file: bool
) -> Iterator[ConfigError]:
    network = network_of.get(subnet.version)
    if network_of and (network is None or not contains(network, subnet)):
        yield ConfigError(
            f"subnet {subnet} is not within the network {network or 'of its family'} "
            "(give the network that contains it)",
            key=("subnet", index),
        )
    if in_file and subnet.num_addresses < 4:
        yield ConfigError(
            f"subnet {subnet} has no room for a bridge and containers (at least 4 addresses)",
            key=("subnet", index),
        )


def names_store(options: Mapping[str, object]) -> bool:
    """Whether the options name a store."""
    return any(options.get(name) for name in STORES)


def cluster_rules(options: Mapping[str, object]) -> Iterator[ConfigError]:
    """Faults of unparsed options: no store, two stores, or options that only the store may set."""
    if not names_store(options):
        yield ConfigError("no store is given (give etcd-endpoints or store)")
    if all(options.get(name) for name in STORES):
        yield ConfigError("store and etcd-endpoints are two stores (leave one out)", key=("store",))
    for name in SET_BY_STORE:
        if options.get(name) not in (None, ()):
            yield ConfigError(
                f"{name} is read from the network in the store (leave it out)", key=(name,)
            )


def lease_rules(*, margin: int | None, ttl: int, **_: object) -> Iterator[ConfigError]:
    """Faults between the duration of a lease, in seconds, and the minutes before its end at which
    it is renewed."""
    if margin is not None and 60 * margin >= ttl:
        yield ConfigError(
            f"subnet-lease-renew-margin {margin} is the whole lease of {ttl} s (give fewer "
            "minutes, or a longer subnet-lease-ttl)",
            key=("subnet-lease-renew-margin",),
        )
