"""The values that :meth:`tunnel.Tunnel.status` and similar methods return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from tunnel.types import Address, Endpoint, Mac, Prefix


class PeerState(Enum):
    """The state of a peer by its echoes; "unknown" until it has answered one."""

    UNKNOWN = "unknown"
    UP = "up"
    SILENT = "silent"


@dataclass(frozen=True, slots=True)
class Traffic:
    """Inner packets that were forwarded, and their bytes with the IP header."""

    packets: int = 0
    bytes: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.packets + other.packets, self.bytes + other.bytes)


@dataclass(frozen=True, slots=True)
class PeerStats:
    """The counters of one peer. `drops` holds only reasons that have occurred."""

    outbound: Traffic = Traffic()
    inbound: Traffic = Traffic()
    drops: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Stats:
    """
    The counters of one tunnel since it opened; a counter never decreases.

    Attributes:
        outbound, inbound: Sums over all peers, including removed ones.
        drops: Dropped packets by reason, of all peers; only reasons that have occurred.
        peers: The counters of each peer.
        work: How packets were moved (system calls, trains, super-packets), by name.
        offloads: The offloads in use now.
        strays: Dropped packets that belong to no known peer, by reason.
    """

    outbound: Traffic
    inbound: Traffic
    drops: Mapping[str, int]
    peers: Mapping[Endpoint, PeerStats]
    work: Mapping[str, int]
    offloads: frozenset[str]
    strays: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Drop:
    """
    One reason for which packets are dropped.

    Attributes:
        direction: ``outbound`` or ``inbound``.
        count: Packets since the tunnel opened; 0 if it never occurred.
        meaning: What the reason means, and what to do.
        peers: Packets by peer; those that belong to no present peer are in `count` only.
    """

    reason: str
    direction: str
    count: int
    meaning: str
    peers: Mapping[Endpoint, int]


@dataclass(frozen=True)
class Route:
    """
    An overlay prefix and its peer.

    Attributes:
        kernel: Whether the kernel routes the prefix to the device, None without a device.
    """

    prefix: Prefix
    peer: Endpoint
    kernel: bool | None


@dataclass(frozen=True)
class FdbEntry:
    """
    A MAC and the peer behind it.

    Attributes:
        vlan: 1 to 4094, None for untagged frames.
        static: Whether the entry was added, not learned from frames.
        age: Seconds since the last frame from that MAC; 0 for a static entry.
    """

    mac: Mac
    vlan: int | None
    peer: Endpoint
    static: bool
    age: int


class MacSource(Enum):
    """How the node knows the MAC of a peer's VTEP: by configuration, by the peer's control frames,
    by its answers to ARP and NDP, or not at all."""

    CONFIGURED = "configured"
    CONTROL = "control"
    RESOLVED = "resolved"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Neighbour:
    """
    The VTEP of a peer.

    Attributes:
        mac: None if it is unknown.
        age: Seconds since the MAC was last confirmed; 0 if it is configured.
    """

    mac: Mac | None
    source: MacSource
    age: float


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """
    The state of one peer.

    Attributes:
        address: Its underlay address, None until its name is resolved.
        mac: The MAC of its VTEP, None while frames to it carry the MAC that every node accepts.
        state_age: Seconds in `state`.
        rtt: Smoothed round-trip time of echoes in seconds, None before the first answer.
        loss: Share of the last echoes without an answer, 0 to 1; None before the first echo.
        path_mtu: Largest inner packet that reaches it, in bytes; None if unknown.
        trains: Whether datagram trains are sent to it.
        last_drop: Reason of its last dropped packet.
    """

    endpoint: Endpoint
    address: Address | None
    mac: Mac | None
    prefixes: tuple[Prefix, ...]
    state: PeerState
    state_age: float
    rtt: float | None
    loss: float | None
    path_mtu: int | None
    trains: bool
    outbound: Traffic
    inbound: Traffic
    drops: Mapping[str, int]
    last_drop: str | None


@dataclass(frozen=True)
class StoreStatus:
    """
    The connection of a node to the store in which it finds its peers.

    Attributes:
        address: The endpoint or directory that answered last.
        connected: Whether the store answers now.
        state_age: Seconds connected, or not connected.
        why: Why the store does not answer, empty if it does.
        revision: The revision of the store that the peers were read at.
        key: The key of this node's record, None while it acquires a subnet.
        lease_remaining: Seconds until the lease of the key expires; None for a reservation and
            without a key.
        troubles: Faults of the network or of other nodes' records, a line each.
    """

    address: str
    connected: bool
    state_age: float
    why: str
    revision: int
    key: str | None
    lease_remaining: float | None
    troubles: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskHealth:
    """
    The health of one supervised task.

    Attributes:
        healthy: False from a failure until the restarted task has run as long as it had waited.
        failures: How often the task has failed since the node opened.
        why: The last failure in one line, empty if there was none.
    """

    name: str
    healthy: bool = True
    failures: int = 0
    why: str = ""


@dataclass(frozen=True)
class Status:
    """
    The state of a tunnel.

    Attributes:
        device: The name of its device, None without one.
        endpoints: Its local addresses and ports.
        mtu: Largest inner packet, in bytes.
        uptime: Seconds since the tunnel opened.
        drops: Dropped packets by reason, of all peers.
        subnets: The prefixes behind this node.
        mode: ``tun`` or ``tap``.
        device_up: False if another program has set the device down, so that no packet passes.
        store: The store in which it finds its peers, None if they are configured.
        tasks: The health of each supervised task.
        phase: ``open``, or what the node does before or after that, as :attr:`tunnel.Tunnel.phase`
            says. Before it is open, there are no endpoints and no peers, and `mtu` is 0 unless it
            is configured.
        pid: The node's process id, in its own PID namespace.
        netns: The inode number of its network namespace, 0 if unknown.
    """

    name: str
    device: str | None
    vni: int
    endpoints: tuple[str, ...]
    mac: Mac
    mtu: int
    offloads: frozenset[str]
    workers: int
    uptime: float
    peers: tuple[PeerStatus, ...]
    drops: Mapping[str, int]
    subnets: tuple[Prefix, ...] = ()
    mode: str = "tun"
    device_up: bool = True
    store: StoreStatus | None = None
    tasks: tuple[TaskHealth, ...] = ()
    phase: str = "open"
    pid: int = 0
    netns: int = 0
