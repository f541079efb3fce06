"""
Links, addresses, neighbours and routes of the kernel: reads and changes them by netlink.

Notifications of changes are in device_watch.py, the format of messages in rtnetlink.py.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from tunnel.errors import DeviceError
from tunnel.linux import rtnetlink
from tunnel.linux.netlink_socket import ACK, CREATE, EXCL, REPLACE, NetlinkSocket
from tunnel.linux.rtnetlink import PROTOCOL, DeviceAddress, Link, NeighbourEntry, RouteEntry
from tunnel.types import Address, InterfaceAddress, KernelNeighbour, KernelRoute, Mac, Prefix

_HINTS = {
    errno.EPERM: 'run with CAP_NET_ADMIN, or inside "unshare -Urn"',
    errno.EACCES: 'is IPv6 off? see "sysctl net.ipv6.conf.default.disable_ipv6"',
    errno.ENODEV: "it was deleted, or its mtu is below the 1280 bytes that IPv6 needs",
}
"""What each refusal most often means, and what to do."""

_QUEUE_LENGTH = 4096  # packets; a TUN device's 500 overflow within one slow wake-up
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

K = TypeVar("K", Address, Prefix)
T = TypeVar("T")


@dataclass(frozen=True)
class UnderlayPath:
    """How the kernel would send to an address: from `source`, packets of at most `mtu`
    bytes, outer IP header included, out of the link with index `device`."""

    source: Address
    mtu: int
    device: int


class Netlink:
    """
    Reads and changes the network namespace in which it was opened.

    Each method raises DeviceError when the kernel refuses, most often for the lack of
    CAP_NET_ADMIN, when it does not answer within 5 s, and at once when the socket is closed. Of
    a cancelled method, the change may or may not have been made.

    Attributes:
        port: Its netlink port: the kernel names it in notifications of what this node changed.
    """

    def __init__(self) -> None:
        self._requests = NetlinkSocket()
        # A dump of many routes holds up no change.
        self._dumps = NetlinkSocket()
        self.port = self._requests.port

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the sockets; a method that waits for the kernel raises DeviceError."""
        self._requests.close()
        self._dumps.close()

    # Links.

    async def check_not_in_use(self, name: str) -> None:
        """
        Checks that no process has the TUN device `name` open: only then does it have a carrier.

        Raises:
            DeviceError: A process has it open. The kernel would give this process another queue of
                a device with several, and with it a share of the packets.
        """
        link = await self._find_link(name)
        if link is not None and link.kind == "tun" and link.carrier:
            raise DeviceError(
                f"device {name} is in use by another process (stop it, or choose another --name)"
            )

    async def set_mtu(self, index: int, mtu: int, *, gso_max_size: int) -> None:
        """Sets the MTU and the largest super-packet, both in bytes."""
        attributes = {
            rtnetlink.IFLA_MTU: rtnetlink.number(mtu),
            rtnetlink.IFLA_GSO_MAX_SIZE: rtnetlink.number(gso_max_size),
        }
        number = await self._set_link(index, attributes)
        _check(number, f"set mtu {mtu} on device {device_name(index)}")

    async def set_up(self, index: int, *, mac: Mac | None = None) -> None:
        """Sets the queue length and, on a TAP device, the MAC; then the link up."""
        queue = {rtnetlink.IFLA_TXQLEN: rtnetlink.number(_QUEUE_LENGTH)}
        number = await self._set_link(index, queue)
        if mac is None:
            # Router solicitations stay out of the tunnel. A kernel without IPv6 sends none, and
            # refuses.
            await self._set_link(index, rtnetlink.no_link_local_address())
        else:
            number = number or await self._set_link(index, {rtnetlink.IFLA_ADDRESS: mac.packed})
            _refuse_router_advertisements(device_name(index))
        number = number or await self._set_link(index, {}, flags=rtnetlink.UP)
        _check(number, f"set device {device_name(index)} up")

    async def is_up(self, device: int | str) -> bool:
        """Whether a device, an index or a name, exists and is set up."""
        link = await self._find_link(device)
        return link is not None and link.up

    async def mtu_of(self, name: str) -> int | None:
        """MTU of a device in bytes, None when there is no such device here."""
        link = await self._find_link(name)
        return None if link is None else link.mtu

    async def bridge_of(self, index: int) -> str:
        """Name of the bridge of which a device is a port, empty when it is of none."""
        link = await self._get_link(index)
        return device_name(link.master) if link.master else ""

    async def find_vxlan_device(self, port: int) -> str | None:
        """Name of a kernel vxlan device that has UDP `port` in this namespace."""
        links = await self._dump(rtnetlink.GETLINK, rtnetlink.link_request(), Link.parse)
        return next((link.name for link in links if link.vxlan_port == port), None)

    async def _find_link(self, device: int | str) -> Link | None:
        if isinstance(device, int):
            body = rtnetlink.link_request(device)
        else:
            body = rtnetlink.link_by_name(device)
        (answer,) = await self._requests.request(rtnetlink.GETLINK, [body], flags=0)
        return None if isinstance(answer, int) else Link.parse(answer)

    async def _get_link(self, index: int) -> Link:
        link = await self._find_link(index)
        if link is None:
            raise _refusal(f"read device {device_name(index)}", errno.ENODEV)
        return link

    async def _set_link(self, index: int, attributes: dict[int, bytes], *, flags: int = 0) -> int:
        body = rtnetlink.link_request(index, flags=flags, change=flags, attributes=attributes)
        return await self._change_one(rtnetlink.NEWLINK, body)

    # Addresses.

    async def add_address(self, index: int, address: InterfaceAddress) -> None:
        """Adds an address, unless it exists. Skips duplicate address detection, which would delay
        the use of each address by a second."""
        body = rtnetlink.address_request(index, address)
        number = await self._change_one(rtnetlink.NEWADDR, body, flags=CREATE | REPLACE)
        _check(number, f"add address {address} to device {device_name(index)}")

    async def remove_address(self, index: int, address: InterfaceAddress) -> None:
        """Removes an address, if it exists."""
        body = rtnetlink.address_request(index, address)
        number = await self._change_one(rtnetlink.DELADDR, body)
        if number not in (errno.EADDRNOTAVAIL, errno.ENODEV):
            _check(number, f"remove address {address} from device {device_name(index)}")

    async def addresses(self, index: int) -> list[InterfaceAddress]:
        """The addresses of a device."""
        return [one.interface for one in await self._device_addresses(index)]

    async def interfaces(self) -> dict[str, list[Address]]:
        """The devices that have addresses for more than their own link, and these addresses."""
        found: dict[str, list[Address]] = {}
        for one in await self._device_addresses():
            if one.scope == rtnetlink.SCOPE_UNIVERSE:
                found.setdefault(device_name(one.device), []).append(one.interface.ip)
        return found

    async def find_device_with(self, address: Address) -> str | None:
        """Name of the device that has an address of this host, None when none has."""
        found = (one for one in await self._device_addresses() if one.interface.ip == address)
        return next((device_name(one.device) for one in found), None)

    async def _device_addresses(self, index: int = 0) -> list[DeviceAddress]:
        body = rtnetlink.address_request(index)
        found = await self._dump(rtnetlink.GETADDR, body, DeviceAddress.parse)
        return [one for one in found if index in (0, one.device)]

    # Neighbours.

    async def set_neighbours(self, index: int, macs: Mapping[Address, Mac]) -> None:
        """Sets permanent entries: the MACs of addresses on the link."""
        refused = await self._set_neighbours(index, macs, flags=CREATE | REPLACE)
        for address, number in refused.items():
            raise _refusal(f"add neighbour {address} to device {device_name(index)}", number)

    async def restore_neighbours(self, index: int, macs: Mapping[Address, Mac]) -> int:
        """Does the same, and returns how many of these addresses had no entry."""
        present = await self._set_neighbours(index, macs, flags=CREATE | EXCL)
        await self.set_neighbours(index, {one: macs[one] for one in present})
        return len(macs) - len(present)

    async def _set_neighbours(
        self, index: int, macs: Mapping[Address, Mac], *, flags: int
    ) -> dict[Address, int]:
        bodies = [rtnetlink.neighbour_request(index, one, mac=mac) for one, mac in macs.items()]
        return await self._change(rtnetlink.NEWNEIGH, macs, bodies, flags=flags)

    async def remove_neighbours(self, index: int, addresses: Sequence[Address]) -> None:
        """Removes this node's entries, if they exist."""
        bodies = [rtnetlink.neighbour_request(index, one) for one in addresses]
        refused = await self._change(rtnetlink.DELNEIGH, addresses, bodies)
        for address, number in refused.items():
            if number not in (errno.ENOENT, errno.ENODEV):
                raise _refusal(f"remove neighbour {address}", number)

    async def neighbours(self, index: int) -> dict[Address, Mac]:
        """This program's entries on a device."""
        body = rtnetlink.neighbours_filter(device=index)
        return {
            one.address: Mac.parse(one.mac)
            for one in await self._dump(rtnetlink.GETNEIGH, body, NeighbourEntry.parse)
            if one.protocol == PROTOCOL and one.state == rtnetlink.PERMANENT
            if one.address is not None
        }

    async def neighbour(self, address: Address, *, device: str) -> KernelNeighbour | None:
        """The kernel's entry for an address on a link, None when it has none."""
        with suppress(OSError):
            index = socket.if_nametoindex(device)
            family = rtnetlink.family_of(address)
            body = rtnetlink.neighbours_filter(family=family, device=index)
            for one in await self._dump(rtnetlink.GETNEIGH, body, NeighbourEntry.parse):
                if one.address == address:
                    return await self._describe_neighbour(one, device=device)
        return None

    async def _describe_neighbour(self, entry: NeighbourEntry, *, device: str) -> KernelNeighbour:
        state = _NEIGHBOUR_STATES.get(entry.state, str(entry.state))
        body = rtnetlink.neighbours_filter(family=socket.AF_BRIDGE, bridge=entry.device)
        # The kernel refuses the filter when this is no bridge.
        fdb: list[NeighbourEntry] = []
        with suppress(DeviceError):
            fdb = await self._dump(rtnetlink.GETNEIGH, body, NeighbourEntry.parse)
        port = next((one.device for one in fdb if one.mac == entry.mac), None)
        if port is None or port == entry.device:
            return KernelNeighbour(device, entry.mac, state)
        away = (await self._get_link(port)).other_namespace
        return KernelNeighbour(device, entry.mac, state, device_name(port), away)

    # Routes.

    async def add_routes(
        self, index: int, routes: Mapping[Prefix, Address | None]
    ) -> dict[Prefix, DeviceError]:
        """
        Adds a route of each prefix to the device, or by way of a gateway on its link.

        A route of this program may exist already; another program's stays as it is. Returns why
        prefixes were refused.
        """
        _, refused = await self.restore_routes(index, routes)
        return refused

    async def restore_routes(
        self, index: int, routes: Mapping[Prefix, Address | None]
    ) -> tuple[int, dict[Prefix, DeviceError]]:
        """Does the same, and returns how many routes were missing as well."""
        bodies = [rtnetlink.route_request(index, prefix, via=via) for prefix, via in routes.items()]
        refused = await self._change(rtnetlink.NEWROUTE, routes, bodies, flags=CREATE | EXCL)
        present = {prefix for prefix, number in refused.items() if number == errno.EEXIST}
        errors = await self._find_others(index, present) | {
            prefix: _refusal(f"add kernel route {prefix} to device {device_name(index)}", number)
            for prefix, number in refused.items()
            if prefix not in present
        }
        return len(routes) - len(refused), errors

    async def remove_routes(self, index: int, prefixes: Sequence[Prefix]) -> None:
        """Removes this program's routes, if they exist."""
        scope = rtnetlink.SCOPE_NOWHERE  # any
        bodies = [rtnetlink.route_request(index, prefix, scope=scope) for prefix in prefixes]
        refused = await self._change(rtnetlink.DELROUTE, prefixes, bodies)
        for prefix, number in refused.items():
            if number not in (errno.ESRCH, errno.ENODEV):
                raise _refusal(f"remove kernel route {prefix}", number)

    async def routes(self, index: int) -> list[Prefix]:
        """This program's routes to a device. The kernel filters out all others."""
        body = rtnetlink.routes_filter(device=index, protocol=PROTOCOL)
        return await self._dump(rtnetlink.GETROUTE, body, rtnetlink.route_destination)

    async def default_device(self, family: int) -> str | None:
        """Name of the device of the default route of a family (4, 6), None without one."""
        number = socket.AF_INET if family == 4 else socket.AF_INET6
        # The length of the prefix comes second in a message.
        found = await self._dump(
            rtnetlink.GETROUTE,
            rtnetlink.routes_filter(family=number),
            lambda body: None if body[1] else RouteEntry.parse(body),
        )
        routes = [(one.metric, one.device) for one in found if one.device]
        return device_name(min(routes)[1]) if routes else None

    async def get_route(
        self, destination: Address, *, source: Address | None = None, arrival: str = ""
    ) -> KernelRoute:
        """
        Asks what the kernel does with a packet, sent by this host or, if that is given, received by
        the device `arrival`. `source` must be an address of this host if this host sends it.
        """
        index = 0
        if arrival:
            try:
                index = socket.if_nametoindex(arrival)
            except OSError as error:
                return KernelRoute(error=error.errno or errno.ENODEV)
        bodies = [
            rtnetlink.lookup(destination, source=source, arrival=index, flags=flags)
            for flags in (0, rtnetlink.FIB_MATCH)
        ]
        answers = await self._requests.request(rtnetlink.GETROUTE, bodies, flags=0)
        for answer in answers:
            if isinstance(answer, int):
                return KernelRoute(error=answer)
        route, entry = (RouteEntry.parse(one) for one in answers if isinstance(one, bytes))
        link = await self._find_link(route.device)
        if link is None:
            return KernelRoute(error=errno.ENODEV)
        return KernelRoute(
            entry=entry.describe(device_name(entry.device or route.device)),
            kind=route.kind,
            device=link.name,
            gateway=route.gateway,
            source=route.source,
            mtu=route.mtu or link.mtu,
            mac=link.mac,
        )

    async def get_path(self, address: Address) -> UnderlayPath | None:
        """The path to an underlay address, None when no route leads there or no address of
        this host could be the source."""
        return (await self.get_paths([address]))[0]

    async def get_paths(self, addresses: Sequence[Address]) -> list[UnderlayPath | None]:
        """The path to each of `addresses`."""
        bodies = [rtnetlink.lookup(address) for address in addresses]
        answers = await self._requests.request(rtnetlink.GETROUTE, bodies, flags=0)
        found = [None if isinstance(one, int) else _path(RouteEntry.parse(one)) for one in answers]
        devices = {path.device for path in found if path is not None and not path.mtu}
        mtus = {device: (await self._get_link(device)).mtu for device in devices}
        return [path and replace(path, mtu=path.mtu or mtus[path.device]) for path in found]

    async def _find_others(
        self, index: int, prefixes: Collection[Prefix]
    ) -> dict[Prefix, DeviceError]:
        """Which of these have a route of another program, or to another device."""
        if not prefixes:
            return {}

        def decode(body: bytes) -> RouteEntry | None:
            prefix = rtnetlink.route_destination(body)
            return RouteEntry.parse(body) if prefix in prefixes else None

        families = {rtnetlink.family_of(one) for one in prefixes}
        found = [
            route
            for family in sorted(families)
            for route in await self._dump(
                rtnetlink.GETROUTE, rtnetlink.routes_filter(family=family), decode
            )
        ]
        return {
            one.prefix: DeviceError(
                f"kernel route {one.prefix} exists already, via device {device_name(one.device)} "
                f'(remove it with "ip route delete {one.prefix}", or the prefix from the peer)'
            )
            for one in found
            if one.device != index or one.protocol != PROTOCOL
        }

    # All of a device.

    async def flush_device(self, index: int) -> None:
        """Removes this program's routes and neighbour entries, and every address but link-local
        ones, from a device that outlives its process."""
        await self.remove_routes(index, await self.routes(index))
        await self.remove_neighbours(index, list(await self.neighbours(index)))
        for address in await self.addresses(index):
            if not address.is_link_local:
                await self.remove_address(index, address)

    async def _change_one(self, kind: int, body: bytes, *, flags: int = 0) -> int:
        """Returns the errno of the kernel's refusal, 0 when the change is made."""
        (answer,) = await self._requests.request(kind, [body], flags=ACK | flags)
        return answer if isinstance(answer, int) else 0

    async def _change(
        self, kind: int, keys: Iterable[K], bodies: Sequence[bytes], *, flags: int = 0
    ) -> dict[K, int]:
        """Makes a change for each key. Returns the errno for those that the kernel refused."""
        answers = await self._requests.request(kind, bodies, flags=ACK | flags)
        return {
            key: answer
            for key, answer in zip(keys, answers, strict=True)
            if isinstance(answer, int) and answer
        }

    async def _dump(self, kind: int, body: bytes, decode: Callable[[bytes], T | None]) -> list[T]:
        return await self._dumps.dump(kind, body, decode)


def device_name(index: int | None) -> str:
    """For messages: the device's name, or its number if it does not exist."""
    try:
        return socket.if_indextoname(index or 0)
    except OSError:
        return str(index)


def _path(route: RouteEntry) -> UnderlayPath | None:
    """Its MTU is 0 when it is the device's; None when no address of this host could be the
    source."""
    if route.source is None or not route.device:
        return None
    return UnderlayPath(route.source, route.mtu, route.device)


def _refuse_router_advertisements(device: str) -> None:
    """Keeps peers from giving this host a default route or an address, as any host of a LAN could.
    Where sysctls are read-only, the setting of this host applies."""
    with suppress(OSError):
        Path("/proc/sys/net/ipv6/conf", device, "accept_ra").write_text("0")


def _check(number: int, action: str) -> None:
    if number:
        raise _refusal(action, number)


def _refusal(action: str, number: int) -> DeviceError:
    why, hint = os.strerror(number), _HINTS.get(number)
    error = DeviceError(f"cannot {action}: {why.lower()}{f' ({hint})' if hint else ''}")
    error.__cause__ = OSError(number, why)
    return error
