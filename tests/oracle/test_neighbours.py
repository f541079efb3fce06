"""
ARP and NDP, in both modes: which requests are answered, with replies like those of scapy; which
messages are queued for Python; which are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet

from tunnel._native import Fdb

from .rig import Rig, packed
from .wire import ANY_MAC, NO_OFFLOAD, OUR_MAC, OURS, PEER_MAC, THEIRS

US, THEM = OUR_MAC.hex(":"), PEER_MAC.hex(":")
BROADCAST, NOBODY = "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"
LINK_LOCAL = "fe80::b"
ALL_NODES, ALL_NODES_MAC = "ff02::1", "33:33:00:00:00:01"
SOLICITED, SOLICITED_MAC = "ff02::1:ff00:1", "33:33:ff:00:00:01"


def request(*, target: str, source: str, mac: str, to: str = BROADCAST) -> Packet:
    return Ether(dst=to, src=mac) / ARP(op=1, hwsrc=mac, psrc=source, hwdst=NOBODY, pdst=target)


def reply(*, target: str, mac: str, to: str, asker: str) -> Packet:
    return Ether(dst=to, src=mac) / ARP(op=2, hwsrc=mac, psrc=target, hwdst=to, pdst=asker)


def solicitation(
    *, target: str, source: str, mac: str, to: str = SOLICITED_MAC, group: str = SOLICITED
) -> Packet:
    asked = Ether(dst=to, src=mac) / IPv6(src=source, dst=group, hlim=255) / ICMPv6ND_NS(tgt=target)
    return asked if source == "::" else asked / ICMPv6NDOptSrcLLAddr(lladdr=mac)


def advertisement(*, target: str, mac: str, to: str, asker: str) -> Packet:
    solicited = asker != ALL_NODES
    return (
        Ether(dst=to, src=mac)
        / IPv6(src=target, dst=asker, hlim=255)
        / ICMPv6ND_NA(R=0, S=solicited, O=1, tgt=target)
        / ICMPv6NDOptDstLLAddr(lladdr=mac)
    )


def wrapped(frame: Packet | bytes) -> bytes:
    return bytes(VXLAN(flags=0x08, vni=1)) + bytes(frame)


# ---- TUN: peers ask for us ----


@pytest.fixture
def tun() -> Iterator[Rig]:
    with Rig() as rig:
        rig.add_peer()
        rig.forwarder.set_neighbours([(packed(OURS[version]), OUR_MAC) for version in (4, 6)])
        yield rig


QUESTIONS = {
    "arp": (
        request(target=OURS[4], source=THEIRS[4], mac=THEM),
        reply(target=OURS[4], mac=US, to=THEM, asker=THEIRS[4]),
    ),
    "arp, unicast": (
        request(target=OURS[4], source=THEIRS[4], mac=THEM, to=US),
        reply(target=OURS[4], mac=US, to=THEM, asker=THEIRS[4]),
    ),
    "arp, any VTEP": (
        request(target=OURS[4], source=THEIRS[4], mac=THEM, to=ANY_MAC.hex(":")),
        reply(target=OURS[4], mac=US, to=THEM, asker=THEIRS[4]),
    ),
    "arp probe": (
        request(target=OURS[4], source="0.0.0.0", mac=THEM),
        reply(target=OURS[4], mac=US, to=THEM, asker="0.0.0.0"),
    ),
    "ns": (
        solicitation(target=OURS[6], source=THEIRS[6], mac=THEM),
        advertisement(target=OURS[6], mac=US, to=THEM, asker=THEIRS[6]),
    ),
    "ns, link-local": (
        solicitation(target=OURS[6], source=LINK_LOCAL, mac=THEM),
        advertisement(target=OURS[6], mac=US, to=THEM, asker=LINK_LOCAL),
    ),
    "ns, unicast": (
        solicitation(target=OURS[6], source=THEIRS[6], mac=THEM, to=US, group=OURS[6]),
        advertisement(target=OURS[6], mac=US, to=THEM, asker=THEIRS[6]),
    ),
    "dad": (
        solicitation(target=OURS[6], source="::", mac=THEM),
        advertisement(target=OURS[6], mac=US, to=ALL_NODES_MAC, asker=ALL_NODES),
    ),
}


@pytest.mark.parametrize("case", QUESTIONS)
def test_requests_of_peers_are_answered(tun: Rig, case: str) -> None:
    question, answer = QUESTIONS[case]
    peer = tun.peers[0]
    peer.send(wrapped(question))
    assert tun.inbound() == []
    assert peer.take() == [wrapped(answer)]
    assert (tun.drops(-1), tun.drops(0)) == ({}, {})
    assert (tun.work()["neighbours_heard"], tun.work()["neighbour_answers"]) == (1, 1)
    # Not counted as packets: the peer counts neither as such.
    assert tun.counters(0)[:4] == (0, 0, 0, 0)


def message_of(frame: Packet, *, size: int | None = None) -> tuple[int, bytes, int, bytes, bytes]:
    """The queued message for a frame from the first peer."""
    raw = bytes(frame)
    kind = int.from_bytes(raw[12:14], "big")
    return (0, packed("127.0.7.2"), kind, raw[6:12], raw[14:][:size])


SIGHTINGS = {
    "arp request": request(target=OURS[4], source=THEIRS[4], mac=THEM),
    "arp reply": reply(target=THEIRS[4], mac=THEM, to=US, asker=OURS[4]),
    "gratuitous arp": request(target=THEIRS[4], source=THEIRS[4], mac=THEM),
    "ns": solicitation(target=OURS[6], source=THEIRS[6], mac=THEM),
    "na": advertisement(target=THEIRS[6], mac=THEM, to=US, asker=OURS[6]),
    "unsolicited na": advertisement(target=THEIRS[6], mac=THEM, to=ALL_NODES_MAC, asker=ALL_NODES),
}


@pytest.mark.parametrize("case", SIGHTINGS)
def test_messages_that_tell_a_mac_are_queued(tun: Rig, case: str) -> None:
    frame = SIGHTINGS[case]
    tun.peers[0].send(wrapped(frame) + bytes(18))
    assert tun.forwarder.move()
    assert tun.forwarder.take_control_messages() == [message_of(frame)]


@pytest.mark.parametrize("case", ["arp probe", "dad"])
def test_messages_without_a_sender_address_are_not_queued(tun: Rig, case: str) -> None:
    tun.peers[0].send(wrapped(QUESTIONS[case][0]))
    assert not tun.forwarder.move()


def test_copies_leave_space_for_control_frames(tun: Rig) -> None:
    control = Ether(dst=US, src=THEM, type=0x88B5) / b"control"
    for _ in range(200):
        tun.peers[0].send(wrapped(SIGHTINGS["arp reply"]))
        tun.inbound()
    tun.peers[0].send(wrapped(control))
    tun.inbound()
    kinds = [kind for _, _, kind, _, _ in tun.forwarder.take_control_messages()]
    assert kinds == [0x0806] * 128 + [0x88B5]
    assert tun.drops(0) == {}


def test_a_flood_from_one_peer_leaves_space_for_others(tun: Rig) -> None:
    other = tun.add_peer(address="127.0.7.9")
    control = wrapped(Ether(dst=US, src=THEM, type=0x88B5) / b"control")
    for _ in range(300):
        tun.peers[0].send(control)
        tun.inbound()
    other.send(control)
    tun.inbound()
    assert [sender for sender, *_ in tun.forwarder.take_control_messages()] == [0] * 256 + [1]
    assert tun.drops(0) == {"control_full": 44}
    assert tun.drops(1) == {}


NOT_ANSWERED = {
    "unknown target": request(target="10.0.0.77", source=THEIRS[4], mac=THEM),
    "gratuitous": request(target=OURS[4], source=OURS[4], mac=THEM),
    "a reply": reply(target=OURS[4], mac=THEM, to=US, asker=THEIRS[4]),
    "ns for an unknown target": solicitation(target="fd00::77", source=THEIRS[6], mac=THEM),
}


@pytest.mark.parametrize("case", NOT_ANSWERED)
def test_requests_for_other_targets_are_not_answered(tun: Rig, case: str) -> None:
    tun.peers[0].send(wrapped(NOT_ANSWERED[case]))
    assert tun.inbound() == []
    assert tun.peers[0].take(0) == []
    assert tun.work()["neighbours_heard"] == 1


def broken(frame: Packet, at: int, value: int) -> bytes:
    raw = bytearray(bytes(frame))
    raw[at] = value
    return bytes(raw)


ARP_ONE, NS_ONE = QUESTIONS["arp"][0], QUESTIONS["ns"][0]
REFUSED: dict[str, tuple[Packet | bytes, str]] = {
    "arp, cut": (bytes(ARP_ONE)[:-1], "bad_neighbour"),
    "arp from a group": (broken(ARP_ONE, 22, 1), "bad_neighbour"),
    "arp from multicast": (broken(ARP_ONE, 28, 224), "bad_neighbour"),
    "arp for multicast": (broken(ARP_ONE, 38, 224), "bad_neighbour"),
    "arp, frame from a group": (broken(ARP_ONE, 6, 3), "bad_neighbour"),
    "arp for frame relay": (broken(ARP_ONE, 15, 15), "ethertype"),
    "rarp": (broken(ARP_ONE, 21, 3), "ethertype"),
    "arp, tagged": (
        bytes(Ether(dst=BROADCAST, src=THEM) / Dot1Q(vlan=3) / ARP_ONE[ARP]),
        "ethertype",
    ),
    "arp for another VTEP": (broken(ARP_ONE, 0, 2), "ethertype"),
    "arp from another's address": (
        request(target=OURS[4], source="10.0.2.1", mac=THEM),
        "spoofed",
    ),
    "ns, wrong sum": (broken(NS_ONE, 56, 1), "bad_neighbour"),
    "ns, cut": (
        Ether(dst=SOLICITED_MAC, src=THEM)
        / IPv6(src=THEIRS[6], dst=SOLICITED, hlim=255, nh=58)
        / bytes.fromhex("870000000000"),
        "bad_neighbour",
    ),
    "ns from another's address": (
        solicitation(target=OURS[6], source="fd00:2::1", mac=THEM),
        "spoofed",
    ),
    "ns, routed": (
        Ether(dst=SOLICITED_MAC, src=THEM)
        / IPv6(src=THEIRS[6], dst=SOLICITED, hlim=254)
        / ICMPv6ND_NS(tgt=OURS[6]),
        "group_mac",
    ),
    "dad with a source MAC": (
        Ether(dst=SOLICITED_MAC, src=THEM)
        / IPv6(src="::", dst=SOLICITED, hlim=255)
        / ICMPv6ND_NS(tgt=OURS[6])
        / ICMPv6NDOptSrcLLAddr(lladdr=THEM),
        "bad_neighbour",
    ),
    "dad to one": (
        Ether(dst=US, src=THEM) / IPv6(src="::", dst=OURS[6], hlim=255) / ICMPv6ND_NS(tgt=OURS[6]),
        "bad_neighbour",
    ),
    "ns for a group": (
        solicitation(target="ff02::1", source=THEIRS[6], mac=THEM),
        "bad_neighbour",
    ),
    "na to all that says solicited": (
        Ether(dst=ALL_NODES_MAC, src=THEM)
        / IPv6(src=THEIRS[6], dst=ALL_NODES, hlim=255)
        / ICMPv6ND_NA(S=1, tgt=THEIRS[6]),
        "bad_neighbour",
    ),
    "an option of no length": (
        Ether(dst=SOLICITED_MAC, src=THEM)
        / IPv6(src=THEIRS[6], dst=SOLICITED, hlim=255)
        / ICMPv6ND_NS(tgt=OURS[6])
        / bytes(8),
        "bad_neighbour",
    ),
    "an option too long": (
        Ether(dst=SOLICITED_MAC, src=THEM)
        / IPv6(src=THEIRS[6], dst=SOLICITED, hlim=255)
        / ICMPv6ND_NS(tgt=OURS[6])
        / bytes([1, 2, *bytes(6)]),
        "bad_neighbour",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_invalid_messages_are_dropped(tun: Rig, case: str) -> None:
    frame, reason = REFUSED[case]
    tun.add_peer(address="127.0.7.9")
    tun.peers[0].send(wrapped(frame))
    assert tun.inbound() == []
    assert tun.peers[0].take(0) == []
    assert tun.drops(0) == {reason: 1}
    assert tun.forwarder.take_control_messages() == []


def test_routed_icmp_is_a_packet(tun: Rig) -> None:
    """Type 135 with a smaller hop limit, and type 128 with hop limit 255, are not NDP."""
    for inner in (
        IPv6(src=THEIRS[6], dst=OURS[6], hlim=254) / ICMPv6ND_NS(tgt=OURS[6]),
        IPv6(src=THEIRS[6], dst=OURS[6], hlim=255, nh=58) / bytes.fromhex("8000fe7f00000000"),
    ):
        tun.peers[0].send(wrapped(Ether(dst=US, src=THEM) / inner))
        assert tun.inbound() == [(NO_OFFLOAD, bytes(inner))]


def test_the_reply_goes_to_the_right_peer_at_one_address() -> None:
    with Rig() as rig:
        rig.forwarder.set_neighbours([(packed(OURS[4]), OUR_MAC)])
        macs = [f"02:00:00:00:0e:{n:02x}" for n in range(3)]
        peers = [
            rig.add_peer(address="127.0.7.9", mac=bytes.fromhex(mac.replace(":", "")))
            for mac in macs
        ]
        by_prefix = request(target=OURS[4], source="10.0.2.1", mac=THEM)
        by_mac = request(target=OURS[4], source="192.0.2.1", mac=macs[2])
        for number, question in ((1, by_prefix), (2, by_mac)):
            peers[0].send(wrapped(question))
            rig.inbound()
            assert len(peers[number].take()) == 1
            assert [one[0] for one in rig.forwarder.take_control_messages()] == [number]
        assert peers[0].take(0) == []


# ---- TAP: the device asks for peers ----


@pytest.fixture
def tap() -> Iterator[Rig]:
    with Rig(fdb=Fdb(limit=100, share=100, ageing=300)) as rig:
        rig.add_peer()
        rig.forwarder.set_neighbours([(packed(THEIRS[version]), PEER_MAC) for version in (4, 6)])
        yield rig


LOCAL = {
    "arp": (
        request(target=THEIRS[4], source=OURS[4], mac=US),
        reply(target=THEIRS[4], mac=THEM, to=US, asker=OURS[4]),
    ),
    "arp probe": (
        request(target=THEIRS[4], source="0.0.0.0", mac=US),
        reply(target=THEIRS[4], mac=THEM, to=US, asker="0.0.0.0"),
    ),
    "ns": (
        solicitation(target=THEIRS[6], source=OURS[6], mac=US),
        advertisement(target=THEIRS[6], mac=THEM, to=US, asker=OURS[6]),
    ),
    "dad": (
        solicitation(target=THEIRS[6], source="::", mac=US),
        advertisement(target=THEIRS[6], mac=THEM, to=ALL_NODES_MAC, asker=ALL_NODES),
    ),
}


@pytest.mark.parametrize("flood", [True, False])
@pytest.mark.parametrize("case", LOCAL)
def test_known_targets_are_answered_here(case: str, flood: bool) -> None:
    question, answer = LOCAL[case]
    with Rig(fdb=Fdb(limit=100, share=100, ageing=300), flood=flood) as rig:
        peer = rig.add_peer()
        rig.forwarder.set_neighbours([(packed(THEIRS[version]), PEER_MAC) for version in (4, 6)])
        rig.outbound(question)
        assert rig.writes() == [(NO_OFFLOAD, bytes(answer))]
        assert peer.take(0) == []
        assert rig.drops(-1) == {}
        assert (rig.work()["neighbour_answers"], rig.work()["neighbour_floods"]) == (1, 0)


FLOODED: dict[str, tuple[Packet | bytes, int]] = {
    "unknown target": (request(target="10.0.1.77", source=OURS[4], mac=US), 1),
    "gratuitous": (request(target=THEIRS[4], source=THEIRS[4], mac=US), 0),
    "whose address it is": (request(target=THEIRS[4], source="0.0.0.0", mac=THEM), 1),
    "in a VLAN": (
        Ether(dst=BROADCAST, src=US)
        / Dot1Q(vlan=3)
        / ARP(op=1, hwsrc=US, psrc=OURS[4], pdst=THEIRS[4]),
        0,
    ),
    "ns for an unknown target": (solicitation(target="fd00:1::77", source=OURS[6], mac=US), 1),
    "not arp": (broken(LOCAL["arp"][0], 15, 15), 0),
}


@pytest.mark.parametrize("case", FLOODED)
def test_other_requests_are_flooded(tap: Rig, case: str) -> None:
    frame, floods = FLOODED[case]
    tap.outbound(frame)
    assert tap.writes() == []
    assert tap.peers[0].take() == [wrapped(frame)]
    assert (tap.work()["neighbour_answers"], tap.work()["neighbour_floods"]) == (0, floods)


@pytest.mark.parametrize("case", SIGHTINGS)
def test_messages_of_peers_pass_and_are_queued(tap: Rig, case: str) -> None:
    frame = SIGHTINGS[case]
    tap.peers[0].send(wrapped(frame))
    assert tap.inbound() == [(NO_OFFLOAD, bytes(frame))]
    assert tap.forwarder.take_control_messages() == [message_of(frame)]
    assert tap.peers[0].take(0) == []


@pytest.mark.parametrize("case", ["arp", "dad"])
def test_requests_of_peers_go_to_the_kernel(tap: Rig, case: str) -> None:
    tap.forwarder.set_neighbours([(packed(OURS[version]), OUR_MAC) for version in (4, 6)])
    tap.peers[0].send(wrapped(QUESTIONS[case][0]))
    assert tap.inbound() == [(NO_OFFLOAD, bytes(QUESTIONS[case][0]))]
    assert tap.peers[0].take(0) == []


def behind(tags: str, frame: Packet) -> bytes:
    raw = bytes(frame)
    return raw[:12] + bytes.fromhex(tags) + raw[12:]


LIE = request(target=OURS[4], source="10.0.2.1", mac=THEM)
ANOTHERS: dict[str, Packet | bytes] = {
    "arp": LIE,
    "arp, as for IEEE 802 networks": broken(LIE, 15, 6),
    "arp, with a priority": behind("8100e000", LIE),
    "arp, with a provider's priority": behind("88a8e000", LIE),
    "arp, with two": behind("88a8e0008100e000", LIE),
    "arp, with many": behind("8100e000" * 300, LIE),
    "a packet, with two": behind("81000000" * 2, Ether(dst=US, src=THEM) / IP(src="10.0.2.1")),
    "na": advertisement(target="fd00:2::1", mac=THEM, to=US, asker=OURS[6]),
    **{
        f"na behind {name}": (
            Ether(dst=US, src=THEM)
            / IPv6(src=LINK_LOCAL, dst=OURS[6], hlim=255)
            / header
            / ICMPv6ND_NA(R=0, tgt="fd00:2::1")
            / ICMPv6NDOptDstLLAddr(lladdr=THEM)
        )
        for name, header in {
            "hop-by-hop options": IPv6ExtHdrHopByHop(),
            "long options": IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(20))]),
            "routing": IPv6ExtHdrRouting(),
            "two headers": IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt(),
        }.items()
    },
}
"""Messages that Linux parses like the first one."""


@pytest.mark.parametrize("case", ANOTHERS)
def test_messages_about_another_peers_address_are_dropped(tap: Rig, case: str) -> None:
    tap.add_peer(address="127.0.7.9")
    tap.peers[0].send(wrapped(ANOTHERS[case]))
    assert tap.inbound() == []
    assert tap.drops(0) == {"spoofed": 1}


@pytest.mark.parametrize("case", [case for case, (_, why) in REFUSED.items() if "bad" in why])
def test_invalid_messages_are_dropped_in_tap_mode(tap: Rig, case: str) -> None:
    tap.peers[0].send(wrapped(REFUSED[case][0]))
    assert tap.inbound() == []
    assert tap.drops(0) == {"bad_neighbour": 1}


def test_only_the_last_priority_tag_stays(tap: Rig) -> None:
    question = QUESTIONS["arp"][0]
    for tags, rest in (("88a8e0008100e000", "8100e000"), ("81000000" * 3 + "88a80003", "88a80003")):
        tap.peers[0].send(wrapped(behind(tags, question)))
        assert tap.inbound() == [(NO_OFFLOAD, behind(rest, question))]
    tap.peers[0].send(wrapped(behind("81000000", question)[:14] + bytes.fromhex("00008100")))
    assert tap.inbound() == []
    assert tap.drops(0) == {"short_frame": 1}
