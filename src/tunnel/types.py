"""The nouns that cross between planes: frozen, validated when made, printable."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from tunnel.errors import ConfigError

DEFAULT_PORT = 8472
"""The Linux kernel's and flannel's VXLAN port; IANA's is 4789."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
InterfaceAddress = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Prefix = ipaddress.IPv4Network | ipaddress.IPv6Network

_HOSTNAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")


def parse_prefix(text: str | Prefix) -> Prefix:
    """``10.244.1.0/24``; host bits must be zero."""
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        try:
            meant = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise ConfigError(
                f"prefix {str(text)!r} is no IPv4 or IPv6 prefix (like 10.244.1.0/24)"
            ) from error
        raise ConfigError(f"prefix {text} has host bits set (write {meant})") from error


def parse_interface(text: str | InterfaceAddress) -> InterfaceAddress:
    """``10.244.1.1/24``: an address of the device; /32 or /128 where the text has no length."""
    try:
        interface = ipaddress.ip_interface(text)
    except ValueError as error:
        raise ConfigError(f"address {str(text)!r} is no ADDR/LEN (like 10.244.1.1/24)") from error
    if interface.ip.is_multicast or interface.ip.is_unspecified:
        raise ConfigError(f"address {interface} is not a unicast address (like 10.244.1.1/24)")
    return interface


def parse_address(text: str | Address) -> Address:
    """``192.0.2.2`` or ``2001:db8::2``: an address that a node can have in the underlay."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError as error:
        raise ConfigError(
            f"address {str(text)!r} is no IPv4 or IPv6 address (like 192.0.2.2 or 2001:db8::2)"
        ) from error
    if address.is_multicast or address.is_unspecified or str(address) == "255.255.255.255":
        raise ConfigError(f"address {address} is not a unicast address (like 192.0.2.2)")
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            raise ConfigError(f"address {address} is IPv4 inside (write {address.ipv4_mapped})")
        if address.is_link_local or address.scope_id:
            raise ConfigError(f"address {address} is for one link only (use a global one)")
    return address


def _spell_host(text: str) -> str:
    """The one spelling of an address or name."""
    if ":" not in text and not re.fullmatch(r"[0-9.]*", text):
        if len(text) > 253 or not _HOSTNAME.fullmatch(text):
            raise ConfigError(f"host {text!r} is no address or name (like 192.0.2.2)")
        return text.lower()
    return str(parse_address(text))


@dataclass(frozen=True, order=True)
class Mac:
    """A unicast Ethernet address, ``02:76:74:65:70:00``."""

    packed: bytes

    def __post_init__(self) -> None:
        if len(self.packed) != 6 or self.packed[0] & 1 or not any(self.packed):
            raise ConfigError(f"MAC {self} is not a unicast address (like 02:00:5e:00:53:01)")

    @classmethod
    def parse(cls, text: str) -> Mac:
        if not re.fullmatch(r"[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}", text):
            raise ConfigError(f"MAC {text!r} is not six hex bytes (like 02:00:5e:00:53:01)")
        return cls(bytes.fromhex(text.replace(":", "").replace("-", "")))

    def __str__(self) -> str:
        return self.packed.hex(":")


ANY_VTEP_MAC = Mac(bytes.fromhex("027674657000"))
"""Every node accepts it beside its own, so nobody's own may be it. Spelled here too because
what checks configurations stands below the C core, whose constant this is."""


@dataclass(frozen=True, order=True)
class Endpoint:
    """Where a node is in the underlay: an IPv4 or IPv6 address or a DNS name, and a port."""

    host: str
    port: int = DEFAULT_PORT

    def __post_init__(self) -> None:
        if not 0 < self.port < 65536:
            raise ConfigError(f"endpoint {self} has a port out of range (1 to 65535)")
        # Compared and hashed as text, so each host has one spelling.
        object.__setattr__(self, "host", _spell_host(self.host))

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """``192.0.2.2``, ``192.0.2.2:4789``, ``2001:db8::2``, ``[2001:db8::2]:4789`` or a
        name; port 8472 where the text has none."""
        host, colon, digits = text, "", ""
        if text.startswith("["):
            host, bracket, rest = text[1:].partition("]")
            colon, digits = rest[:1], rest[1:]
            if not bracket or colon not in ("", ":") or ":" not in host:
                raise ConfigError(f"endpoint {text!r} has odd brackets (like [2001:db8::2]:4789)")
        elif text.count(":") == 1:
            host, colon, digits = text.partition(":")
        if not colon:
            return cls(host)
        if not re.fullmatch(r"[0-9]{1,5}", digits):
            raise ConfigError(f"endpoint {text!r} has no port behind its colon (1 to 65535)")
        return cls(host, int(digits))

    @property
    def address(self) -> Address | None:
        """The address, None where the host is a name."""
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, init=False)
class Peer:
    """
    Another node and the overlay prefixes that it owns.

    ``Peer("192.0.2.2", ["10.244.2.0/24"])``; `mac` is its VTEP's MAC, which it is asked for
    otherwise. One without prefixes is of use in TAP mode alone.

    Raises:
        ConfigError: A value is not what it should be.
    """

    endpoint: Endpoint
    prefixes: tuple[Prefix, ...]
    mac: Mac | None

    def __init__(
        self,
        endpoint: str | Endpoint,
        prefixes: Iterable[str | Prefix] = (),
        *,
        mac: str | Mac | None = None,
    ) -> None:
        if isinstance(endpoint, str):
            endpoint = Endpoint.parse(endpoint)
        if isinstance(prefixes, str):
            prefixes = (prefixes,)
        parsed = tuple(dict.fromkeys(parse_prefix(prefix) for prefix in prefixes))
        object.__setattr__(self, "endpoint", endpoint)
        object.__setattr__(self, "prefixes", parsed)
        object.__setattr__(self, "mac", Mac.parse(mac) if isinstance(mac, str) else mac)

    @classmethod
    def parse(cls, text: str) -> Peer:
        """``ENDPOINT[=PREFIX...][,mac=MAC]``, with commas between, as ``--peer`` takes it."""
        endpoint, _, rest = text.partition("=")
        words = [word.strip() for word in rest.split(",") if word.strip()]
        macs = [word.removeprefix("mac=") for word in words if word.startswith("mac=")]
        if len(macs) > 1:
            raise ConfigError(f"peer {text!r} has more than one mac=")
        prefixes = [word for word in words if not word.startswith("mac=")]
        return cls(endpoint, prefixes, mac=macs[0] if macs else None)


@dataclass(frozen=True)
class KernelRoute:
    """
    What this host's kernel does with a packet, and by which entry.

    Attributes:
        entry: As ``ip route`` has it; empty where the kernel refuses.
        kind: ``unicast``, ``local`` ...; empty where the kernel refuses.
        device: By which the packet leaves, or what it is handed to.
        gateway: The next hop, None where the destination is on the link.
        source: The address that a packet made here gets, None where it has one.
        mtu: Of that device or route, in bytes.
        mac: The device's own, empty where it has none.
        error: With which errno the kernel refuses, 0 where it does not.
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
    What this host's kernel knows of an address on a link.

    Attributes:
        mac: As text, empty as long as nobody has answered.
        state: As ``ip neigh`` has it, ``REACHABLE``, ``FAILED`` ...
        port: Where `device` is a bridge: its port behind which that MAC is.
        namespace: Whether the other end of that port is in another network namespace.
    """

    device: str
    mac: str
    state: str
    port: str = ""
    namespace: bool = False
