"""
Control frames: what nodes say to each other through the data path.

A VXLAN frame like any other, with EtherType 0x88B5 (IEEE 802 local experimental) where IP packets
have theirs, so it takes the way that packets take and any other implementation drops it. Behind
the Ethernet header stands a msgpack map and, up to 64 bytes at least or the size that a path is
probed with, zeros::

    {"v": 1, "kind": "echo", "id": 7, "port": 8472}

``v`` is the version: 1, or the map is not for us. Keys that are not known are ignored, so that a
kind may grow; kinds that are not known are answered by nobody. ``port`` is the sender's own, for
an address alone does not tell nodes apart.
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
"""Bytes behind the Ethernet header. Every answer has exactly as many, so that none is larger than
its question: who forges our address cannot have a peer send us more than he sent."""

MOST = 65_507 - HEADERS.size
"""Bytes behind the Ethernet header, in one datagram of UDP over IPv4."""

ControlMessage = tuple[int, bytes, int, bytes, bytes]
"""What the C core hands over: index of a peer at that address, packed outer source, EtherType,
inner source MAC, body."""

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
    """Asks for a :class:`EchoReply`. `id` is the asker's."""

    id: int
    port: int


@dataclass(frozen=True)
class EchoReply:
    """Answers an :class:`EchoRequest`; `size` counts the bytes behind the Ethernet header."""

    id: int
    port: int
    size: int


@dataclass(frozen=True)
class Sample:
    """Random bytes, one of `of` in a train; answered by a :class:`SampleReply`."""

    id: int
    port: int
    number: int
    of: int
    data: bytes


@dataclass(frozen=True)
class SampleReply:
    """Answers a :class:`Sample` with the CRC-32 of its data as they arrived."""

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
    """The name that the message has on the wire: ``echo``, ``reply``, ``sample``, ``verdict``."""
    return _NAMES[type(message)]


def encode(message: Message, *, vni: int, source: Mac, destination: Mac, size: int = 0) -> bytes:
    """The UDP payload; `size` is the least number of bytes behind the Ethernet header."""
    body: bytes = msgpack.packb({"v": VERSION, "kind": kind_of(message), **asdict(message)})
    before = headers(vni, destination=destination.packed, source=source, ethertype=ETHERTYPE)
    return before + body.ljust(max(size, LEAST), b"\0")


def headers(vni: int, *, destination: bytes, source: Mac, ethertype: int) -> bytes:
    """What stands before a frame's body in the UDP payload; `destination` may be a group's MAC."""
    return HEADERS.pack(0x08, vni << 8, destination, source.packed, ethertype)


def decode(body: bytes) -> Message | None:
    """
    What stands behind the Ethernet header; None for a kind that is not known here.

    Raises:
        CodecError: It is too short or no such map, has another version, or a value that cannot
            be.
    """
    if len(body) < LEAST:
        raise CodecError(f"a control frame has {len(body)} bytes (at least {LEAST})")
    words = _map(body)
    if words.get("v") != VERSION:
        raise CodecError(f"a control frame is of version {words.get('v')!r} (ours is {VERSION})")
    name = words.get("kind")
    kind = _KINDS.get(name) if isinstance(name, str) else None
    return None if kind is None else kind(**_values(kind, words))


def _map(body: bytes) -> Mapping[str, object]:
    unpacker = msgpack.Unpacker(**_LIMITS)
    try:
        unpacker.feed(body)
        words = unpacker.unpack()
    except (ValueError, msgpack.UnpackException) as error:
        raise CodecError(f"a control frame is no msgpack map: {error}") from error
    if not isinstance(words, dict):
        raise CodecError("a control frame is no msgpack map")
    return words


def _values(kind: type[Message], words: Mapping[str, object]) -> dict[str, Any]:
    values = {}
    for field in fields(kind):
        value = words.get(field.name)
        wanted = bytes if field.type == "bytes" else int
        if type(value) is not wanted or (isinstance(value, int) and not 0 <= value < 1 << 64):
            raise CodecError(f"a control frame's {field.name} is {str(value)[:40]!r}")
        values[field.name] = value
    return values
