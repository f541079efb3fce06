"""The nouns that cross between planes: frozen, validated when made, printable."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tunnel.errors import ConfigError

DEFAULT_PORT = 8472
"""The Linux kernel's and flannel's VXLAN port; IANA's is 4789."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
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


@dataclass(frozen=True, order=True)
class Endpoint:
    """Where a node is in the underlay: an IPv4 or IPv6 address or a DNS name, and a port."""

    host: str
    port: int = DEFAULT_PORT

    @classmethod
    def parse(cls, text: str, *, port: int = DEFAULT_PORT) -> Endpoint:
        """``192.0.2.2``, ``192.0.2.2:4789``, ``2001:db8::2``, ``[2001:db8::2]:4789`` or a
        name; `port` where the text has none."""
        bracketed = re.fullmatch(r"\[([^\]]*)\](?::(\d+))?", text)
        if bracketed:
            host, digits = bracketed[1], bracketed[2]
            version: int | None = 6
        else:
            host, colon, digits = text.rpartition(":") if text.count(":") == 1 else (text, "", "")
            version = None
            if colon and not digits.isascii() or colon and not digits.isdigit():
                raise ConfigError(f"endpoint {text!r} has no number behind its colon")
        number = int(digits) if digits else port
        if not 0 < number < 65536:
            raise ConfigError(f"endpoint {text!r} has port {number} (1 to 65535)")
        try:
            address = ipaddress.ip_address(host)
        except ValueError as error:
            if version == 6 or re.fullmatch(r"[0-9.]*", host) or not _HOSTNAME.fullmatch(host):
                raise ConfigError(
                    f"endpoint {text!r} is no address or name "
                    "(like 192.0.2.2, 192.0.2.2:4789, [2001:db8::2]:4789, node2.example)"
                ) from error
            return cls(host.lower(), number)
        if version and address.version != version:
            raise ConfigError(f"endpoint {text!r} has brackets around an IPv4 address")
        if address.is_multicast or address.is_unspecified or str(address) == "255.255.255.255":
            raise ConfigError(f"endpoint {text!r} is not a unicast address")
        return cls(str(address), number)

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

    ``Peer("192.0.2.2", ["10.244.2.0/24"])``; `mac` is its VTEP's MAC, needed where the
    peer is a kernel vxlan device.

    Raises:
        ConfigError: A value is not what it should be, or there is no prefix.
    """

    endpoint: Endpoint
    prefixes: tuple[Prefix, ...]
    mac: Mac | None

    def __init__(
        self,
        endpoint: str | Endpoint,
        prefixes: Iterable[str | Prefix],
        *,
        mac: str | Mac | None = None,
    ) -> None:
        if isinstance(endpoint, str):
            endpoint = Endpoint.parse(endpoint)
        if isinstance(prefixes, str):
            prefixes = (prefixes,)
        parsed = tuple(dict.fromkeys(parse_prefix(prefix) for prefix in prefixes))
        if not parsed:
            raise ConfigError(f"peer {endpoint} has no prefix (like {endpoint.host}=10.244.2.0/24)")
        object.__setattr__(self, "endpoint", endpoint)
        object.__setattr__(self, "prefixes", parsed)
        object.__setattr__(self, "mac", Mac.parse(mac) if isinstance(mac, str) else mac)

    @classmethod
    def parse(cls, text: str) -> Peer:
        """``ENDPOINT=PREFIX[,PREFIX...][,mac=MAC]``, as ``--peer`` takes it."""
        endpoint, equals, rest = text.partition("=")
        if not equals:
            raise ConfigError(
                f"peer {text!r} has no '=' (write ENDPOINT=PREFIX, like 192.0.2.2=10.244.2.0/24)"
            )
        words = [word.strip() for word in rest.split(",") if word.strip()]
        macs = [word.removeprefix("mac=") for word in words if word.startswith("mac=")]
        if len(macs) > 1:
            raise ConfigError(f"peer {text!r} has more than one mac=")
        prefixes = [word for word in words if not word.startswith("mac=")]
        return cls(endpoint, prefixes, mac=macs[0] if macs else None)


@dataclass(frozen=True)
class Traffic:
    """Inner packets that went through, and their bytes (IP header and all)."""

    packets: int = 0
    bytes: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.packets + other.packets, self.bytes + other.bytes)


@dataclass(frozen=True)
class PeerStats:
    """Counters of one peer. `drops` holds only reasons that occurred."""

    outbound: Traffic = Traffic()
    inbound: Traffic = Traffic()
    drops: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Stats:
    """
    Counters of one tunnel since it opened; none of them ever goes back.

    Attributes:
        outbound, inbound: Sums over all peers, removed ones included.
        drops: Reason -> packets, over everything; only reasons that occurred.
        peers: Counters by peer; what belongs to no known peer is in the sums alone.
        work: How packets were moved (system calls, trains, super-packets), by name.
        offloads: Those in use now.
    """

    outbound: Traffic
    inbound: Traffic
    drops: Mapping[str, int]
    peers: Mapping[Endpoint, PeerStats]
    work: Mapping[str, int]
    offloads: frozenset[str]
