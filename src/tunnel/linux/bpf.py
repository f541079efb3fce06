"""Classic BPF filter programs for sockets (linux/filter.h)."""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Collection, Sequence
from contextlib import suppress

from tunnel.errors import ConfigError

ETHERNET, RAW = 1, 101
"""Link types: an Ethernet frame, an IPv4 or IPv6 packet."""

SNAPLEN = 1 << 18
"""Most bytes of one packet, as in tcpdump: more than any super-packet has."""

_SO_ATTACH_FILTER = 26
_DLT = {ETHERNET: 1, RAW: 12}  # libpcap's own numbers for link types
_LIBPCAP = ("libpcap.so.0.8", "libpcap.so.1")  # Debian's name, others'


# Classes and modes of instructions (linux/bpf_common.h).
_LD_NUMBER, _LD_WORD, _LD_HALF, _LD_BYTE = 0x00, 0x20, 0x28, 0x30
_LD_WORD_AT, _LD_HALF_AT = 0x40, 0x48
_LDX_NUMBER, _LDX_HEADER, _TAX = 0x01, 0xB1, 0x07
_JUMP, _IF_EQUAL, _IF_BITS = 0x05, 0x15, 0x45
_RETURN = 0x06
_AD_PROTOCOL, _AD_NLATTR = 0xFFFFF000, 0xFFFFF00C  # SKF_AD_OFF and more

_LOADS = {
    "load number": _LD_NUMBER,
    "load word": _LD_WORD,
    "load half": _LD_HALF,
    "load byte": _LD_BYTE,
    "load word at": _LD_WORD_AT,
    "return": _RETURN,
}

DROP_ALL = struct.pack("=HBBI", _RETURN, 0, 0, 0)
"""Accepts 0 bytes of each packet."""

Line = str | tuple[str, int] | tuple[str, int, str]
"""A label; an operation and its operand; or a condition, its operand and a label further down."""


def assemble(lines: Sequence[Line]) -> bytes:
    """
    The program that `lines` describe.

    ``load attribute K`` expects the offset of netlink attributes to be loaded; it loads the offset
    of the attribute of kind K, 0 when there is none, and ``load word at N`` then reads from there.
    """
    code: list[tuple[int, int, str, str]] = []
    labels: dict[str, int] = {}
    for line in lines:
        match line:
            case str():
                labels[line] = len(code)
            case ("if equal", int(operand), str(label)):
                code.append((_IF_EQUAL, operand, label, ""))
            case ("if not equal", int(operand), str(label)):
                code.append((_IF_EQUAL, operand, "", label))
            case ("load attribute", int(operand)):
                code.append((_LDX_NUMBER, operand, "", ""))
                code.append((_LD_WORD, _AD_NLATTR, "", ""))
                code.append((_TAX, 0, "", ""))
            case (operation, int(operand)):
                code.append((_LOADS[operation], operand, "", ""))
    program = bytearray()
    for number, (opcode, operand, yes, no) in enumerate(code):
        jumps = (labels[label] - number - 1 if label else 0 for label in (yes, no))
        program += struct.pack("=HBBI", opcode, *jumps, operand)
    return bytes(program)


def port_filter(ports: Collection[int], *, link: int) -> bytes:
    """
    Passes UDP datagrams from or to one of `ports`, IPv4 and IPv6. Of fragments, the first passes.

    At most 1,000 ports: a program has 4,096 instructions at most (linux/filter.h).
    """
    ip = 14 if link == ETHERNET else 0
    program = [
        (_LD_WORD, _AD_PROTOCOL, 0, 0),  # the EtherType, for any link type
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
        (_LDX_NUMBER, 40, 0, 0),
    ]
    for offset in (0, 2):
        program.append((_LD_HALF_AT, ip + offset, 0, 0))
        for port in sorted(ports)[:1000]:
            program += [(_IF_EQUAL, port, 0, 1), (_RETURN, SNAPLEN, 0, 0)]
    program.append((_RETURN, 0, 0, 0))
    return b"".join(struct.pack("=HBBI", code, yes, no, k) for code, k, yes, no in program)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.c_void_p))


def compile_filter(text: str, *, link: int) -> bytes:
    """
    Compiles a filter expression of tcpdump's (pcap-filter(7)) with libpcap.

    Raises:
        ConfigError: `text` is not such an expression, or libpcap is not installed.
    """
    library = _load_libpcap()
    handle = library.pcap_open_dead(_DLT[link], SNAPLEN)
    if not handle:
        raise MemoryError
    program = _Program()
    try:
        if library.pcap_compile(handle, ctypes.byref(program), text.encode(), 1, 0xFFFFFFFF):
            message = library.pcap_geterr(handle).decode(errors="replace")
            raise ConfigError(f"filter {text!r}: {message} (see pcap-filter(7))")
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


def attach_filter(sock: socket.socket, program: bytes) -> None:
    """Attaches a program; an empty one changes nothing."""
    if program:
        instructions = ctypes.create_string_buffer(program, len(program))
        filtered = struct.pack("HP", len(program) // 8, ctypes.addressof(instructions))
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filtered)
