"""
The pcapng file format, as much of it as a capture writes (draft-ietf-opsawg-pcapng).

A file is :func:`header`, an :func:`interface` for each that is captured on, then packets, each
naming its interface by the place in that order, and :func:`statistics` at the end. In the byte
order of this machine, which the header tells. Times are nanoseconds since 1970.
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
    """`software` is the name of what writes the file."""
    body = struct.pack("=IHHq", _BYTE_ORDER, 1, 0, -1)
    return _block(_SECTION, body, [(4, software.encode())])


def interface(described: CaptureInterface, *, filtered: str = "") -> bytes:
    """`filtered` is the filter in front of it, in tcpdump's language."""
    options = [(2, described.name.encode()), (9, _NANOSECONDS)]
    if filtered:
        options.append((11, b"\0" + filtered.encode()))
    return _block(_INTERFACE, struct.pack("=HxxI", described.link, SNAPLEN), options)


def packet(number: int, passed: Packet) -> bytes:
    """`number` is the place of its interface in the file."""
    size = len(passed.data)
    body = struct.pack("=IIIII", number, *_halves(passed.time), size, size) + _padded(passed.data)
    flags = struct.pack("=I", _OUTBOUND if passed.outbound else _INBOUND)
    return _block(_PACKET, body, [(2, flags)])


def statistics(number: int, *, time: int, received: int, dropped: int) -> bytes:
    """`received` counts what passed the filter, `dropped` what of it was lost."""
    body = struct.pack("=III", number, *_halves(time))
    counts = [(4, struct.pack("=Q", received)), (5, struct.pack("=Q", dropped))]
    return _block(_STATISTICS, body, counts)


def _halves(time: int) -> tuple[int, int]:
    return time >> 32, time & 0xFFFFFFFF


def _block(kind: int, body: bytes, options: Iterable[tuple[int, bytes]]) -> bytes:
    words = b"".join(
        struct.pack("=HH", code, len(value)) + _padded(value) for code, value in options
    )
    content = body + words + bytes(4)
    length = struct.pack("=I", len(content) + 12)
    return struct.pack("=I", kind) + length + content + length


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
