"""ClusterConfig: a node that finds its peers, its subnet, VNI and port in a store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from tunnel.config.node import Config, read_node
from tunnel.config.options import CLUSTER_OPTIONS, NODE_OPTIONS, many, read_address, read_options
from tunnel.config.rules import STORES, TOLD_BY_STORE, cluster_rules
from tunnel.errors import ConfigError
from tunnel.types import Address, InterfaceAddress, Prefix

_AFTER_JOINING = ("subnet-file", "ip-masq")


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


def faults(words: Mapping[str, object]) -> list[ConfigError]:
    """Everything that is wrong with these words; nothing if they make a Config, or, where they
    name a store, a :class:`ClusterConfig`."""
    return _read_cluster(words)[1] if _names_store(words) else read_node(words)[1]


def _names_store(words: Mapping[str, object]) -> bool:
    return any(words.get(word) for word in STORES)


def _read_cluster(words: Mapping[str, object]) -> tuple[dict[str, Any], list[ConfigError]]:
    """The fields of a ClusterConfig and all that is wrong."""
    own = {name: value for name, value in words.items() if name in CLUSTER_OPTIONS}
    own["etcd-endpoints"] = _commas(words.get("etcd-endpoints"))
    later = {name: words[name] for name in _AFTER_JOINING if name in words}
    rest = {
        name: value
        for name, value in words.items()
        if name not in own and name not in later and name not in TOLD_BY_STORE
    }
    read, wrong = read_options(own, CLUSTER_OPTIONS)
    more, faulty = read_options(later, {name: NODE_OPTIONS[name] for name in _AFTER_JOINING})
    node, of_node = read_node(rest)
    wrong += [*faulty, *of_node, *cluster_rules(words)]
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
