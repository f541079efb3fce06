"""From the node to the peer: path MTU, headers, underlay route, and what the peer checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tunnel.diagnostics.path_trace.headers import VXLAN_HEADER, encapsulation
from tunnel.diagnostics.path_trace.inputs import TraceInputs
from tunnel.diagnostics.path_trace.result import TraceStep, ends, goes_on
from tunnel.status import PeerState
from tunnel.types import ANY_VTEP_MAC

_MIN_IPV6_MTU = 1280


def _name(inputs: TraceInputs) -> Iterator[TraceStep]:
    """A peer that is configured by name needs an address."""
    peer = inputs.peer
    if peer is None or peer.endpoint.address is not None:
        return
    host = peer.endpoint.host
    if peer.address is None:
        advice = f"check DNS: getent hosts {host}"
        yield ends("name", f"{host} unresolved", "the name has no address", advice)
    else:
        why = "resolved again when the peer falls silent"
        yield goes_on("name", f"{host} is {peer.address}", why)


def _path_mtu(inputs: TraceInputs) -> Iterator[TraceStep]:
    decision, peer, size = inputs.decision, inputs.peer, inputs.size
    if peer is None:
        return
    mtu = peer.path_mtu
    entry = f"path MTU {mtu or 'unknown'}"
    if decision.reason == "too_big":
        why = f"{size} bytes exceed it, and the packet must not be fragmented: its sender gets ICMP"
        advice = f"see what fits: tunnel ping {peer.endpoint} --size {mtu or _MIN_IPV6_MTU}"
        yield ends("path", entry, why, advice)
    elif decision.reason:
        why = f"{decision.reason}: {decision.meaning}"
        yield ends("path", entry, why, "see the counters: tunnel drops")
    elif mtu is None:
        why = "the peer answers no probes: the node assumes the MTU of its own underlay route"
        yield goes_on("path", entry, why)
    elif size > mtu:
        yield goes_on("path", entry, f"{size} bytes exceed it: the underlay fragments the datagram")
    else:
        yield goes_on("path", entry, f"{size} bytes fit, as probes to the peer have shown")


def _worker(inputs: TraceInputs) -> Iterator[TraceStep]:
    """Flooded copies are left out: each peer's copy has a port of its own."""
    ports = [str(decision.port) for decision in inputs.decisions]
    if inputs.decision.flooded:
        return
    if len(ports) == 1:
        entry = f"source port {ports[0]}"
        why = "a hash of the inner flow selects the port, so packets of a flow stay in order"
    else:
        entry = f"one of {len(ports)} workers, source port {' or '.join(dict.fromkeys(ports))}"
        why = "the kernel's hash of the flow selects the worker, the node's hash its source port"
    yield goes_on("worker", entry, why)


def _headers(inputs: TraceInputs) -> Iterator[TraceStep]:
    if inputs.decision.flooded:
        return
    added = [one for one in encapsulation(inputs) if not one.name.startswith("inner")]
    entry = " | ".join(f"{layer.name} {layer.bytes}" for layer in added)
    if inputs.mode == "tap":
        why = "the frame keeps its own Ethernet header; the headers before it are added"
    elif _is_for_any_vtep(inputs):
        why = f"every node accepts {ANY_VTEP_MAC} besides its own MAC"
    else:
        why = "added in front of the packet, which is unchanged, its TTL included"
    yield goes_on("headers", entry, why)


def _is_for_any_vtep(inputs: TraceInputs) -> bool:
    return inputs.decision.headers[VXLAN_HEADER:].startswith(ANY_VTEP_MAC.packed)


def _underlay(inputs: TraceInputs) -> Iterator[TraceStep]:
    route, peer, neighbour = inputs.underlay_route, inputs.peer, inputs.underlay_neighbour
    if peer is None or route is None:
        return
    address, hop = peer.address, route.gateway or peer.address
    if route.error:
        why = f"this host has no route to {address}"
        yield ends("underlay", "none", why, f"see the kernel's answer: ip route get {address}")
    elif route.device == inputs.status.device:
        why = "the datagram would enter the tunnel again, in a loop"
        advice = f"add a route beside the tunnel: ip route add {address} via GATEWAY dev DEVICE"
        yield ends("underlay", route.entry, why, advice)
    elif neighbour is not None and neighbour.state == "FAILED":
        protocol = "ARP" if address and address.version == 4 else "NDP"
        why = f"the next hop {hop} does not answer {protocol} on {route.device}"
        yield ends("underlay", route.entry, why, f"check that it is up: ping -c 1 {hop}")
    else:
        via = f"via {route.gateway}" if route.gateway else "directly"
        mac = f", MAC {neighbour.mac}" if neighbour is not None and neighbour.mac else ""
        yield goes_on("underlay", route.entry, f"leaves through {route.device} {via}{mac}")


def _peer(inputs: TraceInputs) -> Iterator[TraceStep]:
    peer = inputs.peer
    if peer is None:
        return
    entry = f"{peer.endpoint} {peer.state.value}"
    drop = f"; last drop of its packets here: {peer.last_drop}" if peer.last_drop else ""
    match peer.state:
        case PeerState.UP:
            rtt = f", round trip {peer.rtt * 1e3:.3g} ms" if peer.rtt is not None else ""
            yield goes_on("peer", entry, f"answers{rtt}{drop}")
        case PeerState.UNKNOWN:
            why = "has never answered; a kernel vxlan device never does"
            yield goes_on("peer", entry, f"{why}{drop}")
        case PeerState.SILENT:
            advice = f"check the peer's own host, then: tunnel ping {peer.endpoint}"
            yield ends("peer", entry, f"silent for {peer.state_age:.0f} s{drop}", advice)


def _peer_checks(inputs: TraceInputs) -> Iterator[TraceStep]:
    """What the peer will check, as far as this node can know."""
    source, subnets = inputs.flow.source, inputs.status.subnets
    if inputs.peer is None:
        return
    subnet = next((one for one in subnets if source in one), None)
    if subnet is None and subnets:
        yield _source_in_no_subnet(inputs)
        return
    entry = f"source {source} in {subnet}" if subnet else f"source {source}"
    if inputs.peer.state is PeerState.UP:
        why = "the peer answers, so it accepts this node's address, VNI and MACs"
    elif _is_for_any_vtep(inputs):
        why = (
            "the peer must know this node's address and VNI, and accept "
            f"{ANY_VTEP_MAC}: a kernel vxlan device does not"
        )
    else:
        why = "the peer must know this node's address and VNI"
    yield goes_on(
        "peer checks", entry, f"{why}; it must also assign the same prefixes to this node"
    )


def _source_in_no_subnet(inputs: TraceInputs) -> TraceStep:
    flow, subnets = inputs.flow, inputs.status.subnets
    entry = f"source {flow.source}"
    if inputs.mode == "tap" and inputs.owner_of(flow.source) is None:
        why = "in no peer's prefix: a peer in TAP mode accepts it, others drop it as spoofed"
        return goes_on("peer checks", entry, why)
    listed = ", ".join(str(subnet) for subnet in subnets)
    first = next((one for one in subnets if one.version == flow.version), None)
    source = first.network_address if first else "ADDRESS"
    return ends(
        "peer checks",
        entry,
        f"not in this node's {listed}: the peer drops the packet as spoofed, unless it assigns "
        "another prefix to this node",
        f"use a source from these: tunnel explain {flow.destination} --from {source}",
    )


UNDERLAY: tuple[Callable[[TraceInputs], Iterator[TraceStep]], ...] = (
    _name,
    _path_mtu,
    _worker,
    _headers,
    _underlay,
    _peer,
    _peer_checks,
)
