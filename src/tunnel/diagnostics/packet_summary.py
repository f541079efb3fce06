"""
One line about a packet, as ``tunnel capture`` prints it.

The bytes come from an untrusted sender: every length in them is checked.
"""

from __future__ import annotations

import ipaddress
import struct

from tunnel.errors import CodecError
from tunnel.linux.bpf import ETHERNET
from tunnel.linux.packet_socket import Packet
from tunnel.protocol import control_frames

_ICMP, _TCP, _UDP, _ICMPV6 = 1, 6, 17, 58  # protocol numbers
_ICMP_TYPES = {0: "echo reply", 3: "unreachable", 8: "echo request", 11: "time exceeded"}
_ICMPV6_TYPES = {
    1: "unreachable",
    2: "packet too big",
    3: "time exceeded",
    128: "echo request",
    129: "echo reply",
    135: "neighbour solicitation",
    136: "neighbour advertisement",
}
_TCP_FLAGS = "FSRP.UEC"
_ETHERNET_HEADER = 14


def summarize(packet: Packet) -> str:
    """
    Returns one line: ``10.1.0.0.4711 > 10.2.0.0.80: tcp [S], 60 bytes``; for a packet that carries
    another, with a summary of that in brackets.
    """
    data = packet.data
    if packet.interface.link != ETHERNET:
        return _ip(data)
    if len(data) < _ETHERNET_HEADER:
        return f"truncated Ethernet header, {len(data)} bytes"
    return _ethernet(data)


def looks_like_vxlan(payload: bytes) -> bool:
    """Returns whether a UDP payload begins as RFC 7348 says and every sender writes it."""
    return (
        len(payload) >= control_frames.HEADERS.size
        and payload[:4] == b"\x08\0\0\0"
        and payload[7] == 0
        and struct.unpack_from("!H", payload, 20)[0]
        in (0x0800, 0x86DD, 0x0806, control_frames.ETHERTYPE)
    )


def _ethernet(frame: bytes) -> str:
    (ethertype,) = struct.unpack_from("!H", frame, 12)
    body = frame[_ETHERNET_HEADER:]
    if ethertype in (0x0800, 0x86DD):
        return _ip(body)
    if ethertype == control_frames.ETHERTYPE:
        return _control(body)
    return f"ethertype {ethertype:#06x}, {len(frame)} bytes"


def _ip(data: bytes) -> str:
    version = data[0] >> 4 if data else 0
    if version == 4 and len(data) >= 20:
        header, protocol = max(20, 4 * (data[0] & 0x0F)), data[9]
        later_fragment = bool(struct.unpack_from("!H", data, 6)[0] & 0x1FFF)
        source, destination = data[12:16], data[16:20]
    elif version == 6 and len(data) >= 40:
        header, protocol, later_fragment = 40, data[6], False
        source, destination = data[8:24], data[24:40]
    else:
        return f"truncated IP header, {len(data)} bytes"
    ends = [str(ipaddress.ip_address(end)) for end in (source, destination)]
    payload = data[header:]
    if protocol in (_TCP, _UDP) and len(payload) >= 8 and not later_fragment:
        ports = struct.unpack_from("!HH", payload)
        ends = [f"{end}.{port}" for end, port in zip(ends, ports, strict=True)]
    what = "later fragment" if later_fragment else _transport(protocol, payload)
    return f"{ends[0]} > {ends[1]}: {what or f'protocol {protocol}'}, {len(data)} bytes"


def _transport(protocol: int, payload: bytes) -> str:
    if protocol == _TCP and len(payload) >= 14:
        bits = payload[13]
        flags = "".join(name for i, name in enumerate(_TCP_FLAGS) if bits >> i & 1)
        return f"tcp [{flags}]"
    if protocol == _UDP and len(payload) >= 8:
        return _vxlan(payload[8:]) or "udp"
    if protocol == _ICMP and payload:
        return f"icmp {_ICMP_TYPES.get(payload[0], payload[0])}"
    if protocol == _ICMPV6 and payload:
        return f"icmp6 {_ICMPV6_TYPES.get(payload[0], payload[0])}"
    return ""


def _vxlan(payload: bytes) -> str:
    if not looks_like_vxlan(payload):
        return ""
    vni = int.from_bytes(payload[4:7])
    return f"vni {vni} ({_ethernet(payload[8:])})"


def _control(body: bytes) -> str:
    try:
        message = control_frames.decode(body)
    except CodecError:
        return f"malformed control frame, {len(body)} bytes"
    kind = control_frames.kind_of(message) if message else "of an unknown kind"
    return f"control {kind}, {len(body)} bytes"
