"""
VXLAN frames (RFC 7348) for Python programs, coded in C.

A datagram is the UDP payload: 8 bytes VXLAN, 14 bytes inner Ethernet, an IP packet. The batch
forms work in buffers that the caller owns, which must not overlap, make no object per frame and
release the GIL; their items lie end to end, with the size of each in an ``array("I")`` or a NumPy
``uint32`` array.

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
"""Bytes that :func:`encode` puts before a packet."""

FRAME = Struct("=IIIH6s6s2x")
"""
What :func:`decode_batch` writes for each frame, 28 bytes: offset and size of the payload in the
datagrams' buffer, VNI, EtherType, source MAC, destination MAC.
"""


class Frame(NamedTuple):
    """One decoded datagram; MACs are 6 bytes, `ethertype` is 0x0800 for IPv4."""

    vni: int
    source: bytes
    destination: bytes
    ethertype: int
    payload: bytes


def encode(
    packet: Buffer, *, vni: int = 1, source: bytes = ANY_VTEP_MAC, destination: bytes = ANY_VTEP_MAC
) -> bytes:
    """
    Wraps one IPv4 or IPv6 packet; the EtherType follows from its version.

    Raises:
        CodecError: It is neither, or longer than a UDP datagram can carry (65,485 bytes).
        ValueError: `vni` has more than 24 bits or a MAC is not 6 bytes.
    """
    return _native.encode(packet, vni, source, destination)


def decode(datagram: Buffer) -> Frame:
    """
    Unwraps one datagram. As RFC 7348 says, only the I flag must be set, other reserved bits are
    ignored; what the payload is, is the caller's to see.

    Raises:
        CodecError: Shorter than 22 bytes, or without the I flag.
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
    Wraps many packets into `out`, end to end; datagram i has ``sizes[i] + OVERHEAD`` bytes.

    Returns:
        Bytes written.

    Raises:
        CodecError: `index` names the first packet that is malformed, outside `packets`, or has
            no room in `out`; those before it are written.
    """
    return _native.encode_batch(packets, sizes, out, vni, source, destination)


def decode_batch(datagrams: Buffer, sizes: Buffer, out: Buffer) -> int:
    """
    Finds the payload of many datagrams: writes one :data:`FRAME` each into `out`, copies nothing.

    Returns:
        Frames written.

    Raises:
        CodecError: `index` names the first datagram that is malformed, outside `datagrams`, or
            has no room in `out`; those before it are written.
    """
    return _native.decode_batch(datagrams, sizes, out)
