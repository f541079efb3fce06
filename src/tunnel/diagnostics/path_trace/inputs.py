"""What is known about one packet, the kernel around it and the node that carries it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunnel.diagnostics.flow import Flow
from tunnel.status import PeerStatus, Status
from tunnel.types import Address, KernelNeighbour, KernelRoute, Prefix


@dataclass(frozen=True)
class ForwardingDecision:
    """
    What one worker of the packet path does with the packet.

    Attributes:
        peer: The peer that gets it; None if it is dropped or flooded.
        reason: The drop reason, empty if it is not dropped; `meaning` explains it.
        flooded: Whether every peer gets a copy.
        port: Outer UDP source port, 0 if the packet is not sent.
        headers: VXLAN and Ethernet header, as the worker writes them.
    """

    peer: PeerStatus | None = None
    reason: str = ""
    meaning: str = ""
    flooded: bool = False
    port: int = 0
    headers: bytes = b""


@dataclass(frozen=True)
class TraceInputs:
    """
    All that a trace is computed from.

    Attributes:
        inbound: Whether the packet comes from a peer.
        mode: ``tun``, ``tap``, or empty for a node without a device.
        device_up: Whether the device is up.
        ingress: The device on which a forwarded packet enters this host; empty for a packet that
            this host sends itself, None if no kernel route leads to its source.
        kernel_route: What the kernel does with the packet: before it enters the device or, inbound,
            after it leaves the device. None for a node without a device.
        kernel_neighbour: What the kernel knows about that route's next hop, if it needs one.
        bridge: The bridge of which the device is a port, empty if there is none.
        forwarding: Whether this host forwards packets of this family.
        decisions: The decision of each worker, for an outbound packet.
        fdb_entry: The node's FDB entry for the destination MAC, in TAP mode.
        owner: The peer that owns the source, for an inbound packet.
        underlay_route: What the kernel does with the datagram.
        underlay_neighbour: What the kernel knows about that route's next hop.
        local_address: Outer source address of the datagram.
    """

    flow: Flow
    status: Status
    inbound: bool
    mode: str = ""
    device_up: bool = True
    ingress: str | None = ""
    kernel_route: KernelRoute | None = None
    kernel_neighbour: KernelNeighbour | None = None
    bridge: str = ""
    forwarding: bool = True
    decisions: Sequence[ForwardingDecision] = ()
    fdb_entry: str = ""
    owner: PeerStatus | None = None
    underlay_route: KernelRoute | None = None
    underlay_neighbour: KernelNeighbour | None = None
    local_address: Address | None = None

    @property
    def size(self) -> int:
        """Bytes of the first inner packet that leaves: the whole, a segment or a fragment."""
        return self.flow.first_piece(self.status.mtu) if self.mode else self.flow.size

    @property
    def decision(self) -> ForwardingDecision:
        """The first worker's; the others differ in the source port alone."""
        return self.decisions[0]

    @property
    def peer(self) -> PeerStatus | None:
        return self.owner if self.inbound else self.decision.peer

    def owner_of(self, address: Address) -> PeerStatus | None:
        """Returns the first peer with a prefix that contains `address`."""
        return next((peer for peer in self.status.peers if prefix_of(peer, address)), None)


def prefix_of(peer: PeerStatus, address: Address) -> Prefix | None:
    """Returns the longest of the peer's prefixes that contains `address`."""
    matching = [prefix for prefix in peer.prefixes if address in prefix]
    return max(matching, key=lambda prefix: prefix.prefixlen, default=None)
