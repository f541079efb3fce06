"""
The kernel's notifications of changes to a device (rtnetlink(7)).

    the kernel  ->  a filter for messages about the device  ->  a change, decoded

Changes to other routes, and the routes that this node removes itself, do not wake the loop.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass

from tunnel.errors import DeviceError
from tunnel.linux import bpf, rtnetlink
from tunnel.linux.netlink import device_name
from tunnel.linux.rtnetlink import LINK, PROTOCOL, NeighbourEntry
from tunnel.types import Address, Prefix

_GROUPS = 0x1 | 0x4 | 0x10 | 0x40 | 0x100 | 0x400  # links, neighbours, addresses and routes
_LARGEST_MESSAGE = 65536
_READS = 64  # messages before other tasks run
_MESSAGE = struct.Struct("=IHHII")  # linux/netlink.h: length, type, flags, sequence, port


@dataclass(frozen=True, slots=True)
class RouteRemoved:
    """Another program, or the kernel, removed one of this program's routes from the device."""

    prefix: Prefix


@dataclass(frozen=True, slots=True)
class NeighbourRemoved:
    """A neighbour entry of the device was removed, by any program."""

    address: Address


@dataclass(frozen=True, slots=True)
class AddressAdded:
    """The device has a new address."""


@dataclass(frozen=True, slots=True)
class AddressRemoved:
    """The device lost an address. With the last IPv4 address the kernel removes all IPv4 routes,
    and notifies of none of them."""


@dataclass(frozen=True, slots=True)
class LinkChanged:
    """The link has new flags or properties. When it is set down the kernel removes IPv4 routes, and
    notifies of none of them."""

    up: bool


@dataclass(frozen=True, slots=True)
class NotificationsLost:
    """The receive buffer was full: anything may have changed."""


Change = (
    RouteRemoved
    | NeighbourRemoved
    | AddressAdded
    | AddressRemoved
    | LinkChanged
    | NotificationsLost
)


class DeviceWatch:
    """
    Calls `changed` in the running loop with each change of a device.

    Args:
        ignored_port: The netlink port whose route removals are not reported, this node's own.

    Raises:
        DeviceError: The kernel refuses.
    """

    def __init__(self, index: int, *, ignored_port: int, changed: Callable[[Change], None]) -> None:
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        try:
            self._socket.setblocking(False)
            bpf.attach_filter(self._socket, notification_filter(index, ignored_port=ignored_port))
            self._socket.bind((0, _GROUPS))
        except OSError as error:
            self._socket.close()
            why = (error.strerror or "").lower()
            raise DeviceError(f"cannot watch device {device_name(index)}: {why}") from error
        self._loop.add_reader(self._socket.fileno(), self._read)

    def close(self) -> None:
        """Stops the notifications; does nothing if already closed."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()

    def _read(self) -> None:
        for _ in range(_READS):
            try:
                message = self._socket.recv(_LARGEST_MESSAGE)
            except BlockingIOError:
                return
            except OSError as error:
                # Anything but a full buffer is unexpected, and means the same.
                self._changed(NotificationsLost())
                if error.errno != errno.ENOBUFS:
                    return
                continue
            change = decode_change(message)
            if change is not None:
                self._changed(change)
            if self._socket.fileno() < 0:
                return


def decode_change(message: bytes) -> Change | None:
    """The change that a notification reports, None for one of no interest."""
    _, kind, _, _, _ = _MESSAGE.unpack_from(message)
    body = message[_MESSAGE.size :]
    match kind:
        case rtnetlink.NEWLINK:
            return LinkChanged(up=bool(LINK.unpack_from(body)[3] & rtnetlink.UP))
        case rtnetlink.NEWADDR:
            return AddressAdded()
        case rtnetlink.DELADDR:
            return AddressRemoved()
        case rtnetlink.DELNEIGH:
            address = NeighbourEntry.parse(body).address
            return None if address is None else NeighbourRemoved(address)
        case rtnetlink.DELROUTE:
            return RouteRemoved(rtnetlink.route_destination(body))
    return None


def notification_filter(index: int, *, ignored_port: int) -> bytes:
    """
    Returns the filter that passes changes of the device `index`: its link, an added or removed
    address, a removed neighbour entry, and a removed route of this program in the main table,
    unless a request from `ignored_port` removed it.

    The kernel sends each notification as a message of its own.
    """
    of_device = (rtnetlink.NEWLINK, rtnetlink.NEWADDR, rtnetlink.DELADDR, rtnetlink.DELNEIGH)
    return bpf.assemble(
        [
            ("load half", 4),  # the type of the message
            *(("if equal", _half(kind), "device") for kind in of_device),
            ("if not equal", _half(rtnetlink.DELROUTE), "drop"),
            ("load byte", 16 + 5),
            ("if not equal", PROTOCOL, "drop"),
            ("load byte", 16 + 4),
            ("if not equal", rtnetlink.MAIN_TABLE, "drop"),
            ("load word", 12),  # the port of the request's sender
            ("if equal", _word(ignored_port), "drop"),
            ("load number", 16 + rtnetlink.ROUTE.size),
            ("load attribute", rtnetlink.RTA_OIF),
            ("if equal", 0, "drop"),
            ("load word at", 4),
            ("if equal", _word(index), "pass"),
            ("return", 0),
            "device",
            ("load word", 16 + 4),
            ("if equal", _word(index), "pass"),
            "drop",
            ("return", 0),
            "pass",
            ("return", _LARGEST_MESSAGE),
        ]
    )


def _half(value: int) -> int:
    """A number as the filter loads it: big-endian, where netlink has the order of the host."""
    return int.from_bytes(value.to_bytes(2, sys.byteorder), "big")


def _word(value: int) -> int:
    return int.from_bytes(value.to_bytes(4, sys.byteorder), "big")
