"""A packet built as Linux would send it, to find out what would happen to it."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tunnel.errors import ConfigError
from tunnel.types import Address

PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17}
"""Protocol numbers; icmp is ICMPv6 in an IPv6 packet."""

IP_HEADER = {4: 20, 6: 40}
"""Bytes, by version."""

ICMP_HEADER, TCP_HEADER, UDP_HEADER = 8, 20, 8
"""Bytes."""

TTL = 64
"""Of packets that Linux sends, and of a node's datagrams."""

_ICMPV6, _ECHO_REQUEST, _ECHO_REQUEST_V6 = 58, 8, 128
_FRAGMENT, _FRAGMENT_HEADER = 44, 8  # the IPv6 extension header
_DONT_FRAGMENT, _MORE_FRAGMENTS = 0x4000, 0x2000


@dataclass(frozen=True)
class Flow:
    """
    The packet whose path is traced.

    Attributes:
        size: Bytes of the whole inner packet, IP header included.
        sport, dport: Ports of TCP and UDP.

    Raises:
        ConfigError: There is no such packet.
    """

    destination: Address
    source: Address
    size: int = 84  # what ping sends over IPv4
    protocol: str = "icmp"
    sport: int = 40000
    dport: int = 80

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ConfigError(f"protocol {self.protocol!r} is not known (tcp, udp or icmp)")
        if self.source.version != self.destination.version:
            raise ConfigError(
                f"source {self.source} and destination {self.destination} are of different "
                "families (give two of the same family)"
            )
        least = IP_HEADER[self.version] + (TCP_HEADER if self.protocol == "tcp" else UDP_HEADER)
        if not least <= self.size <= 65_535:
            raise ConfigError(f"size {self.size} is out of range ({least} to 65535 bytes)")
        for name, port in (("sport", self.sport), ("dport", self.dport)):
            if not 0 < port < 65_536:
                raise ConfigError(f"{name} {port} is out of range (1 to 65535)")

    @property
    def version(self) -> int:
        return self.destination.version

    def first_piece(self, mtu: int) -> int:
        """Returns the bytes of what enters a device first: the whole packet, or its first segment
        or fragment."""
        if self.size <= mtu:
            return self.size
        if self.protocol == "tcp":
            return mtu
        header = IP_HEADER[self.version] + (_FRAGMENT_HEADER if self.version == 6 else 0)
        return header + (mtu - header) // 8 * 8

    def packet(self, mtu: int) -> bytes:
        """Returns that first piece as Linux sends it, with DF unless it is a fragment. Payload and
        checksums are zero: nothing on the path reads them."""
        size = self.first_piece(mtu)
        fragmented = size < self.size and self.protocol != "tcp"
        ip = self._ipv4 if self.version == 4 else self._ipv6
        return (ip(size, fragmented=fragmented) + self._transport()).ljust(size, b"\0")

    def _ipv4(self, size: int, *, fragmented: bool) -> bytes:
        flags = _MORE_FRAGMENTS if fragmented else _DONT_FRAGMENT
        number = PROTOCOLS[self.protocol]
        header = struct.pack("!BBHHHBBH", 0x45, 0, size, 0, flags, TTL, number, 0)
        return header + self.source.packed + self.destination.packed

    def _ipv6(self, size: int, *, fragmented: bool) -> bytes:
        number = _ICMPV6 if self.protocol == "icmp" else PROTOCOLS[self.protocol]
        first = _FRAGMENT if fragmented else number
        header = struct.pack("!IHBB", 6 << 28, size - IP_HEADER[6], first, TTL)
        header += self.source.packed + self.destination.packed
        # Offset 0, more fragments follow.
        return header + (struct.pack("!BBHI", number, 0, 1, 0) if fragmented else b"")

    def _transport(self) -> bytes:
        """Returns the transport header, or its first bytes."""
        if self.protocol == "icmp":
            return bytes([_ECHO_REQUEST if self.version == 4 else _ECHO_REQUEST_V6, 0])
        ports = struct.pack("!HH", self.sport, self.dport)
        if self.protocol == "udp":
            return ports + struct.pack("!H", self.size - IP_HEADER[self.version])
        return ports.ljust(12, b"\0") + b"\x50\x10"  # 20 bytes, ACK

    def __str__(self) -> str:
        if self.protocol == "icmp":
            return f"{self.source} > {self.destination} icmp echo, {self.size} bytes"
        return (
            f"{_with_port(self.source, self.sport)} > {_with_port(self.destination, self.dport)} "
            f"{self.protocol}, {self.size} bytes"
        )


def _with_port(address: Address, port: int) -> str:
    return f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}"
