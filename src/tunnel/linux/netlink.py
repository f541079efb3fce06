"""Links, addresses and kernel routes, by netlink. The one file that knows pyroute2."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
import struct
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import rt_proto, rt_scope, rt_type

from tunnel.errors import DeviceError
from tunnel.linux import route_batch
from tunnel.linux.route_batch import RouteBatch
from tunnel.types import Address, InterfaceAddress, KernelNeighbour, KernelRoute, Mac, Prefix

PROTOCOL = 84
"""Protocol number of our kernel routes and neighbour entries (``ip route show proto 84``), free
in linux/rtnetlink.h and iproute2's rt_protos: what has it is ours to remove."""

_HINTS = {
    errno.EPERM: 'run with CAP_NET_ADMIN, or inside "unshare -Urn"',
    errno.EACCES: 'is IPv6 off? see "sysctl net.ipv6.conf.default.disable_ipv6"',
    errno.ENODEV: "it is gone, or its mtu is below the 1280 bytes that IPv6 needs",
}
"""What each refusal most often means, and what to do."""

_QUEUE_LENGTH = 4096  # packets; a TUN device's 500 overflow within one slow wake-up
_SCOPE_UNIVERSE, _SCOPE_LINK, _SCOPE_NOWHERE = 0, 253, 255
_ONLINK = 4  # RTNH_F_ONLINK: the gateway is on the link, whatever the routes say
_NO_DAD = 2  # IFA_F_NODAD
_PERMANENT = 0x80  # NUD_PERMANENT
_IFF_UP = 1
_MAIN_TABLE = 254
_ADDR_GEN_MODE_NONE = 1
_LARGEST_MESSAGE = 65536
_UNICAST = 1  # RTN_UNICAST
_REPLACE, _EXCL, _CREATE = 0x100, 0x200, 0x400  # NLM_F_*, linux/netlink.h
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC, _RTA_METRICS, _RTA_VIA = 1, 4, 5, 7, 8, 18
_RTAX_MTU, _IFLA_MTU = 2, 4
_NDA_DST, _NDA_LLADDR, _NDA_PROTOCOL = 1, 2, 12
_FIB_MATCH = 0x2000  # RTM_F_FIB_MATCH: the entry that decides, not the route made of it
_NEIGHBOUR_STATES = {
    0x01: "INCOMPLETE",
    0x02: "REACHABLE",
    0x04: "STALE",
    0x08: "DELAY",
    0x10: "PROBE",
    0x20: "FAILED",
    0x40: "NOARP",
    0x80: "PERMANENT",
}


Thing = TypeVar("Thing", Address, Prefix)


@dataclass(frozen=True)
class UnderlayPath:
    """How the kernel would send to an address: from `source`, packets of at most `mtu`
    bytes, outer IP header included, out of the link with index `device`."""

    source: Address
    mtu: int
    device: int


class _Reader:
    """The transport under AsyncIPRoute: hands over what arrives, until aborted."""

    def __init__(self, sock: socket.socket, enqueue: Callable[[bytes, None], None]) -> None:
        self._socket = sock
        self._enqueue = enqueue
        self._loop = asyncio.get_running_loop()
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._read)

    def _read(self) -> None:
        self._enqueue(self._socket.recv(_LARGEST_MESSAGE), None)

    def abort(self) -> None:
        self._loop.remove_reader(self._socket.fileno())

    def close(self) -> None:
        """AsyncIPRoute aborts first, then closes the socket itself."""


class _IPRoute(AsyncIPRoute):  # type: ignore[misc]
    """AsyncIPRoute for every loop: uvloop refuses datagram endpoints of AF_NETLINK, but
    has add_reader as asyncio has."""

    async def setup_endpoint(self) -> None:
        if getattr(self.local, "transport", None) is None:
            self.local.protocol = None
            self.local.transport = _Reader(self.socket, self.enqueue)


class Netlink:
    """
    One netlink socket, of the network namespace in which it was opened.

    Each method raises DeviceError where the kernel refuses, most often for the lack of
    CAP_NET_ADMIN. Cancelled, a method may or may not have changed what it set out to.
    """

    def __init__(self) -> None:
        self._route = _IPRoute()
        self._pipeline = RouteBatch()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._route.close()
        self._pipeline.close()

    async def check_not_in_use(self, name: str) -> None:
        """
        Sees that nobody has the TUN device `name` open: it has a carrier just then.

        Raises:
            DeviceError: Somebody has. Of a device with several queues the kernel would give
                us more, and with them his packets.
        """
        try:
            (link,) = await self._route.link("get", ifname=name)
        except NetlinkError:
            return
        if link.get(("linkinfo", "kind")) == "tun" and link.get("carrier"):
            raise DeviceError(
                f"device {name} is in use by another process (stop it, or choose another --name)"
            )

    async def set_mtu(self, index: int, mtu: int, *, gso_max_size: int) -> None:
        """Sets the MTU and the largest super-packet, both in bytes."""
        with _explained(f"set mtu {mtu} on device {device_name(index)}"):
            await self._route.link("set", index=index, mtu=mtu, gso_max_size=gso_max_size)

    async def set_up(self, index: int, *, mac: Mac | None = None) -> None:
        """Sets the queue length and, on a TAP device, the MAC; then the link up."""
        with _explained(f"set device {device_name(index)} up"):
            await self._route.link("set", index=index, txqlen=_QUEUE_LENGTH)
            if mac is None:
                await self._silence(index)
            else:
                await self._route.link("set", index=index, address=str(mac))
                _refuse_routers(device_name(index))
            await self._route.link("set", index=index, state="up")

    async def is_up(self, device: int | str) -> bool:
        """Whether nobody has set the device, an index or a name, down, or removed it."""
        which = {"index": device} if isinstance(device, int) else {"ifname": device}
        try:
            (link,) = await self._route.link("get", **which)
        except NetlinkError:
            return False
        return bool(link["flags"] & _IFF_UP)

    async def add_address(self, index: int, address: InterfaceAddress) -> None:
        """Adds an address; one that is there already is fine. Nobody is asked whether he has it:
        who has which is configured, and an answer would take a second to stay away."""
        with _explained(f"add address {address} to device {device_name(index)}"):
            await self._route.addr(
                "replace",
                index=index,
                address=str(address.ip),
                prefixlen=address.network.prefixlen,
                **({"IFA_FLAGS": _NO_DAD} if address.version == 6 else {}),
            )

    async def remove_address(self, index: int, address: InterfaceAddress) -> None:
        """Removes an address; one that is gone already is fine."""
        with _explained(f"remove address {address} from device {device_name(index)}"):
            try:
                await self._route.addr(
                    "del", index=index, address=str(address.ip), prefixlen=address.network.prefixlen
                )
            except NetlinkError as error:
                if error.code not in (errno.EADDRNOTAVAIL, errno.ENODEV):
                    raise

    async def addresses(self, index: int) -> list[InterfaceAddress]:
        """Those of a device."""
        with _explained(f"read the addresses of device {device_name(index)}"):
            return [
                ipaddress.ip_interface(
                    f"{message.get('local') or message.get('address')}/{message['prefixlen']}"
                )
                async for message in await self._route.addr("dump", index=index)
            ]

    async def set_neighbours(self, index: int, macs: Mapping[Address, Mac]) -> None:
        """Tells the kernel for ever behind which MACs addresses on the link are."""
        flags = route_batch.ACK | _CREATE | _REPLACE
        requests = [_neighbour(index, one, mac=mac) for one, mac in macs.items()]
        refused = await self._tell(_NEWNEIGH, macs, requests, flags=flags)
        for address, number in refused.items():
            raise _refusal(f"add neighbour {address} to device {device_name(index)}", number)

    async def remove_neighbours(self, index: int, addresses: Sequence[Address]) -> None:
        """Removes our entries; one that is gone already is fine."""
        requests = [_neighbour(index, one) for one in addresses]
        refused = await self._tell(_DELNEIGH, addresses, requests)
        for address, number in refused.items():
            if number not in (errno.ENOENT, errno.ENODEV):
                raise _refusal(f"remove neighbour {address}", number)

    async def neighbours(self, index: int) -> dict[Address, Mac]:
        """Our own entries on a device."""
        with _explained(f"read the neighbours on device {device_name(index)}"):
            return {
                ipaddress.ip_address(message.get("dst")): Mac.parse(message.get("lladdr"))
                async for message in await self._route.neigh("dump", ifindex=index)
                if message.get("protocol") == PROTOCOL and message["state"] == _PERMANENT
            }

    async def add_routes(
        self, index: int, routes: Mapping[Prefix, Address | None]
    ) -> dict[Prefix, DeviceError]:
        """
        Routes each prefix to the device, or by way of a gateway that is on its link. Our own
        route, there already, is fine; another's stays as it is. Returns what was refused.
        """
        requests = [_route(index, prefix, via=via) for prefix, via in routes.items()]
        flags = route_batch.ACK | _CREATE | _EXCL
        refused = await self._tell(_NEWROUTE, routes, requests, flags=flags)
        taken = {prefix for prefix, number in refused.items() if number == errno.EEXIST}
        return await self._others(index, taken) | {
            prefix: _refusal(f"add kernel route {prefix} to device {device_name(index)}", number)
            for prefix, number in refused.items()
            if prefix not in taken
        }

    async def remove_routes(self, index: int, prefixes: Sequence[Prefix]) -> None:
        """Removes our routes; one that is gone already is fine."""
        requests = [_route(index, prefix, scope=_SCOPE_NOWHERE) for prefix in prefixes]
        refused = await self._tell(_DELROUTE, prefixes, requests)
        for prefix, number in refused.items():
            if number not in (errno.ESRCH, errno.ENODEV):
                raise _refusal(f"remove kernel route {prefix}", number)

    async def _tell(
        self,
        kind: int,
        things: Iterable[Thing],
        requests: Sequence[bytes],
        *,
        flags: int = route_batch.ACK,
    ) -> dict[Thing, int]:
        """Those of `things` that the kernel refused, with why. A request is about one each."""
        answers = await self._pipeline.request(kind, requests, flags=flags)
        return {
            thing: answer
            for thing, answer in zip(things, answers, strict=True)
            if isinstance(answer, int) and answer
        }

    async def routes(self, index: int) -> list[Prefix]:
        """Our own routes to a device."""
        with _explained(f"read the kernel routes to device {device_name(index)}"):
            found = await self._route.route("dump", oif=index, proto=PROTOCOL)
            return [_destination(message) async for message in found]

    async def flush_device(self, index: int) -> None:
        """Takes our routes, our neighbour entries and every address but link-local ones from a
        device that outlives its process; one that is gone already is fine."""
        with _explained(f"clear device {device_name(index)}"):
            await self.remove_routes(index, await self.routes(index))
            await self.remove_neighbours(index, list(await self.neighbours(index)))
            async for message in await self._route.addr("dump", index=index):
                address = ipaddress.ip_address(message.get("address"))
                if not address.is_link_local:
                    await self._route.addr(
                        "del", index=index, address=str(address), prefixlen=message["prefixlen"]
                    )

    async def get_path(self, address: Address) -> UnderlayPath | None:
        """The way to an underlay address, None where no route leads there or no address of
        ours could be the source."""
        return (await self.get_paths([address]))[0]

    async def get_paths(self, addresses: Sequence[Address]) -> list[UnderlayPath | None]:
        """The way to each of these."""
        requests = [_destined(address) for address in addresses]
        answers = await self._pipeline.request(_GETROUTE, requests, flags=0)
        found = [None if isinstance(one, int) else _read_way(one) for one in answers]
        devices = {way.device for way in found if way is not None and not way.mtu}
        mtus = {device: await self._mtu(device) for device in devices}
        return [way and replace(way, mtu=way.mtu or mtus[way.device]) for way in found]

    async def _mtu(self, index: int) -> int:
        (answer,) = await self._pipeline.request(_GETLINK, [_LINK.pack(0, 0, index, 0, 0)], flags=0)
        if isinstance(answer, int):
            raise _refusal(f"read the mtu of device {device_name(index)}", answer)
        return int.from_bytes(route_batch.parse(answer[_LINK.size :])[_IFLA_MTU], sys.byteorder)

    async def get_route(
        self, destination: Address, *, source: Address | None = None, arrival: str = ""
    ) -> KernelRoute:
        """
        What the kernel does with a packet, made here or, if that is said, come by the device
        `arrival`. `source` has to be an address of this host's where the packet is made here.
        """
        family = socket.AF_INET if destination.version == 4 else socket.AF_INET6
        words: dict[str, Any] = {"family": family, "dst": str(destination)}
        if source is not None:
            words["src"] = str(source)
        try:
            if arrival:
                words["iif"] = socket.if_nametoindex(arrival)
            (route,) = await self._route.route("get", **words)
            (entry,) = await self._route.route("get", flags=_FIB_MATCH, **words)
            (link,) = await self._route.link("get", index=route.get("oif"))
        except NetlinkError as error:
            return KernelRoute(error=error.code)
        except OSError as error:
            return KernelRoute(error=error.errno or errno.ENODEV)
        gateway, chosen = route.get("gateway"), route.get("prefsrc")
        return KernelRoute(
            entry=_spell(entry, device=route.get("oif")),
            kind=rt_type.get(route["type"], str(route["type"])),
            device=device_name(route.get("oif")),
            gateway=ipaddress.ip_address(gateway) if gateway else None,
            source=ipaddress.ip_address(chosen) if chosen else None,
            mtu=route.get(("metrics", "mtu")) or link.get("mtu"),
            mac=link.get("address") or "",
        )

    async def neighbour(self, address: Address, *, device: str) -> KernelNeighbour | None:
        """What the kernel knows of an address on a link, None where it never looked for it."""
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        async for message in await self._route.neigh("dump", family=family, dst=str(address)):
            if device_name(message["ifindex"]) != device:
                continue
            mac = message.get("lladdr") or ""
            state = _NEIGHBOUR_STATES.get(message["state"], str(message["state"]))
            port = await self._bridge_port(message["ifindex"], mac)
            if port is None:
                return KernelNeighbour(device, mac, state)
            (link,) = await self._route.link("get", index=port)
            away = link.get("link_netnsid") is not None
            return KernelNeighbour(device, mac, state, device_name(port), away)
        return None

    async def bridge_of(self, index: int) -> str:
        """Name of the bridge of which a device is a port, empty where it is of none."""
        (link,) = await self._route.link("get", index=index)
        master = link.get("master")
        return device_name(master) if master else ""

    async def _bridge_port(self, bridge: int, mac: str) -> int | None:
        """Index of the port of a bridge behind which a MAC is."""
        async for message in await self._route.neigh("dump", family=socket.AF_BRIDGE):
            if message.get("lladdr") == mac and message.get("master") == bridge:
                return int(message["ifindex"])
        return None

    async def find_device_with(self, address: Address) -> str | None:
        """Name of the device that has an address of ours, None where none has."""
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        async for message in await self._route.addr("dump", family=family):
            if (message.get("local") or message.get("address")) == str(address):
                return device_name(message["index"])
        return None

    async def interfaces(self) -> dict[str, list[Address]]:
        """The devices that have addresses for more than their own link, and these."""
        found: dict[str, list[Address]] = {}
        async for message in await self._route.addr("dump"):
            if message["scope"] == _SCOPE_UNIVERSE:
                address = ipaddress.ip_address(message.get("local") or message.get("address"))
                found.setdefault(device_name(message["index"]), []).append(address)
        return found

    async def default_device(self, family: int) -> str | None:
        """Name of the device of the default route of a family (4, 6), None without one."""
        number = socket.AF_INET if family == 4 else socket.AF_INET6
        routes = [
            (message.get("priority") or 0, message.get("oif"))
            async for message in await self._route.route(
                "dump", family=number, table=_MAIN_TABLE, dst_len=0
            )
            if message["dst_len"] == 0 and message.get("oif")
        ]
        return device_name(min(routes)[1]) if routes else None

    async def mtu_of(self, name: str) -> int | None:
        """MTU of a device in bytes, None where there is no such device here."""
        try:
            (link,) = await self._route.link("get", ifname=name)
        except NetlinkError:
            return None
        return int(link.get("mtu"))

    async def find_vxlan_device(self, port: int) -> str | None:
        """Name of a kernel vxlan device that owns UDP `port` in this namespace."""
        async for link in await self._route.link("dump"):
            if link.get(("linkinfo", "kind")) == "vxlan" and port == link.get(
                ("linkinfo", "data", "vxlan_port")
            ):
                return str(link.get("ifname"))
        return None

    async def _silence(self, index: int) -> None:
        """No IPv6 link-local address, and so no router solicitations into the tunnel. A
        kernel without IPv6 has neither and refuses."""
        mode = {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", _ADDR_GEN_MODE_NONE)]}
        with suppress(NetlinkError):
            await self._route.link("set", index=index, IFLA_AF_SPEC={"attrs": [("AF_INET6", mode)]})

    async def _others(self, index: int, prefixes: Collection[Prefix]) -> dict[Prefix, DeviceError]:
        """Which of these are routed by somebody else, or elsewhere."""
        if not prefixes:
            return {}
        refused = {}
        async for message in await self._route.route("dump", table=_MAIN_TABLE):
            prefix, other = _destination(message), message.get("oif")
            if prefix in prefixes and (other != index or message["proto"] != PROTOCOL):
                refused[prefix] = DeviceError(
                    f"kernel route {prefix} exists already, via device {device_name(other)} "
                    f'(remove it with "ip route delete {prefix}", or the prefix from the peer)'
                )
        return refused


class DeviceWatch:
    """
    Calls `changed` in the running loop when something of a device's is taken away, by whomever:
    one of our kernel routes, a neighbour entry, an address; and when the link or an address comes.

    Raises:
        DeviceError: The kernel refuses.
    """

    def __init__(self, index: int, *, changed: Callable[[], None]) -> None:
        self._index, self._changed = index, changed
        self._loop = asyncio.get_running_loop()
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
            self._socket.setblocking(False)
            self._socket.bind((0, _GROUPS))
        except OSError as error:
            why = (error.strerror or "").lower()
            raise DeviceError(f"cannot watch device {device_name(index)}: {why}") from error
        self._loop.add_reader(self._socket.fileno(), self._read)

    def close(self) -> None:
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()

    def _read(self) -> None:
        try:
            messages = self._socket.recv(_LARGEST_MESSAGE)
        except BlockingIOError:
            return
        except OSError:  # ENOBUFS: some were lost, which may have been about ours
            self._changed()
            return
        while len(messages) >= 24:
            size, kind = _MESSAGE.unpack_from(messages)
            if self._is_ours(kind, messages):
                self._changed()
                return
            messages = messages[(size + 3) & ~3 :]

    def _is_ours(self, kind: int, message: bytes) -> bool:
        if kind == _DELROUTE:
            return message[_ROUTE_PROTOCOL] == PROTOCOL
        return kind in _OF_A_LINK and _LINK_INDEX.unpack_from(message, 20)[0] == self._index


# linux/rtnetlink.h. A header of 16 bytes, then a struct by the kind of message; those that are of
# one link have its index behind their first four bytes.
_MESSAGE, _LINK_INDEX = struct.Struct("=IH"), struct.Struct("=i")
_FAMILY = struct.Struct("=H")
_ROUTE, _NEIGHBOUR = struct.Struct("=8BI"), struct.Struct("=BxxxiHBB")
_ROUTE_PROTOCOL = 16 + 5
_LINK = struct.Struct("=BxHiII")
_NEWLINK, _GETLINK, _NEWADDR, _DELADDR, _NEWROUTE, _DELROUTE, _GETROUTE = 16, 18, 20, 21, 24, 25, 26
_NEWNEIGH, _DELNEIGH = 28, 29
_OF_A_LINK = (_NEWLINK, _NEWADDR, _DELADDR, _DELNEIGH)
_GROUPS = 0x1 | 0x4 | 0x10 | 0x40 | 0x100 | 0x400  # links, neighbours, addresses and routes


def _refuse_routers(device: str) -> None:
    """No default route or address by router advertisement: a peer could give us one, as any host
    of a LAN could. Where sysctls are not to be written, that is how this host wants it."""
    with suppress(OSError):
        Path("/proc/sys/net/ipv6/conf", device, "accept_ra").write_text("0")


def _family(inner: Address | Prefix) -> int:
    return socket.AF_INET if inner.version == 4 else socket.AF_INET6


def _route(
    index: int, prefix: Prefix, *, via: Address | None = None, scope: int | None = None
) -> bytes:
    """A request about our route."""
    if scope is None:
        on_link = prefix.version == 4 and via is None
        scope = _SCOPE_LINK if on_link else _SCOPE_UNIVERSE
    attributes = {_RTA_DST: prefix.network_address.packed, _RTA_OIF: _LINK_INDEX.pack(index)}
    if via is not None and via.version == prefix.version:
        attributes[_RTA_GATEWAY] = via.packed
    elif via is not None:  # Linux 5.2
        attributes[_RTA_VIA] = _FAMILY.pack(_family(via)) + via.packed
    words = (_family(prefix), prefix.prefixlen, 0, 0, _MAIN_TABLE, PROTOCOL, scope, _UNICAST)
    return _ROUTE.pack(*words, _ONLINK if via else 0) + route_batch.put(attributes)


def _neighbour(index: int, address: Address, *, mac: Mac | None = None) -> bytes:
    """A request about our neighbour entry."""
    attributes = {_NDA_DST: address.packed}
    if mac is not None:
        attributes |= {_NDA_LLADDR: mac.packed, _NDA_PROTOCOL: bytes([PROTOCOL])}
    return _NEIGHBOUR.pack(_family(address), index, _PERMANENT, 0, 0) + route_batch.put(attributes)


def _destined(address: Address) -> bytes:
    """A request for the way to an address."""
    length = address.max_prefixlen
    words = (_family(address), length, 0, 0, 0, 0, 0, 0, 0)
    return _ROUTE.pack(*words) + route_batch.put({_RTA_DST: address.packed})


def _read_way(message: bytes) -> UnderlayPath | None:
    """Its MTU is 0 where it is the device's; None where no address of ours could be the source."""
    words = route_batch.parse(message[_ROUTE.size :])
    if _RTA_PREFSRC not in words or _RTA_OIF not in words:
        return None
    (device,) = _LINK_INDEX.unpack(words[_RTA_OIF])
    mtu = route_batch.parse(words.get(_RTA_METRICS, b"")).get(_RTAX_MTU, bytes(4))
    return UnderlayPath(
        ipaddress.ip_address(words[_RTA_PREFSRC]), int.from_bytes(mtu, sys.byteorder), device
    )


def _destination(message: Any) -> Prefix:
    unspecified = "0.0.0.0" if message["family"] == socket.AF_INET else "::"
    return ipaddress.ip_network(f"{message.get('dst') or unspecified}/{message['dst_len']}")


def _spell(message: Any, *, device: int | None) -> str:
    """A kernel route as ``ip route`` prints it; of several next hops, `device` is the one taken."""
    prefix, kind, table = _destination(message), rt_type.get(message["type"]), message.get("table")
    words = [] if kind == "unicast" else [str(kind)]
    words.append(str(prefix) if prefix.prefixlen else "default")
    if message.get("gateway"):
        words += ["via", message.get("gateway")]
    words += ["dev", device_name(message.get("oif") or device)]
    if message["flags"] & _ONLINK:
        words.append("onlink")
    if table != _MAIN_TABLE:
        words += ["table", str(table)]
    words += ["proto", str(rt_proto.get(message["proto"], message["proto"]))]
    if message["family"] == socket.AF_INET and message["scope"] != _SCOPE_UNIVERSE:
        words += ["scope", str(rt_scope.get(message["scope"], message["scope"]))]
    if message.get("prefsrc"):
        words += ["src", message.get("prefsrc")]
    if message.get("priority"):
        words += ["metric", str(message.get("priority"))]
    return " ".join(words)


def device_name(index: int | None) -> str:
    """For messages: the device's name, its number when it is gone."""
    try:
        return socket.if_indextoname(index or 0)
    except OSError:
        return str(index)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        raise _refusal(what, error.code) from error


def _refusal(what: str, number: int) -> DeviceError:
    why, hint = os.strerror(number), _HINTS.get(number)
    error = DeviceError(f"cannot {what}: {why.lower()}{f' ({hint})' if hint else ''}")
    error.__cause__ = OSError(number, why)
    return error
