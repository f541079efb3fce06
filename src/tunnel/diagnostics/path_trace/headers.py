"""The headers of the datagram that carries the packet."""

from __future__ import annotations

from collections.abc import Iterator

from tunnel.diagnostics.flow import IP_HEADER, TTL, Flow
from tunnel.diagnostics.path_trace.inputs import TraceInputs
from tunnel.diagnostics.path_trace.result import TraceLayer

UDP_HEADER, VXLAN_HEADER = 8, 8  # bytes

_VLAN_TAG = 0x8100


def encapsulation(inputs: TraceInputs) -> Iterator[TraceLayer]:
    """Yields the headers from the outer IP header to the inner one."""
    length = len(inputs.decision.headers) + inputs.size
    yield _outer_ip(inputs, payload=UDP_HEADER + length)
    yield _udp(inputs, length=UDP_HEADER + length)
    yield from _vxlan_and_ethernet(inputs.decision.headers)
    yield _inner_ip(inputs.flow, length=inputs.size)


def _outer_ip(inputs: TraceInputs, *, payload: int) -> TraceLayer:
    destination = inputs.peer.address if inputs.peer else None
    version = destination.version if destination else 4
    fields = {
        "source": str(inputs.local_address),
        "destination": str(destination) if destination else "each peer",
        "ttl": str(TTL),
        "protocol": "17 (UDP)",
        "length": str(IP_HEADER[version] + payload),
    }
    if version == 4:
        fields["df"] = "0"
    return TraceLayer(f"outer IPv{version}", IP_HEADER[version], fields)


def _udp(inputs: TraceInputs, *, length: int) -> TraceLayer:
    ports = dict.fromkeys(str(decision.port) for decision in inputs.decisions)
    fields = {
        "source": " or ".join(ports),
        "destination": str(inputs.peer.endpoint.port) if inputs.peer else "each peer's",
        "length": str(length),
        "checksum": "yes",
    }
    return TraceLayer("UDP", UDP_HEADER, fields)


def _vxlan_and_ethernet(headers: bytes) -> Iterator[TraceLayer]:
    """Reads the bytes that the packet path writes."""
    flags, vni = headers[0], int.from_bytes(headers[4:7])
    yield TraceLayer("VXLAN", VXLAN_HEADER, {"flags": f"{flags:02x}", "vni": str(vni)})
    ethernet = headers[VXLAN_HEADER:]
    fields = {"source": ethernet[6:12].hex(":"), "destination": ethernet[:6].hex(":")}
    if int.from_bytes(ethernet[12:14]) == _VLAN_TAG:
        fields["vlan"] = str(int.from_bytes(ethernet[14:16]) & 0xFFF)
    fields["type"] = ethernet[-2:].hex()
    yield TraceLayer("Ethernet", len(ethernet), fields)


def _inner_ip(flow: Flow, *, length: int) -> TraceLayer:
    fields = {
        "source": str(flow.source),
        "destination": str(flow.destination),
        "protocol": flow.protocol,
        "length": str(length),
    }
    if flow.protocol != "icmp":
        fields |= {"sport": str(flow.sport), "dport": str(flow.dport)}
    return TraceLayer(f"inner IPv{flow.version}", IP_HEADER[flow.version], fields)
