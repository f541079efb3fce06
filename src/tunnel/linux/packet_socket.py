"""Packets as they pass an interface: AF_PACKET sockets, and the filters in front of them."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import socket
import struct
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass

from tunnel.errors import ConfigError, DeviceError

_SIOCGIFHWADDR = 0x8927
_ARPHRD_ETHER, _ARPHRD_LOOPBACK = 1, 772
_ETH_P_ALL = 0x0003
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 26, 33, 35
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_BUFFER = 32 << 20  # bytes: what 10 Gbit/s bring in 25 ms
_TIMESPEC = struct.Struct("@ll")

ETHERNET, RAW = 1, 101
"""Link types: an Ethernet frame, an IPv4 or IPv6 packet."""

_DLT = {ETHERNET: 1, RAW: 12}  # libpcap's own numbers for link types
_LIBPCAP = ("libpcap.so.0.8", "libpcap.so.1")  # Debian's name, others'

SNAPLEN = 1 << 18
"""Most bytes of one packet, as tcpdump has it: more than any super-packet has."""


@dataclass(frozen=True, slots=True)
class CaptureInterface:
    """
    A network interface that packets pass.

    Attributes:
        link: The type of what passes, :data:`ETHERNET` or :data:`RAW`.
        inner: Whether it is a node's device, which packets of the overlay pass.
    """

    name: str
    link: int
    loopback: bool = False
    inner: bool = False


@dataclass(frozen=True, slots=True)
class Packet:
    """
    What passed an interface.

    Attributes:
        time: When, in nanoseconds since 1970.
        outbound: Whether this host sent it; where that is the node's device, to a peer.
        data: Whole, beginning as the interface's link type says.
    """

    interface: CaptureInterface
    time: int
    outbound: bool
    data: bytes


def find_interface(name: str, *, inner: bool = False) -> CaptureInterface:
    """Raises DeviceError if there is none in this network namespace."""
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
    Copies of what passes an interface both ways, as far as a filter lets them pass.

    Args:
        program: The filter, as :func:`port_filter` and :func:`compile_filter` make it; empty
            lets everything pass.

    Raises:
        DeviceError: No CAP_NET_RAW, or the interface has gone.
    """

    def __init__(self, interface: CaptureInterface, *, program: bytes) -> None:
        self.interface = interface
        self._received = self._dropped = 0
        self._room = bytearray(SNAPLEN)
        # SOCK_DGRAM leaves link headers away, of which there are many that nobody knows.
        kind = socket.SOCK_RAW if interface.link == ETHERNET else socket.SOCK_DGRAM
        try:
            # Protocol 0: nothing comes before it is bound, when the filter is there.
            self._socket = socket.socket(socket.AF_PACKET, kind | socket.SOCK_NONBLOCK, 0)
        except OSError as error:
            raise _refused(interface, error) from error
        try:
            _attach(self._socket, program)
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
        """How many packets passed the filter, and how many of them were lost because they were
        not read in time."""
        if self._socket.fileno() >= 0:
            # Reading these sets them back to zero (packet(7)).
            found = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
            received, dropped = struct.unpack("II", found)
            self._received += received
            self._dropped += dropped
        return self._received, self._dropped

    def read(self, most: int) -> list[Packet]:
        """
        What is there now, up to so many packets.

        Raises:
            DeviceError: The interface has gone.
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
            # A packet to ourselves passes twice.
            if not (self.interface.loopback and outbound):
                data = bytes(memoryview(self._room)[:size])
                packets.append(Packet(self.interface, _time(control), outbound, data))
        return packets

    def _check_there(self, error: OSError) -> None:
        """An interface set down says so once, and may come up again."""
        try:
            socket.if_nametoindex(self.interface.name)
        except OSError:
            raise DeviceError(f"device {self.interface.name} is gone") from error
        if error.errno != errno.ENETDOWN:
            raise _refused(self.interface, error) from error


def port_filter(ports: Collection[int], *, link: int) -> bytes:
    """
    Lets UDP datagrams pass, of IPv4 and IPv6, from or to one of `ports`. Of fragments the first.

    At most 1,000 ports: a program has 4,096 instructions at most (linux/filter.h).
    """
    ip = 14 if link == ETHERNET else 0
    program = [
        (_LD_WORD, _AD_PROTOCOL, 0, 0),  # the EtherType, whatever the link
        (_IF_EQUAL, 0x0800, 1, 0),
        (_IF_EQUAL, 0x86DD, 6, 8),
        (_LD_BYTE, ip + 9, 0, 0),  # IPv4: the protocol,
        (_IF_EQUAL, socket.IPPROTO_UDP, 0, 6),
        (_LD_HALF, ip + 6, 0, 0),  # no later fragment,
        (_IF_BITS, 0x1FFF, 4, 0),
        (_LDX_HEADER, ip, 0, 0),  # the length of the header
        (_JUMP, 4, 0, 0),
        (_LD_BYTE, ip + 6, 0, 0),  # IPv6: the protocol
        (_IF_EQUAL, socket.IPPROTO_UDP, 1, 0),
        (_RETURN, 0, 0, 0),
        (_LDX, 40, 0, 0),
    ]
    for offset in (0, 2):
        program.append((_LD_HALF_AT, ip + offset, 0, 0))
        for port in sorted(ports)[:1000]:
            program += [(_IF_EQUAL, port, 0, 1), (_RETURN, SNAPLEN, 0, 0)]
    program.append((_RETURN, 0, 0, 0))
    return b"".join(struct.pack("=HBBI", code, yes, no, k) for code, k, yes, no in program)


# linux/bpf_common.h
_LD_WORD, _LD_HALF, _LD_BYTE, _LD_HALF_AT = 0x20, 0x28, 0x30, 0x48
_LDX, _LDX_HEADER = 0x01, 0xB1
_JUMP, _IF_EQUAL, _IF_BITS = 0x05, 0x15, 0x45
_RETURN = 0x06
_AD_PROTOCOL = 0xFFFFF000  # SKF_AD_OFF + SKF_AD_PROTOCOL


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.c_void_p))


def compile_filter(text: str, *, link: int) -> bytes:
    """
    A filter in tcpdump's language (pcap-filter(7)), compiled by libpcap.

    Raises:
        ConfigError: It is none, or there is no libpcap.
    """
    library = _load_libpcap()
    handle = library.pcap_open_dead(_DLT[link], SNAPLEN)
    if not handle:
        raise MemoryError
    program = _Program()
    try:
        if library.pcap_compile(handle, ctypes.byref(program), text.encode(), 1, 0xFFFFFFFF):
            said = library.pcap_geterr(handle).decode(errors="replace")
            raise ConfigError(f"filter {text!r}: {said} (see pcap-filter(7))")
        compiled = ctypes.string_at(program.instructions, 8 * program.length)
        library.pcap_freecode(ctypes.byref(program))
        return compiled
    finally:
        library.pcap_close(handle)


def _load_libpcap() -> ctypes.CDLL:
    for name in _LIBPCAP:
        with suppress(OSError):
            library = ctypes.CDLL(name)
            break
    else:
        raise ConfigError("a filter needs libpcap (install it with: apt-get install libpcap0.8)")
    library.pcap_open_dead.restype = ctypes.c_void_p
    library.pcap_open_dead.argtypes = [ctypes.c_int, ctypes.c_int]
    library.pcap_compile.argtypes = [
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_char_p,
        ctypes.c_int,
        ctypes.c_uint32,
    ]
    library.pcap_geterr.restype = ctypes.c_char_p
    library.pcap_geterr.argtypes = [ctypes.c_void_p]
    library.pcap_freecode.argtypes = [ctypes.c_void_p]
    library.pcap_close.argtypes = [ctypes.c_void_p]
    return library


def _attach(sock: socket.socket, program: bytes) -> None:
    if program:
        instructions = ctypes.create_string_buffer(program, len(program))
        filtered = struct.pack("HP", len(program) // 8, ctypes.addressof(instructions))
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filtered)


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
