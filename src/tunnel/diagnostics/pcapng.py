"""
The pcapng file format, as far as a capture writes it (draft-ietf-opsawg-pcapng).

A file is :func:`header`, one :func:`interface` for each interface, then packets, which refer to
their interface by its number in that order, and :func:`statistics` at the end. It is in the byte
order of this machine, which the header declares. Times are nanoseconds since 1970.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from tunnel.linux.bpf import SNAPLEN
from tunnel.linux.packet_socket import CaptureInterface, Packet

_SECTION, _INTERFACE, _STATISTICS, _PACKET = 0x0A0D0D0A, 1, 5, 6
_BYTE_ORDER = 0x1A2B3C4D
_INBOUND, _OUTBOUND = 1, 2
_NANOSECONDS = b"\x09"  # ten to the minus nine


def header(software: str) -> bytes:
    """Returns the section header; `software` names the program that writes the file."""
    body = struct.pack("=IHHq", _BYTE_ORDER, 1, 0, -1)
    return _block(_SECTION, body, [(4, software.encode())])


def interface(described: CaptureInterface, *, filtered: str = "") -> bytes:
    """Returns an interface description; `filtered` is its filter in tcpdump's language."""
    options = [(2, described.name.encode()), (9, _NANOSECONDS)]
    if filtered:
        options.append((11, b"\0" + filtered.encode()))
    return _block(_INTERFACE, struct.pack("=HxxI", described.link, SNAPLEN), options)


def packet(number: int, captured: Packet) -> bytes:
    """Returns a packet block; `number` is that of its interface."""
    size = len(captured.data)
    body = struct.pack("=IIIII", number, *_halves(captured.time), size, size)
    flags = struct.pack("=I", _OUTBOUND if captured.outbound else _INBOUND)
    return _block(_PACKET, body + _padded(captured.data), [(2, flags)])


def statistics(number: int, *, time: int, received: int, dropped: int) -> bytes:
    """Returns an interface's statistics: packets that passed the filter, and how many were lost."""
    body = struct.pack("=III", number, *_halves(time))
    counts = [(4, struct.pack("=Q", received)), (5, struct.pack("=Q", dropped))]
    return _block(_STATISTICS, body, counts)


def _halves(time: int) -> tuple[int, int]:
    return time >> 32, time & 0xFFFFFFFF


def _block(kind: int, body: bytes, options: Iterable[tuple[int, bytes]]) -> bytes:
    encoded = b"".join(
        struct.pack("=HH", code, len(value)) + _padded(value) for code, value in options
    )
    content = body + encoded + bytes(4)
    length = struct.pack("=I", len(content) + 12)
    return struct.pack("=I", kind) + length + content + length


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
