"""
Control frames: the messages that nodes send each other through the data path.

A control frame is a VXLAN frame with EtherType 0x88B5 (IEEE 802 local experimental), so it takes
the path of packets, and other implementations drop it. After the Ethernet header is a msgpack
map, padded with zeros to 64 bytes or to the size of a probe::

    {"v": 1, "kind": "echo", "id": 7, "port": 8472}

``v`` is the version, 1. A message of another version or of an unknown kind gets no answer; unknown
keys are ignored, so that a kind can be extended. ``port`` is the sender's UDP port, because an
address alone does not identify a node.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import msgpack

from tunnel.errors import CodecError
from tunnel.types import Mac

ETHERTYPE = 0x88B5
VERSION = 1
HEADERS = struct.Struct("!BxxxI6s6sH")
"""VXLAN and inner Ethernet: flags, VNI << 8, destination, source, EtherType."""

LEAST = 64
"""Bytes after the Ethernet header. Every answer has exactly this size, so none is larger than its
request: a sender that forges an address cannot have more sent to it than it sent itself."""

MOST = 65_507 - HEADERS.size
"""Bytes after the Ethernet header, in one datagram of UDP over IPv4."""

ControlMessage = tuple[int, bytes, int, bytes, bytes]
"""As the C core delivers it: index of a peer at the outer source address, packed outer source
address, EtherType, inner source MAC, body."""

_LIMITS: Mapping[str, Any] = {
    "strict_map_key": True,
    "max_map_len": 16,
    "max_array_len": 0,
    "max_ext_len": 0,
    "max_str_len": 64,
    "max_bin_len": MOST,
    "max_buffer_size": MOST,
}


@dataclass(frozen=True)
class EchoRequest:
    """Requests an :class:`EchoReply` with the same `id`."""

    id: int
    port: int


@dataclass(frozen=True)
class EchoReply:
    """Answers an :class:`EchoRequest`; `size` counts the bytes after the Ethernet header."""

    id: int
    port: int
    size: int


@dataclass(frozen=True)
class Sample:
    """Random bytes, number `number` of `of`; answered by a :class:`SampleReply`."""

    id: int
    port: int
    number: int
    of: int
    data: bytes


@dataclass(frozen=True)
class SampleReply:
    """Answers a :class:`Sample` with the CRC-32 of the data that arrived."""

    id: int
    port: int
    number: int
    crc: int


Message = EchoRequest | EchoReply | Sample | SampleReply

_NAMES: Mapping[type[Message], str] = {
    EchoRequest: "echo",
    EchoReply: "reply",
    Sample: "sample",
    SampleReply: "verdict",
}
_KINDS: Mapping[object, type[Message]] = {name: kind for kind, name in _NAMES.items()}


def kind_of(message: Message) -> str:
    """Returns the message's kind on the wire: ``echo``, ``reply``, ``sample`` or ``verdict``."""
    return _NAMES[type(message)]


def encode(message: Message, *, vni: int, source: Mac, destination: Mac, size: int = 0) -> bytes:
    """Returns the UDP payload, with at least `size` bytes after the Ethernet header."""
    body: bytes = msgpack.packb({"v": VERSION, "kind": kind_of(message), **asdict(message)})
    before = headers(vni, destination=destination.packed, source=source, ethertype=ETHERTYPE)
    return before + body.ljust(max(size, LEAST), b"\0")


def headers(vni: int, *, destination: bytes, source: Mac, ethertype: int) -> bytes:
    """Returns the VXLAN and Ethernet headers of a payload; `destination` may be a group's MAC."""
    return HEADERS.pack(0x08, vni << 8, destination, source.packed, ethertype)


def decode(body: bytes) -> Message | None:
    """
    Returns the message in a frame without its Ethernet header; None for an unknown kind.

    Raises:
        CodecError: The frame is too short, not a msgpack map or of another version, or one of its
            values is invalid.
    """
    if len(body) < LEAST:
        raise CodecError(f"a control frame has {len(body)} bytes (at least {LEAST})")
    received = _unpack(body)
    if received.get("v") != VERSION:
        raise CodecError(f"a control frame has version {received.get('v')!r} (not {VERSION})")
    name = received.get("kind")
    kind = _KINDS.get(name) if isinstance(name, str) else None
    return None if kind is None else kind(**_read_values(kind, received))


def _unpack(body: bytes) -> Mapping[str, object]:
    unpacker = msgpack.Unpacker(**_LIMITS)
    try:
        unpacker.feed(body)
        unpacked = unpacker.unpack()
    except (ValueError, msgpack.UnpackException) as error:
        raise CodecError(f"a control frame is not a msgpack map: {error}") from error
    if not isinstance(unpacked, dict):
        raise CodecError("a control frame is not a msgpack map")
    return unpacked


def _read_values(kind: type[Message], received: Mapping[str, object]) -> dict[str, Any]:
    values = {}
    for field in fields(kind):
        value = received.get(field.name)
        wanted = bytes if field.type == "bytes" else int
        if type(value) is not wanted or (isinstance(value, int) and not 0 <= value < 1 << 64):
            raise CodecError(f"a control frame's {field.name} is {str(value)[:40]!r}")
        values[field.name] = value
    return values
