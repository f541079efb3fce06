"""The values that every package shares: frozen, checked when made, printable."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from tunnel.errors import ConfigError

DEFAULT_PORT = 8472
"""The VXLAN port of Linux and of flannel; IANA's is 4789."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
InterfaceAddress = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Prefix = ipaddress.IPv4Network | ipaddress.IPv6Network

_HOSTNAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")


def parse_prefix(text: str | Prefix) -> Prefix:
    """Parses ``10.244.1.0/24``. Raises ConfigError, also if host bits are set."""
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        try:
            without_host_bits = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise ConfigError(
                f"prefix {str(text)!r} is not an IPv4 or IPv6 prefix (like 10.244.1.0/24)"
            ) from error
        raise ConfigError(f"prefix {text} has host bits set (write {without_host_bits})") from error


def parse_interface(text: str | InterfaceAddress) -> InterfaceAddress:
    """Parses an address of a device, ``10.244.1.1/24``; without a length it is a /32 or /128.
    Raises ConfigError."""
    try:
        interface = ipaddress.ip_interface(text)
    except ValueError as error:
        raise ConfigError(f"address {str(text)!r} is not ADDR/LEN (like 10.244.1.1/24)") from error
    if interface.ip.is_multicast or interface.ip.is_unspecified:
        raise ConfigError(f"address {interface} is not a unicast address (like 10.244.1.1/24)")
    return interface


def parse_address(text: str | Address) -> Address:
    """Parses an underlay address of a node, ``192.0.2.2`` or ``2001:db8::2``. Raises ConfigError,
    also for addresses that no node can have."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError as error:
        raise ConfigError(
            f"address {str(text)!r} is not an IPv4 or IPv6 address (like 192.0.2.2 or 2001:db8::2)"
        ) from error
    if address.is_multicast or address.is_unspecified or str(address) == "255.255.255.255":
        raise ConfigError(f"address {address} is not a unicast address (like 192.0.2.2)")
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            raise ConfigError(f"address {address} is IPv4-mapped (write {address.ipv4_mapped})")
        if address.is_link_local or address.scope_id:
            raise ConfigError(f"address {address} is link-local (use a global address)")
    return address


@dataclass(frozen=True, order=True)
class Mac:
    """A unicast Ethernet address, ``02:76:74:65:70:00``. Raises ConfigError for any other."""

    packed: bytes

    def __post_init__(self) -> None:
        if len(self.packed) != 6 or self.packed[0] & 1 or not any(self.packed):
            raise ConfigError(f"MAC {self} is not a unicast address (like 02:00:5e:00:53:01)")

    @classmethod
    def parse(cls, text: str) -> Mac:
        """Parses six bytes in hex, separated by colons or hyphens."""
        if not re.fullmatch(r"[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}", text):
            raise ConfigError(f"MAC {text!r} is not six hex bytes (like 02:00:5e:00:53:01)")
        return cls(bytes.fromhex(text.replace(":", "").replace("-", "")))

    def __str__(self) -> str:
        return self.packed.hex(":")


ANY_VTEP_MAC = Mac(bytes.fromhex("027674657000"))
"""The MAC that every node accepts beside its own, so no node may use it as its own. It is
repeated here because the C core, which defines it, is above the configuration."""


@dataclass(frozen=True, order=True)
class Endpoint:
    """A node's place in the underlay: an IPv4 or IPv6 address or a DNS name, and a UDP port.
    Raises ConfigError."""

    host: str
    port: int = DEFAULT_PORT

    def __post_init__(self) -> None:
        if not 0 < self.port < 65536:
            raise ConfigError(f"endpoint {self} has a port out of range (1 to 65535)")
        # Compared and hashed as text, so each host has one spelling.
        object.__setattr__(self, "host", _canonical_host(self.host))
        # Tables of peers are keyed by endpoint: caching the hash makes a status a tenth faster.
        object.__setattr__(self, "_hash", hash((self.host, self.port)))

    def __hash__(self) -> int:
        hashed: int = self.__dict__["_hash"]
        return hashed

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Parses ``192.0.2.2``, ``192.0.2.2:4789``, ``2001:db8::2``, ``[2001:db8::2]:4789`` or a
        name; without a port it is 8472."""
        host, colon, digits = text, "", ""
        if text.startswith("["):
            host, bracket, rest = text[1:].partition("]")
            colon, digits = rest[:1], rest[1:]
            if not bracket or colon not in ("", ":") or ":" not in host:
                raise ConfigError(
                    f"endpoint {text!r} has misplaced brackets (like [2001:db8::2]:4789)"
                )
        elif text.count(":") == 1:
            host, colon, digits = text.partition(":")
        if not colon:
            return cls(host)
        if not re.fullmatch(r"[0-9]{1,5}", digits):
            raise ConfigError(f"endpoint {text!r} has no port after its colon (1 to 65535)")
        return cls(host, int(digits))

    @property
    def address(self) -> Address | None:
        """The address; None where the host is a name."""
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _canonical_host(text: str) -> str:
    if ":" not in text and not re.fullmatch(r"[0-9.]*", text):
        if len(text) > 253 or not _HOSTNAME.fullmatch(text):
            raise ConfigError(f"host {text!r} is not an address or a name (like 192.0.2.2)")
        return text.lower()
    return str(parse_address(text))


@dataclass(frozen=True, init=False)
class Peer:
    """
    Another node and the overlay prefixes that it owns.

    Accepts text and stores typed values: ``Peer("192.0.2.2", ["10.244.2.0/24"])``. A peer
    without prefixes is valid in TAP mode only.

    Args:
        mac: MAC address of the peer's VTEP; without it, the node asks the peer.

    Raises:
        ConfigError: A value is not valid.
    """

    endpoint: Endpoint
    prefixes: tuple[Prefix, ...]
    mac: Mac | None

    def __init__(
        self,
        endpoint: str | Endpoint,
        prefixes: str | Prefix | Iterable[str | Prefix] = (),
        *,
        mac: str | Mac | None = None,
    ) -> None:
        if isinstance(endpoint, str):
            endpoint = Endpoint.parse(endpoint)
        if isinstance(prefixes, str | Prefix):
            prefixes = (prefixes,)
        parsed = tuple(dict.fromkeys(parse_prefix(prefix) for prefix in prefixes))
        object.__setattr__(self, "endpoint", endpoint)
        object.__setattr__(self, "prefixes", parsed)
        object.__setattr__(self, "mac", Mac.parse(mac) if isinstance(mac, str) else mac)

    @classmethod
    def parse(cls, text: str) -> Peer:
        """Parses ``ENDPOINT[=PREFIX[,PREFIX...]][,mac=MAC]``, as ``--peer`` takes it."""
        endpoint, _, rest = text.partition("=")
        parts = [part.strip() for part in rest.split(",") if part.strip()]
        macs = [part.removeprefix("mac=") for part in parts if part.startswith("mac=")]
        if len(macs) > 1:
            raise ConfigError(f"peer {text!r} has more than one mac=")
        prefixes = [part for part in parts if not part.startswith("mac=")]
        return cls(endpoint, prefixes, mac=macs[0] if macs else None)


@dataclass(frozen=True)
class KernelRoute:
    """
    What the kernel of this host does with a packet, and by which route.

    Attributes:
        entry: The route as ``ip route`` prints it; empty if the kernel refuses the packet.
        kind: The type of route, as ``unicast`` or ``local``; empty if the kernel refuses it.
        device: The device that the packet leaves by or is delivered to.
        gateway: The next hop; None where the destination is on the link.
        source: The source address that the kernel chooses; None where the packet has one.
        mtu: MTU of the device or of the route, in bytes.
        mac: MAC address of the device; empty where it has none.
        error: The errno with which the kernel refuses; 0 if it does not.
    """

    entry: str = ""
    kind: str = ""
    device: str = ""
    gateway: Address | None = None
    source: Address | None = None
    mtu: int = 0
    mac: str = ""
    error: int = 0


@dataclass(frozen=True)
class KernelNeighbour:
    """
    An entry of the kernel's neighbour table.

    Attributes:
        device: The device on whose link the neighbour is.
        mac: MAC address as text; empty while it is not resolved.
        state: The state as ``ip neigh`` prints it, as ``REACHABLE`` or ``FAILED``.
        port: The bridge port that leads to the MAC address, where `device` is a bridge.
        namespace: Whether the peer device of that port is in another network namespace.
    """

    device: str
    mac: str
    state: str
    port: str = ""
    namespace: bool = False
