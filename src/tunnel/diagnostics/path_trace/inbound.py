"""From a peer to this host, or to a host behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tunnel.diagnostics.path_trace.inputs import TraceInputs, prefix_of
from tunnel.diagnostics.path_trace.kernel import neighbour_entry, not_forwarded, refused
from tunnel.diagnostics.path_trace.result import TraceStep, ends, goes_on
from tunnel.types import ANY_VTEP_MAC


def _packet(inputs: TraceInputs) -> Iterator[TraceStep]:
    yield goes_on("packet", str(inputs.flow), "arrives in a datagram from a peer")


def _outer_source(inputs: TraceInputs) -> Iterator[TraceStep]:
    source, owner = inputs.flow.source, inputs.owner
    if owner is not None:
        why = "a peer, on any source port; datagrams from others are dropped as unknown_source"
        entry = f"outer source {owner.address} is {owner.endpoint}"
        yield goes_on("outer source", entry, why)
    elif inputs.mode == "tap":
        why = "no peer owns the inner source, so the datagram may come from any of them"
        yield goes_on("outer source", "any peer", why)
    else:
        yield ends(
            "source check",
            f"inner source {source}",
            "no peer owns it: dropped as spoofed, or as unknown_source if no peer sent the "
            "datagram",
            f"assign it to a peer: tunnel peer add ENDPOINT={source}",
        )


def _vni(inputs: TraceInputs) -> Iterator[TraceStep]:
    vni = inputs.status.vni
    yield goes_on("vni", f"vni {vni}", "this node's; any other is dropped as other_vni")


def _mac(inputs: TraceInputs) -> Iterator[TraceStep]:
    if inputs.mode == "tap":
        why = "every destination MAC is accepted: the device may be a port of a bridge"
    else:
        why = f"this node's, or {ANY_VTEP_MAC} of every node; any other is dropped as other_mac"
    yield goes_on("mac", str(inputs.status.mac), why)


def _inner_source(inputs: TraceInputs) -> Iterator[TraceStep]:
    owner = inputs.owner
    if owner is None:
        return
    entry = f"{prefix_of(owner, inputs.flow.source)} -> {owner.endpoint}"
    counts = ", ".join(f"{reason} {count}" for reason, count in owner.drops.items())
    drops = f"; drops of this peer's packets so far: {counts}" if counts else ""
    yield goes_on("source check", entry, f"this peer owns the inner source: not spoofed{drops}")


def _device(inputs: TraceInputs) -> Iterator[TraceStep]:
    status = inputs.status
    if not inputs.mode:
        yield goes_on("device", "none", "no device: the program takes the packet from the node")
        return
    state = "up" if inputs.device_up else "down"
    entry = f"{status.device} {inputs.mode} mtu {status.mtu} {state}"
    if inputs.device_up:
        yield goes_on(
            "device", entry, "the node writes the packet to it, and the kernel receives it"
        )
    else:
        advice = f"set it up: ip link set {status.device} up"
        yield ends("device", entry, "the device is down", advice)


def _kernel_route(inputs: TraceInputs) -> Iterator[TraceStep]:
    route, flow, device = inputs.kernel_route, inputs.flow, inputs.status.device
    if route is None:
        return
    if route.error:
        command = f"ip route get {flow.destination} from {flow.source} iif {device}"
        yield refused(inputs, route, command=command)
    elif route.kind == "local":
        why = "an address of this host: the packet has arrived"
        yield goes_on("kernel route", route.entry, why)
    elif not inputs.forwarding:
        yield not_forwarded(inputs, route.entry)
    elif route.device == device:
        why = "leads back into the tunnel: no route here leads to this address"
        advice = f"see the kernel's routes: ip route show match {flow.destination}"
        yield ends("kernel route", route.entry, why, advice)
    else:
        yield goes_on("kernel route", route.entry, f"forwarded to {route.device}")


def _neighbour(inputs: TraceInputs) -> Iterator[TraceStep]:
    route, known = inputs.kernel_route, inputs.kernel_neighbour
    if route is None or route.kind == "local":
        return
    hop = route.gateway or inputs.flow.destination
    entry = neighbour_entry(hop, known)
    if known is None or known.state == "INCOMPLETE":
        why = f"the kernel resolves the MAC on {route.device} when the packet arrives"
        yield goes_on("neighbour", f"{hop} dev {route.device} not resolved yet", why)
    elif known.state == "FAILED":
        why = f"no host on {route.device} answers for {hop}"
        yield ends("neighbour", entry, why, f"check that it is up: ping -c 1 {hop}")
    elif known.port:
        end = ", whose other end is in another network namespace" if known.namespace else ""
        why = f"the bridge {known.device} forwards it to its port {known.port}{end}"
        yield goes_on("neighbour", entry, why)
    else:
        yield goes_on("neighbour", entry, f"leaves through {known.device} to this MAC")


INBOUND: tuple[Callable[[TraceInputs], Iterator[TraceStep]], ...] = (
    _packet,
    _outer_source,
    _vni,
    _mac,
    _inner_source,
    _device,
    _kernel_route,
    _neighbour,
)
