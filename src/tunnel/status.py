"""What a node counts and knows, as :meth:`tunnel.Tunnel.status` and its like return it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from tunnel.types import Address, Endpoint, Mac, Prefix


class PeerState(Enum):
    """What echoes say of a peer; one that never answered is unknown."""

    UNKNOWN = "unknown"
    UP = "up"
    SILENT = "silent"


@dataclass(frozen=True)
class Traffic:
    """Inner packets that went through, and their bytes (IP header and all)."""

    packets: int = 0
    bytes: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.packets + other.packets, self.bytes + other.bytes)


@dataclass(frozen=True)
class PeerStats:
    """Counters of one peer. `drops` holds only reasons that occurred."""

    outbound: Traffic = Traffic()
    inbound: Traffic = Traffic()
    drops: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Stats:
    """
    Counters of one tunnel since it opened; none of them ever goes back.

    Attributes:
        outbound, inbound: Sums over all peers, removed ones included.
        drops: Reason -> packets, over everything; only reasons that occurred.
        peers: Counters by peer.
        work: How packets were moved (system calls, trains, super-packets), by name.
        offloads: Those in use now.
        strays: Drops of packets that belong to no peer that is known, by reason.
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
    One reason for which packets are not forwarded, since the tunnel opened.

    Attributes:
        direction: ``outbound`` or ``inbound``.
        count: Packets, 0 where it never occurred.
        meaning: What that means, and what to do.
        peers: How many were whose; what belongs to no peer that is there is in `count` alone.
    """

    reason: str
    direction: str
    count: int
    meaning: str
    peers: Mapping[Endpoint, int]


@dataclass(frozen=True)
class Route:
    """
    An overlay prefix and the peer that owns it.

    Attributes:
        kernel: Whether the kernel routes it into the device, None without one.
    """

    prefix: Prefix
    peer: Endpoint
    kernel: bool | None


@dataclass(frozen=True)
class FdbEntry:
    """
    Behind which peer a MAC is.

    Attributes:
        vlan: 1 to 4094, None for frames without a tag.
        static: Put by somebody, not learned from frames.
        age: Seconds since a frame from it was last seen; 0 for a static one.
    """

    mac: Mac
    vlan: int | None
    peer: Endpoint
    static: bool
    age: int


class MacSource(Enum):
    """Who said which MAC a peer's VTEP has: its configuration, its control frames, it when asked
    by ARP or NDP, or nobody."""

    CONFIGURED = "configured"
    CONTROL = "control"
    RESOLVED = "resolved"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Neighbour:
    """
    A peer's VTEP.

    Attributes:
        mac: None where nobody has told it.
        age: Seconds since that was last said; 0 where it is configured.
    """

    mac: Mac | None
    source: MacSource
    age: float


@dataclass(frozen=True)
class PeerStatus:
    """
    What is known of a peer now.

    Attributes:
        address: Where it is, None as long as its name is not resolved.
        mac: Its VTEP's, None where any node's is used.
        state_age: Seconds for which it has been in `state`.
        rtt: Smoothed round trip of echoes in seconds, None before the first answer.
        loss: Share of the last echoes that got no answer, 0 to 1; None before the first.
        path_mtu: Largest inner packet that reaches it, in bytes, None where it tells nothing.
        trains: Whether it gets them.
        last_drop: Reason of the last packet of its that was dropped.
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
    What a node that finds its peers in a store knows of that.

    Attributes:
        address: Which endpoint or directory answered last.
        connected: Whether it answers now.
        state_age: Seconds for which it has (or has not) been connected.
        why: Why it does not, empty where it does.
        revision: As of which revision the peers are known.
        key: Under which this node is known, None while it looks for a subnet.
        lease_remaining: Seconds until the lease of the key expires; None for a reservation and
            without a key.
        troubles: What is wrong with the network or with others' records, a line each.
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
    One supervised task.

    Attributes:
        healthy: False from a failure until the restarted task has run for as long as it waited.
        failures: How often it has failed since the node opened.
        why: The last failure in one line, empty if there was none.
    """

    name: str
    healthy: bool = True
    failures: int = 0
    why: str = ""


@dataclass(frozen=True)
class Status:
    """
    A running tunnel.

    Attributes:
        device: None for one without.
        endpoints: Where it listens.
        uptime: Seconds since the tunnel opened.
        drops: Reason -> packets, over everything.
        subnets: What lives behind this node.
        mode: ``tun`` or ``tap``.
        device_up: False where somebody has set the device down: no packet passes.
        store: Where it finds its peers, None where it was told.
        tasks: The health of each supervised task.
        phase: ``open``, or what the node does before or after that, as :attr:`tunnel.Tunnel.phase`
            says. Before it is open, there are no endpoints and no peers, and `mtu` is 0 unless it
            is configured.
        pid: The process of the node, as it sees itself.
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
