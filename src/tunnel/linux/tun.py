"""The TUN device: opened by pytun, then its descriptor belongs to the C core."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Device:
    """
    An open TUN device, non-blocking, one packet per read and write.

    Attributes:
        name, index: As ``ip link`` shows them.
        offloads: Those of ``tso`` and ``uso`` that the kernel granted.
        vnet_header: Each packet is preceded by a 10-byte virtio_net_hdr.
        persistent: It was there before us and stays when closed.
    """

    name: str
    index: int
    offloads: frozenset[str]
    vnet_header: bool
    persistent: bool
    _tun: Any

    def fileno(self) -> int:
        return int(self._tun.fileno())

    def dropped(self) -> int:
        """
        Packets the kernel dropped because the device's queue was full, since the device
        was made; 0 once it is gone.

        From /proc, which follows our network namespace; /sys follows who mounted it.
        """
        for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
            name, _, counters = line.partition(":")
            if name.strip() == self.name:
                return int(counters.split()[11])
        return 0

    def close(self) -> None:
        """Closes the descriptor; a device that is not persistent vanishes with its
        addresses and kernel routes."""
        if self.persistent:
            # The mask outlives us: whoever opens the device next may not expect
            # super-packets. The device may be gone by now, and that is as good.
            try:
                fcntl.ioctl(self.fileno(), _TUNSETOFFLOAD, 0)
            except OSError as error:
                if error.errno != errno.EBADFD:
                    raise
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
        os.set_blocking(tun.fileno(), False)
        os.set_inheritable(tun.fileno(), False)
        return Device(
            name=tun.name,
            index=socket.if_nametoindex(tun.name),
            offloads=_set_offloads(tun.fileno(), wanted=wanted),
            vnet_header=bool(wanted),
            persistent=_is_persistent(tun.fileno()),
            _tun=tun,
        )
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
            return (
                f"device {name} is in use by another process (stop it, or choose another --name)"
            )
        case errno.EINVAL:
            return (
                f"device {name} exists and is no TUN device with one queue "
                f'(choose another --name, or remove it with "ip link delete {name}")'
            )
    return f"cannot open device {name}: {error.strerror}"
