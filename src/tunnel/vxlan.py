"""
Encodes and decodes VXLAN frames (RFC 7348), in C.

A datagram is the UDP payload: 8 bytes of VXLAN, 14 bytes of inner Ethernet, and an IP packet. The
batch functions work in the caller's buffers, which must not overlap; they create no object for a
frame and release the GIL. The items of a batch lie end to end, and their sizes are an
``array("I")`` or a NumPy ``uint32`` array.

    >>> packet = bytes.fromhex("4500001400000000401100000a0000010a000002")
    >>> frame = decode(encode(packet, vni=7))
    >>> frame.vni, frame.payload == packet
    (7, True)
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from tunnel import _native
from tunnel._native import ANY_VTEP_MAC
from tunnel.errors import CodecError

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "ANY_VTEP_MAC",
    "FRAME",
    "OVERHEAD",
    "CodecError",
    "Frame",
    "decode",
    "decode_batch",
    "encode",
    "encode_batch",
]

OVERHEAD = 22
"""Bytes of headers that :func:`encode` adds to a packet."""

FRAME = Struct("=IIIH6s6s2x")
"""
The 28 bytes that :func:`decode_batch` writes for each frame: offset and size of the payload in the
buffer of datagrams, VNI, EtherType, source MAC, destination MAC.
"""


class Frame(NamedTuple):
    """A decoded datagram. MACs have 6 bytes; `ethertype` is 0x0800 for IPv4, 0x86dd for IPv6."""

    vni: int
    source: bytes
    destination: bytes
    ethertype: int
    payload: bytes


def encode(
    packet: Buffer, *, vni: int = 1, source: bytes = ANY_VTEP_MAC, destination: bytes = ANY_VTEP_MAC
) -> bytes:
    """
    Returns the datagram for one IPv4 or IPv6 packet; the IP version sets its EtherType.

    Raises:
        CodecError: The packet is not IP, or is longer than a UDP datagram can carry (65,485 bytes).
        ValueError: `vni` has more than 24 bits, or a MAC does not have 6 bytes.
    """
    return _native.encode(packet, vni, source, destination)


def decode(datagram: Buffer) -> Frame:
    """
    Returns the headers and the payload of one datagram. The payload is not checked. As RFC 7348
    requires, the I flag must be set and other reserved bits are ignored.

    Raises:
        CodecError: The datagram is shorter than 22 bytes, or its I flag is not set.
    """
    return Frame(*_native.decode(datagram))


def encode_batch(
    packets: Buffer,
    sizes: Buffer,
    out: Buffer,
    *,
    vni: int = 1,
    source: bytes = ANY_VTEP_MAC,
    destination: bytes = ANY_VTEP_MAC,
) -> int:
    """
    Writes the datagrams for many packets to `out`, end to end; datagram i has
    ``sizes[i] + OVERHEAD`` bytes. Returns the number of bytes written.

    Raises:
        CodecError: A packet is malformed, outside `packets`, or too large for the rest of `out`;
            `index` is its number. The datagrams before it are written.
    """
    return _native.encode_batch(packets, sizes, out, vni, source, destination)


def decode_batch(datagrams: Buffer, sizes: Buffer, out: Buffer) -> int:
    """
    Writes one :data:`FRAME` for each datagram to `out`; payloads are not copied. Returns the number
    of frames written.

    Raises:
        CodecError: A datagram is malformed, outside `datagrams`, or `out` has no space for its
            frame; `index` is its number. The frames before it are written.
    """
    return _native.decode_batch(datagrams, sizes, out)
