"""
The network of a cluster, in flannel's format: ``<prefix>/config``, and the names of the keys
under ``<prefix>/subnets/`` (flannel's pkg/subnet/config.go and subnet.go).

    value of the config key  ->  Network: pools of subnets, VNI, port
    Pool, subnets in use  ->  free subnets
    10.12.13.0-24&fd00:12:13::-56  <->  the subnets of one node

JSON is read as Go reads it: the case of names does not matter, and the last of several wins.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from tunnel.errors import ConfigError
from tunnel.types import DEFAULT_PORT, Address, Prefix

BACKEND = "vxlan"

DEFAULT_VNI = 1


class _Family(NamedTuple):
    """What differs between the address families in flannel's format."""

    version: int
    bits: int
    prefix: str  # of the names in the config
    length: int  # of a subnet's prefix, by default

    @property
    def longest(self) -> int:
        """The longest prefix of a subnet, with room for a bridge and a tunnel device."""
        return self.bits - 2


_FAMILIES = (_Family(4, 32, "", 24), _Family(6, 128, "IPv6", 64))

_BACKEND_KEYS = ("Type", "VNI", "Port", "MTU", "GBP", "Learning", "DirectRouting")
_KEYS = (
    *("EnableIPv4", "EnableIPv6", "Backend"),
    *(family.prefix + key for family in _FAMILIES for key in ("Network", "SubnetLen")),
    *(family.prefix + key for family in _FAMILIES for key in ("SubnetMin", "SubnetMax")),
)

_IGNORED = {
    "DirectRouting": "packets to nodes on the same link are sent in VXLAN too",
    "GBP": "group policy ids are neither sent nor checked",
    "Learning": "the address of a node is that in its record",
}
"""Settings of flannel's backend that this program ignores; nodes that apply them are reachable."""


@dataclass(frozen=True)
class Pool:
    """
    The subnets of one address family that nodes may have.

    Attributes:
        network: The prefix of the overlay.
        length: Prefix length of each subnet.
        first, last: Network addresses of the first and the last subnet for nodes.
    """

    network: Prefix
    length: int
    first: Address
    last: Address

    @classmethod
    def of(
        cls,
        network: Prefix,
        *,
        length: int | None = None,
        first: Address | None = None,
        last: Address | None = None,
    ) -> Pool:
        """
        A pool by flannel's rules: subnets are a /24 or /64 if four of them are in `network`, else a
        quarter of it. The first is not for nodes, because its address is that of the network.

        Raises:
            ConfigError: The first fault; its key is flannel's name, ``("SubnetLen",)``.
        """
        family = _FAMILIES[network.version == 6]
        if length is None:
            length = _default_length(network, family)
        _check_length(length, network, family)
        size = 1 << (family.bits - length)
        low, high = int(network.network_address), int(network.broadcast_address)
        if first is None:
            first = _address(family, low + size)
        if last is None:
            last = _address(family, high - size + 1)
        for key, end in (("SubnetMin", first), ("SubnetMax", last)):
            _check_end(family.prefix + key, end, network, size)
        if int(first) > int(last):
            raise _fault(
                family.prefix + "SubnetMin", f"{first} is above {family.prefix}SubnetMax {last}"
            )
        return cls(network, length, first, last)

    @property
    def size(self) -> int:
        """The number of subnets for nodes."""
        return ((int(self.last) - int(self.first)) >> (self.first.max_prefixlen - self.length)) + 1

    def fits(self, subnet: Prefix) -> bool:
        """Whether `subnet` is one that a node may have."""
        return (
            subnet.version == self.network.version
            and subnet.prefixlen == self.length
            and int(self.first) <= int(subnet.network_address) <= int(self.last)
        )

    def free(self, taken: Iterable[Prefix]) -> Iterator[Prefix]:
        """The subnets that overlap none of `taken`, from the first on. An iterator: an IPv6 network
        has too many for a list."""
        family = _FAMILIES[self.network.version == 6]
        size = 1 << (family.bits - self.length)
        here, end = int(self.first), int(self.last)
        used = sorted(
            (int(prefix.network_address), int(prefix.broadcast_address))
            for prefix in taken
            if prefix.version == family.version
        )
        for low, high in [*used, (end + size, end + size)]:
            while here <= end and here + size <= low:
                yield ipaddress.ip_network((_address(family, here), self.length))
                here += size
            here = max(here, (high // size + 1) * size)


@dataclass(frozen=True)
class Network:
    """
    The content of ``<prefix>/config``.

    Attributes:
        pools: One for each address family in use, IPv4 first.
        vni: 0 to 2**24-1.
        port: The UDP port of every node.
        mtu: MTU of the underlay, in bytes; None for that of each node's interface.
        remarks: A sentence for each setting that this program ignores.
    """

    pools: tuple[Pool, ...]
    vni: int = DEFAULT_VNI
    port: int = DEFAULT_PORT
    mtu: int | None = None
    remarks: tuple[str, ...] = ()

    @classmethod
    def parse(cls, value: bytes) -> Network:
        """Raises ConfigError with the first of :func:`faults`."""
        network, wrong = _read(value)
        if network is None:
            raise wrong[0]
        return network

    @property
    def prefixes(self) -> tuple[Prefix, ...]:
        """The prefixes of the overlay."""
        return tuple(pool.network for pool in self.pools)

    def fits(self, subnets: Iterable[Prefix]) -> bool:
        """Whether these are one subnet for a node of each family."""
        own = tuple(subnets)
        return len(own) == len(self.pools) and all(
            pool.fits(subnet) for pool, subnet in zip(self.pools, own, strict=True)
        )

    def text(self) -> str:
        """The value for the store, which flannel can read as well."""
        versions = [pool.network.version for pool in self.pools]
        backend = {"Type": BACKEND, "VNI": self.vni, "Port": self.port}
        words: dict[str, object] = {}
        if 4 not in versions:
            words["EnableIPv4"] = False
        if 6 in versions:
            words["EnableIPv6"] = True
        for pool in self.pools:
            words |= _pool_words(pool)
        if self.mtu is not None:
            backend["MTU"] = self.mtu
        return json.dumps(words | {"Backend": backend})


def faults(value: bytes) -> list[ConfigError]:
    """Every fault of a config, none if it makes a Network. The key of a fault is its place,
    ``("Backend", "VNI")``."""
    return _read(value)[1]


def read_object(value: bytes, *, known: Iterable[str]) -> dict[str, Any]:
    """
    A JSON object without null values, with names in the case that they have in `known`.

    Raises:
        ConfigError: The value is not one.
    """
    try:
        found = json.loads(value.decode())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{_show(value)} is not JSON ({_first_line(error)})") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{_show(value)} is not a JSON object")
    return normalize(found, known=known)


def normalize(found: Mapping[str, Any], *, known: Iterable[str]) -> dict[str, Any]:
    """The object without null values, with names in the case that they have in `known`."""
    names = {name.lower(): name for name in known}
    return {names.get(key.lower(), key): one for key, one in found.items() if one is not None}


# The keys of subnets.

_NO_IPV4 = ipaddress.IPv4Network("0.0.0.0/0")
"""Flannel writes it before the "&" if a node has IPv6 alone."""

_NAME = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,3}){3})-([0-9]{1,2})(?:&([0-9a-f:]+)-([0-9]{1,3}))?")


def parse_key(name: str) -> tuple[Prefix, ...]:
    """
    The subnets in the name of a key below ``subnets/``, IPv4 first; host bits are dropped.

    Raises:
        ConfigError: The name has none.
    """
    match = _NAME.fullmatch(name)
    subnets: list[Prefix] = []
    if match:
        with suppress(ValueError):
            subnets.append(ipaddress.IPv4Network((match[1], int(match[2])), strict=False))
            if match[3]:
                subnets.append(ipaddress.IPv6Network((match[3], int(match[4])), strict=False))
    if not match or len(subnets) != 1 + bool(match[3]) or subnets == [_NO_IPV4]:
        raise ConfigError(f"key {_show(name)} is not a subnet (like 10.5.52.0-24)")
    return tuple(subnet for subnet in subnets if subnet != _NO_IPV4)


def make_key(subnets: Iterable[Prefix]) -> str:
    """The name of the key of one subnet, or of one of each family, IPv4 first."""
    parts = [f"{subnet.network_address}-{subnet.prefixlen}" for subnet in subnets]
    return "&".join(parts if "." in parts[0] else ["0.0.0.0-0", *parts])


def join_prefixes(prefixes: Iterable[Prefix]) -> str:
    """``10.5.52.0/24 and fd00:5:52::/64``: for messages."""
    return " and ".join(map(str, prefixes))


# Reading a config.


def _read(value: bytes) -> tuple[Network | None, list[ConfigError]]:
    try:
        words = read_object(value, known=_KEYS)
    except ConfigError as error:
        return None, [error]
    wrong: list[ConfigError] = []
    pools = []
    for family, default in zip(_FAMILIES, (True, False), strict=True):
        try:
            if _truth(words, f"EnableIPv{family.version}", default=default):
                pools.append(_read_pool(words, family))
        except ConfigError as error:
            wrong.append(error)
    if not pools and not wrong:
        wrong.append(_fault("EnableIPv4", "and EnableIPv6 are both off (one has to be on)"))
    backend, more = _read_backend(words)
    wrong += more
    if wrong:
        return None, wrong
    remarks = [f"{key} is not known (ignored)" for key in words if key not in _KEYS]
    remarks += [
        f"Backend.{key} is not supported: {what}"
        for key, what in _IGNORED.items()
        if backend.get(key)
    ]
    remarks += [
        f"Backend.{key} is not known (ignored)" for key in backend if key not in _BACKEND_KEYS
    ]
    network = Network(
        tuple(pools),
        vni=backend.get("VNI", DEFAULT_VNI),
        # 0 is the default, as for flannel, which leaves it to the kernel.
        port=backend.get("Port") or DEFAULT_PORT,
        mtu=backend.get("MTU"),
        remarks=tuple(remarks),
    )
    return network, []


def _read_pool(words: Mapping[str, Any], family: _Family) -> Pool:
    key = family.prefix + "Network"
    if key not in words:
        example = "10.244.0.0/16" if family.version == 4 else "fd00:244::/48"
        raise _fault(key, f'is missing (like "{key}": "{example}")')
    network = None
    with suppress(ValueError):
        # Go drops host bits, so networks with some are in use.
        network = ipaddress.ip_network(_text(words[key]), strict=False)
    if network is None or network.version != family.version:
        raise _fault(key, f"{_show(words[key])} is not an IPv{family.version} prefix")
    length = _number(words, family.prefix + "SubnetLen", low=0, high=family.bits)
    return Pool.of(
        network,
        length=length or None,
        first=_read_end(words, family.prefix + "SubnetMin", family),
        last=_read_end(words, family.prefix + "SubnetMax", family),
    )


def _read_end(words: Mapping[str, Any], key: str, family: _Family) -> Address | None:
    if key not in words:
        return None
    address = None
    with suppress(ValueError):
        address = ipaddress.ip_address(_text(words[key]))
    if address is None or address.version != family.version:
        raise _fault(key, f"{_show(words[key])} is not an IPv{family.version} address")
    return None if address.is_unspecified else address


def _read_backend(words: Mapping[str, Any]) -> tuple[dict[str, Any], list[ConfigError]]:
    found = words.get("Backend")
    hint = f'(write "Backend": {{"Type": "{BACKEND}"}})'
    if not isinstance(found, dict):
        missing = "is missing, and the default is udp"
        what = missing if found is None else f"{_show(found)} is not an object"
        return {}, [_fault("Backend", f"{what} {hint}")]
    backend = normalize(found, known=_BACKEND_KEYS)
    wrong = []
    kind = backend.get("Type")
    # Flannel compares the type in lower case.
    if not isinstance(kind, str) or kind.lower() != BACKEND:
        wrong.append(_fault("Backend.Type", f"{_show(kind)} is not supported {hint}"))
    for key, low, high in (("VNI", 0, (1 << 24) - 1), ("Port", 0, 65535), ("MTU", 1280, 65535)):
        try:
            _number(backend, key, low=low, high=high, path="Backend.")
        except ConfigError as error:
            wrong.append(error)
    return backend, wrong


def _text(value: object) -> str:
    """The value, if it is text: ipaddress accepts numbers as well."""
    if not isinstance(value, str):
        raise ValueError
    return value


def _truth(words: Mapping[str, Any], key: str, *, default: bool) -> bool:
    value = words.get(key, default)
    if not isinstance(value, bool):
        raise _fault(key, f"{_show(value)} is neither true nor false")
    return value


def _number(
    words: Mapping[str, Any], key: str, *, low: int, high: int, path: str = ""
) -> int | None:
    value = words.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise _fault(path + key, f"{_show(value)} is not a whole number from {low} to {high}")
    return value


# The rules of a pool.


def _default_length(network: Prefix, family: _Family) -> int:
    return max(family.length, network.prefixlen + 2)


def _check_length(length: int, network: Prefix, family: _Family) -> None:
    if network.prefixlen + 2 > family.longest:
        raise _fault(
            family.prefix + "Network",
            f"{network} is too small (/{family.longest - 2} or larger: four subnets)",
        )
    low = network.prefixlen + 2
    if not low <= length <= family.longest:
        raise _fault(
            family.prefix + "SubnetLen",
            f"{length} is not possible in {network} ({low} to {family.longest}: at least four)",
        )


def _check_end(key: str, end: Address, network: Prefix, size: int) -> None:
    if end not in network:
        raise _fault(key, f"{end} is not within {network}")
    if int(end) % size:
        begin = end - int(end) % size
        raise _fault(key, f"{end} is not the address of a subnet (like {begin})")


def _pool_words(pool: Pool) -> dict[str, object]:
    """The ends of the pool are included only if they are not the default."""
    prefix = _FAMILIES[pool.network.version == 6].prefix
    usual = Pool.of(pool.network, length=pool.length)
    words: dict[str, object] = {
        f"{prefix}Network": str(pool.network),
        f"{prefix}SubnetLen": pool.length,
    }
    if pool.first != usual.first:
        words[f"{prefix}SubnetMin"] = str(pool.first)
    if pool.last != usual.last:
        words[f"{prefix}SubnetMax"] = str(pool.last)
    return words


def _address(family: _Family, number: int) -> Address:
    return ipaddress.IPv4Address(number) if family.version == 4 else ipaddress.IPv6Address(number)


def _fault(key: str, text: str) -> ConfigError:
    return ConfigError(f"{key} {text}", key=tuple(key.split(".")))


def _show(value: object) -> str:
    """A value for a message, cut to a length that fits a line."""
    text = repr(value.decode(errors="replace") if isinstance(value, bytes) else value)
    return text if len(text) <= 60 else text[:60] + "..."


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
