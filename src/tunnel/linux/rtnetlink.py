"""
Messages about links, addresses, neighbours and routes (rtnetlink(7), linux/rtnetlink.h): the bodies
of requests, and what an answer or a notification says.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from dataclasses import dataclass

from tunnel.linux.netlink_socket import pack_attributes, parse_attributes
from tunnel.types import Address, InterfaceAddress, Mac, Prefix

PROTOCOL = 84
"""Protocol number of this program's kernel routes and neighbours (``ip route show proto 84``),
unused in linux/rtnetlink.h and iproute2's rt_protos. A node may remove entries that have it."""

NEWLINK, GETLINK = 16, 18
NEWADDR, DELADDR, GETADDR = 20, 21, 22
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
NEWNEIGH, DELNEIGH, GETNEIGH = 28, 29, 30

MAIN_TABLE = 254
FIB_MATCH = 0x2000  # RTM_F_FIB_MATCH: the entry that decides, not the route made from it
ONLINK = 4  # RTNH_F_ONLINK: the gateway is on the link, even if no route says so
SCOPE_UNIVERSE, SCOPE_LINK, SCOPE_NOWHERE = 0, 253, 255
UP = 1  # IFF_UP

LINK = struct.Struct("=BxHiII")  # family, type, index, flags, change
ADDRESS = struct.Struct("=4BI")  # family, prefix length, flags, scope, index
NEIGHBOUR = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type
ROUTE = struct.Struct("=8BI")
# family, destination and source length, tos, table, protocol, scope, type, flags

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_TXQLEN = 1, 3, 4, 10, 13
IFLA_LINKINFO, IFLA_AF_SPEC, IFLA_CARRIER, IFLA_LINK_NETNSID, IFLA_GSO_MAX_SIZE = 18, 26, 33, 37, 41
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _IFLA_VXLAN_PORT = 1, 2, 15
_IFLA_INET6_ADDR_GEN_MODE, _ADDR_GEN_MODE_NONE = 8, 1

_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_IFA_F_NODAD = 0x02

NDA_DST, NDA_LLADDR, NDA_IFINDEX, NDA_MASTER, NDA_PROTOCOL = 1, 2, 8, 9, 12
PERMANENT = 0x80  # NUD_PERMANENT

RTA_DST, _RTA_SRC, _RTA_IIF, RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY = 1, 2, 3, 4, 5, 6
_RTA_PREFSRC, _RTA_METRICS, _RTA_TABLE, _RTA_VIA = 7, 8, 15, 18
_RTAX_MTU = 2
_UNICAST = 1  # RTN_UNICAST

_NUMBER, _INDEX, _FAMILY = struct.Struct("=I"), struct.Struct("=i"), struct.Struct("=H")

_KINDS = ["unspec", "unicast", "local", "broadcast", "anycast", "multicast", "blackhole"]
_KINDS += ["unreachable", "prohibit", "throw", "nat", "xresolve"]
_SCOPES = {0: "global", 200: "site", 253: "link", 254: "host", 255: "nowhere"}
_PROTOCOLS = {
    0: "unspec",
    1: "redirect",
    2: "kernel",
    3: "boot",
    4: "static",
    8: "gated",
    9: "ra",
    10: "mrt",
    11: "zebra",
    12: "bird",
    13: "dnrouted",
    14: "xorp",
    15: "ntk",
    16: "dhcp",
    17: "mrouted",
    18: "keepalived",
    42: "babel",
    186: "bgp",
    187: "isis",
    188: "ospf",
    189: "rip",
    192: "eigrp",
}


def family_of(address: Address | Prefix | InterfaceAddress) -> int:
    """AF_INET or AF_INET6."""
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


@dataclass(frozen=True, slots=True)
class Link:
    """
    A network interface.

    Attributes:
        kind: ``tun``, ``vxlan``, ``bridge`` ...; empty for hardware.
        mac: As text, empty where it has none.
        master: Index of the bridge that it is a port of, else 0.
        vxlan_port: The UDP port of a vxlan device, else 0.
        other_namespace: Whether the other end is in another network namespace.
    """

    index: int
    name: str
    up: bool
    carrier: bool
    mtu: int
    mac: str
    kind: str
    master: int
    vxlan_port: int
    other_namespace: bool

    @classmethod
    def parse(cls, body: bytes) -> Link:
        _, _, index, flags, _ = LINK.unpack_from(body)
        values = parse_attributes(body[LINK.size :])
        info = parse_attributes(values.get(IFLA_LINKINFO, b""))
        kind = _text(info.get(_IFLA_INFO_KIND, b""))
        data = parse_attributes(info.get(_IFLA_INFO_DATA, b"")) if kind == "vxlan" else {}
        return cls(
            index=index,
            name=_text(values.get(IFLA_IFNAME, b"")),
            up=bool(flags & UP),
            carrier=any(values.get(IFLA_CARRIER, b"")),
            mtu=_number(values.get(IFLA_MTU, b"")),
            mac=values.get(IFLA_ADDRESS, b"").hex(":"),
            kind=kind,
            master=_number(values.get(IFLA_MASTER, b"")),
            vxlan_port=int.from_bytes(data.get(_IFLA_VXLAN_PORT, b""), "big"),
            other_namespace=IFLA_LINK_NETNSID in values,
        )


@dataclass(frozen=True, slots=True)
class DeviceAddress:
    """An address of a device; `scope` as ``ip address`` has it, a number."""

    device: int
    scope: int
    interface: InterfaceAddress

    @classmethod
    def parse(cls, body: bytes) -> DeviceAddress:
        _, length, _, scope, device = ADDRESS.unpack_from(body)
        values = parse_attributes(body[ADDRESS.size :])
        # On a point-to-point link IFA_ADDRESS is the peer's; IPv6 has IFA_LOCAL only there.
        address = ipaddress.ip_address(values.get(_IFA_LOCAL) or values[_IFA_ADDRESS])
        return cls(device, scope, ipaddress.ip_interface((address, length)))


@dataclass(frozen=True, slots=True)
class NeighbourEntry:
    """
    A neighbour or FDB entry.

    Attributes:
        address: None in an FDB entry.
        mac: As text, empty as long as it is not resolved.
        state: NUD_*.
        protocol: Its number, 0 where none was given.
    """

    device: int
    address: Address | None
    mac: str
    state: int
    protocol: int

    @classmethod
    def parse(cls, body: bytes) -> NeighbourEntry:
        _, device, state, _, _ = NEIGHBOUR.unpack_from(body)
        values = parse_attributes(body[NEIGHBOUR.size :])
        address = values.get(NDA_DST)
        return cls(
            device,
            ipaddress.ip_address(address) if address else None,
            values.get(NDA_LLADDR, b"").hex(":"),
            state,
            _number(values.get(NDA_PROTOCOL, b"")),
        )


@dataclass(frozen=True, slots=True)
class RouteEntry:
    """
    A kernel route. `device` is the index of the outgoing interface, 0 where there is none or,
    in an entry with several next hops, more than one; `mtu` is 0 unless the route has one.
    """

    prefix: Prefix
    device: int
    kind: str
    table: int
    protocol: int
    scope: int
    flags: int
    gateway: Address | None
    source: Address | None
    metric: int
    mtu: int

    @classmethod
    def parse(cls, body: bytes) -> RouteEntry:
        family, length, _, _, table, protocol, scope, kind, flags = ROUTE.unpack_from(body)
        values = parse_attributes(body[ROUTE.size :])
        metrics = parse_attributes(values.get(_RTA_METRICS, b""))
        return cls(
            prefix=_prefix(family, length, values.get(RTA_DST)),
            device=_number(values.get(RTA_OIF, b"")),
            kind=_KINDS[kind] if kind < len(_KINDS) else str(kind),
            table=_number(values.get(_RTA_TABLE, b"")) or table,
            protocol=protocol,
            scope=scope,
            flags=flags,
            gateway=_gateway(values),
            source=_address(values.get(_RTA_PREFSRC)),
            metric=_number(values.get(_RTA_PRIORITY, b"")),
            mtu=_number(metrics.get(_RTAX_MTU, b"")),
        )

    def describe(self, device: str) -> str:
        """The route as ``ip route`` prints it, with the name of its device."""
        words = [] if self.kind == "unicast" else [self.kind]
        words.append(str(self.prefix) if self.prefix.prefixlen else "default")
        if self.gateway is not None:
            family = "" if self.gateway.version == self.prefix.version else "inet6 "
            words.append(f"via {family}{self.gateway}")
        words.append(f"dev {device}")
        if self.flags & ONLINK:
            words.append("onlink")
        if self.table != MAIN_TABLE:
            words.append(f"table {self.table}")
        words.append(f"proto {_PROTOCOLS.get(self.protocol, self.protocol)}")
        if self.prefix.version == 4 and self.scope != SCOPE_UNIVERSE:
            words.append(f"scope {_SCOPES.get(self.scope, self.scope)}")
        if self.source is not None:
            words.append(f"src {self.source}")
        if self.metric:
            words.append(f"metric {self.metric}")
        return " ".join(words)


def route_destination(body: bytes) -> Prefix:
    """The destination of a route message, without decoding the rest."""
    family, length = body[0], body[1]
    return _prefix(family, length, parse_attributes(body[ROUTE.size :]).get(RTA_DST))


# Bodies of requests.


def link_request(
    index: int = 0, *, flags: int = 0, change: int = 0, attributes: dict[int, bytes] | None = None
) -> bytes:
    """Asks for a link, or changes those of its flags that `change` names, and its attributes."""
    return LINK.pack(0, 0, index, flags, change) + pack_attributes(attributes or {})


def link_by_name(name: str) -> bytes:
    return link_request(attributes={IFLA_IFNAME: name.encode() + b"\0"})


def no_link_local_address() -> dict[int, bytes]:
    """The attribute that keeps IPv6 from giving a link an address (IN6_ADDR_GEN_MODE_NONE)."""
    mode = pack_attributes({_IFLA_INET6_ADDR_GEN_MODE: bytes([_ADDR_GEN_MODE_NONE])})
    return {IFLA_AF_SPEC: pack_attributes({socket.AF_INET6: mode})}


def number(value: int) -> bytes:
    """An attribute's value of 32 bits."""
    return _NUMBER.pack(value)


def address_request(index: int, address: InterfaceAddress | None = None) -> bytes:
    """Adds or removes an address of a device, which needs no duplicate address detection; without
    an address, asks for those of the device."""
    if address is None:
        return ADDRESS.pack(0, 0, 0, 0, index)
    head = ADDRESS.pack(family_of(address), address.network.prefixlen, 0, 0, index)
    attributes = {_IFA_LOCAL: address.ip.packed, _IFA_ADDRESS: address.ip.packed}
    if address.version == 6:
        attributes[_IFA_FLAGS] = _NUMBER.pack(_IFA_F_NODAD)
    return head + pack_attributes(attributes)


def neighbour_request(index: int, address: Address, *, mac: Mac | None = None) -> bytes:
    """Adds a permanent entry of this program, or removes the entry of an address."""
    attributes = {NDA_DST: address.packed}
    if mac is not None:
        attributes |= {NDA_LLADDR: mac.packed, NDA_PROTOCOL: bytes([PROTOCOL])}
    head = NEIGHBOUR.pack(family_of(address), index, PERMANENT, 0, 0)
    return head + pack_attributes(attributes)


def neighbours_filter(*, family: int = 0, device: int = 0, bridge: int = 0) -> bytes:
    """Asks for the neighbour entries of a device, or for the FDB of a bridge (AF_BRIDGE)."""
    attributes = {NDA_IFINDEX: _INDEX.pack(device)} if device else {}
    if bridge:
        attributes[NDA_MASTER] = _INDEX.pack(bridge)
    return NEIGHBOUR.pack(family, 0, 0, 0, 0) + pack_attributes(attributes)


def route_request(
    index: int, prefix: Prefix, *, via: Address | None = None, scope: int | None = None
) -> bytes:
    """Adds or removes a route of this program to a device, via a gateway on its link."""
    if scope is None:
        on_link = prefix.version == 4 and via is None
        scope = SCOPE_LINK if on_link else SCOPE_UNIVERSE
    attributes = {RTA_DST: prefix.network_address.packed, RTA_OIF: _INDEX.pack(index)}
    if via is not None and via.version == prefix.version:
        attributes[_RTA_GATEWAY] = via.packed
    elif via is not None:  # Linux 5.2
        attributes[_RTA_VIA] = _FAMILY.pack(family_of(via)) + via.packed
    fields = (family_of(prefix), prefix.prefixlen, 0, 0, MAIN_TABLE, PROTOCOL, scope, _UNICAST)
    return ROUTE.pack(*fields, ONLINK if via else 0) + pack_attributes(attributes)


def routes_filter(*, family: int = 0, device: int = 0, protocol: int = 0) -> bytes:
    """Asks for the routes of the main table, to a device and of a protocol where that is given."""
    head = ROUTE.pack(family, 0, 0, 0, MAIN_TABLE, protocol, 0, 0, 0)
    return head + pack_attributes({RTA_OIF: _INDEX.pack(device)} if device else {})


def lookup(
    destination: Address, *, source: Address | None = None, arrival: int = 0, flags: int = 0
) -> bytes:
    """Asks where the kernel sends a packet of this host, or one that `arrival` received."""
    attributes = {RTA_DST: destination.packed}
    if source is not None:
        attributes[_RTA_SRC] = source.packed
    if arrival:
        attributes[_RTA_IIF] = _INDEX.pack(arrival)
    lengths = (destination.max_prefixlen, source.max_prefixlen if source else 0)
    head = ROUTE.pack(family_of(destination), *lengths, 0, 0, 0, 0, 0, flags)
    return head + pack_attributes(attributes)


# Values of attributes.


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")


def _number(value: bytes) -> int:
    return int.from_bytes(value, sys.byteorder)


def _address(value: bytes | None) -> Address | None:
    return ipaddress.ip_address(value) if value else None


def _gateway(values: dict[int, bytes]) -> Address | None:
    if _RTA_VIA in values:
        return ipaddress.ip_address(values[_RTA_VIA][_FAMILY.size :])
    return _address(values.get(_RTA_GATEWAY))


def _prefix(family: int, length: int, address: bytes | None) -> Prefix:
    if family == socket.AF_INET:
        return ipaddress.IPv4Network((address or bytes(4), length))
    return ipaddress.IPv6Network((address or bytes(16), length))
