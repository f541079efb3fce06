"""
Every option of a node: name, parser, default, help and environment, in one table.

    OPTIONS  ->  Config and ClusterConfig, which check and hold the values
             ->  the flags of ``tunnel up``, ``tunnel network`` and ``tunnel doctor``
             ->  the keys of a configuration file
             ->  docs/reference/options.md

An option's name is its key in a file and, after ``--``, its flag. :class:`ConfigOptions` and
:class:`ClusterOptions` give the same options to a type checker, as keyword arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypedDict

from tunnel.config import values
from tunnel.config.option import Option, parse_options
from tunnel.config.values import OFFLOADS, integer
from tunnel.errors import ConfigError
from tunnel.types import DEFAULT_PORT, Address, InterfaceAddress, Mac, Peer, Prefix

__all__ = [
    "CLUSTER_OPTIONS",
    "COMMAND_OPTIONS",
    "NODE_OPTIONS",
    "OFFLOADS",
    "OPTIONS",
    "ClusterOptions",
    "ConfigOptions",
]

ETCD_PREFIX = "/coreos.com/network"
STATE_DIR = Path("/var/lib/tunnel")


def _peer(name: str, value: object) -> Peer:
    """A peer as text or as a table."""
    if not isinstance(value, Mapping):
        return values.peer(name, value)
    parsed, faults = parse_options(value, PEER_OPTIONS)
    if faults:
        raise ExceptionGroup("peer", faults)
    if parsed["endpoint"] is None:
        raise ConfigError('peer has no endpoint (like endpoint = "192.0.2.2")')
    return Peer(parsed["endpoint"], parsed["prefix"].values(), mac=parsed["mac"])


def _table(*options: Option) -> dict[str, Option]:
    return {option.name: option for option in options}


PEER_OPTIONS = _table(
    Option("endpoint", "Address or name of the peer.", values.endpoint),
    Option("prefix", "A prefix behind the peer.", values.prefix, repeatable=True),
    Option("mac", "The MAC of the peer's VTEP.", values.mac),
)
"""The keys of a peer that is a table in a file."""

NODE_OPTIONS = _table(
    Option(
        "name",
        "Name of the device, at most 15 bytes.",
        values.device_name,
        metavar="NAME",
        default_help='"tunnel" and the VNI',
    ),
    Option(
        "vni",
        "VXLAN network identifier, 0 to 16777215.",
        integer(0, 2**24 - 1),
        metavar="N",
        kind="integer",
        default=1,
        default_help="1",
    ),
    Option(
        "local",
        "Underlay address of this node.",
        values.address,
        metavar="ADDR",
        default_help="the source address of the route to the first peer",
    ),
    Option(
        "port",
        "UDP port on which this node receives.",
        integer(1, 65535),
        metavar="N",
        kind="integer",
        default=DEFAULT_PORT,
        default_help=str(DEFAULT_PORT),
    ),
    Option(
        "subnet",
        "A prefix behind this node. In a cluster, a subnet to request.",
        values.prefix,
        metavar="PREFIX",
        keyword="subnets",
        repeatable=True,
    ),
    Option(
        "address",
        "An address of the device.",
        values.interface_address,
        metavar="ADDR/LEN",
        keyword="addresses",
        repeatable=True,
        default_help="the first address of each subnet, as /32 or /128",
    ),
    Option(
        "mtu",
        "MTU of the device, in bytes.",
        integer(68, 65535),
        metavar="N",
        kind="integer",
        default_help="that of the underlay route, minus 50 for IPv4 or 70 for IPv6",
    ),
    Option(
        "mac",
        "MAC address of this node's VTEP.",
        values.mac,
        metavar="MAC",
        default_help="derived from VNI, local address and port",
    ),
    Option(
        "peer",
        "Another node and the prefixes behind it. ENDPOINT is an address or a name, with :PORT "
        "unless that is 8472, IPv6 then in brackets. Without mac=, the node asks the peer for its "
        "MAC.",
        _peer,
        metavar="ENDPOINT=PREFIX[,PREFIX...][,mac=MAC]",
        keyword="peers",
        repeatable=True,
    ),
    Option(
        "offload",
        "Offloads that may be used, out of tso,uso,trains,gro.",
        values.offload,
        metavar="auto|none|LIST",
        default=frozenset(OFFLOADS),
        default_help="auto, all that work",
    ),
    Option(
        "loop",
        "The event loop of the command.",
        values.choice("uvloop", "asyncio"),
        metavar="uvloop|asyncio",
        default="uvloop",
        default_help="uvloop",
    ),
    Option(
        "source-ports",
        "Number of UDP source ports over which flows are spread, 1 to 64; 1 sends from --port "
        "only, for NAT.",
        integer(1, 64),
        metavar="N",
        kind="integer",
        default=8,
        default_help="8",
    ),
    Option(
        "workers",
        "Number of threads that forward packets, each with a queue of the device and a socket; 1 "
        "forwards in the event loop.",
        values.workers,
        metavar="auto|N",
        default="auto",
        default_help="auto, one for each CPU up to 4",
    ),
    Option(
        "mode",
        "Forward packets by route (tun) or Ethernet frames by MAC address (tap).",
        values.choice("tun", "tap"),
        "frames",
        metavar="tun|tap",
        default="tun",
        default_help="tun",
    ),
    Option(
        "flood",
        "With mode tap: send broadcast, multicast and unknown unicast frames to every peer.",
        values.boolean,
        "frames",
        kind="switch",
        tap_default=True,
        default_help="flood",
    ),
    Option(
        "learning",
        "With mode tap: learn MAC addresses from the frames of peers.",
        values.boolean,
        "frames",
        kind="switch",
        tap_default=True,
        default_help="learning",
    ),
    Option(
        "ageing",
        "With mode tap: time after which a learned MAC address expires unless seen again.",
        integer(1, 10**6),
        "frames",
        metavar="SECONDS",
        kind="integer",
        tap_default=300,
        default_help="300",
    ),
    Option(
        "storm-limit",
        "With mode tap: flooded frames a second to each peer and from each peer, 0 for no limit. "
        "Each worker counts its own.",
        integer(0, 10**6),
        "frames",
        metavar="FRAMES",
        kind="integer",
        tap_default=2000,  # the kernel's vxlan has no storm limit
        default_help="2000",
    ),
    Option(
        "network",
        "The prefix of the whole overlay, one of each family; subnet-file and ip-masq need it.",
        values.prefix,
        "containers",
        metavar="PREFIX",
        keyword="networks",
        repeatable=True,
    ),
    Option(
        "subnet-file",
        "Write subnet.env as flannel does, for its CNI plugin and for Docker. The flag alone "
        "writes /run/flannel/subnet.env.",
        values.file,
        "containers",
        metavar="[PATH]",
        implied="/run/flannel/subnet.env",
        default_help="not written",
        flannel=True,
    ),
    Option(
        "ip-masq",
        "Masquerade packets from containers to addresses outside of the overlay; needs nftables.",
        values.boolean,
        "containers",
        kind="flag",
        default=False,
        default_help="off",
        flannel=True,
    ),
)
"""The options of one node, with or without a store."""

CLUSTER_OPTIONS = _table(
    Option(
        "etcd-endpoints",
        "Get peers, subnet, VNI and port from this etcd, as flannel does.",
        values.text,
        "store",
        metavar="URL[,URL...]",
        repeatable=True,
        flannel=True,
    ),
    Option(
        "store",
        "Get peers, subnet, VNI and port from a directory that all nodes share; for tens of nodes.",
        values.absolute_path,
        "store",
        metavar="DIRECTORY",
        flannel=True,
    ),
    Option(
        "etcd-prefix",
        "Prefix of all keys in the store.",
        values.key_prefix,
        "store",
        metavar="PREFIX",
        default=ETCD_PREFIX,
        default_help=ETCD_PREFIX,
        flannel=True,
    ),
    Option(
        "etcd-cafile",
        "PEM file with the CA certificates that verify etcd's.",
        values.text,
        "store",
        metavar="FILE",
        default="",
        flannel=True,
    ),
    Option(
        "etcd-certfile",
        "PEM file with this node's client certificate.",
        values.text,
        "store",
        metavar="FILE",
        default="",
        flannel=True,
    ),
    Option(
        "etcd-keyfile",
        "PEM file with the key of that certificate.",
        values.text,
        "store",
        metavar="FILE",
        default="",
        flannel=True,
    ),
    Option(
        "etcd-username",
        "User name in etcd.",
        values.text,
        "store",
        metavar="NAME",
        default="",
        flannel=True,
    ),
    Option(
        "etcd-password",
        "Password of that user. Set it in the environment or a file: other users can read flags.",
        values.text,
        "store",
        metavar="TEXT",
        default="",
        flannel=True,
    ),
    Option(
        "public-ip",
        "IPv4 address at which other nodes reach this one.",
        values.ipv4_address,
        "cluster",
        metavar="ADDR",
        default_help="the interface's",
        flannel=True,
    ),
    Option(
        "public-ipv6",
        "IPv6 address at which other nodes reach this one.",
        values.ipv6_address,
        "cluster",
        metavar="ADDR",
        default_help="the interface's",
        flannel=True,
    ),
    Option(
        "iface",
        "Interface that leads to the other nodes; of several, the first that exists.",
        values.text,
        "cluster",
        metavar="NAME|ADDR",
        repeatable=True,
        default_help="that of the default route",
        flannel=True,
    ),
    Option(
        "iface-regex",
        "Interface that leads to the other nodes, by a pattern that its name or address matches.",
        values.regex,
        "cluster",
        metavar="REGEX",
        repeatable=True,
        flannel=True,
    ),
    Option(
        "iface-can-reach",
        "Interface that leads to the other nodes, by the route to this address.",
        values.address,
        "cluster",
        metavar="ADDR",
        flannel=True,
    ),
    Option(
        "subnet-lease-renew-margin",
        "Time before the end of a subnet's lease at which it is renewed, 1 to 1439.",
        integer(1, 1439, or_digits=True),
        "cluster",
        metavar="MINUTES",
        keyword="margin",
        kind="integer",
        default_help="60, or half of a lease that is shorter than two hours",
        flannel=True,
    ),
    Option(
        "subnet-lease-ttl",
        "Time after which a subnet's lease ends unless it is renewed.",
        integer(2, 10**8, or_digits=True),
        "cluster",
        metavar="SECONDS",
        keyword="ttl",
        kind="integer",
        default=86400,
        default_help="86400",
        flannel=True,
    ),
    Option(
        "state-dir",
        "Directory for the node's id and its last known peers.",
        values.absolute_path,
        "cluster",
        metavar="DIRECTORY",
        default=STATE_DIR,
        default_help=str(STATE_DIR),
        flannel=True,
    ),
)
"""The options of a node that finds its peers in a store, beside :data:`NODE_OPTIONS`."""

OPTIONS = NODE_OPTIONS | CLUSTER_OPTIONS
"""All options that a configuration file may contain."""

COMMAND_OPTIONS = _table(
    Option(
        "control",
        "Control socket, through which the other commands reach this node.",
        group="command",
        metavar="PATH|none",
        default_help="NAME.sock in /run/tunnel or $XDG_RUNTIME_DIR/tunnel",
    ),
    Option(
        "metrics",
        "Serve Prometheus metrics, /healthz and /readyz over HTTP.",
        group="command",
        metavar="ADDR:PORT",
    ),
    Option(
        "user",
        "Run as this user after the device is open.",
        group="command",
        metavar="NAME",
        default_help="nobody, if started by root",
    ),
    Option(
        "config",
        'Read options from this TOML file; flags override it. See "tunnel config check".',
        group="command",
        metavar="FILE",
    ),
    Option(
        "verbose",
        "Log events to stderr; -vv logs more.",
        group="command",
        kind="count",
    ),
)
"""The options of ``tunnel up`` that a file cannot contain: how the command runs."""


class _NodeOptions(TypedDict, total=False):
    name: str
    local: str | Address | None
    subnets: str | Prefix | Iterable[str | Prefix]
    addresses: str | InterfaceAddress | Iterable[str | InterfaceAddress]
    mtu: int | None
    mac: str | Mac | None
    peers: str | Peer | Iterable[str | Peer]
    offload: str | Iterable[str]
    loop: str
    source_ports: int
    workers: int | str
    mode: str
    flood: bool | None
    learning: bool | None
    ageing: int | None
    storm_limit: int | None
    subnet_file: str | Path | None
    ip_masq: bool


class ConfigOptions(_NodeOptions, total=False):
    """The keyword arguments of :class:`tunnel.Config` and :class:`tunnel.Tunnel`."""

    vni: int
    port: int
    networks: str | Prefix | Iterable[str | Prefix]


class ClusterOptions(_NodeOptions, total=False):
    """The keyword arguments of :class:`tunnel.ClusterConfig`."""

    etcd_endpoints: str | Iterable[str]
    store: str | Path | None
    etcd_prefix: str
    etcd_cafile: str
    etcd_certfile: str
    etcd_keyfile: str
    etcd_username: str
    etcd_password: str
    public_ip: str | Address | None
    public_ipv6: str | Address | None
    iface: str | Iterable[str]
    iface_regex: str | Iterable[str]
    iface_can_reach: str | Address | None
    margin: int | None
    ttl: int
    state_dir: str | Path
