"""Copies of the packets that pass an interface: AF_PACKET sockets."""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from tunnel.errors import DeviceError
from tunnel.linux.bpf import ETHERNET, RAW, SNAPLEN, attach_filter

_SIOCGIFHWADDR = 0x8927
_ARPHRD_ETHER, _ARPHRD_LOOPBACK = 1, 772
_ETH_P_ALL = 0x0003
_SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 33, 35
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_BUFFER = 32 << 20  # bytes: 25 ms at 10 Gbit/s
_TIMESPEC = struct.Struct("@ll")


@dataclass(frozen=True, slots=True)
class CaptureInterface:
    """
    A network interface to capture on.

    Attributes:
        link: The link type, :data:`tunnel.linux.bpf.ETHERNET`
            or ``RAW``.
        inner: Whether it is a node's device, with packets of the overlay.
    """

    name: str
    link: int
    loopback: bool = False
    inner: bool = False


@dataclass(frozen=True, slots=True)
class Packet:
    """
    A captured packet.

    Attributes:
        time: Nanoseconds since 1970.
        outbound: Whether this host sent it; on a node's device, whether it goes to a peer.
        data: The whole packet, beginning with the header of the interface's link type.
    """

    interface: CaptureInterface
    time: int
    outbound: bool
    data: bytes


def find_interface(name: str, *, inner: bool = False) -> CaptureInterface:
    """Returns the interface `name`. Raises DeviceError when this network namespace has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            ifreq = fcntl.ioctl(sock, _SIOCGIFHWADDR, struct.pack("40s", name.encode()))
        except OSError as error:
            raise DeviceError(
                f"device {name} is not in this network namespace (run this where the node runs)"
            ) from error
    kind: int = struct.unpack_from("H", ifreq, 16)[0]
    ethernet = kind in (_ARPHRD_ETHER, _ARPHRD_LOOPBACK)
    link = ETHERNET if ethernet else RAW
    return CaptureInterface(name, link, loopback=kind == _ARPHRD_LOOPBACK, inner=inner)


class PacketSocket:
    """
    Copies of the packets of an interface, in both directions, that pass a filter.

    Args:
        program: The filter, as :mod:`tunnel.linux.bpf` makes it; empty lets everything pass.

    Raises:
        DeviceError: No CAP_NET_RAW, or the interface does not exist.
    """

    def __init__(self, interface: CaptureInterface, *, program: bytes) -> None:
        self.interface = interface
        self._received = self._dropped = 0
        self._room = bytearray(SNAPLEN)
        # SOCK_DGRAM leaves out link headers, of which many kinds are unknown here.
        kind = socket.SOCK_RAW if interface.link == ETHERNET else socket.SOCK_DGRAM
        try:
            # Protocol 0: no packet arrives before bind(), and by then the filter is attached.
            self._socket = socket.socket(socket.AF_PACKET, kind | socket.SOCK_NONBLOCK, 0)
        except OSError as error:
            raise _refused(interface, error) from error
        try:
            attach_filter(self._socket, program)
            _set_buffer(self._socket)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            self._socket.bind((interface.name, _ETH_P_ALL))
        except OSError as error:
            self._socket.close()
            raise _refused(interface, error) from error

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self.counts()
        self._socket.close()

    def counts(self) -> tuple[int, int]:
        """Returns how many packets passed the filter, and how many of these were lost because they
        were not read in time."""
        if self._socket.fileno() >= 0:
            # Reading these sets them back to zero (packet(7)).
            found = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
            received, dropped = struct.unpack("II", found)
            self._received += received
            self._dropped += dropped
        return self._received, self._dropped

    def read(self, most: int) -> list[Packet]:
        """
        Returns up to `most` packets that have arrived.

        Raises:
            DeviceError: The interface no longer exists.
        """
        packets: list[Packet] = []
        for _ in range(most):
            try:
                size, control, _, sender = self._socket.recvmsg_into([self._room], 64)
            except BlockingIOError:
                break
            except OSError as error:
                self._check_there(error)
                continue
            outbound = sender[2] == socket.PACKET_OUTGOING
            # A packet from this host to itself passes twice.
            if not (self.interface.loopback and outbound):
                data = bytes(memoryview(self._room)[:size])
                packets.append(Packet(self.interface, _time(control), outbound, data))
        return packets

    def _check_there(self, error: OSError) -> None:
        """Raises DeviceError if the interface no longer exists. One that is set down reports it
        once, and may be set up again."""
        try:
            socket.if_nametoindex(self.interface.name)
        except OSError:
            raise DeviceError(f"device {self.interface.name} no longer exists") from error
        if error.errno != errno.ENETDOWN:
            raise _refused(self.interface, error) from error


def _set_buffer(sock: socket.socket) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)


def _time(control: Iterable[tuple[int, int, bytes]]) -> int:
    for level, kind, value in control:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
            seconds, nanoseconds = _TIMESPEC.unpack(value[: _TIMESPEC.size])
            return int(seconds) * 10**9 + int(nanoseconds)
    return 0


def _refused(interface: CaptureInterface, error: OSError) -> DeviceError:
    if error.errno in (errno.EPERM, errno.EACCES):
        return DeviceError(
            f"cannot capture on {interface.name}: permission denied (run with CAP_NET_RAW)"
        )
    return DeviceError(f"cannot capture on {interface.name}: {error.strerror}")
