"""
What is in a packet, and what a node's checks say of it: for people, by scapy.

    hex or pcap  ->  frames  ->  layers, from the outer header to the innermost  ->  verdict

Needs the extra ``inspect``. The verdict is the packet path's own: the same C code is asked.
"""

from __future__ import annotations

import io
import ipaddress
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from scapy.config import conf
from scapy.error import Scapy_Exception
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import CookedLinux, CookedLinuxV2, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import NoPayload, Packet, Raw
from scapy.utils import RawPcapReader

from tunnel import _native
from tunnel.diagnostics.capture import looks_like_vxlan
from tunnel.errors import CodecError
from tunnel.protocol import control_frames
from tunnel.types import ANY_VTEP_MAC, DEFAULT_PORT, Address, Mac, Prefix

KINDS = ("ethernet", "ip", "vxlan")
"""What a packet may begin with."""

_LINKS = {1: "ethernet", 12: "ip", 14: "ip", 101: "ip", 228: "ip", 229: "ip"}
_LINKS |= {113: "cooked", 276: "cooked 2"}  # tcpdump -i any
_LAYERS = {"ethernet": Ether, "cooked": CookedLinux, "cooked 2": CookedLinuxV2}

_MAGICS = {b"\xa1\xb2\xc3\xd4", b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\x3c\x4d", b"\x4d\x3c\xb2\xa1"}
_MAGICS |= {b"\x0a\x0d\x0d\x0a"}

_TAG = 0x8100
_VXLAN_PORTS = {DEFAULT_PORT, 4789}
_MEANINGS = {name: meaning for name, _, meaning in _native.DROP_REASONS}
_HEARD = ("ethertype", "group_mac", "spoofed")  # why ARP and NDP are no packets, but heard
_SHOWN = 32  # bytes of a payload


class Frame(NamedTuple):
    """Bytes that begin with what `kind` says; `missing` are those that a capture cut off."""

    data: bytes
    kind: str
    missing: int = 0


@dataclass(frozen=True)
class Receiver:
    """
    The node that a packet is for, as far as it is known: by default any node, which takes every
    VNI and whose MAC is the one in the packet.

    Attributes:
        bridged: Whether it moves frames, ``--mode tap``.
        addresses: Its own; what comes from one of them is for a peer.
        owners: Outer address -> what the peers there own; None where that is not known.
    """

    vni: int | None = None
    mac: Mac | None = None
    bridged: bool = False
    addresses: frozenset[Address] = frozenset()
    owners: Mapping[Address, tuple[Prefix, ...]] | None = None


@dataclass(frozen=True)
class Layer:
    name: str
    fields: Mapping[str, str]


@dataclass(frozen=True)
class Verdict:
    """`reason` and `meaning` of a drop; None for a packet that is taken."""

    reason: str | None
    meaning: str | None


@dataclass(frozen=True)
class Explanation:
    """
    Attributes:
        size: Bytes of all that was there.
        layers: From the outer header in.
        notes: What to know beside that, a sentence each.
        verdict: None where there is nothing that a node would check.
    """

    size: int
    layers: tuple[Layer, ...]
    notes: tuple[str, ...] = ()
    verdict: Verdict | None = None

    def words(self) -> dict[str, Any]:
        """The same as JSON has it."""
        return asdict(self)


def read(content: bytes, *, kind: str | None = None) -> Iterator[Frame]:
    """
    The packets of a pcap or pcapng file, or the one of a hex dump.

    Args:
        kind: What a hex dump begins with, out of :data:`KINDS`; by default what it looks like.

    Raises:
        CodecError: It is neither.
    """
    if content[:4] in _MAGICS:
        yield from _read_file(content)
    else:
        data = _read_hex(content)
        yield Frame(data, kind or _kind_of(data))


def _read_file(content: bytes) -> Iterator[Frame]:
    try:
        reader = RawPcapReader(io.BytesIO(content))  # type: ignore[arg-type]  # takes files, too
        for data, about in reader:
            link = getattr(about, "linktype", None)
            link = reader.linktype if link is None else link
            if link not in _LINKS:
                raise CodecError(f"link type {link} is not known here (Ethernet and raw IP are)")
            yield Frame(data, _LINKS[link], missing=max(0, about.wirelen - len(data)))
    except (Scapy_Exception, struct.error, EOFError) as error:
        raise CodecError(f"this is no whole pcap file: {error}") from error


def _read_hex(content: bytes) -> bytes:
    """Hex digits, with blanks or colons between, or as tcpdump -x has them."""
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


def _kind_of(data: bytes) -> str:
    if looks_like_vxlan(data):
        return "vxlan"
    if len(data) >= 20 and data[0] >> 4 == 4 and 20 <= _number(data, 2) <= len(data):
        return "ip"
    if len(data) >= 40 and data[0] >> 4 == 6 and 40 + _number(data, 4) <= len(data):
        return "ip"
    if len(data) >= 14 and _number(data, 12) in (0x0800, 0x86DD, 0x0806, 0x8100):
        return "ethernet"
    raise CodecError(f"cannot tell what these {len(data)} bytes begin with (say so with --as)")


def _number(data: bytes, offset: int) -> int:
    (number,) = struct.unpack_from("!H", data, offset)
    return int(number)


@dataclass
class _Story:
    """An explanation as it grows."""

    layers: list[Layer] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    source: Address | None = None
    ecn: int = 0
    whole: bool = True


def explain(frame: Frame, *, receiver: Receiver | None = None) -> Explanation:
    """All that can be said of one packet. Bytes that make no sense are shown as bytes."""
    story, verdict = _Story(whole=not frame.missing), None
    if frame.missing:
        story.notes.append(f"the capture cut off {frame.missing} bytes")
    datagram = frame.data if frame.kind == "vxlan" else _open(frame, story)
    if datagram is None:
        story.notes.append("no VXLAN in it, so there is nothing that a node would check")
    else:
        datagram = _first_of_train(datagram, story)
        _show_inner(datagram, story)
        if story.whole:
            reason = judge(datagram, story.source, story.ecn, receiver=receiver or Receiver())
            if reason in _HEARD and _is_of_neighbours(datagram):
                story.notes.append("ARP or NDP, which a node answers for its overlay addresses")
            else:
                verdict = Verdict(reason, None if reason is None else _MEANINGS[reason])
    return Explanation(len(frame.data), tuple(story.layers), tuple(story.notes), verdict)


def _open(frame: Frame, story: _Story) -> bytes | None:
    """Shows the outer headers; returns the UDP payload if that is VXLAN."""
    outer = _dissect(frame)
    carrier = outer.getlayer(UDP)
    payload = bytes(carrier.original[8:]) if carrier is not None else b""
    if carrier is None or not (
        looks_like_vxlan(payload) or {carrier.sport, carrier.dport} & _VXLAN_PORTS
    ):
        story.layers += _layers(outer)
        return None
    story.layers += _layers(outer, last=carrier)
    below = carrier.underlayer
    if isinstance(below, IPv6ExtHdrFragment) or (isinstance(below, IP) and below.flags.MF):
        story.whole = False
        story.notes.append("the first of several fragments: a node sees it put together")
    while below is not None and not isinstance(below, IP | IPv6):
        below = below.underlayer
    if below is not None:
        story.source = ipaddress.ip_address(below.src)
        story.ecn = (below.tos if isinstance(below, IP) else below.tc) & 3
    return payload


def _dissect(frame: Frame) -> Packet:
    """A layer that scapy cannot read is bytes to it; the first is made so here, for scapy raises
    whatever it stumbles over."""
    conf.debug_dissector = False
    first = _LAYERS.get(frame.kind) or (IPv6 if frame.data[:1] >= b"\x60" else IP)
    try:
        return first(frame.data)
    except Exception:
        return Raw(frame.data)


def _first_of_train(datagram: bytes, story: _Story) -> bytes:
    """What the kernel moved as one message is cut where the inner length says."""
    size = control_frames.HEADERS.size
    if looks_like_vxlan(datagram) and len(datagram) >= size + 8:
        ip4 = _number(datagram, 20) == 0x0800
        size += _number(datagram, size + 2) if ip4 else 40 + _number(datagram, size + 4)
        if datagram[size : size + 8] == datagram[:8] and looks_like_vxlan(datagram[size:]):
            count = -(-len(datagram) // size)
            story.notes.append(f"a train of {count} datagrams of {size} bytes: this is the first")
            return datagram[:size]
    return datagram


def _show_inner(datagram: bytes, story: _Story) -> None:
    if len(datagram) < control_frames.HEADERS.size:
        story.layers.append(_bytes_layer(datagram))
        return
    if _number(datagram, 20) != control_frames.ETHERTYPE:
        story.layers += _layers(VXLAN(datagram))
        return
    story.layers += _layers(VXLAN(datagram[: control_frames.HEADERS.size]))
    body = datagram[control_frames.HEADERS.size :]
    try:
        message = control_frames.decode(body)
    except CodecError as error:
        story.notes.append(str(error))
        message = None
    if message is None:
        story.layers.append(_bytes_layer(body))
        return
    fields = {name: _shown(value) for name, value in asdict(message).items()}
    story.layers.append(Layer(f"Control {control_frames.kind_of(message).title()}", fields))


def judge(datagram: bytes, source: Address | None, ecn: int, *, receiver: Receiver) -> str | None:
    """
    The reason for which a node would drop a datagram, None if it would take it.

    Args:
        source: Where it came from, None if that is not known.
        ecn: Of the outer header.
    """
    if source in receiver.addresses:
        receiver = Receiver(vni=receiver.vni, bridged=receiver.bridged)
    owners = receiver.owners
    if owners is not None and source is not None and source not in owners:
        return "unknown_source"
    vni = int.from_bytes(datagram[4:7]) if receiver.vni is None else receiver.vni
    mac = _mac_of(datagram, receiver)
    reason = _native.decap(datagram, vni, mac, ecn, receiver.bridged)
    if reason in (None, "ethertype") and _number(datagram, 20) == control_frames.ETHERTYPE:
        return _judge_control(datagram, mac, bridged=receiver.bridged)
    if reason is None and owners is not None and source is not None:
        inner = _inner_source(datagram)
        if inner is not None and _is_spoofed(inner, source, owners, bridged=receiver.bridged):
            return "spoofed"
    return reason


def _inner_source(datagram: bytes) -> Address | None:
    """None where there is no IP inside."""
    start = 26 if _number(datagram, 20) == _TAG else 22
    match _number(datagram, start - 2):
        case 0x0800:
            return ipaddress.IPv4Address(datagram[start + 12 : start + 16])
        case 0x86DD:
            return ipaddress.IPv6Address(datagram[start + 8 : start + 24])
    return None


def _is_spoofed(
    inner: Address,
    source: Address,
    owners: Mapping[Address, tuple[Prefix, ...]],
    *,
    bridged: bool,
) -> bool:
    """Has to be the peer's own; where frames are moved, nobody's will do."""
    theirs = {
        address for address, prefixes in owners.items() if any(inner in one for one in prefixes)
    }
    return source not in theirs and (bool(theirs) or not bridged)


def _is_of_neighbours(datagram: bytes) -> bool:
    """ARP, or a solicitation or an advertisement of NDP."""
    if _number(datagram, 20) == 0x86DD:
        return datagram[28:29] == b"\x3a" and datagram[62:63] in (b"\x87", b"\x88")
    return _number(datagram, 20) == 0x0806


def _mac_of(datagram: bytes, receiver: Receiver) -> bytes:
    """The receiver's MAC, by default the one that the frame is for, unless it is for a group."""
    if receiver.mac is not None:
        return receiver.mac.packed
    own = datagram[8:14]
    return own if len(own) == 6 and not own[0] & 1 else ANY_VTEP_MAC.packed


def _judge_control(datagram: bytes, mac: bytes, *, bridged: bool) -> str | None:
    if datagram[8:14] not in (mac, ANY_VTEP_MAC.packed):
        return None if bridged else "other_mac"
    try:
        control_frames.decode(datagram[control_frames.HEADERS.size :])
    except CodecError:
        return "bad_control"
    return None


def _layers(packet: Packet, *, last: Packet | None = None) -> Iterator[Layer]:
    while not isinstance(packet, NoPayload):
        if isinstance(packet, Raw):
            yield _bytes_layer(packet.load)
        else:
            yield Layer(str(packet.name), dict(_fields(packet)))
        if packet is last:
            return
        packet = packet.payload


def _fields(packet: Packet) -> Iterator[tuple[str, str]]:
    """Of those that are there, in the order in which they stand."""
    for one in packet.fields_desc:
        if one.name in packet.fields:
            value = packet.getfieldval(one.name)
            # Everybody writes a VNI in decimal but scapy.
            yield one.name, _shown(value if one.name == "vni" else one.i2repr(packet, value))


def _bytes_layer(data: bytes) -> Layer:
    return Layer("Bytes", {"size": str(len(data)), "data": _shown(data)})


def _shown(value: object) -> str:
    """In characters that do nothing to a terminal."""
    if isinstance(value, bytes):
        return value[:_SHOWN].hex(" ") + (" ..." if len(value) > _SHOWN else "")
    return "".join(
        letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in str(value)
    )
