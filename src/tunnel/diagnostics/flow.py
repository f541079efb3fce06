"""A packet that is not there, as Linux would send it: to ask what would become of it."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tunnel.errors import ConfigError
from tunnel.types import Address

PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17}
IP_HEADER = {4: 20, 6: 40}
"""Bytes, by version."""

TTL = 64
"""Of what Linux sends, and of our datagrams."""

_ICMP6, _ECHO, _ECHO6 = 58, 8, 128
_FRAGMENT, _FRAGMENT_HEADER = 44, 8  # of IPv6
_DONT_FRAGMENT, _MORE_FRAGMENTS = 0x4000, 0x2000


@dataclass(frozen=True)
class Flow:
    """
    The packet whose way is asked for.

    Attributes:
        size: Bytes of the whole inner packet, IP header and all.
        sport, dport: Of TCP and UDP.

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
                f"from {self.source} to {self.destination}: no packet has addresses of both "
                "families (give both of one)"
            )
        least = IP_HEADER[self.source.version] + (20 if self.protocol == "tcp" else 8)
        if not least <= self.size <= 65_535:
            raise ConfigError(f"size {self.size} is out of range ({least} to 65535 bytes)")
        for name, port in (("sport", self.sport), ("dport", self.dport)):
            if not 0 < port < 65_536:
                raise ConfigError(f"{name} {port} is out of range (1 to 65535)")

    @property
    def version(self) -> int:
        return self.destination.version

    def piece(self, mtu: int) -> int:
        """Bytes of what enters a device first: the whole packet, or a first segment or fragment."""
        if self.size <= mtu:
            return self.size
        if self.protocol == "tcp":
            return mtu
        header = IP_HEADER[self.version] + (_FRAGMENT_HEADER if self.version == 6 else 0)
        return header + (mtu - header) // 8 * 8

    def packet(self, mtu: int) -> bytes:
        """That piece as Linux sends it, with DF unless it is a fragment. Payload and checksums are
        zeros: nothing on the way reads them."""
        size, number = self.piece(mtu), PROTOCOLS[self.protocol]
        cut = size < self.size and self.protocol != "tcp"
        if self.version == 4:
            flags = _MORE_FRAGMENTS if cut else _DONT_FRAGMENT
            header = struct.pack("!BBHHHBBH", 0x45, 0, size, 0, flags, TTL, number, 0)
        else:
            number = _ICMP6 if self.protocol == "icmp" else number
            first = _FRAGMENT if cut else number
            header = struct.pack("!IHBB", 6 << 28, size - 40, first, TTL)
        header += self.source.packed + self.destination.packed
        if cut and self.version == 6:
            header += struct.pack("!BBHI", number, 0, 1, 0)  # offset 0, more to come
        return (header + self._transport()).ljust(size, b"\0")

    def _transport(self) -> bytes:
        """The header behind the IP header, or its first bytes."""
        if self.protocol == "icmp":
            return bytes([_ECHO if self.version == 4 else _ECHO6, 0])
        ports = struct.pack("!HH", self.sport, self.dport)
        if self.protocol == "udp":
            return ports + struct.pack("!H", self.size - IP_HEADER[self.version])
        return ports.ljust(12, b"\0") + b"\x50\x10"  # 20 bytes, ACK

    def __str__(self) -> str:
        if self.protocol == "icmp":
            return f"{self.source} > {self.destination} icmp echo, {self.size} bytes"
        return (
            f"{_place(self.source, self.sport)} > {_place(self.destination, self.dport)} "
            f"{self.protocol}, {self.size} bytes"
        )


def _place(address: Address, port: int) -> str:
    return f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}"
