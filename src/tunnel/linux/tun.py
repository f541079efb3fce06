"""The TUN device: opened by pytun, then its descriptor belongs to the C core."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytun

from tunnel.errors import DeviceError

_TUNSETOFFLOAD = 0x400454D0
_TUNGETIFF = 0x800454D2
_TUNSETVNETHDRSZ = 0x400454D8
_IFF_PERSIST = 0x0800

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
    An open TUN device, non-blocking, one packet per read and write.

    Attributes:
        name, index: As ``ip link`` shows them.
        offloads: Those of ``tso`` and ``uso`` that the kernel granted.
        vnet_header: Each packet is preceded by a 10-byte virtio_net_hdr.
        persistent: It was there before us and stays when closed.
    """

    def __init__(self, tun: Any, *, wanted: frozenset[str]) -> None:
        self._tun = tun
        os.set_blocking(tun.fileno(), False)
        os.set_inheritable(tun.fileno(), False)
        self.name: str = tun.name
        self.index = socket.if_nametoindex(self.name)
        self.offloads = _set_offloads(tun.fileno(), wanted=wanted)
        self.vnet_header = bool(wanted)
        self.persistent = _is_persistent(tun.fileno())
        self._before = _read_drops(self.name)
        self._overflows = 0

    def fileno(self) -> int:
        return int(self._tun.fileno())

    def overflows(self) -> int:
        """Packets that the kernel dropped since we opened it because the device's queue was
        full: a warning that we do not keep up."""
        self._overflows = max(self._overflows, _read_drops(self.name) - self._before)
        return self._overflows

    def close(self) -> None:
        """Closes the descriptor; a device that is not persistent vanishes with its
        addresses and kernel routes."""
        self.overflows()
        # On a persistent device the mask outlives us, and whoever opens it next may not
        # expect super-packets. Where the device is gone, so is the mask.
        with suppress(OSError):
            fcntl.ioctl(self.fileno(), _TUNSETOFFLOAD, 0)
        self._tun.close()


def open_device(name: str, *, offloads: frozenset[str]) -> Device:
    """
    Opens the TUN device `name`, making it unless an idle persistent one is there.

    Args:
        name: At most 15 bytes.
        offloads: Of ``tso`` and ``uso``, those wanted; without any of them packets
            have no virtio header.

    Raises:
        DeviceError: No /dev/net/tun, no privilege, or the name is taken.
    """
    wanted = offloads & {"tso", "uso"}
    flags = pytun.IFF_TUN | pytun.IFF_NO_PI | (pytun.IFF_VNET_HDR if wanted else 0)
    try:
        tun = pytun.TunTapDevice(name=name, flags=flags)
    except OSError as error:
        raise DeviceError(_reason(name, error)) from error
    try:
        return Device(tun, wanted=wanted)
    except OSError as error:
        tun.close()
        raise DeviceError(f"cannot set up device {name}: {error.strerror}") from error


def _set_offloads(fd: int, *, wanted: frozenset[str]) -> frozenset[str]:
    """Asks for `wanted`, then for less. Always sets a mask, 0 too: a persistent device
    still has the one of its last user."""
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


def _read_drops(name: str) -> int:
    """The device's transmit drops, 0 when it is gone. From /proc, which shows our
    network namespace; /sys shows that of whoever mounted it."""
    for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
        device, _, counters = line.partition(":")
        if device.strip() == name:
            return int(counters.split()[11])
    return 0


def _reason(name: str, error: OSError) -> str:
    """One line for each way that opening a TUN device fails."""
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
                f"device {name} exists and is no TUN device with one queue "
                f'(choose another --name, or remove it with "ip link delete {name}")'
            )
    return f"cannot open device {name}: {error.strerror}"
