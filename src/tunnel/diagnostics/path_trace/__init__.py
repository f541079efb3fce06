"""
The path of one packet, step by step, and the entry that decides each step.

    TraceInputs  ->  trace()  ->  PathTrace

    inputs     what is known about the packet, the kernel and the node
    outbound   from this host to the node: kernel route, neighbour, device, the node's own tables
    underlay   from the node to the peer: path MTU, headers, underlay route, the peer's checks
    inbound    from a peer to this host or to one behind it
    kernel     steps that both directions share: what the kernel refuses, and how it prints
    headers    the headers of the datagram
    result     the trace and its steps

Each rule looks at one thing and yields one step, or none if there is nothing to report. The path
ends at the first step that says so. Imports values alone: no clock, socket or loop. The route
table, the FDB and the worker are not modelled here: the packet path itself was asked, and its
answer is among the inputs.
"""

from __future__ import annotations

from tunnel.diagnostics.path_trace.headers import encapsulation
from tunnel.diagnostics.path_trace.inbound import INBOUND
from tunnel.diagnostics.path_trace.inputs import ForwardingDecision, TraceInputs
from tunnel.diagnostics.path_trace.outbound import OUTBOUND
from tunnel.diagnostics.path_trace.result import Outcome, PathTrace, TraceLayer, TraceStep
from tunnel.diagnostics.path_trace.underlay import UNDERLAY

__all__ = [
    "ForwardingDecision",
    "Outcome",
    "PathTrace",
    "TraceInputs",
    "TraceLayer",
    "TraceStep",
    "trace",
]


def trace(inputs: TraceInputs) -> PathTrace:
    """Returns the steps up to the one at which the path ends, or all if it does not end."""
    steps: list[TraceStep] = []
    for rule in INBOUND if inputs.inbound else (*OUTBOUND, *UNDERLAY):
        steps += rule(inputs)
        if steps and steps[-1].verdict is Outcome.ENDS:
            break
    encapsulated = any(step.step == "headers" for step in steps)
    return PathTrace(
        packet=str(inputs.flow),
        direction="inbound" if inputs.inbound else "outbound",
        steps=tuple(steps),
        headers=tuple(encapsulation(inputs)) if encapsulated else (),
        ends=steps[-1].step if steps[-1].verdict is Outcome.ENDS else None,
    )
