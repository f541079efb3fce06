"""
TAP mode: Ethernet frames from the device to peers and back, compared with scapy and simple models.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scapy.layers.inet import ICMP
from scapy.layers.inet6 import ICMPv6PacketTooBig
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from tunnel._native import Fdb

from .rig import Rig
from .wire import (
    ANY_MAC,
    NEEDS_CSUM,
    NO_OFFLOAD,
    OUR_MAC,
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
    pseudo_sum,
    split_twin,
    tcp,
    udp,
    verifies,
)

HERE, THERE, ELSEWHERE = "02:00:00:00:0a:01", "02:00:00:00:0b:01", "02:00:00:00:0c:01"
BROADCAST = "ff:ff:ff:ff:ff:ff"
TAGS = {"untagged": b"", "tagged": bytes.fromhex("8100e007")}
"""VLAN 7 with a priority."""
NESTED = {
    "two tags": TAGS["tagged"] + bytes.fromhex("81000009"),
    "q in q": bytes.fromhex("88a80007") + bytes.fromhex("81000009"),
}


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def ether(inner: Packet | bytes, *, to: str = THERE, source: str = HERE, tag: bytes = b"") -> bytes:
    """A frame that holds an IP packet."""
    data = bytes(inner)
    kind = bytes.fromhex("0800" if data[0] >> 4 == 4 else "86dd")
    return mac(to) + mac(source) + tag + kind + data


def wrapped(frame: bytes, *, vni: int = 1) -> bytes:
    return bytes(VXLAN(flags=0x08, vni=vni) / Raw(frame))


@pytest.fixture
def fdb() -> Fdb:
    return Fdb(limit=1000, share=500, ageing=300)


@pytest.fixture
def rig(fdb: Fdb) -> Iterator[Rig]:
    with Rig(fdb=fdb) as rig:
        yield rig


def outgoing(version: int, payload: Packet) -> Packet:
    return ip(version, src=OURS[version], dst=THEIRS[version]) / payload


# ---- one frame ----


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("version", [4, 6])
def test_a_frame_goes_to_the_peer_in_the_fdb(rig: Rig, fdb: Fdb, version: int, tag: str) -> None:
    peer, other = rig.add_peer(), rig.add_peer()
    fdb.put(mac(THERE), 7 if tag == "tagged" else None, 0)
    frame = ether(outgoing(version, udp(b"x" * 99)), tag=TAGS[tag])
    rig.outbound(frame)
    assert peer.take() == [wrapped(frame)]
    assert other.take(0) == []
    assert rig.drops(-1) == rig.drops(0) == {}


OPAQUE = {
    "arp": Ether(src=HERE, dst=THERE) / ARP(hwsrc=HERE, psrc="192.0.2.1", pdst="192.0.2.2"),
    "q in q": Ether(src=HERE, dst=THERE) / Dot1AD(vlan=3) / Dot1Q(vlan=4) / ip(4) / udp(b"x"),
    "two tags": Ether(src=HERE, dst=THERE) / Dot1Q(vlan=3) / Dot1Q(vlan=4) / ip(4) / udp(b"x"),
    "unknown": Ether(src=HERE, dst=THERE, type=0x1234) / Raw(b"whatever"),
    "not the ip it says": Ether(src=HERE, dst=THERE, type=0x800) / Raw(b"\x60" + bytes(60)),
    "nothing behind": Ether(src=HERE, dst=THERE, type=0x88B5),
}


@pytest.mark.parametrize("kind", OPAQUE)
def test_other_ethertypes_are_sent_unchanged(rig: Rig, fdb: Fdb, kind: str) -> None:
    peer = rig.add_peer()
    for vlan in (None, 3):
        fdb.put(mac(THERE), vlan, 0)
    frame = bytes(OPAQUE[kind])
    rig.outbound(frame)
    assert peer.take() == [wrapped(frame)]


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("version", [4, 6])
def test_a_frame_from_a_peer_is_written(rig: Rig, version: int, tag: str) -> None:
    peer = rig.add_peer()
    frame = ether(ip(version) / udp(b"x" * 99), to=HERE, source=THERE, tag=TAGS[tag])
    peer.send(wrapped(frame))
    assert rig.inbound() == [(NO_OFFLOAD, frame)]


@pytest.mark.parametrize("kind", sorted(OPAQUE.keys() - {"not the ip it says"}))
def test_other_ethertypes_are_written_unchanged(rig: Rig, kind: str) -> None:
    peer = rig.add_peer()
    peer.send(wrapped(bytes(OPAQUE[kind])))
    assert rig.inbound() == [(NO_OFFLOAD, bytes(OPAQUE[kind]))]


def test_a_frame_for_any_vtep_gets_our_mac(rig: Rig) -> None:
    peer = rig.add_peer()
    frame = ether(ip(4) / udp(b"x"), to=ANY_MAC.hex(":"), source=THERE)
    peer.send(wrapped(frame))
    assert rig.inbound() == [(NO_OFFLOAD, OUR_MAC + frame[6:])]


# ---- super-frames ----


def vnet_of(packet: Packet, size: int, *, link: int) -> Vnet:
    version, stream = (4 if packet.name == "IP" else 6), "TCP" in packet
    kind = (TCP4 if version == 4 else TCP6) if stream else USO
    start = link + (20 if version == 4 else 40)
    return Vnet(NEEDS_CSUM, kind, 0, size, start, TCP_CHECK if stream else UDP_CHECK)


@pytest.mark.parametrize("flooded", [False, True], ids=["known", "flooded"])
@pytest.mark.parametrize("tag", TAGS | NESTED)
@pytest.mark.parametrize(
    "packet",
    [
        outgoing(version, payload)
        for version in (4, 6)
        for payload in (tcp(bytes(range(256)) * 90, flags="PAF"), udp(bytes(range(256)) * 90))
    ],
)
def test_a_super_frame_is_split_as_scapy_does(
    rig: Rig, fdb: Fdb, packet: Packet, tag: str, flooded: bool
) -> None:
    """Three in a row: the first is read in one piece, the others apart."""
    peers = [rig.add_peer(), rig.add_peer()]
    if not flooded:
        fdb.put(mac(THERE), None if tag == "untagged" else 7, 0)
    tags = (TAGS | NESTED)[tag]
    prefix = ether(packet, tag=tags)[: 14 + len(tags)]
    segments = [wrapped(prefix + segment) for segment in split_twin(packet, 1400)]
    for _ in range(3):
        rig.put(prefix + bytes(packet), vnet_of(packet, 1400, link=len(prefix)))
        while rig.forwarder.outbound():
            pass
        assert peers[0].take(len(segments)) == segments
        assert peers[1].take(len(segments) * flooded) == segments * flooded
    assert rig.work()["super_packets_read"] == 3 * (1 + flooded)
    assert rig.work()["trains_sent"] == 3 * (1 + flooded)


@pytest.mark.parametrize("tag", TAGS | NESTED)
def test_super_frames_and_others_of_a_flow_keep_one_port_and_mark(fdb: Fdb, tag: str) -> None:
    """The outer header has no ECN if the receiver would not copy it to the inner packet."""
    tags = (TAGS | NESTED)[tag]
    with Rig(fdb=fdb, sockets=16) as rig:
        peer = rig.add_peer()
        packet = ip(4, src=OURS[4], dst=THEIRS[4], ecn=2) / tcp(b"x" * 1400)
        rig.put(ether(packet, tag=tags), NO_OFFLOAD)
        double = ip(4, src=OURS[4], dst=THEIRS[4], ecn=2) / tcp(b"x" * 2800)
        rig.put(ether(double, tag=tags), vnet_of(double, 1400, link=14 + len(tags)))
        while rig.forwarder.outbound():
            pass
        ((datagrams, tos),) = peer.tos(3)
        assert (datagrams, tos) == (3, 0 if tag in NESTED else 2)


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("version", [4, 6])
def test_a_train_becomes_a_super_frame(rig: Rig, version: int, tag: str) -> None:
    peer = rig.add_peer()
    packet = ip(version) / tcp(b"x" * 14000)
    prefix = ether(packet, to=HERE, source=THERE, tag=TAGS[tag])[: 14 + len(TAGS[tag])]
    segments = split_twin(packet, 1400)
    peer.send(
        b"".join(wrapped(prefix + segment) for segment in segments),
        size=8 + len(prefix) + len(segments[0]),
    )
    ((vnet, written),) = rig.inbound()
    assert written[: len(prefix)] == prefix
    assert vnet.start == len(prefix) + (20 if version == 4 else 40)
    assert vnet.gso_size == 1400
    assert len(written) == len(prefix) + len(bytes(packet))


@pytest.mark.parametrize("changed", ["destination", "source", "tag"])
def test_frames_with_other_headers_are_not_joined(rig: Rig, changed: str) -> None:
    peer = rig.add_peer()
    first, second = split_twin(ip(4) / tcp(b"x" * 2800), 1400)
    frames = [
        ether(first, to=HERE, source=THERE, tag=TAGS["tagged"]),
        ether(
            second,
            to=ELSEWHERE if changed == "destination" else HERE,
            source=ELSEWHERE if changed == "source" else THERE,
            tag=bytes.fromhex("8100e008" if changed == "tag" else "8100e007"),
        ),
    ]
    peer.send(b"".join(map(wrapped, frames)), size=len(wrapped(frames[0])))
    assert rig.inbound() == [(NO_OFFLOAD, frame) for frame in frames]


@pytest.mark.parametrize("flooded", [False, True], ids=["known", "flooded"])
def test_a_checksum_left_to_the_device_is_finished(rig: Rig, fdb: Fdb, flooded: bool) -> None:
    peers = [rig.add_peer(), rig.add_peer()]
    if not flooded:
        fdb.put(mac(THERE), None, 0)
    packet = outgoing(4, tcp(b"x" * 77))
    raw = bytearray(bytes(packet))
    raw[36:38] = pseudo_sum(OURS[4], THEIRS[4], protocol=6, length=97).to_bytes(2, "big")
    rig.put(ether(bytes(raw)), Vnet(NEEDS_CSUM, start=34, offset=TCP_CHECK))
    rig.outbound()
    for peer in peers[: 1 + flooded]:
        assert peer.take() == [wrapped(ether(packet))]


# ---- where frames go ----


def test_unknown_destinations_are_flooded_once_to_each_peer(rig: Rig) -> None:
    peers = [rig.add_peer() for _ in range(3)]
    frames = [ether(outgoing(4, udp(b"x")), to=to) for to in (THERE, BROADCAST)]
    rig.outbound(*frames)
    for peer in peers:
        assert peer.take(2) == [wrapped(frame) for frame in frames]
        assert peer.take(0) == []
    assert rig.work()["frames_flooded"] == 2


def test_without_flooding_they_are_dropped(fdb: Fdb) -> None:
    with Rig(fdb=fdb, flood=False) as rig:
        peer = rig.add_peer()
        rig.outbound(*(ether(outgoing(4, udp(b"x")), to=to) for to in (THERE, BROADCAST)))
        assert peer.take(0) == []
        assert rig.drops(-1) == {"no_fdb": 1, "no_flood": 1}


@pytest.mark.parametrize("last", [0, 15])
def test_link_local_frames_are_never_forwarded(rig: Rig, last: int) -> None:
    peer = rig.add_peer()
    frame = ether(outgoing(4, udp(b"x")), to=f"01:80:c2:00:00:{last:02x}")
    rig.outbound(frame)
    peer.send(wrapped(frame))
    assert rig.inbound() == []
    assert peer.take(0) == []
    assert (rig.drops(-1), rig.drops(0)) == ({"link_local": 1}, {"peer_link_local": 1})


def test_a_truncated_frame(rig: Rig) -> None:
    rig.outbound(b"x" * 13, b"x" * 12 + b"\x81\x00\x00")
    assert rig.drops(-1) == {"bad_frame": 2}


def test_sources_are_learned_and_followed(rig: Rig, fdb: Fdb) -> None:
    peers = [rig.add_peer(address=f"127.0.7.{n}") for n in (2, 3)]
    for peer in (*peers, peers[0]):
        peer.send(wrapped(ether(ip(4, src="192.0.2.1") / udp(b"x"), to=HERE, source=ELSEWHERE)))
        assert len(rig.inbound()) == 1
        assert [entry[:4] for entry in fdb.entries()] == [(mac(ELSEWHERE), None, peer.index, False)]
        frame = ether(outgoing(4, udp(b"x")), to=ELSEWHERE)
        rig.outbound(frame)
        assert peer.take() == [wrapped(frame)]
    assert fdb.counters() == {"learned": 1, "moved": 2, "aged": 0, "refused_full": 0}
    assert rig.work()["frames_flooded"] == 0


def test_nothing_is_learned_with_learning_off(fdb: Fdb) -> None:
    with Rig(fdb=fdb, learning=False) as rig:
        rig.add_peer().send(wrapped(ether(ip(4) / udp(b"x"), to=HERE, source=THERE)))
        assert len(rig.inbound()) == 1
        assert fdb.entries() == []


def test_removing_a_peer_removes_its_entries(rig: Rig, fdb: Fdb) -> None:
    rig.add_peer(), rig.add_peer()
    fdb.put(mac(THERE), None, 0)
    fdb.put(mac(ELSEWHERE), 5, 1)
    rig.forwarder.set_routes([])
    rig.forwarder.remove_peer(0)
    assert [entry[:3] for entry in fdb.entries()] == [(mac(ELSEWHERE), 5, 1)]


# ---- allowed sources ----


def test_an_address_of_another_peer_is_spoofed(rig: Rig, fdb: Fdb) -> None:
    peer, _ = rig.add_peer(), rig.add_peer()
    peer.send(wrapped(ether(ip(4, src="10.0.2.9") / udp(b"x"), source=THERE)))
    assert rig.inbound() == []
    assert rig.drops(0) == {"spoofed": 1}
    assert fdb.entries() == []
    frames = [ether(ip(4, src=src) / udp(b"x"), source=THERE) for src in ("10.0.1.9", "192.0.2.1")]
    for frame in frames:
        peer.send(wrapped(frame))
    assert rig.inbound() == [(NO_OFFLOAD, frame) for frame in frames]


def test_our_own_mac_comes_back(rig: Rig) -> None:
    peer = rig.add_peer()
    peer.send(wrapped(ether(ip(4) / udp(b"x"), source=OUR_MAC.hex(":"))))
    assert rig.inbound() == []
    assert rig.drops(0) == {"loop": 1}


def test_the_sender_among_peers_at_one_address(rig: Rig, fdb: Fdb) -> None:
    one, two, three = (
        rig.add_peer(address="127.0.7.9", mac=mac(f"02:00:00:00:0d:{n:02x}")) for n in range(3)
    )
    fdb.put(mac(ELSEWHERE), None, two.index)
    for sender, source in ((one, one.mac), (two, mac(ELSEWHERE)), (three, three.mac)):
        before = rig.counters(sender.index).inbound_packets
        one.send(wrapped(ether(ip(4, src="192.0.2.1") / udp(b"x"), source=source.hex(":"))))
        assert len(rig.inbound()) == 1
        assert rig.counters(sender.index).inbound_packets == before + 1


def test_the_storm_limit_applies_in_both_directions(fdb: Fdb) -> None:
    with Rig(fdb=fdb, storm=10) as rig:
        peers = [rig.add_peer(address=f"127.0.7.{n}") for n in (2, 3)]
        frame = ether(outgoing(4, udp(b"x")), to=BROADCAST)
        rig.outbound(*[frame] * 15)
        known = ether(ip(4) / udp(b"x"), to=HERE, source=THERE)
        for _ in range(15):
            peers[0].send(wrapped(ether(ip(4) / udp(b"x"), to=BROADCAST, source=THERE)))
            peers[0].send(wrapped(known))
        assert 10 <= len([1 for _, written in rig.inbound() if written != known]) <= 12
        for peer in peers:
            assert 10 <= len(peer.take(10)) <= 12
            assert 3 <= rig.drops(peer.index)["storm"] <= 5
        assert rig.drops(0).keys() == {"storm", "peer_storm"}


def test_a_peer_without_an_address_gets_nothing(rig: Rig) -> None:
    peer = rig.add_peer()
    rig.forwarder.set_peer(1, None, 8472, bytes(6))
    frame = ether(outgoing(4, udp(b"x")), to=BROADCAST)
    rig.outbound(frame)
    assert peer.take() == [wrapped(frame)]
    assert rig.drops(1) == {"unresolved": 1}


# ---- what a path does not take ----


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("flooded", [False, True], ids=["known", "flooded"])
def test_icmp_errors_are_sent_in_a_frame(
    rig: Rig, fdb: Fdb, version: int, tag: str, flooded: bool
) -> None:
    peer, wide = rig.add_peer(), rig.add_peer()
    rig.forwarder.set_mtu(0, 1400)
    if not flooded:
        fdb.put(mac(THERE), 7 if tag == "tagged" else None, 0)
    fits = 1400 - len(TAGS[tag])  # a tag takes of what the path has for packets
    headers = 28 if version == 4 else 48
    good, large = (outgoing(version, udp(bytes(size - headers))) for size in (fits, fits + 1))
    frames = [ether(packet, tag=TAGS[tag]) for packet in (good, large)]
    rig.outbound(*frames)
    assert peer.take() == [wrapped(frames[0])]
    assert wide.take(2 * flooded) == list(map(wrapped, frames)) * flooded
    ((vnet, error),) = rig.writes()
    prefix = 14 + len(TAGS[tag])
    assert vnet == NO_OFFLOAD
    assert error[:prefix] == mac(HERE) + mac(THERE) + frames[0][12:prefix]
    assert verifies(error[prefix:])
    message = dissect(error[prefix:])
    assert (message.src, message.dst) == (THEIRS[version], OURS[version])
    found = message[ICMP].nexthopmtu if version == 4 else message[ICMPv6PacketTooBig].mtu
    assert found == fits
    assert error.endswith(bytes(large)[: 548 if version == 4 else 1232])
    assert rig.drops(0) == {"too_big": 1}


def test_a_super_frame_too_big_for_one_peer_goes_to_the_others(rig: Rig) -> None:
    peers = [rig.add_peer() for _ in range(3)]
    rig.forwarder.set_mtu(1, 1300)
    packet = outgoing(4, tcp(bytes(range(256)) * 90, flags="PAF"))
    prefix = ether(packet)[:14]
    segments = [wrapped(prefix + segment) for segment in split_twin(packet, 1400)]
    for _ in range(2):  # in one piece, and apart
        rig.put(prefix + bytes(packet), vnet_of(packet, 1400, link=14))
        rig.outbound()
        assert peers[0].take(len(segments)) == peers[2].take(len(segments)) == segments
        assert peers[1].take(0) == []
        assert len(rig.writes()) == 1
    assert rig.drops(1) == {"too_big": 2 * len(segments)}


def test_group_frames_get_no_icmp_error(rig: Rig) -> None:
    peer = rig.add_peer()
    rig.forwarder.set_mtu(0, 1300)
    rig.outbound(ether(outgoing(4, udp(bytes(1350))), to=BROADCAST))
    assert rig.writes() == []
    assert peer.take(0) == []
    assert rig.drops(0) == {"too_big": 1}


def test_other_ethertypes_may_be_fragmented_by_the_underlay(rig: Rig, fdb: Fdb) -> None:
    peer = rig.add_peer()
    rig.forwarder.set_mtu(0, 1300)
    fdb.put(mac(THERE), None, 0)
    frame = mac(THERE) + mac(HERE) + b"\x12\x34" + bytes(1400)
    rig.outbound(frame)
    assert peer.take() == [wrapped(frame)]


def test_the_largest_frame(rig: Rig, fdb: Fdb) -> None:
    """A super-packet of 65,535 bytes after an Ethernet header with a tag."""
    peer = rig.add_peer()
    fdb.put(mac(THERE), 7, 0)
    packet = outgoing(4, tcp(bytes(65495)))
    prefix = ether(packet, tag=TAGS["tagged"])[:18]
    segments = [wrapped(prefix + segment) for segment in split_twin(packet, 1400)]
    for _ in range(2):
        rig.put(prefix + bytes(packet), vnet_of(packet, 1400, link=18))
        rig.outbound()
        assert peer.take(len(segments)) == segments


LIES = {
    "no such GSO": Vnet(NEEDS_CSUM, 9, 0, 1400, 34, TCP_CHECK),
    "GSO without a size": Vnet(NEEDS_CSUM, TCP4, 0, 0, 34, TCP_CHECK),
    "checksum in the Ethernet header": Vnet(NEEDS_CSUM, 0, 0, 0, 3, 4),
    "checksum in the IP header": Vnet(NEEDS_CSUM, 0, 0, 0, 14, TCP_CHECK),
    "checksum behind the end": Vnet(NEEDS_CSUM, 0, 0, 0, 34, 60000),
    "transport where the IP header is": Vnet(NEEDS_CSUM, TCP4, 0, 1400, 20, TCP_CHECK),
}


@pytest.mark.parametrize("flooded", [False, True], ids=["known", "flooded"])
@pytest.mark.parametrize("case", LIES)
def test_a_wrong_offload_header(rig: Rig, fdb: Fdb, case: str, flooded: bool) -> None:
    peer = rig.add_peer()
    if not flooded:
        fdb.put(mac(THERE), None, 0)
    rig.put(ether(outgoing(4, tcp(bytes(3000)))), LIES[case])
    rig.outbound()
    assert peer.take(0) == []
    assert rig.drops(-1 if flooded else 0) == {"bad_offload": 1}
