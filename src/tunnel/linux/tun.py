"""The TUN or TAP device: pytun opens it, the C core reads and writes its descriptor."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import pytun

from tunnel.errors import DeviceError

_TUNSETOFFLOAD = 0x400454D0
_TUNGETIFF = 0x800454D2
_TUNSETVNETHDRSZ = 0x400454D8
_TUNSETQUEUE = 0x400454D9
_IFF_DETACH_QUEUE = 0x0400
_IFF_PERSIST = 0x0800
_SIOCGIFFLAGS, _IFF_UP = 0x8913, 0x0001

_CSUM, _TSO4, _TSO6, _TSO_ECN = 0x01, 0x02, 0x04, 0x08
_USO4, _USO6 = 0x20, 0x40  # Linux 6.2; older headers lack them
_MASKS = {
    frozenset({"tso", "uso"}): _CSUM | _TSO4 | _TSO6 | _TSO_ECN | _USO4 | _USO6,
    frozenset({"tso"}): _CSUM | _TSO4 | _TSO6 | _TSO_ECN,
    frozenset({"uso"}): _CSUM | _USO4 | _USO6,
}
_VNET_HEADER_SIZE = 10  # struct virtio_net_hdr, without the num_buffers of newer ones


class Device:
    """
    An open TUN or TAP device, non-blocking, one packet or frame per read and write.

    With several queues, packets are written to a descriptor whose queue is detached. The kernel
    learns from an attached queue: it returns a flow through the queue by which it came. Flows would
    change queues, and thereby source ports, as this node's workers and the peer's answer each
    other. With a detached queue only the hash of a flow decides (tun_select_queue() in
    drivers/net/tun.c).

    Attributes:
        name, index: As ``ip link`` shows them.
        offloads: Those of ``tso`` and ``uso`` that the kernel granted.
        vnet_header: Whether a virtio_net_hdr of 10 bytes precedes each packet.
        persistent: Whether it existed before this node and stays when closed.
    """

    def __init__(self, tuns: Sequence[Any], *, wanted: frozenset[str]) -> None:
        self._tuns = tuns
        for fd in (tun.fileno() for tun in tuns):
            os.set_blocking(fd, False)
            os.set_inheritable(fd, False)
        self.output = int(tuns[0].fileno())
        self.name: str = tuns[0].name
        self.index = socket.if_nametoindex(self.name)
        self.offloads = _set_offloads(self.output, wanted=wanted)
        self.vnet_header = bool(wanted)
        self.persistent = _is_persistent(self.output)
        self._before = read_drops(self.name)
        self._overflows = 0
        if len(tuns) > 1:
            # The first descriptor, so that its queue keeps a number that exists.
            request = struct.pack("16sH22x", self.name.encode(), _IFF_DETACH_QUEUE)
            fcntl.ioctl(self.output, _TUNSETQUEUE, request)

    @property
    def queues(self) -> list[int]:
        """Descriptors to read from."""
        readable = self._tuns[1:] or self._tuns
        return [int(tun.fileno()) for tun in readable]

    def overflows(self) -> int:
        """Packets that the kernel dropped since the device was opened because its queue was full: a
        sign that this node does not keep up."""
        self._overflows = max(self._overflows, read_drops(self.name) - self._before)
        return self._overflows

    def is_up(self) -> bool:
        """Whether it exists and is set up."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, suppress(OSError):
            name = socket.if_indextoname(self.index).encode()
            ifreq = fcntl.ioctl(sock, _SIOCGIFFLAGS, struct.pack("40s", name))
            return bool(struct.unpack_from("H", ifreq, 16)[0] & _IFF_UP)
        return False

    def close(self) -> None:
        """Closes its descriptors. A device that is not persistent disappears, with its addresses
        and kernel routes."""
        self.overflows()
        # On a persistent device the mask stays, and the next program to open it may not expect
        # super-packets. A deleted device has no mask.
        with suppress(OSError):
            fcntl.ioctl(self.output, _TUNSETOFFLOAD, 0)
        _close(self._tuns)


def open_device(
    name: str, *, offloads: frozenset[str], queues: int = 1, mode: Literal["tun", "tap"] = "tun"
) -> Device:
    """
    Opens the device `name`, and creates it unless a persistent one exists that is not in use.

    Args:
        name: At most 15 bytes.
        offloads: Those of ``tso`` and ``uso`` that are wanted; without any, packets have no virtio
            header.
        queues: How many can be read at the same time.
        mode: ``tun`` for IP packets, ``tap`` for Ethernet frames.

    Raises:
        DeviceError: No /dev/net/tun, no privilege, or the name is in use.
    """
    wanted = offloads & {"tso", "uso"}
    flags = pytun.IFF_TUN if mode == "tun" else pytun.IFF_TAP
    flags |= pytun.IFF_NO_PI | (pytun.IFF_VNET_HDR if wanted else 0)
    count = 1
    if queues > 1:
        flags |= pytun.IFF_MULTI_QUEUE
        count += queues  # one to write to
    tuns: list[Any] = []
    try:
        for _ in range(count):
            tuns.append(pytun.TunTapDevice(name=name, flags=flags))
    except OSError as error:
        _close(tuns)
        raise DeviceError(_reason(name, error, queues=queues, mode=mode)) from error
    try:
        return Device(tuns, wanted=wanted)
    except OSError as error:
        _close(tuns)
        raise DeviceError(f"cannot set up device {name}: {error.strerror}") from error


def _close(tuns: Iterable[Any]) -> None:
    for tun in tuns:
        tun.close()


def _set_offloads(fd: int, *, wanted: frozenset[str]) -> frozenset[str]:
    """Requests `wanted`, then less. It always sets a mask, even 0: a persistent device still has
    that of its last user."""
    if wanted:
        fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("i", _VNET_HEADER_SIZE))
    for granted in (wanted, wanted & {"tso"}):
        if granted:
            try:
                fcntl.ioctl(fd, _TUNSETOFFLOAD, _MASKS[granted])
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            else:
                return granted
    fcntl.ioctl(fd, _TUNSETOFFLOAD, 0)
    return frozenset()


def _is_persistent(fd: int) -> bool:
    ifreq = fcntl.ioctl(fd, _TUNGETIFF, bytes(40))
    flags: int = struct.unpack_from("H", ifreq, 16)[0]
    return bool(flags & _IFF_PERSIST)


def read_drops(name: str) -> int:
    """The device's transmit drops, 0 if it does not exist. /proc/thread-self shows the network
    namespace of this thread; /sys shows that in which it was mounted."""
    for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
        device, _, counters = line.partition(":")
        if device.strip() == name:
            return int(counters.split()[11])
    return 0


def _reason(name: str, error: OSError, *, queues: int, mode: str) -> str:
    """The message for each way in which opening a device fails."""
    match error.errno:
        case errno.ENOENT | errno.ENODEV | errno.ENXIO:
            return "cannot open /dev/net/tun: it does not exist (load it with: modprobe tun)"
        case errno.EPERM | errno.EACCES:
            return (
                "cannot open /dev/net/tun: permission denied "
                '(run with CAP_NET_ADMIN, or inside "unshare -Urn")'
            )
        case errno.EBUSY:
            return f"device {name} is in use by another process (stop it, or choose another --name)"
        case errno.EINVAL:
            return (
                f"device {name} exists and is not a {mode.upper()} device with "
                f"{'several queues' if queues > 1 else 'one queue'} "
                f'(choose another --name, or remove it with "ip link delete {name}")'
            )
    return f"cannot open device {name}: {error.strerror}"
