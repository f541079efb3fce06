"""
Explains captured packets header by header, and says what a node's checks decide.

    hex, pcap or pcapng  ->  CapturedPacket  ->  Explanation

    packet_file  reads packets from a file or a hex dump
    layers       dissects headers with scapy
    receiver     the checks of the node that a packet is for, as the packet path makes them

Needs scapy (the extra ``inspect``), which no other part of tunnel imports.
"""

from __future__ import annotations

import ipaddress
from dataclasses import asdict, dataclass, field
from typing import Any

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment
from scapy.packet import Packet

from tunnel._native import DROP_REASONS
from tunnel.diagnostics.decode.layers import DecodedLayer, dissect, inner_layers, layers_of
from tunnel.diagnostics.decode.packet_file import KINDS, CapturedPacket, read_packets
from tunnel.diagnostics.decode.receiver import Receiver, drop_reason, is_neighbour_discovery
from tunnel.diagnostics.packet_summary import looks_like_vxlan
from tunnel.protocol import control_frames
from tunnel.types import DEFAULT_PORT, Address

__all__ = [
    "KINDS",
    "CapturedPacket",
    "DecodedLayer",
    "Explanation",
    "Receiver",
    "Verdict",
    "explain_packet",
    "read_packets",
]

_VXLAN_PORTS = {DEFAULT_PORT, 4789}
_MEANINGS = {name: meaning for name, _, meaning in DROP_REASONS}
_ANSWERED = ("ethertype", "group_mac", "spoofed")
"""Reasons for which ARP and NDP are not forwarded, although a node reads and answers them."""


@dataclass(frozen=True)
class Verdict:
    """Why a node would drop a packet, and what that means; None if it would accept it."""

    reason: str | None
    meaning: str | None


@dataclass(frozen=True)
class Explanation:
    """
    One packet, explained.

    Attributes:
        size: Bytes of the captured packet.
        layers: Headers, outermost first.
        notes: Further remarks, a sentence each.
        verdict: What a node's checks say, None if there is nothing that a node would check.
    """

    size: int
    layers: tuple[DecodedLayer, ...]
    notes: tuple[str, ...] = ()
    verdict: Verdict | None = None

    def as_json(self) -> dict[str, Any]:
        """Returns the same as values that JSON can hold."""
        return asdict(self)


@dataclass
class _Draft:
    """An explanation in the making; `complete` is False for a datagram of which bytes are
    missing."""

    layers: list[DecodedLayer] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    source: Address | None = None
    ecn: int = 0
    complete: bool = True


def explain_packet(packet: CapturedPacket, *, receiver: Receiver | None = None) -> Explanation:
    """
    Returns all that can be said about one packet; headers that make no sense are shown as bytes.

    Args:
        receiver: The node whose checks apply, by default :class:`Receiver`'s defaults.
    """
    draft, verdict = _Draft(complete=not packet.missing), None
    if packet.missing:
        draft.notes.append(f"the capture cut off {packet.missing} bytes")
    datagram = packet.data if packet.kind == "vxlan" else _read_outer(packet, draft)
    if datagram is None:
        draft.notes.append("not VXLAN, so a node has nothing to check")
    else:
        datagram = _first_of_train(datagram, draft)
        layers, notes = inner_layers(datagram)
        draft.layers += layers
        draft.notes += notes
        if draft.complete:
            verdict = _judge(datagram, draft, receiver or Receiver())
    return Explanation(len(packet.data), tuple(draft.layers), tuple(draft.notes), verdict)


def _read_outer(packet: CapturedPacket, draft: _Draft) -> bytes | None:
    """Adds the outer headers; returns the UDP payload if that is VXLAN."""
    outer = dissect(packet)
    udp = outer.getlayer(UDP)
    payload = bytes(udp.original[8:]) if udp is not None else b""
    if udp is None or not (looks_like_vxlan(payload) or {udp.sport, udp.dport} & _VXLAN_PORTS):
        draft.layers += layers_of(outer)
        return None
    draft.layers += layers_of(outer, last=udp)
    _read_ip(udp.underlayer, draft)
    return payload


def _read_ip(below: Packet | None, draft: _Draft) -> None:
    """Reads source, ECN and fragmentation from the headers below UDP."""
    if isinstance(below, IPv6ExtHdrFragment) or (isinstance(below, IP) and below.flags.MF):
        draft.complete = False
        draft.notes.append("the first of several fragments: a node gets it reassembled")
    while below is not None and not isinstance(below, IP | IPv6):
        below = below.underlayer
    if below is not None:
        draft.source = ipaddress.ip_address(below.src)
        draft.ecn = (below.tos if isinstance(below, IP) else below.tc) & 3


def _first_of_train(datagram: bytes, draft: _Draft) -> bytes:
    """Returns the first datagram of what the kernel moved as one message, by its inner length."""
    size = control_frames.HEADERS.size
    if looks_like_vxlan(datagram) and len(datagram) >= size + 8:
        if datagram[20:22] == b"\x08\0":
            size += int.from_bytes(datagram[size + 2 : size + 4])
        else:
            size += 40 + int.from_bytes(datagram[size + 4 : size + 6])
        if datagram[size : size + 8] == datagram[:8] and looks_like_vxlan(datagram[size:]):
            count = -(-len(datagram) // size)
            draft.notes.append(f"a train of {count} datagrams of {size} bytes: this is the first")
            return datagram[:size]
    return datagram


def _judge(datagram: bytes, draft: _Draft, receiver: Receiver) -> Verdict | None:
    reason = drop_reason(datagram, draft.source, draft.ecn, receiver=receiver)
    if reason in _ANSWERED and is_neighbour_discovery(datagram):
        draft.notes.append("ARP or NDP, which a node answers for its overlay addresses")
        return None
    return Verdict(reason, None if reason is None else _MEANINGS[reason])
