"""
Bad datagrams from a peer or an unknown sender: one drop each, under the right reason, and valid
traffic passes.
"""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Raw

from .rig import Rig, send_all
from .wire import OURS, PEER_MAC, frame, ip, tcp, udp

GOOD = bytes(ip(4) / udp(b"good"))
GOOD6 = bytes(ip(6) / udp(b"good"))
BROADCAST = bytes([0xFF] * 6)


def lying(packet: bytes, *, at: int, value: int, size: int = 2) -> bytes:
    """A packet with other bytes at `at`."""
    return packet[:at] + value.to_bytes(size, "big") + packet[at + size :]


def lldp() -> bytes:
    ether = Ether(dst="01:80:c2:00:00:0e", src=PEER_MAC.hex(":"), type=0x88CC)
    return bytes(VXLAN(flags=8, vni=1) / ether / Raw(b"any frame"))


HOSTILE: list[tuple[str, str, bytes]] = [
    ("empty", "short_frame", b""),
    ("one byte", "short_frame", b"\x08"),
    ("VXLAN alone", "short_frame", frame(GOOD)[:8]),
    ("half an Ethernet header", "short_frame", frame(GOOD)[:21]),
    ("no IP packet", "bad_inner", frame(GOOD)[:22]),
    ("half an IPv4 header", "bad_inner", frame(GOOD)[:41]),
    ("half an IPv6 header", "bad_inner", frame(GOOD6)[:61]),
    ("IPv4 cut off", "bad_inner", frame(GOOD)[:-1]),
    ("IPv6 cut off", "bad_inner", frame(GOOD6)[:-1]),
    ("IPv4 longer than the frame", "bad_inner", frame(lying(GOOD, at=2, value=65535))),
    ("IPv4 shorter than its header", "bad_inner", frame(lying(GOOD, at=2, value=19))),
    ("IPv4 of length 0", "bad_inner", frame(lying(GOOD, at=2, value=0))),
    ("IPv4 header of 16 bytes", "bad_inner", frame(lying(GOOD, at=0, value=0x44, size=1))),
    ("IPv4 header past the end", "bad_inner", frame(lying(GOOD, at=0, value=0x4F, size=1))),
    ("IPv6 longer than the frame", "bad_inner", frame(lying(GOOD6, at=4, value=65535))),
    ("IPv6 in an IPv4 frame", "bad_inner", frame(GOOD6, ethertype=0x0800)),
    ("IPv4 in an IPv6 frame", "bad_inner", frame(GOOD, ethertype=0x86DD)),
    ("IP version 0", "bad_inner", frame(bytes(60), ethertype=0x0800)),
    ("IP version 15", "bad_inner", frame(b"\xff" * 60, ethertype=0x86DD)),
    ("no I flag", "no_vni", frame(GOOD, flags=0)),
    ("all flags but I", "no_vni", b"\xf7" + frame(GOOD)[1:]),
    ("VNI 0", "other_vni", frame(GOOD, vni=0)),
    ("VNI 2", "other_vni", frame(GOOD, vni=2)),
    ("VNI 0x10001", "other_vni", frame(GOOD, vni=0x010001)),
    ("another MAC", "other_mac", frame(GOOD, to=bytes.fromhex("020000000003"))),
    ("the peer's own MAC", "other_mac", frame(GOOD, to=PEER_MAC)),
    ("broadcast", "group_mac", frame(GOOD, to=BROADCAST)),
    ("multicast", "group_mac", frame(GOOD, to=bytes.fromhex("01005e000001"))),
    ("LLDP", "ethertype", lldp()),
    ("VLAN", "ethertype", frame(GOOD, ethertype=0x8100)),
    ("EtherType 0", "ethertype", frame(GOOD)[:20] + b"\0\0" + GOOD),
    ("unrouted source", "spoofed", frame(ip(4, src="192.0.2.1") / udp(b"x"))),
    ("our own source", "spoofed", frame(ip(4, src=OURS[4]) / udp(b"x"))),
    ("another peer's source", "spoofed", frame(ip(4, src="10.0.2.1") / udp(b"x"))),
    ("another peer's IPv6 source", "spoofed", frame(ip(6, src="fd00:2::1") / udp(b"x"))),
    ("source 0.0.0.0", "spoofed", frame(ip(4, src="0.0.0.0") / udp(b"x"))),
    ("multicast source", "spoofed", frame(ip(4, src="224.0.0.1") / udp(b"x"))),
    ("source ::", "spoofed", frame(ip(6, src="::") / udp(b"x"))),
    ("link-local source", "spoofed", frame(ip(6, src="fe80::1") / udp(b"x"))),
    ("IPv4-mapped source", "spoofed", frame(ip(6, src="::ffff:10.0.1.1") / udp(b"x"))),
]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(
    ("reason", "datagram"),
    [pytest.param(reason, datagram, id=name) for name, reason, datagram in HOSTILE],
)
def test_bad_datagrams_are_counted_and_others_pass(
    family: int, reason: str, datagram: bytes
) -> None:
    with Rig(family=family) as rig:
        peer = rig.add_peer()
        if family == 4:  # IPv6 loopback has one address: there the other's sources are right
            rig.add_peer()
        send_all(peer, [frame(GOOD), datagram, frame(GOOD6)])
        assert [packet for _, packet in rig.inbound()] == [GOOD, GOOD6]
        assert rig.drops(0) == {reason: 1}
        assert rig.drops(-1) == {}
        assert rig.counters(0)[2:4] == (2, len(GOOD) + len(GOOD6))


def test_a_train_of_bad_datagrams_counts_each() -> None:
    with Rig() as rig:
        peer = rig.add_peer()
        good, bad = frame(GOOD), frame(GOOD, vni=7)
        peer.send(good + bad * 10 + good + bad[:30], size=len(good))
        rig.inbound()
        assert rig.counters(0).inbound_packets == 2
        # The last one is truncated inside its inner packet, but its VNI is checked first.
        assert rig.drops(0) == {"other_vni": 11}


def test_tiny_datagrams_in_a_train() -> None:
    with Rig() as rig:
        peer = rig.add_peer()
        peer.send(bytes(100), size=1)
        assert rig.inbound() == []
        assert rig.drops(0) == {"short_frame": 100}


def test_the_largest_datagram() -> None:
    with Rig() as rig:
        peer = rig.add_peer()
        whole = bytes(ip(4) / udp(bytes(65507 - 22 - 28)))
        send_all(peer, [frame(whole), frame(lying(whole, at=2, value=len(whole) + 1))])
        assert rig.inbound()[0][1] == whole
        assert rig.drops(0) == {"bad_inner": 1}


@pytest.mark.parametrize("family", [4, 6])
def test_unknown_senders_are_dropped(family: int) -> None:
    """Nothing that they send is parsed."""
    with Rig(family=family) as rig:
        unknown = rig.add_peer()
        rig.forwarder.set_routes([])
        rig.forwarder.remove_peer(0)
        datagrams = [datagram for _, _, datagram in HOSTILE]
        send_all(unknown, [frame(GOOD), *datagrams])
        assert rig.inbound() == []
        assert rig.drops(-1) == {"unknown_source": 1 + len(datagrams)}


def test_an_unknown_sender_besides_a_peer() -> None:
    with Rig() as rig:
        peer, unknown = rig.add_peer(), rig.add_peer()
        rig.forwarder.set_routes([route for route in rig.routes if route[2] == 0])
        rig.forwarder.remove_peer(1)
        send_all(unknown, [frame(GOOD)] * 2)
        peer.send(frame(GOOD))
        unknown.send(frame(GOOD) * 3, size=len(frame(GOOD)))
        assert len(rig.inbound()) == 1
        assert rig.drops(-1) == {"unknown_source": 5}


@settings(max_examples=200)
@given(data=st.data())
def test_random_datagrams_break_nothing(data: Any) -> None:
    """Random bytes, and valid datagrams that are changed or truncated: each is forwarded or dropped
    exactly once, and the valid one after them arrives."""
    with Rig() as rig:
        peer = rig.add_peer()
        inner = [GOOD, GOOD6, bytes(ip(4) / tcp(bytes(50))), bytes(ip(6) / tcp(bytes(50)))]
        datagrams = []
        for _ in range(data.draw(st.integers(1, 8))):
            datagram = bytearray(frame(data.draw(st.sampled_from(inner))))
            for _ in range(data.draw(st.integers(0, 3))):
                at = data.draw(st.integers(0, len(datagram) - 1))
                datagram[at] = data.draw(st.integers(0, 255))
            datagrams.append(bytes(datagram[: data.draw(st.integers(0, len(datagram)))]))
        datagrams += data.draw(st.lists(st.binary(max_size=100), max_size=4))
        # Its protocol is different, so that it is not joined to others.
        last = bytes(IP(src="10.0.1.1", dst=OURS[4], proto=253) / Raw(b"real"))
        send_all(peer, [*datagrams, frame(last)])
        written = rig.inbound()
        assert written[-1][1] == last
        counters = rig.counters(0)
        packets, size = counters.inbound_packets, counters.inbound_bytes
        assert packets + sum(counters.drops.values()) == len(datagrams) + 1
        assert rig.drops(-1) == {}
        if len(written) == packets:  # nothing was joined
            assert size == sum(len(packet) for _, packet in written)


def test_outbound_multicast_is_dropped() -> None:
    with Rig() as rig:
        rig.add_peer()
        for destination in ("224.0.0.251", "239.1.1.1", "255.255.255.255", "ff02::fb", "ff0e::1"):
            version = 6 if ":" in destination else 4
            rig.outbound(ip(version, src=OURS[version], dst=destination) / udp(b"x"))
        assert rig.drops(-1) == {"multicast": 5}
        assert rig.take() == []
