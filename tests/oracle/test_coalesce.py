"""
Which packets are joined before they are written to the device, and which are not.

Each case is a batch of packets and the expected runs, by index.
"""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.packet import Packet, Raw

from .rig import Rig, send_all
from .wire import (
    NEEDS_CSUM,
    NO_OFFLOAD,
    TCP4,
    TCP6,
    TCP_CHECK,
    UDP_CHECK,
    USO,
    Vnet,
    coalesce_twin,
    dissect,
    frame,
    ip,
    ones_sum,
    pseudo_sum,
    same_but_id,
    split_twin,
    tcp,
    udp,
    unsplit,
    verifies,
)

Runs = list[list[int]]
Change = Callable[[Packet], object]
BOTH = pytest.mark.parametrize("version", [4, 6])
TIMESTAMP = [("NOP", None), ("NOP", None), ("Timestamp", (1, 2))]


def tcp_flow(version: int, sizes: Iterable[int], *, seq: int = 1000, **fields: Any) -> list[Packet]:
    """Consecutive segments of these sizes. IPv4 ids increment from 100."""
    packets = []
    for index, size in enumerate(sizes):
        header = ip(version, id=100 + index)
        packets.append(header / tcp(bytes([65 + index]) * size, seq=seq % 2**32, **fields))
        seq += size
    return packets


def udp_flow(version: int, sizes: Iterable[int], **fields: Any) -> list[Packet]:
    return [
        ip(version, id=100 + index) / udp(bytes([65 + index]) * size, **fields)
        for index, size in enumerate(sizes)
    ]


def above_ip(version: int, protocol: int, payload: bytes) -> Packet:
    header = ip(4, proto=protocol) if version == 4 else ip(6, nh=protocol)
    return header / Raw(payload)


def arrive(packets: Iterable[Packet | bytes], **rig: Any) -> list[tuple[Vnet, bytes]]:
    """The writes to the device for packets that are received together."""
    with Rig(**rig) as bench:
        sent = list(map(bytes, packets))
        send_all(bench.add_peer(), map(frame, sent))
        written = bench.inbound()
        assert bench.counters(0)[2:4] == (len(sent), sum(map(len, sent)))
        assert bench.drops(0) == bench.drops(-1) == {}
        joined = sum(vnet.gso_type != 0 for vnet, _ in written)
        assert bench.work()["super_packets_written"] == joined
        assert bench.work()["device_writes"] == len(written)
        for vnet, packet in written:
            check_write(vnet, packet)
        return written


def check_write(vnet: Vnet, packet: bytes) -> None:
    """The header of a joined packet has what the kernel needs to split it (virtio 1.2, 5.1.6); that
    of a single packet is zero."""
    if not vnet.gso_type:
        assert vnet == NO_OFFLOAD
        return
    parsed = dissect(packet)
    kind = TCP if TCP in parsed else UDP
    start = 20 if packet[0] >> 4 == 4 else 40
    headers = start + (parsed[TCP].dataofs * 4 if kind is TCP else 8)
    size = vnet.gso_size
    gso_type = USO if kind is UDP else TCP4 if start == 20 else TCP6
    offset = TCP_CHECK if kind is TCP else UDP_CHECK
    assert vnet == Vnet(NEEDS_CSUM, gso_type, headers, size, start, offset)
    assert size < len(packet) - headers <= 65535 - headers
    protocol, length = (6 if kind is TCP else 17), len(packet) - start
    seed = pseudo_sum(parsed.src, parsed.dst, protocol=protocol, length=length)
    assert parsed[kind].chksum == seed
    if start == 20:
        assert parsed.len == len(packet)
        assert ones_sum(packet[:20]) == 0xFFFF
    else:
        assert parsed.plen == len(packet) - 40
    if kind is UDP:
        assert parsed[UDP].len == len(packet) - start


def expect(packets: list[Packet] | list[bytes], runs: Runs, **rig: Any) -> None:
    sent = list(map(bytes, packets))
    written = [[same_but_id(p) for p in unsplit(*write)] for write in arrive(sent, **rig)]
    assert written == [[same_but_id(sent[index]) for index in run] for run in runs]


def changed(packets: list[Packet], index: int, change: Change) -> list[Packet]:
    """The packets with one of them changed; its checksums are correct."""
    change(packets[index])
    return packets


def setter(layer: type[Packet], **fields: Any) -> Change:
    def change(packet: Packet) -> None:
        for name, value in fields.items():
            setattr(packet[layer], name, value)

    return change


# ---- TCP ----


@BOTH
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(
    ("sizes", "runs"),
    [
        ([100], [[0]]),
        ([100, 100], [[0, 1]]),
        ([100] * 5, [[0, 1, 2, 3, 4]]),
        ([100, 100, 40], [[0, 1, 2]]),
        ([100, 40, 100], [[0, 1], [2]]),
        ([100, 40, 40], [[0, 1], [2]]),
        ([40, 100, 100], [[0], [1, 2]]),
        ([100, 101], [[0], [1]]),
        ([100, 100, 101, 101], [[0, 1], [2, 3]]),
        ([1, 1, 1], [[0, 1, 2]]),
        ([1398] * 46, [list(range(46))]),
        ([1448] * 48, [list(range(45)), [45, 46, 47]]),
        ([9001] * 8, [list(range(7)), [7]]),
        ([100] * 60, [list(range(60))]),
        ([33000, 33000], [[0], [1]]),
    ],
)
def test_sizes(version: int, family: int, sizes: list[int], runs: Runs) -> None:
    expect(tcp_flow(version, sizes), runs, family=family)


@BOTH
def test_a_run_reaches_the_largest_ip_packet(version: int) -> None:
    """The limit is exactly 65,535 bytes."""
    room = 65535 - (40 if version == 4 else 60)
    fits, too_long = [5041] * 12, [5041] * 12
    fits.append(room - sum(fits))
    too_long.append(room - sum(too_long) + 1)
    expect(tcp_flow(version, fits), [list(range(13))])
    expect(tcp_flow(version, too_long), [list(range(12)), [12]])


@BOTH
def test_sequence_numbers_wrap(version: int) -> None:
    expect(tcp_flow(version, [100] * 3, seq=2**32 - 150), [[0, 1, 2]])


@BOTH
@pytest.mark.parametrize("options", [TIMESTAMP, [("SAck", (3, 4)), ("NOP", None), ("NOP", None)]])
def test_equal_options_join(version: int, options: list[tuple[str, Any]]) -> None:
    expect(tcp_flow(version, [100] * 3, options=options), [[0, 1, 2]])


TCP_CHANGES: dict[str, Change] = {
    "ack": setter(TCP, ack=8),
    "window": setter(TCP, window=499),
    "ECE": setter(TCP, flags="AE"),
    "urgent pointer": setter(TCP, urgptr=1),
    "reserved bits": setter(TCP, reserved=1),
    "options": setter(TCP, options=TIMESTAMP),
    "hole": setter(TCP, seq=1101),
    "overlap": setter(TCP, seq=1099),
    "again": setter(TCP, seq=1000),
}


@BOTH
@pytest.mark.parametrize("change", TCP_CHANGES)
def test_a_different_header_starts_a_new_run(version: int, change: str) -> None:
    packets = tcp_flow(version, [100] * 4)
    expected: Runs = [[0], [1], [2, 3]]
    expect(changed(packets, 1, TCP_CHANGES[change]), expected)


@BOTH
def test_option_bytes_are_compared(version: int) -> None:
    packets = tcp_flow(version, [100] * 4, options=TIMESTAMP)
    later = [("NOP", None), ("NOP", None), ("Timestamp", (2, 2))]
    for index in (2, 3):
        packets[index][TCP].options = later
    expect(packets, [[0, 1], [2, 3]])


IP_CHANGES: dict[int, dict[str, Change]] = {
    4: {
        "DSCP": setter(IP, tos=4),
        "ECN": setter(IP, tos=2),
        "TTL": setter(IP, ttl=63),
        "DF": setter(IP, flags=0),
        "evil bit": setter(IP, flags="DF+evil"),
    },
    6: {
        "DSCP": lambda packet: setattr(packet, "tc", 4),
        "ECN": lambda packet: setattr(packet, "tc", 2),
        "hop limit": lambda packet: setattr(packet, "hlim", 63),
        "flow label": lambda packet: setattr(packet, "fl", 1),
    },
}


@pytest.mark.parametrize("flow", [tcp_flow, udp_flow])
@pytest.mark.parametrize(
    ("version", "change"),
    [(version, name) for version in IP_CHANGES for name in IP_CHANGES[version]],
)
def test_a_different_ip_header_starts_a_new_run(
    flow: Callable[..., list[Packet]], version: int, change: str
) -> None:
    packets = flow(version, [100] * 4)
    expect(changed(packets, 1, IP_CHANGES[version][change]), [[0], [1], [2, 3]])


@pytest.mark.parametrize("flow", [tcp_flow, udp_flow])
@pytest.mark.parametrize(
    ("df", "ids", "runs"),
    [
        (True, [7, 7, 7], [[0, 1, 2]]),
        (True, [0, 0, 0], [[0, 1, 2]]),
        (True, [9, 3, 5], [[0, 1, 2]]),
        (False, [7, 8, 9], [[0, 1, 2]]),
        (False, [65534, 65535, 0], [[0, 1, 2]]),
        (False, [7, 7, 7], [[0], [1], [2]]),
        (False, [7, 8, 10], [[0, 1], [2]]),
        (False, [7, 9, 10], [[0], [1, 2]]),
        (False, [7, 6, 5], [[0], [1], [2]]),
    ],
)
def test_ids_matter_without_df(
    flow: Callable[..., list[Packet]], df: bool, ids: list[int], runs: Runs
) -> None:
    packets = flow(4, [100] * len(ids))
    for packet, identity in zip(packets, ids, strict=True):
        packet.id, packet.flags = identity, "DF" if df else 0
    expect(packets, runs)


@BOTH
@pytest.mark.parametrize("flag", "FSRUC")
def test_special_flags_stay_alone_and_end_the_run(version: int, flag: str) -> None:
    packets = tcp_flow(version, [100] * 5)
    expect(changed(packets, 2, setter(TCP, flags="A" + flag)), [[0, 1], [2], [3, 4]])


@BOTH
@pytest.mark.parametrize("flag", "FSRUC")
def test_equal_special_flags_are_not_joined(version: int, flag: str) -> None:
    expect(tcp_flow(version, [100] * 3, flags="A" + flag), [[0], [1], [2]])


@BOTH
@pytest.mark.parametrize("flags", ["", "P", "F", "R"])
def test_segments_without_ack_stay_alone(version: int, flags: str) -> None:
    packets = tcp_flow(version, [100] * 5)
    expect(changed(packets, 2, setter(TCP, flags=flags)), [[0, 1], [2], [3, 4]])


@BOTH
@pytest.mark.parametrize("flags", ["FA", "SA", "RA"])
def test_special_flags_without_payload_end_the_run(version: int, flags: str) -> None:
    packets = tcp_flow(version, [100, 100, 0, 100, 100])
    expect(changed(packets, 2, setter(TCP, flags=flags)), [[0, 1], [2], [3, 4]])


@BOTH
def test_push_ends_a_run(version: int) -> None:
    packets = tcp_flow(version, [100] * 6)
    for index in (1, 2):
        packets[index][TCP].flags = "PA"
    expect(packets, [[0, 1], [2], [3, 4, 5]])


@BOTH
def test_a_pure_ack_stays_alone_and_ends_no_run(version: int) -> None:
    packets = tcp_flow(version, [100, 100, 0, 100])
    expect(packets, [[0, 1, 3], [2]])


# ---- UDP ----


@BOTH
@pytest.mark.parametrize(
    ("sizes", "runs"),
    [
        ([100], [[0]]),
        ([100, 100, 100], [[0, 1, 2]]),
        ([100, 100, 40], [[0, 1, 2]]),
        ([100, 40, 100], [[0, 1], [2]]),
        ([40, 100, 100], [[0], [1, 2]]),
        ([100, 101], [[0], [1]]),
        ([100, 100, 101, 101], [[0, 1], [2, 3]]),
        ([100, 0, 100], [[0], [1], [2]]),
        ([0, 0], [[0], [1]]),
        ([1] * 60, [list(range(60))]),
        ([5000] * 14, [list(range(13)), [13]]),
    ],
)
def test_udp_sizes(version: int, sizes: list[int], runs: Runs) -> None:
    expect(udp_flow(version, sizes), runs)


def test_udp_without_checksum_is_not_joined() -> None:
    """Joined, it would get a checksum that its sender did not compute."""
    packets = udp_flow(4, [100] * 5)
    expect(changed(packets, 2, setter(UDP, chksum=0)), [[0, 1], [2], [3, 4]])
    expect(udp_flow(4, [100] * 3, chksum=0), [[0], [1], [2]])


@BOTH
@pytest.mark.parametrize("length", [0, 7, 8, 107, 109, 65535])
def test_udp_with_a_wrong_length_is_not_joined(version: int, length: int) -> None:
    packets = udp_flow(version, [100] * 5)
    expect(changed(packets, 2, setter(UDP, len=length)), [[0, 1], [2], [3, 4]])


# ---- both ----


FLOWS = pytest.mark.parametrize("flow", [tcp_flow, udp_flow])


@FLOWS
@pytest.mark.parametrize(
    ("version", "where"),
    [(4, "checksum"), (4, "payload"), (4, "ip"), (6, "checksum"), (6, "payload")],
)
@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_wrong_checksum_is_never_joined(
    flow: Callable[..., list[Packet]], version: int, where: str, index: int
) -> None:
    """It reaches the device unchanged, so that the kernel drops and counts it."""
    packets = [bytearray(bytes(packet)) for packet in flow(version, [100] * 3)]
    field = TCP_CHECK if flow is tcp_flow else UDP_CHECK
    at = {"checksum": (20 if version == 4 else 40) + field, "payload": -1, "ip": 5}[where]
    packets[index][at] ^= 0x40
    runs = {0: [[0], [1, 2]], 1: [[0], [1], [2]], 2: [[0, 1], [2]]}[index]
    sent = list(map(bytes, packets))
    assert not verifies(sent[index])
    written = arrive(sent)
    assert [len(unsplit(*write)) for write in written] == [len(run) for run in runs]
    assert (NO_OFFLOAD, sent[index]) in written


@BOTH
@FLOWS
@pytest.mark.parametrize("length", [127, 128, 129, 1001, 1398, 9000])
@pytest.mark.parametrize("bit", [0, 7])
def test_every_wrong_bit_is_detected(
    flow: Callable[..., list[Packet]], version: int, length: int, bit: int
) -> None:
    """Also by the vector implementation of the checksum, at both ends of its range of lengths."""
    for at in (-1, -2, -length, -length + 63, -length // 2):
        packets = [bytearray(bytes(packet)) for packet in flow(version, [length] * 2)]
        packets[1][at] ^= 1 << bit
        assert [vnet.gso_type for vnet, _ in arrive(map(bytes, packets))] == [0, 0]


def test_bytes_after_an_ipv4_packet_are_removed() -> None:
    packets = tcp_flow(4, [100] * 3)
    expect(packets, [[0, 1, 2]])
    with Rig() as rig:
        send_all(rig.add_peer(), [frame(packet) + b"padding" for packet in packets])
        [write] = rig.inbound()
        assert unsplit(*write) == split_twin(dissect(write[1]), 100)
        assert rig.counters(0)[2:4] == (3, 3 * 140)


@pytest.mark.parametrize(
    "barrier",
    [
        ip(4, flags="MF") / udp(bytes(64)),
        ip(4, frag=8, proto=17) / Raw(bytes(64)),
        ip(4, options=[IPOption_NOP()] * 4) / tcp(b"x"),
        ip(6) / IPv6ExtHdrFragment(m=1, nh=17) / Raw(bytes(64)),
        ip(6) / IPv6ExtHdrHopByHop() / tcp(b"x"),
        ip(6) / IPv6ExtHdrDestOpt() / udp(b"x"),
        ip(6, nh=51) / Raw(bytes(24)),
    ],
)
@BOTH
@FLOWS
def test_a_packet_of_unknown_flow_is_not_overtaken(
    flow: Callable[..., list[Packet]], version: int, barrier: Packet
) -> None:
    packets = flow(version, [100] * 4)
    expect([*packets[:2], barrier, *packets[2:]], [[0, 1], [2], [3, 4]])


@BOTH
@pytest.mark.parametrize("payload", [b"what is this", b""])
def test_other_protocols_end_no_run(version: int, payload: bytes) -> None:
    packets = tcp_flow(version, [100] * 4)
    alone = above_ip(version, 132, payload)
    expect([*packets[:2], alone, *packets[2:]], [[0, 1, 3, 4], [2]])


@BOTH
def test_a_truncated_transport_header_stays_alone(version: int) -> None:
    whole = bytes(tcp(bytes(30)))
    for length in range(4, 20):
        packets = tcp_flow(version, [100] * 4)
        half = above_ip(version, 6, whole[:length])
        expect([*packets[:2], half, *packets[2:]], [[0, 1], [2], [3, 4]])
    for length in range(8):
        half = above_ip(version, 17, bytes(length))
        expect([half, half], [[0], [1]])


@BOTH
@FLOWS
@pytest.mark.parametrize("change", ["src", "dst", "sport", "dport", "version", "protocol"])
def test_two_flows_do_not_mix(flow: Callable[..., list[Packet]], version: int, change: str) -> None:
    a, b = flow(version, [100] * 3), flow(version, [100] * 3)
    if change == "version":
        b = flow(10 - version, [100] * 3)
    if change == "protocol":
        b = (udp_flow if flow is tcp_flow else tcp_flow)(version, [100] * 3)
    for packet in b:
        if change in {"src", "dst"}:
            address = {"src": ("10.0.1.9", "fd00:1::9"), "dst": ("10.0.0.9", "fd00::9")}[change]
            setattr(packet, change, address[version == 6])
        elif change in {"sport", "dport"}:
            # Flows with equal hashes end the runs of each other; these have different hashes.
            setattr(packet.payload, change, 1002)
    mixed = [packet for pair in zip(a, b, strict=True) for packet in pair]
    expect(mixed, [[0, 2, 4], [1, 3, 5]])


@pytest.mark.parametrize(
    ("vnet", "tcp_on", "udp_on", "expected"),
    [(True, True, True, 2), (True, True, False, 4), (True, False, True, 4), (False, True, True, 6)],
)
def test_each_protocol_can_be_off(vnet: bool, tcp_on: bool, udp_on: bool, expected: int) -> None:
    packets = tcp_flow(4, [100] * 3) + udp_flow(4, [100] * 3, sport=99)
    with Rig(vnet=vnet, tcp=tcp_on, udp=udp_on) as rig:
        send_all(rig.add_peer(), map(frame, packets))
        written = rig.inbound()
        assert len(written) == expected
        singles = [packet for write in written for packet in unsplit(*write)]
        assert sorted(singles) == sorted(map(bytes, packets))
        assert rig.forwarder.coalescing == (tcp_on and vnet, udp_on and vnet)


def test_a_train_is_coalesced_like_single_datagrams() -> None:
    packets = tcp_flow(4, [1000] * 20)
    with Rig() as rig:
        datagrams = list(map(frame, packets))
        rig.add_peer().send(b"".join(datagrams), size=len(datagrams[0]))
        [write] = rig.inbound()
        assert list(map(same_but_id, unsplit(*write))) == [same_but_id(bytes(p)) for p in packets]
        assert rig.work()["trains_received"] == 1
        assert rig.work()["datagrams_received"] == 20


def test_ecn_of_a_train_applies_to_every_datagram() -> None:
    packets = tcp_flow(4, [100] * 4)
    for packet in packets:
        packet.tos = 2
    with Rig() as rig:
        datagrams = list(map(frame, packets))
        rig.add_peer().send(b"".join(datagrams), size=len(datagrams[0]), ecn=3)
        [write] = rig.inbound()
        assert [dissect(packet).tos for packet in unsplit(*write)] == [3] * 4


# ---- invariants ----


ODDITIES = st.sampled_from(
    ["", "", "", "", "", "", "P", "F", "S", "E", "C", "U", "ttl", "tos", "ack", "bad", "empty"]
)
BATCH = st.lists(st.tuples(st.integers(0, 3), st.sampled_from([100, 100, 100, 40]), ODDITIES))


def odd_packet(flow: int, size: int, oddity: str, *, state: dict[int, int]) -> bytes:
    """The next packet of flow 0 to 3, with something odd about it. Odd flows are UDP, the
    upper two IPv6."""
    version, number = (6 if flow >= 2 else 4), state.get(-1, 0)
    state[-1] = number + 1
    header = ip(version, id=number, ttl=63 if oddity == "ttl" else 64, ecn=oddity == "tos")
    size = 0 if oddity == "empty" else size
    data = bytes([number % 256]) * size
    if flow % 2:
        packet = bytes(header / udp(data, sport=flow + 1))
    else:
        flags = "A" + (oddity if oddity in "PFSECU" else "")
        seq = state.setdefault(flow, 1)
        state[flow] = seq + size
        ack = 8 if oddity == "ack" else 7
        packet = bytes(header / tcp(data, sport=flow + 1, seq=seq, flags=flags, ack=ack))
    if oddity == "bad" and size:
        packet = packet[:-1] + bytes([packet[-1] ^ 1])
    return packet


def is_pure_ack(packet: bytes) -> bool:
    parsed = dissect(packet)
    return TCP in parsed and not parsed[TCP].payload and str(parsed[TCP].flags) in {"A", "EA"}


def by_flow(packets: Iterable[bytes], *, acks: bool) -> dict[bytes, list[bytes]]:
    """Packets in their order, by addresses and ports; pure ACKs or all others."""
    flows: dict[bytes, list[bytes]] = {}
    for packet in packets:
        if is_pure_ack(packet) == acks:
            header = 20 if packet[0] >> 4 == 4 else 40
            key = packet[:1] + packet[header - 8 : header + 4]
            flows.setdefault(key, []).append(same_but_id(packet))
    return flows


@settings(max_examples=120)
@given(batch=BATCH, data=st.data())
def test_splitting_gives_the_original_packets(batch: list[tuple[int, int, str]], data: Any) -> None:
    """Flows are mixed, and packets are lost, duplicated and reordered: the device gets each packet,
    byte for byte, in the order of its flow. Pure ACKs are ordered separately."""
    state: dict[int, int] = {}
    packets = [odd_packet(*item, state=state) for item in batch][:60]
    if packets:
        place = st.integers(0, len(packets) - 1)
        for lost in data.draw(st.lists(place, max_size=2), label="lost"):
            packets.pop(lost % len(packets)) if len(packets) > 1 else None
        for moved in data.draw(st.lists(place, max_size=2), label="moved"):
            packets.append(packets.pop(moved % len(packets)))
        for twice in data.draw(st.lists(place, max_size=2), label="twice"):
            packets.insert(0, packets[twice % len(packets)])
    written = arrive(packets)
    singles = [packet for write in written for packet in unsplit(*write)]
    for acks in (True, False):
        assert by_flow(singles, acks=acks) == by_flow(packets, acks=acks)
    for vnet, packet in written:
        if vnet.gso_type:  # only what was right may be handed over as right
            assert all(verifies(single) for single in unsplit(vnet, packet))


@settings(max_examples=150)
@given(
    flow=st.integers(0, 3),
    items=st.lists(st.tuples(st.sampled_from([100, 100, 100, 40]), ODDITIES), max_size=40),
)
def test_one_flow_is_joined_like_the_simple_model(flow: int, items: list[tuple[int, str]]) -> None:
    """Everything that can be joined is joined."""
    state: dict[int, int] = {}
    packets = [odd_packet(flow, *item, state=state) for item in items]
    written = [list(map(same_but_id, unsplit(*write))) for write in arrive(packets)]
    assert written == [list(map(same_but_id, run)) for run in coalesce_twin(packets)]


@settings(max_examples=60)
@given(
    kind=st.sampled_from(["TSO4", "TSO6", "USO4", "USO6"]),
    length=st.integers(2, 60000),
    size=st.integers(600, 9000),
    push=st.booleans(),
    segments=st.sampled_from([1, 63, 127]),
)
def test_super_packets_cross_the_tunnel(
    kind: str, length: int, size: int, push: bool, segments: int
) -> None:
    """One forwarder splits it, another coalesces it."""
    version, tso = int(kind[-1]), kind.startswith("TSO")
    data = bytes(range(256)) * (length // 256 + 1)
    flags = "PA" if push else "A"
    body = tcp(data[:length], flags=flags) if tso else udp(data[:length])
    packet = ip(version) / body
    start = 20 if version == 4 else 40
    gso_type = (TCP4 if version == 4 else TCP6) if tso else USO
    vnet = Vnet(NEEDS_CSUM, gso_type, 0, size, start, TCP_CHECK if tso else UDP_CHECK)
    with Rig(segments=segments) as sender, Rig() as receiver:
        exit_node = sender.add_peer()
        sender.forwarder.set_routes([(bytes(4), 0, 0), (bytes(16), 0, 0)])
        sender.put(packet, vnet)
        sender.outbound()
        expected = split_twin(packet, size)
        datagrams = [frame(inner) for inner in exit_node.packets(len(expected))]
        entry = receiver.add_peer()
        send_all(entry, datagrams)
        written = receiver.inbound()
        singles = [same_but_id(single) for write in written for single in unsplit(*write)]
        assert singles == list(map(same_but_id, expected))
        if len(expected) <= 64:
            assert len(written) == 1
