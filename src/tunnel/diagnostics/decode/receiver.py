"""The checks of a receiving node, made by the packet path's own C code."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

from tunnel import _native
from tunnel.errors import CodecError
from tunnel.protocol import control_frames
from tunnel.types import ANY_VTEP_MAC, Address, Mac, Prefix

_VLAN_TAG, _IPV6, _ARP = 0x8100, 0x86DD, 0x0806  # EtherTypes


@dataclass(frozen=True)
class Receiver:
    """
    The node that a packet is for, as far as it is known. By default any node: it accepts every
    VNI and source, and its MAC is the packet's destination.

    Attributes:
        bridged: Whether it forwards frames (``--mode tap``).
        addresses: Its own addresses; a packet from one of them is for a peer.
        owners: The prefixes of the peers at each outer address, None if that is not known.
    """

    vni: int | None = None
    mac: Mac | None = None
    bridged: bool = False
    addresses: frozenset[Address] = frozenset()
    owners: Mapping[Address, tuple[Prefix, ...]] | None = None


def drop_reason(
    datagram: bytes, source: Address | None, ecn: int, *, receiver: Receiver
) -> str | None:
    """
    Returns why the node would drop a datagram, None if it would accept it.

    Args:
        source: Outer source address, None if it is not known.
        ecn: The ECN bits of the outer header.
    """
    if source in receiver.addresses:
        receiver = Receiver(vni=receiver.vni, bridged=receiver.bridged)
    owners = receiver.owners
    if owners is not None and source is not None and source not in owners:
        return "unknown_source"
    vni = int.from_bytes(datagram[4:7]) if receiver.vni is None else receiver.vni
    mac = _mac(datagram, receiver)
    reason = _native.decap(datagram, vni, mac, ecn, receiver.bridged)
    if reason in (None, "ethertype") and _ethertype(datagram) == control_frames.ETHERTYPE:
        return _control_reason(datagram, mac, bridged=receiver.bridged)
    if reason is None and owners is not None and source is not None:
        inner = _inner_source(datagram)
        if inner is not None and _is_spoofed(inner, source, owners, bridged=receiver.bridged):
            return "spoofed"
    return reason


def is_neighbour_discovery(datagram: bytes) -> bool:
    """Returns whether it carries ARP, or a solicitation or an advertisement of NDP."""
    if _ethertype(datagram) == _IPV6:
        return datagram[28:29] == b"\x3a" and datagram[62:63] in (b"\x87", b"\x88")
    return _ethertype(datagram) == _ARP


def _ethertype(datagram: bytes) -> int:
    return int.from_bytes(datagram[20:22])


def _mac(datagram: bytes, receiver: Receiver) -> bytes:
    """Returns the receiver's MAC, by default the frame's destination unless that is a group."""
    if receiver.mac is not None:
        return receiver.mac.packed
    destination = datagram[8:14]
    unicast = len(destination) == 6 and not destination[0] & 1
    return destination if unicast else ANY_VTEP_MAC.packed


def _control_reason(datagram: bytes, mac: bytes, *, bridged: bool) -> str | None:
    if datagram[8:14] not in (mac, ANY_VTEP_MAC.packed):
        return None if bridged else "other_mac"
    try:
        control_frames.decode(datagram[control_frames.HEADERS.size :])
    except CodecError:
        return "bad_control"
    return None


def _inner_source(datagram: bytes) -> Address | None:
    """Returns the inner IP source, None if the frame carries no IP."""
    start = 26 if _ethertype(datagram) == _VLAN_TAG else 22
    match int.from_bytes(datagram[start - 2 : start]):
        case 0x0800:
            return ipaddress.IPv4Address(datagram[start + 12 : start + 16])
        case 0x86DD:
            return ipaddress.IPv6Address(datagram[start + 8 : start + 24])
    return None


def _is_spoofed(
    inner: Address,
    source: Address,
    owners: Mapping[Address, tuple[Prefix, ...]],
    *,
    bridged: bool,
) -> bool:
    """The peer must own the inner source; a node that forwards frames accepts one without owner."""
    allowed = {
        address for address, prefixes in owners.items() if any(inner in one for one in prefixes)
    }
    return source not in allowed and (bool(allowed) or not bridged)
