"""
The records of nodes in the store, as flannel writes them (its pkg/lease/lease.go), and which of
several overlapping ones gets a subnet.

    value  <->  Record
    a key and its entry  ->  Lease: subnets, record or the fault of it, rank

The node id in a record names its owner; flannel ignores the id. A record without one is flannel's
or a reservation for an address, and belongs to the node with that address. A key that is bound to
no lease is a reservation.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tunnel.cluster.network import BACKEND, normalize, parse_key, read_object
from tunnel.cluster.stores.base import Entry
from tunnel.errors import ConfigError
from tunnel.prefixes import overlap
from tunnel.types import Address, Mac, Prefix, parse_address

_KEPT = 8192
"""The claim and the roster parse each record, and most do not change between two reads."""

_FLANNEL_VNI = 0xFFFF
"""The largest VNI in a record of flannel."""

_NODE = re.compile(r"[0-9A-Za-z._-]{1,64}")


@dataclass(frozen=True)
class Record:
    """
    What a node publishes.

    Attributes:
        address, address6: In the underlay; flannel sends inner IPv4 to the one and inner IPv6 to
            the other.
        mac, mac6: Of its VTEP at each address; nodes of this program have one VTEP.
        vni: None if the record has none. Flannel writes the lower 16 bits alone: compare with
            :meth:`has_vni`.
        node: Its id, empty for a node of flannel.
        backend: Empty in a reservation that is not in use, and in a lease of flannel's udp or
            alloc backend.
    """

    address: ipaddress.IPv4Address | None = None
    address6: ipaddress.IPv6Address | None = None
    mac: Mac | None = None
    mac6: Mac | None = None
    vni: int | None = None
    node: str = ""
    backend: str = BACKEND

    @classmethod
    def parse(cls, value: bytes) -> Record:
        """
        A record of flannel, of :meth:`text`, or one that an administrator wrote.

        Raises:
            ConfigError: The value is not a record.
        """
        words = read_object(value, known=_KEYS)
        node = words.get("Node", "")
        if not isinstance(node, str) or (node and not _NODE.fullmatch(node)):
            raise ConfigError("Node is not an id (letters, digits, '.', '_', '-', at most 64)")
        whole = _read_vni(words)
        backend = words.get("BackendType", "")
        if not isinstance(backend, str):
            raise ConfigError("BackendType is not text")
        is_vxlan = backend == BACKEND  # the data of other backends is not read
        data = _read_data(words, "BackendData") if is_vxlan else {}
        data6 = _read_data(words, "BackendV6Data") if is_vxlan else {}
        address, address6 = _read_address(words, "PublicIP"), _read_address(words, "PublicIPv6")
        if isinstance(address, ipaddress.IPv6Address) or isinstance(
            address6, ipaddress.IPv4Address
        ):
            raise ConfigError("PublicIP is IPv4, and PublicIPv6 is IPv6")
        return cls(
            address=address,
            address6=address6,
            mac=_read_mac(data),
            mac6=_read_mac(data6),
            vni=_read_vni(data or data6) if whole is None else whole,
            node=node,
            backend=backend,
        )

    def text(self) -> bytes:
        """
        The value for the store: byte for byte what flannel writes, with the node id added.

        The id is not in BackendData, because a reservation has none; Go's JSON decoder skips names
        that it does not know. Flannel's VNI has 16 bits, and its decoder refuses a record with a
        larger number (vxlanLeaseAttrs in its pkg/backend/vxlan/vxlan_network.go): a larger VNI
        is beside it as a whole.
        """
        words: dict[str, object] = {
            "PublicIP": str(self.address or "0.0.0.0"),
            "PublicIPv6": str(self.address6) if self.address6 else None,
        }
        if self.backend:
            words["BackendType"] = self.backend
        for key, mac in (("BackendData", self.mac), ("BackendV6Data", self.mac6)):
            if mac is not None:
                words[key] = {"VNI": (self.vni or 0) & _FLANNEL_VNI, "VtepMAC": str(mac)}
        if self.vni is not None and self.vni > _FLANNEL_VNI:
            words["VNI"] = self.vni
        if self.node:
            words["Node"] = self.node
        return json.dumps(words, separators=(",", ":")).encode()

    def has_vni(self, vni: int) -> bool:
        """Whether its node may use this VNI: it names none, this one, or as flannel does the lower
        16 bits of it."""
        return self.vni in (None, vni, vni & _FLANNEL_VNI)

    def is_same_node(self, other: Record) -> bool:
        """Whether `other` has the id of this node or, without an id, its address."""
        if other.node:
            return other.node == self.node
        if other.address is not None:
            return other.address == self.address
        return other.address6 is not None and other.address6 == self.address6


@dataclass(frozen=True)
class Lease:
    """
    A key for subnets, and its value.

    Attributes:
        record: None if it cannot be read; `fault` says why.
    """

    key: str
    entry: Entry
    subnets: tuple[Prefix, ...]
    record: Record | None
    fault: str = ""

    @classmethod
    @lru_cache(_KEPT)
    def read(cls, name: str, entry: Entry, *, key: str) -> Lease:
        """Raises ConfigError if `name`, the last part of `key`, is not a subnet."""
        subnets = parse_key(name)
        try:
            return cls(key, entry, subnets, Record.parse(entry.value))
        except ConfigError as error:
            return cls(key, entry, subnets, None, str(error))

    @property
    def is_reservation(self) -> bool:
        return self.entry.lease is None

    @property
    def is_unused(self) -> bool:
        """Whether it is a reservation whose node has not come yet."""
        return self.is_reservation and self.record is not None and not self.record.backend

    @property
    def is_member(self) -> bool:
        """Whether its node uses VXLAN, so that packets can be sent to it."""
        return self.record is not None and self.record.backend == BACKEND

    def rank(self, subnet: Prefix) -> tuple[int, int, str]:
        """
        Of several leases that overlap, the one with the lowest rank has the subnet.

        The longest prefix comes first, as in the kernels of flannel's nodes, so that a mistaken /8
        takes no subnet from a node; then the oldest. The order is the same on all nodes.
        """
        return -subnet.prefixlen, self.entry.created, self.key

    def yields_to(self, other: Lease) -> bool:
        """Whether `other` has a subnet of this lease."""
        return any(
            overlap(own, subnet) and other.rank(subnet) < self.rank(own)
            for own in self.subnets
            for subnet in other.subnets
        )


def leases_of(entries: Mapping[str, Entry], *, directory: str) -> Iterator[Lease]:
    """The leases below `directory`, without the keys that are not subnets."""
    for key, entry in entries.items():
        if key.startswith(directory):
            with suppress(ConfigError):
                yield Lease.read(key.removeprefix(directory), entry, key=key)


# Reading a record.

_KEYS = ("PublicIP", "PublicIPv6", "BackendType", "BackendData", "BackendV6Data", "Node", "VNI")


def _read_data(words: Mapping[str, Any], key: str) -> dict[str, Any]:
    data = words.get(key, {})
    if not isinstance(data, dict):
        raise ConfigError(f"{key} is not an object")
    return normalize(data, known=("VNI", "VtepMAC"))


def _read_address(words: Mapping[str, Any], key: str) -> Address | None:
    text = words.get(key)
    if text is None or text in ("0.0.0.0", "::"):
        return None
    if not isinstance(text, str):
        raise ConfigError(f"{key} is not text")
    return parse_address(text)


def _read_mac(data: Mapping[str, Any]) -> Mac | None:
    text = data.get("VtepMAC")
    if text is None:
        return None
    if not isinstance(text, str):
        raise ConfigError("VtepMAC is not text")
    return Mac.parse(text)


def _read_vni(data: Mapping[str, Any]) -> int | None:
    vni = data.get("VNI")
    if vni is not None and (not isinstance(vni, int) or isinstance(vni, bool) or vni < 0):
        raise ConfigError("VNI is not a number")
    return vni
