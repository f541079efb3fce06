"""
ARP (RFC 826) and IPv6 neighbour discovery (RFC 4861) messages.

    EtherType, body of a frame  ->  parse  ->  address, MAC
    address  ->  solicit  ->  destination MAC, EtherType, body
"""

from __future__ import annotations

import ipaddress
import struct

from tunnel.errors import ConfigError
from tunnel.types import Address, Mac

ARP, IPV6 = 0x0806, 0x86DD
"""EtherTypes; NDP messages are IPv6 packets."""

_ARP = struct.Struct("!HHBBH6s4s6s4s")
_ETHERNET, _IPV4, _REQUEST = 1, 0x0800, 1
_BROADCAST, _NO_MAC = b"\xff" * 6, bytes(6)

_IPV6 = struct.Struct("!IHBB16s16s")
_ICMPV6, _HOP_LIMIT = 58, 255
_SOLICITATION, _ADVERTISEMENT = 135, 136
_SOURCE_MAC, _TARGET_MAC = 1, 2  # options
_OPTIONS = _IPV6.size + 24  # offset: behind type, code, checksum, flags and target


def parse(ethertype: int, body: bytes) -> tuple[Address, Mac] | None:
    """
    Returns the address and MAC that a message announces: those of its sender, or of the target of
    an advertisement. None if it announces none, like a probe for duplicate addresses.

    Args:
        body: The frame without its Ethernet header. The C core has checked that it is ARP or NDP.
    """
    announced = _parse_arp(body) if ethertype == ARP else _parse_ndp(body)
    if announced is None or not any(announced[0]):
        return None
    try:
        return ipaddress.ip_address(announced[0]), Mac(announced[1])
    except ConfigError:  # not a unicast MAC
        return None


def _parse_arp(body: bytes) -> tuple[bytes, bytes] | None:
    if len(body) < _ARP.size:
        return None
    _, _, _, _, _, mac, address, _, _ = _ARP.unpack_from(body)
    return address, mac


def _parse_ndp(packet: bytes) -> tuple[bytes, bytes] | None:
    if len(packet) < _OPTIONS or packet[40] not in (_SOLICITATION, _ADVERTISEMENT):
        return None
    solicits = packet[40] == _SOLICITATION
    mac = _option(packet[_OPTIONS:], _SOURCE_MAC if solicits else _TARGET_MAC)
    return None if mac is None else (packet[8:24] if solicits else packet[48:64], mac)


def _option(options: bytes, wanted: int) -> bytes | None:
    while len(options) >= 8 and options[1]:
        if options[0] == wanted:
            return options[2:8]
        options = options[8 * options[1] :]
    return None


def solicit(address: Address, *, source: Address | None, mac: Mac) -> tuple[bytes, int, bytes]:
    """
    Returns a request for the MAC of `address`: destination MAC, EtherType and body.

    Args:
        source: An address of this node, of the same family. None stands for 0.0.0.0 (ARP), or for
            the link-local address that belongs to `mac` (NDP).
        mac: The MAC of this node.
    """
    if address.version == 4:
        sender = source.packed if source else bytes(4)
        fields = (_ETHERNET, _IPV4, 6, 4, _REQUEST, mac.packed, sender, _NO_MAC, address.packed)
        return _BROADCAST, ARP, _ARP.pack(*fields)
    sender = (source or link_local(mac)).packed
    # The solicited-node address, and the group MAC of that (RFC 4291, 2.7.1; RFC 2464, 7).
    group = bytes.fromhex("ff0200000000000000000001ff") + address.packed[13:]
    option = bytes((_SOURCE_MAC, 1)) + mac.packed
    message = bytes((_SOLICITATION, 0, 0, 0, 0, 0, 0, 0)) + address.packed + option
    pseudo = sender + group + struct.pack("!II", len(message), _ICMPV6)
    message = message[:2] + _checksum(pseudo + message).to_bytes(2) + message[4:]
    header = _IPV6.pack(6 << 28, len(message), _ICMPV6, _HOP_LIMIT, sender, group)
    return b"\x33\x33" + group[12:], IPV6, header + message


def link_local(mac: Mac) -> ipaddress.IPv6Address:
    """Returns the link-local address that belongs to a MAC (RFC 4291, appendix A)."""
    packed = mac.packed
    suffix = bytes((packed[0] ^ 2,)) + packed[1:3] + b"\xff\xfe" + packed[3:]
    return ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + suffix)


def _checksum(data: bytes) -> int:
    """Returns the Internet checksum (RFC 1071) of an even number of bytes."""
    total = sum(int.from_bytes(data[at : at + 2]) for at in range(0, len(data), 2))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF
