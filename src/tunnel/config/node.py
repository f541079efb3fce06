"""
What `tunnel up` and the library are told, made into one validated :class:`Config`.

    flags, TOML  ->  words  ->  each read by itself (words.py)  ->  rules between them  ->  Config

A *word* is what people write, the same in flag and file: ``subnet``, ``source-ports``. Nothing
here does I/O: what only the machine knows (a name that exists, a port in use) is found later.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tunnel.config.options import CLUSTER_OPTIONS, NODE_OPTIONS, many, read_address, read_options
from tunnel.errors import ConfigError
from tunnel.types import (
    ANY_VTEP_MAC,
    DEFAULT_PORT,
    Address,
    Endpoint,
    InterfaceAddress,
    Mac,
    Peer,
    Prefix,
)

FRAME_DEFAULTS = {"flood": True, "learning": True, "ageing": 300, "storm_limit": 2000}
"""Of fields that mean something in TAP mode alone: as the kernel's vxlan, which has no limit."""

AUTO_WORKERS = 4
"""As many as ``"auto"`` takes at most. More are for who has measured that they help."""

_STORES = ("etcd-endpoints", "store")
_TOLD_BY_STORE = ("vni", "port", "network")
_AFTER_JOINING = ("subnet-file", "ip-masq")


@dataclass(frozen=True, init=False)
class Config:
    """
    Everything that one tunnel needs to know, checked as far as that takes no I/O.

    Takes loose values (``"10.244.1.0/24"``, lists) and holds exact ones.

    Attributes:
        name: Of the device, ``tunnel<vni>`` if none is given.
        vni: 0 to 2**24-1.
        local: Underlay address to send from; None takes that of the route to the first peer.
        port: UDP port that receives.
        subnets: What lives behind this node.
        addresses: Of the device; by default each subnet's network address as /32 or /128.
        mtu: Of the device, in bytes; None takes what the underlay carries.
        mac: Our VTEP's; None derives it from VNI, local address and port.
        peers: The other nodes.
        offload: Those that may be used, out of ``tso``, ``uso``, ``trains`` and ``gro``;
            ``"auto"`` is all of them.
        loop: ``"uvloop"`` or ``"asyncio"``, for the command line.
        source_ports: Over how many UDP source ports flows are spread; 1 sends from `port`,
            as a NAT on the way may want it.
        workers: How many threads move packets; 1 leaves that to the event loop, ``"auto"`` is
            one for each CPU, up to :data:`AUTO_WORKERS`.
        mode: ``"tun"``, packets by their routes; ``"tap"``, Ethernet frames by their MACs. The
            four below are of the latter, and None in the former.
        flood: Whether a frame goes to every peer where no peer is known for its MAC, and where it
            is for all.
        learning: Whether frames from peers teach behind which peer a MAC is.
        ageing: Seconds after which that is forgotten unless it was seen again.
        storm_limit: Flooded frames a second to each peer, and from each; 0 for any number. Of
            several workers each counts for itself.
        networks: The whole overlay's prefix, at most one of each family, around `subnets`. For the
            two below, which need it.
        subnet_file: Where flannel's ``subnet.env`` is written, None for nowhere.
        ip_masq: Whether containers reach the world outside of `networks` by our address.

    Raises:
        ConfigError: The first value that cannot be; :func:`faults` finds them all.
    """

    name: str
    vni: int
    local: Address | None
    port: int
    subnets: tuple[Prefix, ...]
    addresses: tuple[InterfaceAddress, ...]
    mtu: int | None
    mac: Mac | None
    peers: tuple[Peer, ...]
    offload: frozenset[str]
    loop: str
    source_ports: int
    workers: int | Literal["auto"]
    mode: Literal["tun", "tap"]
    flood: bool | None
    learning: bool | None
    ageing: int | None
    storm_limit: int | None
    networks: tuple[Prefix, ...]
    subnet_file: Path | None
    ip_masq: bool

    def __init__(
        self,
        *,
        name: str = "",
        vni: int = 1,
        local: str | Address | None = None,
        port: int = DEFAULT_PORT,
        subnets: Iterable[str | Prefix] = (),
        addresses: Iterable[str | InterfaceAddress] = (),
        mtu: int | None = None,
        mac: str | Mac | None = None,
        peers: Iterable[str | Peer] = (),
        offload: str | Iterable[str] = "auto",
        loop: str = "uvloop",
        source_ports: int = 8,
        workers: int | str = "auto",
        mode: str = "tun",
        flood: bool | None = None,
        learning: bool | None = None,
        ageing: int | None = None,
        storm_limit: int | None = None,
        networks: Iterable[str | Prefix] = (),
        subnet_file: str | Path | None = None,
        ip_masq: bool = False,
    ) -> None:
        self._hold(
            {
                "name": name,
                "vni": vni,
                "local": local,
                "port": port,
                "subnet": subnets,
                "address": addresses,
                "mtu": mtu,
                "mac": mac,
                "peer": peers,
                "offload": offload,
                "loop": loop,
                "source-ports": source_ports,
                "workers": workers,
                "mode": mode,
                "flood": flood,
                "learning": learning,
                "ageing": ageing,
                "storm-limit": storm_limit,
                "network": networks,
                "subnet-file": subnet_file,
                "ip-masq": ip_masq,
            }
        )

    @classmethod
    def from_options(cls, words: Mapping[str, object]) -> Config:
        """A Config from what stands in a file, in flags, or both merged."""
        config = cls.__new__(cls)
        config._hold(words)
        return config

    def _hold(self, words: Mapping[str, object]) -> None:
        fields, wrong = _read(words)
        if wrong:
            raise wrong[0]
        for field, value in fields.items():
            object.__setattr__(self, field, value)


def faults(words: Mapping[str, object]) -> list[ConfigError]:
    """Everything that is wrong with these words; nothing if they make a Config, or, where they
    name a store, a :class:`ClusterConfig`."""
    return _read_cluster(words)[1] if _names_store(words) else _read(words)[1]


def differences(before: Config, after: Config) -> list[str]:
    """The words in which two differ."""
    return [
        name
        for name, word in NODE_OPTIONS.items()
        if getattr(before, word.field) != getattr(after, word.field)
    ]


@dataclass(frozen=True)
class ClusterConfig:
    """
    A node that finds its peers, its subnet and the overlay's VNI and port in a store.

    Attributes:
        node: What it is told itself. It has no subnets yet.
        prefer: Subnets that it would like to have.
        etcd_endpoints: URLs; empty where the store is the directory `store`.
        etcd_prefix: Of all keys, without a slash at its end.
        etcd_cafile, etcd_certfile, etcd_keyfile: Names of PEM files, empty for none.
        public_ip, public_ipv6: Where others reach it, None for the interface's own.
        iface: Names or addresses of interfaces, the first that is there is taken.
        iface_regex: The same by what name or address has to match.
        iface_can_reach: The interface by which this host reaches that.
        margin: Minutes before a lease ends in which it is renewed.
        ttl: Of a lease, in seconds.
        state_dir: Where it keeps who it is, and what it knew last.
        subnet_file, ip_masq: As in :class:`Config`, once there is a network.
    """

    node: Config
    prefer: tuple[Prefix, ...]
    etcd_endpoints: tuple[str, ...]
    store: Path | None
    etcd_prefix: str
    etcd_cafile: str
    etcd_certfile: str
    etcd_keyfile: str
    etcd_username: str
    etcd_password: str
    public_ip: IPv4Address | None
    public_ipv6: IPv6Address | None
    iface: tuple[str, ...]
    iface_regex: tuple[str, ...]
    iface_can_reach: Address | None
    margin: int
    ttl: int
    state_dir: Path
    subnet_file: Path | None
    ip_masq: bool

    @classmethod
    def from_options(cls, words: Mapping[str, object]) -> ClusterConfig:
        """From what stands in a file, in flags, or both merged. Raises ConfigError."""
        fields, wrong = _read_cluster(words)
        if not _names_store(words):
            wrong.append(ConfigError("which store? (give etcd-endpoints or store)"))
        if wrong:
            raise wrong[0]
        return cls(**fields)

    def joined(self, **known: Any) -> Config:
        """The whole node: `known` are the fields that the store has told."""
        own = {one.name: getattr(self.node, one.name) for one in fields(Config)}
        own |= {"subnet_file": self.subnet_file, "ip_masq": self.ip_masq}
        return Config(**own | known)


def read_config(words: Mapping[str, object]) -> Config | ClusterConfig:
    """What these words make. Raises ConfigError with the first of :func:`faults`."""
    return (ClusterConfig if _names_store(words) else Config).from_options(words)


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
    claims = [_Owned(prefix, -1) for prefix in subnets]
    claims += [_Owned(prefix, i) for i, peer in peers.items() for prefix in peer.prefixes]
    for earlier, later in _overlaps(claims):
        whose = f"peer {peers[earlier.owner].endpoint}" if earlier.owner >= 0 else "this node"
        yield ConfigError(
            f"prefix {later.prefix} of peer {peers[later.owner].endpoint} overlaps "
            f"{earlier.prefix} of {whose} (a prefix has one owner)",
            key=("peer", later.owner),
        )


class _Owned(NamedTuple):
    prefix: Prefix
    owner: int


def _overlaps(claims: Iterable[_Owned]) -> Iterator[tuple[_Owned, _Owned]]:
    """Pairs of claims of different owners that overlap, the one with the lower owner first."""
    order = sorted(claims, key=lambda claim: (*_span(claim.prefix)[:2], claim.prefix.prefixlen))
    outer: _Owned | None = None
    for claim in order:
        # Prefixes nest or are apart: only the last one that nothing covers can cover this one.
        if outer is None or not _covers(outer.prefix, claim.prefix):
            outer = claim
        elif outer.owner != claim.owner:
            yield (outer, claim) if outer.owner < claim.owner else (claim, outer)


def _span(prefix: Prefix) -> tuple[int, int, int]:
    first = int(prefix.network_address)
    return prefix.version, first, first + prefix.num_addresses - 1


def _covers(outer: Prefix, inner: Prefix) -> bool:
    version, first, last = _span(outer)
    inner_version, inner_first, _ = _span(inner)
    return version == inner_version and first <= inner_first <= last


def _read(words: Mapping[str, object]) -> tuple[dict[str, Any], list[ConfigError]]:
    """The fields of a Config and all that is wrong."""
    stray = [name for name in words if name in CLUSTER_OPTIONS and words[name]]
    fields, wrong = read_options(
        {k: v for k, v in words.items() if k not in CLUSTER_OPTIONS}, NODE_OPTIONS
    )
    wrong += [
        ConfigError(f"{name} is about a store (give etcd-endpoints or store as well)", key=(name,))
        for name in stray
    ]
    wrong += _rules(**fields)
    wrong += _frame_rules(**fields)
    wrong += _container_rules(**fields)
    for word in NODE_OPTIONS.values():
        if word.many:
            fields[word.field] = tuple(dict.fromkeys(fields[word.field].values()))
    fields["name"] = fields["name"] or f"tunnel{fields['vni']}"
    given = {address.version for address in fields["addresses"]}
    fields["addresses"] += tuple(
        ipaddress.ip_interface(subnet.network_address)
        for subnet in fields["subnets"]
        if subnet.version not in given
    )
    if fields["mode"] == "tap":
        for field, value in FRAME_DEFAULTS.items():
            if fields[field] is None:
                fields[field] = value
    return fields, wrong


def _names_store(words: Mapping[str, object]) -> bool:
    return any(words.get(word) for word in _STORES)


def _read_cluster(words: Mapping[str, object]) -> tuple[dict[str, Any], list[ConfigError]]:
    """The fields of a ClusterConfig and all that is wrong."""
    own = {name: value for name, value in words.items() if name in CLUSTER_OPTIONS}
    own["etcd-endpoints"] = _commas(words.get("etcd-endpoints"))
    later = {name: words[name] for name in _AFTER_JOINING if name in words}
    rest = {
        name: value
        for name, value in words.items()
        if name not in own and name not in later and name not in _TOLD_BY_STORE
    }
    read, wrong = read_options(own, CLUSTER_OPTIONS)
    more, faulty = read_options(later, {name: NODE_OPTIONS[name] for name in _AFTER_JOINING})
    node, of_node = _read(rest)
    wrong += [*faulty, *of_node, *_cluster_rules(words)]
    if wrong:
        return {}, wrong
    for field in ("etcd_endpoints", "iface", "iface_regex"):
        read[field] = tuple(read[field].values())
    node["addresses"] = tuple(_given(rest))
    prefer, node["subnets"] = node["subnets"], ()
    made = Config.__new__(Config)
    for field, value in node.items():
        object.__setattr__(made, field, value)
    return {"node": made, "prefer": prefer, **read, **more}, []


def _given(words: Mapping[str, object]) -> Iterator[InterfaceAddress]:
    """Without those that come of subnets."""
    return (read_address(one) for one in many(words.get("address", ())))


def _commas(value: object) -> list[object]:
    """As flags have many in one text."""
    return [
        piece.strip() if isinstance(piece, str) else piece
        for one in many(value or ())
        for piece in (one.split(",") if isinstance(one, str) else [one])
        if piece
    ]


def _cluster_rules(words: Mapping[str, object]) -> Iterator[ConfigError]:
    if all(words.get(word) for word in _STORES):
        yield ConfigError("store is one directory, etcd-endpoints another store", key=("store",))
    for word in _TOLD_BY_STORE:
        if words.get(word) not in (None, ()):
            yield ConfigError(
                f"{word} is what the network in the store says (leave it out)", key=(word,)
            )


def _rules(
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


def _frame_rules(*, mode: str, **fields: Any) -> Iterator[ConfigError]:
    """What is about Ethernet frames means nothing where there are none."""
    for name, word in NODE_OPTIONS.items():
        if mode == "tun" and word.field in FRAME_DEFAULTS and fields[word.field] is not None:
            yield ConfigError(
                f"{name} is about Ethernet frames, and mode tun has none (give mode tap as well, "
                f"or leave {name} out)",
                key=(name,),
            )


def _container_rules(
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
        if families and (around is None or not _covers(around, subnet)):
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
