"""Config: the checked configuration of one tunnel."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Unpack

from tunnel.config.option import options_by_name, parse_options
from tunnel.config.options import (
    CLUSTER_OPTIONS,
    NODE_OPTIONS,
    OPTIONS,
    ConfigOptions,
)
from tunnel.config.rules import container_rules, frame_rules, node_rules
from tunnel.errors import ConfigError
from tunnel.types import Address, InterfaceAddress, Mac, Peer, Prefix

AUTO_WORKERS = 4
"""The largest number of workers that ``"auto"`` starts."""


@dataclass(frozen=True, init=False)
class Config:
    """
    The configuration of one tunnel, checked as far as that needs no I/O.

    Accepts text and lists (``"10.244.1.0/24"``) and stores typed values. Each keyword is an
    option of ``tunnel up``: docs/reference/options.md lists them with their defaults.

    Attributes:
        name: Name of the device.
        vni: VXLAN network identifier, 0 to 2**24-1.
        local: Underlay address to send from; None for the source address of the route to the
            first peer.
        port: UDP port on which the node receives.
        subnets: The prefixes behind this node.
        addresses: The addresses of the device.
        mtu: MTU of the device in bytes; None derives it from the underlay.
        mac: MAC address of this node's VTEP; None derives it from VNI, local address and port.
        peers: The other nodes.
        offload: The offloads that may be used, out of ``tso``, ``uso``, ``trains`` and ``gro``.
        loop: ``"uvloop"`` or ``"asyncio"``. Only the command reads it: a Tunnel runs on the loop
            that is running.
        source_ports: Number of UDP source ports over which flows are spread; 1 sends from `port`.
        workers: Number of threads that forward packets; 1 forwards in the event loop, and
            ``"auto"`` is one for each CPU, at most :data:`AUTO_WORKERS`.
        mode: ``"tun"`` forwards packets by route, ``"tap"`` Ethernet frames by MAC address. The
            next four are None in TUN mode.
        flood: Whether broadcast, multicast and unknown unicast frames are sent to every peer.
        learning: Whether MAC addresses are learned from the frames of peers.
        ageing: Seconds after which a learned MAC address expires unless it is seen again.
        storm_limit: Flooded frames a second to each peer and from each peer; 0 for no limit. Each
            worker counts its own.
        networks: The prefix of the whole overlay, at most one of each family.
        subnet_file: The path of flannel's ``subnet.env``; None writes none.
        ip_masq: Whether packets from containers to addresses outside of `networks` are
            masqueraded.

    Raises:
        ConfigError: The first fault of the values; :func:`tunnel.config.faults` finds all.
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

    def __init__(self, **options: Unpack[ConfigOptions]) -> None:
        self._assign(options_by_name(options, NODE_OPTIONS))

    @classmethod
    def from_options(cls, options: Mapping[str, object]) -> Config:
        """Makes a Config from options by their names in a file: ``{"source-ports": 1}``."""
        config = cls.__new__(cls)
        config._assign(options)
        return config

    def _assign(self, options: Mapping[str, object]) -> None:
        values, faults = parse_node(options)
        if faults:
            raise faults[0]
        for keyword, value in values.items():
            object.__setattr__(self, keyword, value)


def differences(before: Config, after: Config) -> list[str]:
    """The names of the options in which two configurations differ."""
    return [
        option.name
        for option in NODE_OPTIONS.values()
        if getattr(before, option.keyword) != getattr(after, option.keyword)
    ]


def parse_node(options: Mapping[str, object]) -> tuple[dict[str, Any], list[ConfigError]]:
    """The attributes of a Config, and every fault of the options."""
    of_node = {name: value for name, value in options.items() if name not in CLUSTER_OPTIONS}
    values, faults = parse_options(of_node, NODE_OPTIONS, names=(*OPTIONS,))
    faults += [
        ConfigError(f"{name} needs a store (give etcd-endpoints or store as well)", key=(name,))
        for name, value in options.items()
        if name in CLUSTER_OPTIONS and value
    ]
    faults += node_rules(**values)
    faults += frame_rules(**values)
    faults += container_rules(**values)
    for option in NODE_OPTIONS.values():
        if option.repeatable:
            values[option.keyword] = tuple(dict.fromkeys(values[option.keyword].values()))
    _derive(values)
    return values, faults


def _derive(values: dict[str, Any]) -> None:
    """Fills in the defaults that depend on other options."""
    values["name"] = values["name"] or f"tunnel{values['vni']}"
    families = {address.version for address in values["addresses"]}
    values["addresses"] += tuple(
        ipaddress.ip_interface(subnet.network_address)
        for subnet in values["subnets"]
        if subnet.version not in families
    )
    if values["mode"] == "tap":
        for option in NODE_OPTIONS.values():
            if values[option.keyword] is None:
                values[option.keyword] = option.tap_default
