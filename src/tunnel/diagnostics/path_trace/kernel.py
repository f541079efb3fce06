"""What the kernel refuses, and why: steps that both directions share."""

from __future__ import annotations

import errno

from tunnel.diagnostics.path_trace.inputs import TraceInputs, prefix_of
from tunnel.diagnostics.path_trace.result import TraceStep, ends
from tunnel.types import Address, KernelNeighbour, KernelRoute


def refused(inputs: TraceInputs, route: KernelRoute, *, command: str) -> TraceStep:
    """Returns the step for the errno with which the kernel refuses; `command` shows its answer."""
    destination = inputs.flow.destination
    match route.error:
        case errno.ENETUNREACH:
            return _no_route(inputs, command=command)
        case errno.EHOSTUNREACH if not inputs.forwarding:
            return not_forwarded(inputs, "")
        case errno.EHOSTUNREACH:
            why = f"an unreachable route matches {destination}"
        case errno.EACCES:
            why = f"a prohibit route matches {destination}"
        case errno.EINVAL | errno.EXDEV if inputs.ingress or inputs.inbound:
            return _filtered(inputs)
        case errno.EINVAL:
            source = inputs.flow.source
            why = f"a blackhole route matches, or {source} is not an address of this host"
        case _:
            why = f"the kernel refuses the packet with errno {route.error}"
    return ends("kernel route", "none", why, f"see the kernel's answer: {command}")


def _no_route(inputs: TraceInputs, *, command: str) -> TraceStep:
    destination = inputs.flow.destination
    owner = None if inputs.inbound else inputs.owner_of(destination)
    if owner is None:
        why, advice = f"no kernel route matches {destination}", "see the kernel's answer"
    else:
        prefix = prefix_of(owner, destination)
        why = f"the kernel route for {prefix} of peer {owner.endpoint} is missing"
        advice = "restore it"
        command = f"ip route add {prefix} dev {inputs.status.device} proto 84"
    return ends("kernel route", "none", why, f"{advice}: {command}")


def _filtered(inputs: TraceInputs) -> TraceStep:
    source = inputs.flow.source
    device = inputs.ingress or inputs.status.device
    why = (
        f"the reverse-path filter of {device} drops the packet: the route to {source} leads "
        "elsewhere, or it is an address of this host"
    )
    return ends("kernel route", "none", why, f"see that route: ip route get {source}")


def not_forwarded(inputs: TraceInputs, entry: str) -> TraceStep:
    """Returns the step for a host that does not forward this family."""
    version = inputs.flow.version
    switch = "net.ipv4.ip_forward" if version == 4 else "net.ipv6.conf.all.forwarding"
    why = f"this host does not forward IPv{version}"
    return ends("kernel route", entry or "none", why, f"turn it on: sysctl -w {switch}=1")


def neighbour_entry(hop: Address | None, known: KernelNeighbour | None) -> str:
    """Returns a neighbour as ``ip neighbour`` prints it."""
    if known is None:
        return f"{hop} none"
    mac = f" lladdr {known.mac}" if known.mac else ""
    return f"{hop} dev {known.device}{mac} {known.state}"
