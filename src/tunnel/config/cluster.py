"""ClusterConfig: the checked configuration of a node that finds its peers in a store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Unpack

from tunnel.config.node import Config, differences, parse_node
from tunnel.config.option import options_by_name, parse_options
from tunnel.config.options import (
    CLUSTER_OPTIONS,
    NODE_OPTIONS,
    OPTIONS,
    ClusterOptions,
)
from tunnel.config.rules import SET_BY_STORE, cluster_rules, lease_rules, names_store
from tunnel.config.values import as_list, interface_address, split_commas
from tunnel.errors import ConfigError
from tunnel.types import Address, Prefix

_NEED_NETWORK = {name: NODE_OPTIONS[name] for name in ("subnet-file", "ip-masq")}
"""The options of a node that apply only when the store has named the network."""


@dataclass(frozen=True, init=False)
class ClusterConfig:
    """
    The configuration of a node that finds its peers, its subnet, VNI and port in a store.

    ``ClusterConfig(etcd_endpoints=["https://192.0.2.9:2379"], name="tunnel1")``: accepts
    text and stores typed values. Keywords are those of :class:`Config`, without ``vni``, ``port``
    and ``networks``, and the attributes below from `etcd_endpoints` on; docs/reference/options.md
    lists them with their defaults.

    Attributes:
        node: The part that does not come from the store. It has no subnets.
        prefer: The subnets that the node asks for: the keyword `subnets`.
        etcd_endpoints: URLs of etcd; empty where `store` is given.
        store: A directory that all nodes share, None where etcd is the store.
        etcd_prefix: Prefix of all keys, without a slash at its end.
        etcd_cafile, etcd_certfile, etcd_keyfile: Names of PEM files; empty for none.
        etcd_username, etcd_password: Empty for none.
        public_ip, public_ipv6: Addresses at which other nodes reach this one; None for those of
            the interface.
        iface: Names or addresses of interfaces; the first that exists is used.
        iface_regex: Patterns that an interface's name or address has to match.
        iface_can_reach: An address; the interface is that of the route to it.
        margin: Minutes before the lease ends at which the node renews it; None for 60, or half of
            a lease that is shorter than two hours.
        ttl: Duration of the lease in seconds.
        state_dir: Directory for the node's id and its last known peers.
        subnet_file, ip_masq: As in :class:`Config`, applied when the network is known.

    Raises:
        ConfigError: The first fault of the values; :func:`faults` finds all.
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
    margin: int | None
    ttl: int
    state_dir: Path
    subnet_file: Path | None
    ip_masq: bool

    def __init__(self, **options: Unpack[ClusterOptions]) -> None:
        self._assign(options_by_name(options, OPTIONS))

    @classmethod
    def from_options(cls, options: Mapping[str, object]) -> ClusterConfig:
        """Makes a ClusterConfig from options by their names in a file. Raises ConfigError."""
        config = cls.__new__(cls)
        config._assign(options)
        return config

    def _assign(self, options: Mapping[str, object]) -> None:
        values, faults = _parse_cluster(options)
        if faults:
            raise faults[0]
        for keyword, value in values.items():
            object.__setattr__(self, keyword, value)

    def complete(self, **from_store: Any) -> Config:
        """Returns the Config of the whole node, with the attributes that the store sets. Raises
        ConfigError where those conflict with the node's own."""
        own = {"subnet_file": self.subnet_file, "ip_masq": self.ip_masq}
        return replace(self.node, **own | from_store)


def cluster_differences(before: ClusterConfig, after: ClusterConfig) -> list[str]:
    """The names of the options in which two configurations differ."""
    named = {"prefer": "subnet"} | {
        option.keyword: option.name for option in (CLUSTER_OPTIONS | _NEED_NETWORK).values()
    }
    return differences(before.node, after.node) + [
        name
        for attribute, name in named.items()
        if getattr(before, attribute) != getattr(after, attribute)
    ]


def read_config(options: Mapping[str, object]) -> Config | ClusterConfig:
    """A ClusterConfig where the options name a store, else a Config. Raises ConfigError."""
    return (ClusterConfig if names_store(options) else Config).from_options(options)


def faults(options: Mapping[str, object]) -> list[ConfigError]:
    """Every fault of the options; none where :func:`read_config` succeeds."""
    return (_parse_cluster if names_store(options) else parse_node)(options)[1]


def _parse_cluster(options: Mapping[str, object]) -> tuple[dict[str, Any], list[ConfigError]]:
    """The attributes of a ClusterConfig, and every fault of the options."""
    of_store = {name: value for name, value in options.items() if name in CLUSTER_OPTIONS}
    if "etcd-endpoints" in of_store:
        of_store["etcd-endpoints"] = split_commas(of_store["etcd-endpoints"])
    later = {name: value for name, value in options.items() if name in _NEED_NETWORK}
    apart = {*of_store, *later, *SET_BY_STORE}
    of_node = {name: value for name, value in options.items() if name not in apart}

    values, faults = parse_options(of_store, CLUSTER_OPTIONS)
    with_network, more = parse_options(later, _NEED_NETWORK)
    node, node_faults = parse_node(of_node)
    faults += [*more, *node_faults, *cluster_rules(options)]
    faults += lease_rules(**values)
    if faults:
        return {}, faults
    for option in CLUSTER_OPTIONS.values():
        if option.repeatable:
            values[option.keyword] = tuple(values[option.keyword].values())
    return values | with_network | _split_subnets(node, of_node), []


def _split_subnets(node: dict[str, Any], options: Mapping[str, object]) -> dict[str, Any]:
    """The node without its subnets, nor the device addresses that are derived from them."""
    config = Config.__new__(Config)
    given = as_list(options.get("address", ()))
    without = {
        "subnets": (),
        "addresses": tuple(interface_address("address", one) for one in given),
    }
    for keyword, value in (node | without).items():
        object.__setattr__(config, keyword, value)
    return {"node": config, "prefer": node["subnets"]}
