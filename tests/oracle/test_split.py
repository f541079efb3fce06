"""The segments of super-packets, compared with those that scapy makes."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IPOption_RR, IPOption_Timestamp
from scapy.layers.inet6 import IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop, PadN
from scapy.packet import Packet, Raw

from .rig import Rig
from .wire import (
    GSO_ECN,
    NEEDS_CSUM,
    NO_OFFLOAD,
    OURS,
    TCP4,
    TCP6,
    TCP_CHECK,
    THEIRS,
    UDP_CHECK,
    USO,
    Vnet,
    dissect,
    ip,
    ones_sum,
    pseudo_sum,
    split_twin,
    tcp,
    udp,
    verifies,
)

KINDS = {"TSO4": (4, TCP4), "TSO6": (6, TCP6), "USO4": (4, USO), "USO6": (6, USO)}
ALL_KINDS = pytest.mark.parametrize("kind", KINDS)
TIMESTAMP = [("NOP", None), ("NOP", None), ("Timestamp", (123456, 654321))]
OPTIONS: list[list[tuple[str, Any]]] = [
    [],
    TIMESTAMP,
    [*TIMESTAMP, ("SAck", (1, 2, 5, 9)), ("NOP", None), ("NOP", None)],
    [("MD5", bytes(range(16))), ("NOP", None), ("NOP", None)],
]


def payload(length: int) -> bytes:
    return bytes(range(1, 252)) * (length // 251 + 1)


def super_packet(kind: str, length: int, *, size: int, **fields: Any) -> tuple[Packet, Vnet]:
    """A packet of `length` payload bytes as the kernel passes it to a NIC."""
    version, gso_type = KINDS[kind]
    data = payload(length)[:length]
    above = {name: fields.pop(name) for name in ("id", "ecn", "flags") if name in fields}
    if gso_type != USO and "flags" in above:
        fields["flags"] = above.pop("flags")
    transport = udp(data) if gso_type == USO else tcp(data, **fields)
    header = ip(version, src=OURS[version], dst=THEIRS[version], **above)
    start = len(header)
    headers = start + len(transport) - length
    offset = UDP_CHECK if gso_type == USO else TCP_CHECK
    return header / transport, Vnet(NEEDS_CSUM, gso_type, headers, size, start, offset)


def split(packet: Packet | bytes, vnet: Vnet, *, segments: int, family: int = 4) -> list[bytes]:
    """The packets sent for a super-packet; asserts that none is dropped and all are counted."""
    with Rig(family=family) as rig:
        peer = rig.add_peer()
        rig.put(packet, vnet)
        rig.outbound()
        assert rig.drops(0) == {}
        sent = peer.packets(segments)
        assert rig.counters(0)[:2] == (segments, sum(map(len, sent)))
        assert rig.work()["super_packets_read"] == (vnet.gso_type != 0)
        return sent


@ALL_KINDS
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(
    ("length", "size"),
    [
        *[(1, 1), (1, 1400), (1400, 1400), (1401, 1400), (2800, 1400), (4001, 1398)],
        *[(9, 4), (200, 1), (60000, 1398), (60001, 8999), (65000, 65000), (60000, 60001)],
    ],
)
def test_sizes(kind: str, family: int, length: int, size: int) -> None:
    packet, vnet = super_packet(kind, length, size=size)
    expected = split_twin(packet, size)
    assert split(packet, vnet, segments=len(expected), family=family) == expected


@pytest.mark.parametrize("kind", ["TSO4", "TSO6"])
def test_every_combination_of_flags(kind: str) -> None:
    """FIN and PSH only on the last, CWR only on the first, the rest on all."""
    with Rig() as rig:
        peer = rig.add_peer()
        for bits in range(256):
            flags = "".join(flag for i, flag in enumerate("FSRPAUEC") if bits >> i & 1)
            packet, vnet = super_packet(kind, 25, size=10, flags=flags)
            rig.put(packet, vnet)
            rig.outbound()
            assert peer.packets(3) == split_twin(packet, 10), flags


@settings(max_examples=150)
@given(
    kind=st.sampled_from(list(KINDS)),
    size=st.integers(1, 9000),
    segments=st.integers(1, 40),
    short=st.integers(0, 9000),
    sequence=st.integers(0, 2**32 - 1),
    identity=st.integers(0, 2**16 - 1),
    ecn=st.integers(0, 255),
    options=st.sampled_from(OPTIONS),
    gso_ecn=st.sampled_from([0, GSO_ECN]),
    header_length=st.integers(0, 2**16 - 1),
)
def test_any_super_packet(  # noqa: PLR0917 - hypothesis names them
    kind: str,
    size: int,
    segments: int,
    short: int,
    sequence: int,
    identity: int,
    ecn: int,
    options: list[tuple[str, Any]],
    gso_ecn: int,
    header_length: int,
) -> None:
    """hdr_len and the ECN bit of the type are ignored: their values make no difference. IPv4 ids
    and TCP sequence numbers wrap."""
    length = min(60000, max(1, segments * size - short % size))
    fields: dict[str, Any] = {"id": identity, "ecn": ecn}
    if kind.startswith("TSO"):
        fields |= {"seq": sequence, "options": options, "flags": "PAC"}
    else:
        gso_ecn = 0
    packet, vnet = super_packet(kind, length, size=size, **fields)
    vnet = vnet._replace(gso_type=vnet.gso_type | gso_ecn, header_length=header_length)
    expected = split_twin(packet, size)
    assert split(packet, vnet, segments=len(expected)) == expected


@pytest.mark.parametrize("flags", ["", "DF", "DF+evil"])
def test_ids_increment_with_and_without_df(flags: str) -> None:
    packet, vnet = super_packet("USO4", 25, size=10, id=65535, flags=flags)
    sent = split(packet, vnet, segments=3)
    assert sent == split_twin(packet, 10)
    assert [dissect(segment).id for segment in sent] == [65535, 0, 1]


@pytest.mark.parametrize("kind", ["TSO6", "USO6"])
@pytest.mark.parametrize("size", [1, 100, 1398])
def test_extension_headers_are_copied(kind: str, size: int) -> None:
    transport = udp(payload(999)) if kind == "USO6" else tcp(payload(999), options=TIMESTAMP)
    transport = transport.__class__(bytes(transport)[: len(transport) - 251 * 4 + 150])
    header = ip(6, src=OURS[6], dst=THEIRS[6])
    header /= IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(4))])
    header /= IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(12))])
    start = len(header)
    if kind == "USO6":
        del transport.len
    del transport.chksum
    packet = header / transport
    offset = UDP_CHECK if kind == "USO6" else TCP_CHECK
    expected = split_twin(packet, size)
    vnet = Vnet(NEEDS_CSUM, KINDS[kind][1], 0, size, start, offset)
    sent = split(packet, vnet, segments=len(expected))
    assert sent == expected
    assert all(map(verifies, sent))


@pytest.mark.parametrize("option", [IPOption_RR(pointer=4, routers=["0.0.0.0"] * 9), None])
@pytest.mark.parametrize("kind", ["TSO4", "USO4"])
def test_ipv4_options_are_copied(kind: str, option: Packet | None) -> None:
    option = option or IPOption_Timestamp(flg=0, timestamp=7, pointer=9)
    transport = udp(payload(500)) if kind == "USO4" else tcp(payload(500), options=OPTIONS[2])
    packet = ip(4, src=OURS[4], dst=THEIRS[4], options=[option]) / transport
    start = len(bytes(packet)) - len(bytes(transport))
    offset = UDP_CHECK if kind == "USO4" else TCP_CHECK
    expected = split_twin(packet, 60)
    vnet = Vnet(NEEDS_CSUM, KINDS[kind][1], 0, 60, start, offset)
    assert split(packet, vnet, segments=len(expected)) == expected


def test_bytes_after_the_ip_length_are_not_sent() -> None:
    packet, vnet = super_packet("TSO4", 250, size=100)
    expected = split_twin(packet, 100)
    assert split(bytes(packet) + b"tail", vnet, segments=3) == expected
    single = bytes(ip(4, src=OURS[4], dst=THEIRS[4]) / udp(b"data"))
    assert split(single + b"tail", NO_OFFLOAD, segments=1) == [single]


# ---- checksums ----


def seeded(packet: Packet) -> tuple[bytes, Vnet]:
    """A packet whose checksum field holds the sum of the pseudo-header."""
    version = packet.version
    transport = packet.payload
    start = len(packet) - len(transport)
    protocol = packet.proto if version == 4 else packet.nh
    offset = TCP_CHECK if protocol == 6 else UDP_CHECK
    transport.chksum = pseudo_sum(
        packet.src, packet.dst, protocol=protocol, length=len(bytes(transport))
    )
    return bytes(packet), Vnet(NEEDS_CSUM, 0, 0, 0, start, offset)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("transport", [tcp, udp])
@pytest.mark.parametrize("length", [0, 1, 2, 63, 64, 127, 128, 129, 255, 1399, 1400, 60001])
def test_an_unfinished_checksum_is_finished(version: int, transport: Any, length: int) -> None:
    data = payload(length)[:length]
    whole = bytes(ip(version, src=OURS[version], dst=THEIRS[version]) / transport(data))
    left, vnet = seeded(ip(version, src=OURS[version], dst=THEIRS[version]) / transport(data))
    assert left != whole
    assert split(left, vnet, segments=1) == [whole]


def sums_to_zero(version: int) -> Packet:
    """A UDP packet with two payload bytes that make its checksum zero."""
    bare = ip(version, src=OURS[version], dst=THEIRS[version]) / udp(bytes(2), chksum=0)
    seed = pseudo_sum(bare.src, bare.dst, protocol=17, length=10)
    sum_without = ones_sum(seed.to_bytes(2, "big") + bytes(bare.payload))
    return ip(version, src=OURS[version], dst=THEIRS[version]) / udp(
        (0xFFFF - sum_without).to_bytes(2, "big")
    )


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("gso", [True, False])
def test_udp_checksum_zero_is_sent_as_ffff(version: int, gso: bool) -> None:
    packet = sums_to_zero(version)
    left, vnet = seeded(packet.copy())
    if gso:
        vnet = vnet._replace(gso_type=USO, gso_size=2)
    [sent] = split(left, vnet, segments=1)
    assert dissect(sent)[type(packet.payload)].chksum == 0xFFFF
    assert sent[:-10] == left[:-10]


def test_udp_checksum_zero_after_an_extension_header() -> None:
    """Zero has the same meaning there (RFC 8200, 8.1)."""
    packet = sums_to_zero(6)
    left, vnet = seeded(packet.copy())
    hop = bytes(IPv6ExtHdrHopByHop(nh=17, options=[PadN(optdata=bytes(4))]))
    behind = left[40:]
    header = left[:4] + (len(hop + behind)).to_bytes(2, "big") + b"\0" + left[7:40]
    vnet = vnet._replace(start=40 + len(hop))
    [sent] = split(header + hop + behind, vnet, segments=1)
    assert sent[40 + len(hop) + 6 :][:2] == b"\xff\xff"


# ---- contradictions ----


def contradictions() -> list[tuple[str, Packet | bytes, Vnet]]:
    tcp4, of_tcp4 = super_packet("TSO4", 3000, size=1000)
    _, of_tcp6 = super_packet("TSO6", 3000, size=1000)
    _, of_udp4 = super_packet("USO4", 3000, size=1000)
    # Read as TCP, its payload begins with the rest of a TCP header that makes sense.
    udp4 = ip(4, src=OURS[4], dst=THEIRS[4]) / udp(b"\x00\x00\x00\x00\x50" + bytes(2995))
    _, of_udp6 = super_packet("USO6", 3000, size=1000)
    udp6 = ip(6, src=OURS[6], dst=THEIRS[6]) / udp(b"\x00\x00\x00\x00\x50" + bytes(2995))
    # So does the payload of this.
    tcp6 = ip(6, src=OURS[6], dst=THEIRS[6]) / tcp(b"\x50" * 3000)
    fragment = ip(4, src=OURS[4], dst=THEIRS[4], flags="MF") / tcp(bytes(3000))
    no_payload, of_none = super_packet("TSO4", 0, size=1000)
    cut_tcp = ip(4, src=OURS[4], dst=THEIRS[4], proto=6) / Raw(bytes(19))
    offset_4 = ip(4, src=OURS[4], dst=THEIRS[4]) / tcp(bytes(3000), dataofs=4)
    past_end = ip(4, src=OURS[4], dst=THEIRS[4]) / tcp(bytes(10), dataofs=15)
    single = ip(4, src=OURS[4], dst=THEIRS[4]) / udp(b"data")
    return [
        ("gso_size 0", tcp4, of_tcp4._replace(gso_size=0)),
        ("no NEEDS_CSUM", tcp4, of_tcp4._replace(flags=0)),
        ("TSO6 of IPv4", tcp4, of_tcp4._replace(gso_type=TCP6)),
        ("TSO4 of IPv6", tcp6, of_tcp6._replace(gso_type=TCP4)),
        ("TSO4 of UDP", udp4, of_udp4._replace(gso_type=TCP4, offset=TCP_CHECK)),
        ("TSO6 of UDP", udp6, of_udp6._replace(gso_type=TCP6, offset=TCP_CHECK)),
        ("USO of TCP over IPv4", tcp4, of_tcp4._replace(gso_type=USO, offset=UDP_CHECK)),
        ("USO of TCP over IPv6", tcp6, of_tcp6._replace(gso_type=USO, offset=UDP_CHECK)),
        ("UFO", udp4, of_udp4._replace(gso_type=3)),
        ("unknown type", udp4, of_udp4._replace(gso_type=0x7F)),
        ("start in the IPv4 header", tcp4, of_tcp4._replace(start=16)),
        ("start behind the TCP header", tcp4, of_tcp4._replace(start=40)),
        ("start in the IPv6 header", tcp6, of_tcp6._replace(start=36)),
        ("start behind the TCP header over IPv6", tcp6, of_tcp6._replace(start=60)),
        ("start behind the packet", tcp6, of_tcp6._replace(start=65000)),
        ("wrong checksum field of TCP", tcp4, of_tcp4._replace(offset=UDP_CHECK)),
        ("wrong checksum field of UDP", udp4, of_udp4._replace(offset=TCP_CHECK)),
        ("a fragment", fragment, of_tcp4),
        ("no payload", no_payload, of_none),
        ("half a TCP header", cut_tcp, of_tcp4),
        ("a TCP header of 16 bytes", offset_4, of_tcp4),
        ("a TCP header past the end", past_end, of_tcp4),
        ("a checksum in the IP header", single, Vnet(NEEDS_CSUM, 0, 0, 0, 10, 0)),
        ("a checksum behind the end", single, Vnet(NEEDS_CSUM, 0, 0, 0, 30, 6)),
        ("a checksum far behind the end", single, Vnet(NEEDS_CSUM, 0, 0, 0, 65535, 65535)),
    ]


@pytest.mark.parametrize(
    ("packet", "vnet"),
    [pytest.param(packet, vnet, id=name) for name, packet, vnet in contradictions()],
)
def test_a_packet_that_contradicts_its_header_is_dropped(packet: Packet, vnet: Vnet) -> None:
    good = bytes(ip(4, src=OURS[4], dst=THEIRS[4]) / udp(b"good"))
    with Rig() as rig:
        peer = rig.add_peer()
        rig.put(good)
        rig.put(packet, vnet)
        rig.put(good)
        rig.outbound()
        assert peer.packets(2) == [good, good]
        assert rig.drops(0) == {"bad_offload": 1}
        assert rig.counters(0)[:2] == (2, 2 * len(good))


@pytest.mark.parametrize(
    "message",
    [
        *[b"\0", bytes(9), bytes(10), bytes(10) + b"\x45", bytes(29) + b"\x45", bytes(70)],
        bytes(10) + b"\x45\0\0\x1d" + bytes(24),  # one byte is missing
        bytes(10) + b"\x44\0\0\x14" + bytes(16),  # a header of 16 bytes
        bytes(10) + b"\x46\0\0\x14" + bytes(16),  # a header longer than the packet
        bytes(10) + b"\x60\0\0\0\0\x01" + bytes(34),
    ],
)
def test_truncated_packets_are_dropped(message: bytes) -> None:
    with Rig() as rig:
        rig.add_peer()
        rig.program.send(message)
        rig.outbound()
        assert rig.drops(-1) == {"not_ip": 1}
        assert rig.take() == []


@settings(max_examples=300)
@given(
    vnet=st.builds(
        Vnet,
        st.integers(0, 3),
        st.sampled_from([0, 1, 3, 4, 5, 0x81, 0x84, 0xFF]),
        st.integers(0, 65535),
        st.sampled_from([0, 1, 7, 100, 65535]),
        st.sampled_from([0, 19, 20, 21, 24, 40, 41, 60, 65535]),
        st.sampled_from([0, 6, 16, 17, 65535]),
    ),
    noise=st.binary(max_size=120),
    version=st.sampled_from([4, 6]),
    known=st.booleans(),
)
def test_random_packets_break_nothing(vnet: Vnet, noise: bytes, version: int, known: bool) -> None:
    packet = bytearray(bytes(ip(version, src=OURS[version], dst=THEIRS[version]))) + noise
    if known:
        at = 2 if version == 4 else 4
        length = len(packet) if version == 4 else len(noise)
        packet[at : at + 2] = length.to_bytes(2, "big")
        packet[9 if version == 4 else 6] = 6 if len(noise) % 2 else 17
    good = bytes(ip(4, src=OURS[4], dst=THEIRS[4], id=4711) / udp(b"good"))
    with Rig() as rig:
        peer = rig.add_peer()
        rig.put(bytes(packet), vnet)
        rig.put(good)
        rig.outbound()
        sent = rig.counters(0).outbound_packets
        assert peer.packets(sent)[-1] == good
        dropped = sum(rig.drops(0).values()) + sum(rig.drops(-1).values())
        assert dropped == (sent == 1)


SHAPES = st.tuples(
    st.sampled_from(list(KINDS)),
    st.sampled_from([999, 1000, 1001, 1398, 1410, 8900]),  # of the segments
    st.sampled_from(OPTIONS[:2]),
    st.integers(1, 60_000),
)


@settings(max_examples=60)
@given(
    shapes=st.lists(st.one_of(st.none(), SHAPES), min_size=2, max_size=12), together=st.booleans()
)
def test_super_packets_are_read_with_the_layout_of_the_last(
    shapes: list[tuple[str, int, list[tuple[str, Any]], int] | None], together: bool
) -> None:
    """The device reads segments to where they are sent from, with the layout of the last packet. A
    different packet, or one that is no super-packet, must make no difference."""
    with Rig() as rig:
        peer = rig.add_peer()
        expected = []
        for shape in shapes:
            if shape is None:
                small = bytes(ip(4, src=OURS[4], dst=THEIRS[4]) / udp(payload(1400)[:1400]))
                rig.put(small)
                expected.append(small)
            else:
                kind, size, options, length = shape
                fields = {} if kind.startswith("USO") else {"options": options}
                packet, vnet = super_packet(kind, length, size=size, **fields)
                rig.put(packet, vnet)
                expected += split_twin(packet, size)
            if not together:
                rig.outbound()
        while together and rig.forwarder.outbound():
            pass
        assert rig.drops(0) == {}
        assert sorted(peer.packets(len(expected))) == sorted(expected)
