"""Packets from a pcap or pcapng file, or from a hex dump."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from scapy.error import Scapy_Exception
from scapy.utils import RawPcapReader

from tunnel.diagnostics.packet_summary import looks_like_vxlan
from tunnel.errors import CodecError

KINDS = ("ethernet", "ip", "vxlan")
"""What the bytes of a packet may begin with."""

_LINK_TYPES = {1: "ethernet", 12: "ip", 14: "ip", 101: "ip", 228: "ip", 229: "ip"}
_LINK_TYPES |= {113: "cooked", 276: "cooked 2"}  # tcpdump -i any

MAGICS = {b"\xa1\xb2\xc3\xd4", b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\x3c\x4d", b"\x4d\x3c\xb2\xa1"}
MAGICS |= {b"\x0a\x0d\x0d\x0a"}
"""First bytes of pcap files, of either byte order and precision, and of pcapng files."""


class CapturedPacket(NamedTuple):
    """Bytes that begin with what `kind` says; `missing` counts those that the capture cut off."""

    data: bytes
    kind: str
    missing: int = 0


def read_packets(content: bytes, *, kind: str | None = None) -> Iterator[CapturedPacket]:
    """
    Yields the packets of a pcap or pcapng file, or the one packet of a hex dump.

    Args:
        kind: What a hex dump begins with, one of :data:`KINDS`; guessed by default.

    Raises:
        CodecError: `content` is neither.
    """
    if content[:4] in MAGICS:
        yield from _read_file(content)
    else:
        data = _read_hex(content)
        yield CapturedPacket(data, kind or _guess_kind(data))


def _read_file(content: bytes) -> Iterator[CapturedPacket]:
    try:
        reader = RawPcapReader(io.BytesIO(content))  # type: ignore[arg-type]  # takes files, too
        for data, metadata in reader:
            link = getattr(metadata, "linktype", None)
            link = reader.linktype if link is None else link
            if link not in _LINK_TYPES:
                raise CodecError(f"link type {link} is not supported (Ethernet and raw IP are)")
            missing = max(0, metadata.wirelen - len(data))
            yield CapturedPacket(data, _LINK_TYPES[link], missing)
    except (Scapy_Exception, struct.error, EOFError) as error:
        raise CodecError(f"the pcap file is malformed or truncated: {error}") from error


def _read_hex(content: bytes) -> bytes:
    """Accepts digits with blanks or colons between them, and the output of tcpdump -x."""
    text = content.decode("ascii", errors="replace")
    digits = re.sub(r"(?m)^\s*0x[0-9a-fA-F]+:|\s|:", "", text).removeprefix("0x")
    try:
        data = bytes.fromhex(digits)
    except ValueError:
        data = b""
    if not data:
        start = text.strip()[:20]
        raise CodecError(f"{start!r} is neither hex nor a pcap file")
    return data


def _guess_kind(data: bytes) -> str:
    if looks_like_vxlan(data):
        return "vxlan"
    if len(data) >= 20 and data[0] >> 4 == 4 and 20 <= _uint16(data, 2) <= len(data):
        return "ip"
    if len(data) >= 40 and data[0] >> 4 == 6 and 40 + _uint16(data, 4) <= len(data):
        return "ip"
    if len(data) >= 14 and _uint16(data, 12) in (0x0800, 0x86DD, 0x0806, 0x8100):
        return "ethernet"
    raise CodecError(f"cannot tell what these {len(data)} bytes begin with (name it with --as)")


def _uint16(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 2])
