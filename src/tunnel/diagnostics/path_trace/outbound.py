"""From this host to the node: what the kernel decides, and then the node's own tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tunnel.diagnostics.flow import ICMP_HEADER, IP_HEADER
from tunnel.diagnostics.path_trace.inputs import TraceInputs, prefix_of
from tunnel.diagnostics.path_trace.kernel import neighbour_entry, not_forwarded, refused
from tunnel.diagnostics.path_trace.result import TraceStep, ends, goes_on
from tunnel.status import PeerStatus
from tunnel.types import KernelRoute


def _packet(inputs: TraceInputs) -> Iterator[TraceStep]:
    entry = str(inputs.flow)
    if inputs.ingress is None:
        source = inputs.flow.source
        why = f"{source} is not an address of this host, and no kernel route leads to it"
        yield ends("packet", entry, why, "see addresses and routes: ip address; ip route")
    elif inputs.ingress:
        yield goes_on("packet", entry, f"arrives on {inputs.ingress}; this host forwards it")
    else:
        yield goes_on("packet", entry, "sent by this host")


def _kernel_route(inputs: TraceInputs) -> Iterator[TraceStep]:
    route, destination = inputs.kernel_route, inputs.flow.destination
    if route is None:
        yield goes_on("kernel route", "none", "no device: the program passes packets to the node")
        return
    owner = inputs.owner_of(destination)
    enters = route.device in (inputs.status.device, inputs.bridge) and not route.error
    if owner is not None and not inputs.device_up and not enters:
        yield _removed_with_the_device(inputs, route, owner)
    elif route.error:
        yield refused(inputs, route, command=_route_get(inputs))
    elif inputs.ingress and not inputs.forwarding:
        yield not_forwarded(inputs, route.entry)
    elif route.kind != "unicast":
        yield ends("kernel route", route.entry, f"{destination} is an address of this host")
    elif enters:
        yield _into_the_device(inputs, route)
    else:
        yield _past_the_device(inputs, route, owner)


def _route_get(inputs: TraceInputs) -> str:
    """The command that prints the kernel's answer."""
    ingress = f" from {inputs.flow.source} iif {inputs.ingress}" if inputs.ingress else ""
    return f"ip route get {inputs.flow.destination}{ingress}"


def _removed_with_the_device(
    inputs: TraceInputs, route: KernelRoute, owner: PeerStatus
) -> TraceStep:
    device, prefix = inputs.status.device, prefix_of(owner, inputs.flow.destination)
    return ends(
        "kernel route",
        route.entry or "none",
        f"{device} is down, so the kernel has removed the route for {prefix} of peer "
        f"{owner.endpoint}",
        f"set it up, and the node restores the route: ip link set {device} up",
    )


def _into_the_device(inputs: TraceInputs, route: KernelRoute) -> TraceStep:
    if route.device == inputs.status.device:
        why = f"the longest matching prefix; leads into {route.device}"
    else:
        why = f"the longest matching prefix; {inputs.status.device} is a port of this bridge"
    return goes_on("kernel route", route.entry, why)


def _past_the_device(
    inputs: TraceInputs, route: KernelRoute, owner: PeerStatus | None
) -> TraceStep:
    destination = inputs.flow.destination
    if owner is None:
        why = f"leaves through {route.device}, not the overlay: no peer owns {destination}"
        advice = "see the prefixes of all peers: tunnel route list"
    else:
        why = (
            f"leaves through {route.device}, although peer {owner.endpoint} owns "
            f"{prefix_of(owner, destination)}: this route has a longer prefix or a lower metric"
        )
        advice = f"see all matching routes: ip route show match {destination}"
    return ends("kernel route", route.entry, why, advice)


def _neighbour(inputs: TraceInputs) -> Iterator[TraceStep]:
    """A frame needs the MAC of the next hop, which is the peer's VTEP."""
    route, known = inputs.kernel_route, inputs.kernel_neighbour
    if inputs.mode != "tap" or route is None:
        return
    destination = inputs.flow.destination
    hop = route.gateway or destination
    entry = neighbour_entry(hop, known)
    if known is not None and known.port and known.port != inputs.status.device:
        why = f"the bridge has this MAC behind port {known.port}, not {inputs.status.device}"
        yield ends("neighbour", entry, why, f"see its FDB: bridge fdb show br {known.device}")
    elif known is not None and known.mac:
        how = "set by the node" if known.state == "PERMANENT" else "resolved by ARP or NDP"
        yield goes_on("neighbour", entry, f"the next hop's MAC, {how}")
    elif known is not None and known.state == "FAILED":
        why = f"no host in the overlay answered for {hop}"
        yield ends("neighbour", entry, why, "see each peer's MAC: tunnel neighbour list")
    else:
        why = "not resolved yet: the kernel asks by ARP or NDP, and every peer gets the request"
        yield ends("neighbour", entry, why, f"have it resolved: ping -c 1 {destination}")


def _device(inputs: TraceInputs) -> Iterator[TraceStep]:
    status, flow = inputs.status, inputs.flow
    if not inputs.mode:
        return
    offloads = "+".join(name for name in ("tso", "uso") if name in status.offloads)
    state = "up" if inputs.device_up else "down"
    entry = f"{status.device} {inputs.mode} mtu {status.mtu} {state} {offloads or 'no offloads'}"
    if not inputs.device_up:
        advice = f"set it up: ip link set {status.device} up"
        yield ends("device", entry, "the device is down", advice)
    elif flow.size <= status.mtu:
        yield goes_on("device", entry, f"{flow.size} bytes fit the MTU")
    elif flow.protocol == "tcp" and "tso" in status.offloads:
        yield goes_on("device", entry, "a super-packet: the node splits it into segments")
    elif inputs.ingress:
        yield _too_big_to_forward(inputs, entry)
    else:
        yield goes_on("device", entry, f"{flow.size} bytes exceed the MTU: the kernel fragments it")


def _too_big_to_forward(inputs: TraceInputs, entry: str) -> TraceStep:
    mtu, flow = inputs.status.mtu, inputs.flow
    payload = mtu - IP_HEADER[flow.version] - ICMP_HEADER
    return ends(
        "device",
        entry,
        f"{flow.size} bytes exceed the MTU: the kernel drops the packet and sends an ICMP message "
        f"with MTU {mtu} to its sender",
        "check on the sender that this message arrives: "
        f"ping -M do -s {payload} {flow.destination}",
    )


def _route(inputs: TraceInputs) -> Iterator[TraceStep]:
    """The node's own route table, in TUN mode."""
    decision, destination = inputs.decision, inputs.flow.destination
    if inputs.mode == "tap":
        return
    if decision.peer is None:
        advice = f"assign a prefix with it to a peer: tunnel peer add ENDPOINT={destination}"
        yield ends("route", "none", f"{decision.reason}: {decision.meaning}", advice)
    else:
        entry = f"{prefix_of(decision.peer, destination)} -> {decision.peer.endpoint}"
        yield goes_on("route", entry, "the longest matching prefix in the node's own table")


def _fdb(inputs: TraceInputs) -> Iterator[TraceStep]:
    """The node's FDB, in TAP mode."""
    decision = inputs.decision
    if inputs.mode != "tap":
        return
    mac = inputs.kernel_neighbour.mac if inputs.kernel_neighbour else "?"
    if decision.flooded:
        count = len(inputs.status.peers)
        why = f"not in the FDB: each of {count} peers gets a copy, the one with the MAC takes it"
        yield goes_on("fdb", f"{mac} unknown, flooded", why)
    elif decision.peer is None:
        advice = f"add an entry: tunnel fdb add {mac} PEER"
        yield ends("fdb", f"{mac} none", f"{decision.reason}: {decision.meaning}", advice)
    else:
        yield goes_on("fdb", inputs.fdb_entry, f"the MAC is behind {decision.peer.endpoint}")


OUTBOUND: tuple[Callable[[TraceInputs], Iterator[TraceStep]], ...] = (
    _packet,
    _kernel_route,
    _neighbour,
    _device,
    _route,
    _fdb,
)
