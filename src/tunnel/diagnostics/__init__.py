"""
Why packets do not arrive: checks, traces and captures. Nothing here changes a node.

    doctor/                        checks what usually goes wrong, and says what to do
    host_report, host_inspection   the observations that it judges; reads them from the host
    path_trace/                    the path of one packet, step by step
    path_inputs                    reads what the trace needs from a node
    firewall, flow                 which rule drops a packet; a packet as Linux sends it
    capture, pcapng                packets as they pass an interface; the file format
    packet_summary                 a packet in one line
    decode/                        packets explained header by header; needs scapy

Imports :mod:`tunnel.node`, linux, config and what is below. The names below are imported when
they are first used, so that scapy is needed by those of :mod:`tunnel.diagnostics.decode` alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tunnel.diagnostics.capture import Capture, capture_device, capture_underlay
    from tunnel.diagnostics.decode import (
        CapturedPacket,
        DecodedLayer,
        Explanation,
        Receiver,
        Verdict,
        explain_packet,
        read_packets,
    )
    from tunnel.diagnostics.doctor import Finding, Level, diagnose, examine
    from tunnel.diagnostics.packet_summary import summarize
    from tunnel.diagnostics.path_trace import Outcome, PathTrace, TraceLayer, TraceStep
    from tunnel.linux.packet_socket import CaptureInterface, Packet

__all__ = [
    "Capture",
    "CaptureInterface",
    "CapturedPacket",
    "DecodedLayer",
    "Explanation",
    "Finding",
    "Level",
    "Outcome",
    "Packet",
    "PathTrace",
    "Receiver",
    "TraceLayer",
    "TraceStep",
    "Verdict",
    "capture_device",
    "capture_underlay",
    "diagnose",
    "examine",
    "explain_packet",
    "read_packets",
    "summarize",
]

_NAMES = {
    "capture": ("Capture", "capture_device", "capture_underlay"),
    "decode": (
        "CapturedPacket",
        "DecodedLayer",
        "Explanation",
        "Receiver",
        "Verdict",
        "explain_packet",
        "read_packets",
    ),
    "doctor": ("Finding", "Level", "diagnose", "examine"),
    "packet_summary": ("summarize",),
    "path_trace": ("Outcome", "PathTrace", "TraceLayer", "TraceStep"),
}
_MODULES = {name: f"{__name__}.{module}" for module, names in _NAMES.items() for name in names}
_MODULES |= dict.fromkeys(("CaptureInterface", "Packet"), "tunnel.linux.packet_socket")


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
