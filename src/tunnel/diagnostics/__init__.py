"""
Why packets do not arrive: checks, traces and captures. Nothing here changes a node.

    doctor, host_report    checks what usually goes wrong; the observations that it judges
    path_trace             the path of one packet, step by step
    path_inputs            gathers what the trace needs
    firewall, flow         which rule drops a packet; a packet as five values
    capture, pcapng        packets as they pass an interface; the file format
    decode                 packets explained header by header; needs scapy

Imports :mod:`tunnel.node`, linux, config and what is below. The names below are imported when
they are first used, so that scapy is needed by those of :mod:`tunnel.diagnostics.decode` alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunnel.diagnostics.capture import Capture
    from tunnel.diagnostics.decode import Explanation
    from tunnel.diagnostics.doctor import Finding, Level, diagnose, examine
    from tunnel.diagnostics.path_trace import Outcome, PathTrace, TraceLayer, TraceStep
    from tunnel.linux.packet_socket import CaptureInterface, Packet

__all__ = [
    "Capture",
    "CaptureInterface",
    "Explanation",
    "Finding",
    "Level",
    "Outcome",
    "Packet",
    "PathTrace",
    "TraceLayer",
    "TraceStep",
    "diagnose",
    "examine",
]

_MODULES = {
    "Capture": "tunnel.diagnostics.capture",
    "CaptureInterface": "tunnel.linux.packet_socket",
    "Explanation": "tunnel.diagnostics.decode",
    "Finding": "tunnel.diagnostics.doctor",
    "Level": "tunnel.diagnostics.doctor",
    "Outcome": "tunnel.diagnostics.path_trace",
    "Packet": "tunnel.linux.packet_socket",
    "PathTrace": "tunnel.diagnostics.path_trace",
    "TraceLayer": "tunnel.diagnostics.path_trace",
    "TraceStep": "tunnel.diagnostics.path_trace",
    "diagnose": "tunnel.diagnostics.doctor",
    "examine": "tunnel.diagnostics.doctor",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
