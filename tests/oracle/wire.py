"""
What packets must look like: built by scapy, or by simple models of the C core. Nothing here calls
the C core, and clarity matters more than speed.
"""

from __future__ import annotations

import ipaddress
from struct import Struct
from typing import Any, NamedTuple

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

OURS = {4: "10.0.0.1", 6: "fd00::1"}
THEIRS = {4: "10.0.1.1", 6: "fd00:1::1"}
OUR_MAC = bytes.fromhex("020000000001")
PEER_MAC = bytes.fromhex("020000000002")
ANY_MAC = bytes.fromhex("027674657000")

NEEDS_CSUM = 1
TCP4, TCP6, USO = 1, 4, 5
GSO_ECN = 0x80
TCP_CHECK, UDP_CHECK = 16, 6

_VNET = Struct("=BBHHHH")


class Vnet(NamedTuple):
    """virtio_net_hdr; all zeros for a packet without offloads."""

    flags: int = 0
    gso_type: int = 0
    header_length: int = 0
    gso_size: int = 0
    start: int = 0
    offset: int = 0

    def __bytes__(self) -> bytes:
        return _VNET.pack(*self)

    @classmethod
    def cut(cls, message: bytes) -> tuple[Vnet, bytes]:
        return cls(*_VNET.unpack_from(message)), message[_VNET.size :]


NO_OFFLOAD = Vnet()

# ---- packets ----


def ip(version: int, *, src: str | None = None, dst: str | None = None, **fields: Any) -> Packet:
    """By default from the peer's subnet to this node's. `ecn` and `ttl` are for both versions."""
    src, dst = src or THEIRS[version], dst or OURS[version]
    ecn, ttl = fields.pop("ecn", 0), fields.pop("ttl", 64)
    if version == 4:
        fields.setdefault("flags", "DF")
        return IP(src=src, dst=dst, tos=ecn, ttl=ttl, **fields)
    fields.pop("id", None)
    return IPv6(src=src, dst=dst, tc=ecn, hlim=ttl, **fields)


def tcp(payload: bytes = b"", **fields: Any) -> Packet:
    header: dict[str, Any] = {
        "sport": 1000,
        "dport": 2000,
        "seq": 1,
        "ack": 7,
        "flags": "A",
        "window": 500,
    }
    return TCP(**(header | fields)) / Raw(payload)


def udp(payload: bytes = b"", **fields: Any) -> Packet:
    header: dict[str, Any] = {"sport": 1000, "dport": 2000}
    return UDP(**(header | fields)) / Raw(payload)


def frame(
    packet: Packet | bytes,
    *,
    vni: int = 1,
    to: bytes = OUR_MAC,
    source: bytes = PEER_MAC,
    ethertype: int | None = None,
    **fields: Any,
) -> bytes:
    """The UDP payload that contains `packet`."""
    inner = bytes(packet)
    ethertype = ethertype or {4: 0x0800, 6: 0x86DD}[inner[0] >> 4]
    ether = Ether(dst=to.hex(":"), src=source.hex(":"), type=ethertype)
    header: dict[str, Any] = {"flags": 0x08, "vni": vni}
    return bytes(VXLAN(**(header | fields)) / ether / Raw(inner))


def dissect(packet: bytes) -> Packet:
    return IP(packet) if packet[0] >> 4 == 4 else IPv6(packet)


def with_ecn(packet: bytes, ecn: int) -> bytes:
    parsed = dissect(packet)
    if isinstance(parsed, IP):
        parsed.tos = parsed.tos & ~3 | ecn
        del parsed.chksum
    else:
        parsed.tc = parsed.tc & ~3 | ecn
    return bytes(parsed)


# ---- checksums, RFC 1071 ----


def ones_sum(data: bytes) -> int:
    """One's complement sum of big-endian 16-bit words, an odd last byte padded with zero."""
    data += bytes(len(data) % 2)
    total = sum(data[i] << 8 | data[i + 1] for i in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pseudo_sum(source: str, destination: str, *, protocol: int, length: int) -> int:
    """The value of a checksum field that the kernel leaves to the device."""
    ends = ipaddress.ip_address(source).packed + ipaddress.ip_address(destination).packed
    return ones_sum(ends + length.to_bytes(4, "big") + protocol.to_bytes(4, "big"))


def verifies(packet: bytes) -> bool:
    """Whether the checksums are correct by scapy. Packets quoted in ICMP are not checked."""
    parsed = dissect(packet)
    layer: Packet | None = parsed
    while layer:
        for name in {"chksum", "cksum"} & layer.fields.keys():
            delattr(layer, name)
        layer = None if str(layer.name).startswith("ICMP") else layer.payload
    return bytes(parsed) == packet


# ---- twins ----


def split_twin(packet: Packet, size: int) -> list[bytes]:
    """The packets that a NIC sends for this one: RFC 9293, and Linux's segmentation-offloads.rst
    for ids and flags."""
    kind = TCP if TCP in packet else UDP
    payload = bytes(packet[kind].payload)
    offsets = range(0, len(payload), size)
    segments = []
    for index, offset in enumerate(offsets):
        segment = packet.copy()
        header = segment[kind]
        header.remove_payload()
        header.add_payload(Raw(payload[offset : offset + size]))
        if isinstance(segment, IP):
            segment.id = (packet.id + index) % 2**16
            del segment.len, segment.chksum
        else:
            del segment.plen
        if kind is TCP:
            header.seq = (packet[TCP].seq + offset) % 2**32
            if offset + size < len(payload):
                header.flags = str(header.flags).replace("F", "").replace("P", "")
            if index:
                header.flags = str(header.flags).replace("C", "")
        else:
            del header.len
        del header.chksum
        segments.append(bytes(segment))
    return segments


def unsplit(vnet: Vnet, packet: bytes) -> list[bytes]:
    """The packets that one write to the device contains."""
    return split_twin(dissect(packet), vnet.gso_size) if vnet.gso_type else [packet]


def same_but_id(packet: bytes) -> bytes:
    """The packet without an id that has no meaning: that of IPv4 with DF (RFC 6864)."""
    if packet[0] >> 4 == 4 and packet[6] & 0x40:
        return packet[:4] + packet[6:10] + packet[12:]
    return packet


def joins(first: bytes, so_far: list[bytes], packet: bytes) -> bool:
    """Whether `packet` can be joined to the run `so_far` that began with `first`, by the rules of
    Linux's GRO (net/ipv4/tcp_offload.c, udp_offload.c), one on each line."""
    a, b = dissect(first), dissect(packet)
    kind = TCP if TCP in a else UDP
    last = dissect(so_far[-1])
    mine, theirs = a[kind], b.getlayer(kind)
    if type(a) is not type(b) or theirs is None:
        return False
    size, more = len(mine.payload), len(theirs.payload)
    rules = [
        (a.src, a.dst, mine.sport, mine.dport) == (b.src, b.dst, theirs.sport, theirs.dport),
        0 < more <= size and len(last[kind].payload) == size,
        sum(len(dissect(p)[kind].payload) for p in so_far) + len(packet) <= 65535,
        all(verifies(p) for p in (*so_far, packet)),
    ]
    if isinstance(a, IP):
        rules.append((a.tos, a.ttl, a.flags, a.ihl) == (b.tos, b.ttl, b.flags, b.ihl))
        rules.append("DF" in a.flags or b.id == (a.id + len(so_far)) % 2**16)
        rules.append(not a.options and not b.options)
    else:
        rules.append((a.tc, a.fl, a.hlim, a.nh) == (b.tc, b.fl, b.hlim, b.nh))
    if kind is TCP:
        rules.append(theirs.seq == (last[TCP].seq + len(last[TCP].payload)) % 2**32)
        rules.append((mine.ack, mine.window) == (theirs.ack, theirs.window))
        rules.append(bytes(mine)[20 : mine.dataofs * 4] == bytes(theirs)[20 : theirs.dataofs * 4])
        rules.append(not set("SFRUC") & set(f"{mine.flags}{theirs.flags}"))
        rules.append("P" not in last[TCP].flags and "A" in mine.flags)
        rules.append(str(mine.flags) == str(theirs.flags).replace("P", ""))
    else:
        rules.append(mine.chksum != 0 and theirs.chksum != 0)
    return all(rules)


def coalesce_twin(packets: list[bytes]) -> list[list[bytes]]:
    """The runs of one flow's packets, in the order of their first packets. A pure ACK stays alone
    and ends no run; a packet that cannot join ends it."""
    runs: list[list[bytes]] = []
    open_run: list[bytes] | None = None
    for packet in packets:
        parsed = dissect(packet)
        pure_ack = TCP in parsed and not parsed[TCP].payload and not _ends(parsed[TCP])
        if open_run is not None and joins(open_run[0], open_run, packet):
            open_run.append(packet)
            continue
        runs.append([packet])
        if not pure_ack:
            open_run = runs[-1]
    return runs


def _ends(header: Packet) -> bool:
    return bool(set("SFRUC") & set(str(header.flags))) or "A" not in header.flags
