"""
What `tunnel up` and the library are told, made into one validated :class:`Config`.

    flags, TOML  ->  words  ->  each read by itself (words.py)  ->  rules between them  ->  Config

A *word* is what people write, the same in flag and file: ``subnet``, ``source-ports``. Nothing
here does I/O: what only the machine knows (a name that exists, a port in use) is found later.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunnel.config.options import CLUSTER_OPTIONS, NODE_OPTIONS, read_options
from tunnel.config.rules import FRAME_DEFAULTS, container_rules, frame_rules, node_rules
from tunnel.errors import ConfigError
from tunnel.types import (
    DEFAULT_PORT,
    Address,
    InterfaceAddress,
    Mac,
    Peer,
    Prefix,
)

AUTO_WORKERS = 4
"""As many as ``"auto"`` takes at most. More are for who has measured that they help."""


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
        fields, wrong = read_node(words)
        if wrong:
            raise wrong[0]
        for field, value in fields.items():
            object.__setattr__(self, field, value)


def differences(before: Config, after: Config) -> list[str]:
    """The words in which two differ."""
    return [
        name
        for name, word in NODE_OPTIONS.items()
        if getattr(before, word.field) != getattr(after, word.field)
    ]


def read_node(words: Mapping[str, object]) -> tuple[dict[str, Any], list[ConfigError]]:
    """The fields of a Config and all that is wrong."""
    stray = [name for name in words if name in CLUSTER_OPTIONS and words[name]]
    fields, wrong = read_options(
        {k: v for k, v in words.items() if k not in CLUSTER_OPTIONS}, NODE_OPTIONS
    )
    wrong += [
        ConfigError(f"{name} is about a store (give etcd-endpoints or store as well)", key=(name,))
        for name in stray
    ]
    wrong += node_rules(**fields)
    wrong += frame_rules(**fields)
    wrong += container_rules(**fields)
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
