"""Headers of a packet and their fields, dissected by scapy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

from scapy.config import conf
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import CookedLinux, CookedLinuxV2, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import NoPayload, Packet, Raw

from tunnel.diagnostics.decode.packet_file import CapturedPacket
from tunnel.errors import CodecError
from tunnel.protocol import control_frames

_FIRST = {"ethernet": Ether, "cooked": CookedLinux, "cooked 2": CookedLinuxV2}
_MAX_SHOWN = 32  # bytes of a payload


@dataclass(frozen=True)
class DecodedLayer:
    """One header; `fields` have scapy's names."""

    name: str
    fields: Mapping[str, str]


def dissect(packet: CapturedPacket) -> Packet:
    """
    Returns scapy's view of a packet.

    scapy turns a layer that it cannot read into bytes, except for the first: on that it may
    raise any exception.
    """
    conf.debug_dissector = False
    first = _FIRST.get(packet.kind) or (IPv6 if packet.data[:1] >= b"\x60" else IP)
    try:
        return first(packet.data)
    except Exception:
        return Raw(packet.data)


def layers_of(packet: Packet, *, last: Packet | None = None) -> Iterator[DecodedLayer]:
    """Yields a packet's layers, up to `last`."""
    while not isinstance(packet, NoPayload):
        if isinstance(packet, Raw):
            yield _bytes(packet.load)
        else:
            yield DecodedLayer(str(packet.name), dict(_fields(packet)))
        if packet is last:
            return
        packet = packet.payload


def inner_layers(datagram: bytes) -> tuple[list[DecodedLayer], list[str]]:
    """Returns the layers of a VXLAN datagram, and notes about them."""
    if len(datagram) < control_frames.HEADERS.size:
        return [_bytes(datagram)], []
    if int.from_bytes(datagram[20:22]) != control_frames.ETHERTYPE:
        return list(layers_of(VXLAN(datagram))), []
    layers = list(layers_of(VXLAN(datagram[: control_frames.HEADERS.size])))
    body, notes = datagram[control_frames.HEADERS.size :], []
    try:
        message = control_frames.decode(body)
    except CodecError as error:
        notes.append(str(error))
        message = None
    if message is None:
        return [*layers, _bytes(body)], notes
    fields = {name: _printable(value) for name, value in asdict(message).items()}
    name = f"Control {control_frames.kind_of(message).title()}"
    return [*layers, DecodedLayer(name, fields)], notes


def _fields(packet: Packet) -> Iterator[tuple[str, str]]:
    """Yields the fields that are present, in their order on the wire."""
    for one in packet.fields_desc:
        if one.name in packet.fields:
            value = packet.getfieldval(one.name)
            # A VNI is decimal everywhere but in scapy.
            yield one.name, _printable(value if one.name == "vni" else one.i2repr(packet, value))


def _bytes(data: bytes) -> DecodedLayer:
    return DecodedLayer("Bytes", {"size": str(len(data)), "data": _printable(data)})


def _printable(value: object) -> str:
    """Returns text that cannot control a terminal."""
    if isinstance(value, bytes):
        return value[:_MAX_SHOWN].hex(" ") + (" ..." if len(value) > _MAX_SHOWN else "")
    return "".join(
        letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in str(value)
    )
