"""The codec, compared with struct and scapy, and with invalid input."""

from __future__ import annotations

import struct
import time
from array import array
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from typing_extensions import Buffer

from tunnel import vxlan

SOURCE = bytes.fromhex("020102030405")
DESTINATION = bytes.fromhex("020908070605")
PACKET4 = bytes(IP(src="10.244.1.1", dst="10.244.2.1") / UDP() / b"four")
PACKET6 = bytes(IPv6(src="fd00::1", dst="fd00::2") / UDP() / b"six")
HEADERS = struct.Struct("!B3xI6s6sH")

vnis = st.integers(0, 2**24 - 1)
macs = st.binary(min_size=6, max_size=6)
packets = st.one_of(
    st.binary(min_size=19, max_size=1500).map(lambda tail: b"\x45" + tail),
    st.binary(min_size=39, max_size=1500).map(lambda tail: b"\x60" + tail),
)


def struct_encode(packet: bytes, *, vni: int, source: bytes, destination: bytes) -> bytes:
    ethertype = 0x0800 if packet[0] >> 4 == 4 else 0x86DD
    return HEADERS.pack(8, vni << 8, destination, source, ethertype) + packet


def struct_decode(datagram: bytes) -> tuple[int, bytes, bytes, int, bytes]:
    _, vni, destination, source, ethertype = HEADERS.unpack_from(datagram)
    return vni >> 8, source, destination, ethertype, datagram[HEADERS.size :]


def frames_in(out: bytearray, *, count: int) -> list[tuple[int, int, int, int, bytes, bytes]]:
    whole = memoryview(out)[: count * vxlan.FRAME.size]
    return [*vxlan.FRAME.iter_unpack(whole)]


# ---- one frame ----


@given(packets, vnis, macs, macs)
def test_one_frame_compared_with_struct(
    packet: bytes, vni: int, source: bytes, destination: bytes
) -> None:
    datagram = vxlan.encode(packet, vni=vni, source=source, destination=destination)
    assert datagram == struct_encode(packet, vni=vni, source=source, destination=destination)
    assert vxlan.decode(datagram) == struct_decode(datagram)


@pytest.mark.parametrize(("packet", "ethertype"), [(PACKET4, 0x0800), (PACKET6, 0x86DD)])
def test_scapy_decodes_our_frames(packet: bytes, ethertype: int) -> None:
    datagram = vxlan.encode(packet, vni=0xABCDEF, source=SOURCE, destination=DESTINATION)
    outer = VXLAN(datagram)
    assert (int(outer.flags), outer.vni) == (8, 0xABCDEF)
    assert (outer.reserved1, outer.reserved2) == (0, 0)
    inner = outer[Ether]
    assert (inner.src, inner.dst) == (SOURCE.hex(":"), DESTINATION.hex(":"))
    assert (inner.type, bytes(inner.payload)) == (ethertype, packet)


@pytest.mark.parametrize("packet", [PACKET4, PACKET6])
def test_frames_of_scapy_are_decoded(packet: bytes) -> None:
    ether = Ether(src=SOURCE.hex(":"), dst=DESTINATION.hex(":"))
    inner = IP(packet) if packet is PACKET4 else IPv6(packet)
    frame = vxlan.decode(bytes(VXLAN(vni=42, flags=8) / ether / inner))
    assert frame == (42, SOURCE, DESTINATION, 0x0800 if packet is PACKET4 else 0x86DD, packet)


def test_defaults() -> None:
    frame = vxlan.decode(vxlan.encode(PACKET4))
    assert frame == (1, vxlan.ANY_VTEP_MAC, vxlan.ANY_VTEP_MAC, 0x0800, PACKET4)
    assert vxlan.encode(PACKET4)[: vxlan.OVERHEAD].endswith(b"\x08\x00")


def test_any_payload_decodes() -> None:
    """The payload is not checked: ARP, none at all, and reserved bits are fine."""
    headers = HEADERS.pack(0xFF, 7 << 8 | 0xFF, DESTINATION, SOURCE, 0x0806)
    assert vxlan.decode(headers) == (7, SOURCE, DESTINATION, 0x0806, b"")


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda data: array("B", data)])
def test_any_buffer_is_accepted(kind: Callable[[bytes], Buffer]) -> None:
    datagram = vxlan.encode(kind(PACKET6))
    assert datagram == vxlan.encode(PACKET6)
    assert vxlan.decode(kind(datagram)).payload == PACKET6


@pytest.mark.parametrize(
    "packet",
    [b"", b"\x45" * 19, b"\x60" * 39, b"\x55" * 60, b"\x00" * 60, b"\x45" + bytes(65485)],
    ids=["empty", "short 4", "short 6", "version 5", "version 0", "too long"],
)
def test_invalid_packets(packet: bytes) -> None:
    with pytest.raises(vxlan.CodecError) as caught:
        vxlan.encode(packet)
    assert caught.value.index == 0


def test_the_longest_packet() -> None:
    assert len(vxlan.encode(b"\x45" + bytes(65484))) == 65507


@pytest.mark.parametrize("size", range(vxlan.OVERHEAD))
def test_truncated_datagrams(size: int) -> None:
    with pytest.raises(vxlan.CodecError, match="22 bytes"):
        vxlan.decode(vxlan.encode(PACKET4)[:size])


def test_the_i_flag_is_required() -> None:
    with pytest.raises(vxlan.CodecError, match="I flag"):
        vxlan.decode(b"\xf7" + vxlan.encode(PACKET4)[1:])


@given(st.binary(max_size=100))
def test_random_bytes_decode_or_raise_codec_error(datagram: bytes) -> None:
    try:
        frame = vxlan.decode(datagram)
    except vxlan.CodecError:
        assert len(datagram) < vxlan.OVERHEAD or not datagram[0] & 8
    else:
        assert frame == struct_decode(datagram)


@pytest.mark.parametrize("vni", [-1, 2**24, 2**32, 2**32 + 1, 2**64, 2**64 + 1, -(2**64) + 1])
def test_a_vni_has_24_bits(vni: int) -> None:
    with pytest.raises(ValueError, match="24 bits"):
        vxlan.encode(PACKET4, vni=vni)
    with pytest.raises(ValueError, match="24 bits"):
        vxlan.encode_batch(b"", b"", bytearray(), vni=vni)


@pytest.mark.parametrize("mac", [b"", SOURCE[:5], SOURCE + b"\0"])
def test_a_mac_has_6_bytes(mac: bytes) -> None:
    with pytest.raises(ValueError, match="6 bytes"):
        vxlan.encode(PACKET4, source=mac)
    with pytest.raises(ValueError, match="6 bytes"):
        vxlan.encode(PACKET4, destination=mac)


# ---- batches ----


def encode_all(items: list[bytes], *, vni: int = 1) -> tuple[bytearray, array[int]]:
    sizes = array("I", map(len, items))
    out = bytearray(sum(sizes) + len(items) * vxlan.OVERHEAD)
    assert vxlan.encode_batch(b"".join(items), sizes, out, vni=vni) == len(out)
    return out, array("I", [size + vxlan.OVERHEAD for size in sizes])


@given(st.lists(packets, max_size=8), vnis)
def test_batches_equal_single_frames(items: list[bytes], vni: int) -> None:
    datagrams, sizes = encode_all(items, vni=vni)
    assert datagrams == b"".join(vxlan.encode(item, vni=vni) for item in items)

    out = bytearray(len(items) * vxlan.FRAME.size)
    assert vxlan.decode_batch(datagrams, sizes, out) == len(items)
    for item, (offset, size, got_vni, ethertype, source, destination) in zip(
        items, frames_in(out, count=len(items)), strict=True
    ):
        assert datagrams[offset : offset + size] == item
        assert (got_vni, source, destination) == (vni, vxlan.ANY_VTEP_MAC, vxlan.ANY_VTEP_MAC)
        assert ethertype == (0x0800 if item[0] >> 4 == 4 else 0x86DD)


def test_spare_space_in_out_is_unchanged() -> None:
    out = bytearray(b"\xee" * 1000)
    size = vxlan.encode_batch(PACKET4, array("I", [len(PACKET4)]), out)
    assert bytes(out[:size]) == vxlan.encode(PACKET4)
    assert set(out[size:]) == {0xEE}


def test_views_into_larger_buffers() -> None:
    """Callers may pass windows of one large buffer, read-only for input."""
    arena = bytearray(4096)
    arena[100 : 100 + len(PACKET4)] = PACKET4
    view = memoryview(arena)
    sizes = memoryview(array("I", [0, len(PACKET4), 0]))[1:2]
    packet = view[100 : 100 + len(PACKET4)].toreadonly()
    size = vxlan.encode_batch(packet, sizes, view[1000:1200])
    assert arena[1000 : 1000 + size] == vxlan.encode(PACKET4)


@pytest.mark.parametrize(
    ("items", "spare", "index", "match"),
    [
        ([PACKET4, b"\x55" * 60, PACKET6], 0, 1, "not IPv4 or IPv6"),
        ([PACKET4, PACKET6, b""], 0, 2, "not IPv4 or IPv6"),
        ([b"\x45" + bytes(65485), PACKET4], 0, 0, "longer"),
        ([PACKET4, PACKET4, PACKET4], -1, 2, "too small"),
        ([PACKET4, PACKET4], -(len(PACKET4) + 22), 1, "too small"),
    ],
)
def test_encode_reports_the_faulty_packet(
    items: list[bytes], spare: int, index: int, match: str
) -> None:
    out = bytearray(sum(map(len, items)) + len(items) * vxlan.OVERHEAD + spare)
    with pytest.raises(vxlan.CodecError, match=match) as caught:
        vxlan.encode_batch(b"".join(items), array("I", map(len, items)), out)
    assert caught.value.index == index
    before = b"".join(map(vxlan.encode, items[:index]))
    assert out.startswith(before)


@pytest.mark.parametrize(
    ("spoil", "index", "match"),
    [
        (lambda data, sizes, out: data.__setitem__(sizes[0], 0), 1, "I flag"),
        (lambda data, sizes, out: sizes.__setitem__(1, 21), 1, "22 bytes"),
        (lambda data, sizes, out: sizes.append(1), 3, "more bytes"),
        (lambda data, sizes, out: sizes.__setitem__(0, 2**32 - 1), 0, "more bytes"),
        (lambda data, sizes, out: out.pop(), 2, "too small"),
        (lambda data, sizes, out: out.clear(), 0, "too small"),
    ],
    ids=["flag", "short", "outside", "far outside", "room", "no room"],
)
def test_decode_reports_the_faulty_datagram(
    spoil: Callable[[bytearray, array[int], bytearray], None], index: int, match: str
) -> None:
    datagrams, sizes = encode_all([PACKET4, PACKET6, PACKET4])
    out = bytearray(3 * vxlan.FRAME.size)
    spoil(datagrams, sizes, out)
    with pytest.raises(vxlan.CodecError, match=match) as caught:
        vxlan.decode_batch(datagrams, sizes, out)
    assert caught.value.index == index


def test_out_must_be_writable() -> None:
    with pytest.raises(TypeError):
        vxlan.encode_batch(PACKET4, array("I", [len(PACKET4)]), bytes(100))
    with pytest.raises(TypeError):
        vxlan.decode_batch(vxlan.encode(PACKET4), array("I", [60]), bytes(100))


def test_empty_batches() -> None:
    assert vxlan.encode_batch(b"", b"", bytearray()) == 0
    assert vxlan.decode_batch(b"", b"", bytearray()) == 0


# ---- cost ----


def best_of(work: Callable[[], object]) -> float:
    """CPU seconds of the fastest of many rounds."""
    best = float("inf")
    for _ in range(30):
        start = time.thread_time_ns()
        for _ in range(10):
            work()
        best = min(best, (time.thread_time_ns() - start) / 1e9)
    return best


def test_batches_are_fast() -> None:
    """64 frames of 1,400 bytes, as a multiple of plain Python's time on this machine, so that a
    frame never costs a Python object. The benchmark measures times."""
    packet = b"\x45" + bytes(1399)
    datagrams, sizes = encode_all([packet] * 64)
    plain, packet_sizes = packet * 64, array("I", [1400] * 64)
    singles = [bytes(datagrams[i * 1422 : (i + 1) * 1422]) for i in range(64)]
    frames = bytearray(64 * vxlan.FRAME.size)

    python = best_of(lambda: [struct_decode(single) for single in singles])
    assert best_of(lambda: vxlan.decode_batch(datagrams, sizes, frames)) * 10 < python

    python = best_of(
        lambda: b"".join(
            struct_encode(packet, vni=1, source=SOURCE, destination=DESTINATION) for _ in range(64)
        )
    )
    assert best_of(lambda: vxlan.encode_batch(plain, packet_sizes, datagrams)) * 3 < python
