"""What no option shows by itself: which values go together."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tunnel.config.options import NODE_OPTIONS
from tunnel.errors import ConfigError
from tunnel.prefixes import OwnedPrefix, contains, overlaps
from tunnel.types import ANY_VTEP_MAC, Address, Endpoint, InterfaceAddress, Mac, Peer, Prefix

FRAME_DEFAULTS = {"flood": True, "learning": True, "ageing": 300, "storm_limit": 2000}
"""Of fields that mean something in TAP mode alone: as the kernel's vxlan, which has no limit."""

STORES = ("etcd-endpoints", "store")
TOLD_BY_STORE = ("vni", "port", "network")


def conflicts(
    peers: Mapping[int, Peer],
    *,
    subnets: Iterable[Prefix],
    local: Collection[Endpoint],
    mode: str = "tun",
) -> Iterator[ConfigError]:
    """
    What keeps these peers from being together in one tunnel with us: one that is ourselves, one
    named twice, one to which no packet is routed, a prefix of two owners. Takes n log n time; a
    fault's key is ``("peer", index)``.
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
                f"peer {peer.endpoint} is there twice (name it once, with all its prefixes)",
                key=("peer", index),
            )
        seen.add(peer.endpoint)
    claims = [OwnedPrefix(prefix, -1) for prefix in subnets]
    claims += [OwnedPrefix(prefix, i) for i, peer in peers.items() for prefix in peer.prefixes]
    for earlier, later in overlaps(claims):
        whose = f"peer {peers[earlier.owner].endpoint}" if earlier.owner >= 0 else "this node"
        yield ConfigError(
            f"prefix {later.prefix} of peer {peers[later.owner].endpoint} overlaps "
            f"{earlier.prefix} of {whose} (a prefix has one owner)",
            key=("peer", later.owner),
        )


def cluster_rules(words: Mapping[str, object]) -> Iterator[ConfigError]:
    if all(words.get(word) for word in STORES):
        yield ConfigError("store is one directory, etcd-endpoints another store", key=("store",))
    for word in TOLD_BY_STORE:
        if words.get(word) not in (None, ()):
            yield ConfigError(
                f"{word} is what the network in the store says (leave it out)", key=(word,)
            )


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
    """What no word shows by itself."""
    inner = [*subnets.values(), *addresses.values()]
    inner += [prefix for peer in peers.values() for prefix in peer.prefixes]
    if mtu is not None and mtu < 1280 and any(prefix.version == 6 for prefix in inner):
        yield ConfigError(f"mtu {mtu} is too small for IPv6 inside (at least 1280)", key=("mtu",))
    if local is not None and peers:
        # A name may turn out to be of either family. Peers of both are served from two
        # addresses, and `local` is one of them.
        hosts = [peer.endpoint.address for peer in peers.values()]
        if all(host is not None and host.version != local.version for host in hosts):
            yield ConfigError(
                f"local {local} is IPv{local.version}, but no peer is "
                f"(give an IPv{10 - local.version} address or leave it out)",
                key=("local",),
            )
    if mac == ANY_VTEP_MAC:
        yield ConfigError(f"mac {mac} is accepted by every node (choose another)", key=("mac",))
    for index, peer in peers.items():
        if mac is not None and peer.mac == mac:
            yield ConfigError(
                f"mac {mac} of peer {peer.endpoint} is this node's own (each needs its own)",
                key=("peer", index),
            )
    ourselves = {Endpoint(str(local), port)} if local is not None else set()
    yield from conflicts(peers, subnets=subnets.values(), local=ourselves, mode=mode)


def frame_rules(*, mode: str, **fields: Any) -> Iterator[ConfigError]:
    """What is about Ethernet frames means nothing where there are none."""
    for name, word in NODE_OPTIONS.items():
        if mode == "tun" and word.field in FRAME_DEFAULTS and fields[word.field] is not None:
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
    """What containers need: a subnet here in the network of its family, and room in it."""
    for word, given in (("subnet-file", subnet_file is not None), ("ip-masq", ip_masq)):
        if given and not networks:
            yield ConfigError(
                f"{word} takes the whole overlay's prefix (give network, like 10.244.0.0/16)",
                key=(word,),
            )
    families: dict[int, Prefix] = {}
    for index, network in networks.items():
        first = families.setdefault(network.version, network)
        if first != network:
            yield ConfigError(
                f"network {network} is beside {first} (give one of each family, around both)",
                key=("network", index),
            )
        own = {subnet for subnet in subnets.values() if subnet.version == network.version}
        if len(own) != 1 and subnet_file is not None:
            yield ConfigError(
                f"subnet-file tells of one subnet in network {network}, not of {len(own)} "
                "(give one, or leave subnet-file out)",
                key=("network", index),
            )
    for index, subnet in subnets.items():
        around = families.get(subnet.version)
        if families and (around is None or not contains(around, subnet)):
            yield ConfigError(
                f"subnet {subnet} is not within the network {around or 'of its family'} "
                "(give the network that is around it)",
                key=("subnet", index),
            )
        if subnet_file is not None and subnet.num_addresses < 4:
            yield ConfigError(
                f"subnet {subnet} has no room for a bridge and containers (at least 4 addresses)",
                key=("subnet", index),
            )
