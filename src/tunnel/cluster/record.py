"""
What stands under a cluster's keys: the record of each node, as flannel writes it (its
pkg/lease/lease.go), and which of several has a subnet.

    bytes of the store  <->  Record
    a key and its entry  ->  Lease: subnets, record or what is wrong with it, rank

Whose a record is says the node id in it, which flannel does not know and leaves alone; of a record
without one, flannel's or one reserved for an address, the address says it. A key that is bound to
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

from tunnel.cluster.network import BACKEND, parse_key, read_object, spell
from tunnel.cluster.stores.base import Entry
from tunnel.errors import ConfigError
from tunnel.prefixes import overlap
from tunnel.types import Address, Mac, Prefix, parse_address

_KEPT = 8192
"""Records are read by the claim and by the roster, and most are the same the next time."""

_NODE = re.compile(r"[0-9A-Za-z._-]{1,64}")


@dataclass(frozen=True)
class Record:
    """
    What a node says of itself.

    Attributes:
        address, address6: Where it is in the underlay: flannel sends inner IPv4 to the one and
            inner IPv6 to the other.
        mac, mac6: Its VTEPs' there; ours has one for both.
        vni: None where the record does not say. Flannel writes the lower 16 bits.
        node: Its id, empty for flannel's.
        backend: Empty in what was reserved and is not in use.
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
        Reads what flannel or :meth:`text` wrote, and what people write for a reservation.

        Raises:
            ConfigError: It is no such thing.
        """
        words = read_object(value, known=_KEYS)
        node = words.get("Node", "")
        if not isinstance(node, str) or (node and not _NODE.fullmatch(node)):
            raise ConfigError("Node is no id (letters, digits, '.', '_', '-', at most 64)")
        backend = words.get("BackendType", "")
        if not isinstance(backend, str):
            raise ConfigError("BackendType is no text")
        mine = backend == BACKEND  # what others keep there is their affair
        data = _read_data(words, "BackendData") if mine else {}
        data6 = _read_data(words, "BackendV6Data") if mine else {}
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
            vni=_read_vni(data or data6),
            node=node,
            backend=backend,
        )

    def text(self) -> bytes:
        """
        To the byte what flannel writes, and then our id. That stands beside flannel's keys, not in
        BackendData: a reservation has none, and Go's JSON decoder skips what it does not know.
        """
        words: dict[str, object] = {
            "PublicIP": str(self.address or "0.0.0.0"),
            "PublicIPv6": str(self.address6) if self.address6 else None,
        }
        if self.backend:
            words["BackendType"] = self.backend
        for key, mac in (("BackendData", self.mac), ("BackendV6Data", self.mac6)):
            if mac is not None:
                # Flannel's field has 16 bits, and it refuses a record with a number of more.
                words[key] = {"VNI": (self.vni or 0) & 0xFFFF, "VtepMAC": str(mac)}
        if self.node:
            words["Node"] = self.node
        return json.dumps(words, separators=(",", ":")).encode()

    def is_same_node(self, other: Record) -> bool:
        """Whether `other` is of this node, too, or is flannel's or reserved at its address."""
        if other.node:
            return other.node == self.node
        if other.address is not None:
            return other.address == self.address
        return other.address6 is not None and other.address6 == self.address6


@dataclass(frozen=True)
class Lease:
    """
    One key for subnets, and what is under it.

    Attributes:
        record: None where it cannot be read, and `fault` says why.
    """

    key: str
    entry: Entry
    subnets: tuple[Prefix, ...]
    record: Record | None
    fault: str = ""

    @classmethod
    @lru_cache(_KEPT)
    def read(cls, name: str, entry: Entry, *, key: str) -> Lease:
        """Raises ConfigError where `name`, the last part of `key`, is for no subnet."""
        subnets = parse_key(name)
        try:
            return cls(key, entry, subnets, Record.parse(entry.value))
        except ConfigError as error:
            return cls(key, entry, subnets, None, str(error))

    @property
    def is_reservation(self) -> bool:
        return self.entry.lease is None

    @property
    def is_member(self) -> bool:
        """Whether it is for a node that packets can be sent to, as far as the backend says."""
        return self.record is not None and self.record.backend == BACKEND

    def rank(self, subnet: Prefix) -> tuple[int, int, str]:
        """
        Of several that overlap, the lowest one has the subnet. The longest prefix comes first, as
        in the kernels of flannel's nodes, so that nobody loses his subnet to a mistaken /8; then
        who was there first. All nodes see the same, whenever they look.
        """
        return -subnet.prefixlen, self.entry.created, self.key

    def yields_to(self, other: Lease) -> bool:
        """Whether `other` has a subnet that this one is for."""
        return any(
            overlap(ours, theirs) and other.rank(theirs) < self.rank(ours)
            for ours in self.subnets
            for theirs in other.subnets
        )


def leases_of(entries: Mapping[str, Entry], *, directory: str) -> Iterator[Lease]:
    """Those below `directory`; keys there that are for no subnet are left out."""
    for key, entry in entries.items():
        if key.startswith(directory):
            with suppress(ConfigError):
                yield Lease.read(key.removeprefix(directory), entry, key=key)


# How a record is read.

_KEYS = ("PublicIP", "PublicIPv6", "BackendType", "BackendData", "BackendV6Data", "Node")


def _read_data(words: Mapping[str, Any], key: str) -> dict[str, Any]:
    data = words.get(key, {})
    if not isinstance(data, dict):
        raise ConfigError(f"{key} is no object")
    return spell(data, known=("VNI", "VtepMAC"))


def _read_address(words: Mapping[str, Any], key: str) -> Address | None:
    text = words.get(key)
    if text is None or text in ("0.0.0.0", "::"):
        return None
    if not isinstance(text, str):
        raise ConfigError(f"{key} is no text")
    return parse_address(text)


def _read_mac(data: Mapping[str, Any]) -> Mac | None:
    text = data.get("VtepMAC")
    if text is None:
        return None
    if not isinstance(text, str):
        raise ConfigError("VtepMAC is no text")
    return Mac.parse(text)


def _read_vni(data: Mapping[str, Any]) -> int | None:
    vni = data.get("VNI")
    if vni is not None and (not isinstance(vni, int) or isinstance(vni, bool) or vni < 0):
        raise ConfigError("VNI is no number")
    return vni
