"""ICMP errors about packets without a route: RFC 792, RFC 1122, RFC 1812, RFC 4443."""

import time

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    IPv6ExtHdrFragment,
)
from scapy.packet import Packet, Raw

from .rig import Rig
from .wire import (
    NEEDS_CSUM,
    NO_OFFLOAD,
    OURS,
    TCP4,
    TCP_CHECK,
    Vnet,
    dissect,
    ip,
    tcp,
    udp,
    verifies,
)

NOWHERE = {4: "192.0.2.9", 6: "2001:db8::9"}
BURST = 50


def lost(version: int, **fields: str) -> Packet:
    return ip(version, **({"src": OURS[version], "dst": NOWHERE[version]} | fields))


def answer(packet: Packet | bytes, vnet: Vnet = NO_OFFLOAD, *, with_header: bool = True) -> bytes:
    """Returns the one ICMP error about a packet without a route."""
    with Rig(vnet=with_header) as rig:
        rig.add_peer()
        rig.put(packet, vnet)
        rig.outbound()
        [(header, message)] = rig.writes()
        assert header == NO_OFFLOAD
        assert rig.drops(-1) == {"no_route": 1}
        assert rig.work()["icmp_sent"] == 1
        return message


@pytest.mark.parametrize("with_header", [True, False])
@pytest.mark.parametrize("length", [0, 1, 100, 519, 520, 521, 1400, 9000])
def test_host_unreachable(length: int, with_header: bool) -> None:
    """Its source is the address that could not be reached: the kernel drops a packet with one of
    the host's own addresses as a martian."""
    packet = bytes(lost(4) / udp(bytes(length)))
    message = answer(packet, with_header=with_header)
    parsed = dissect(message)
    assert verifies(message)
    assert (parsed.src, parsed.dst, parsed.tos, parsed.ttl) == (NOWHERE[4], OURS[4], 0xC0, 64)
    assert (parsed[ICMP].type, parsed[ICMP].code) == (3, 1)
    assert message[24:28] == bytes(4)
    assert message[28:] == packet[:548]
    assert len(message) <= 576


@pytest.mark.parametrize("length", [0, 1, 100, 1183, 1184, 1185, 9000])
def test_address_unreachable(length: int) -> None:
    packet = bytes(lost(6) / udp(bytes(length)))
    message = answer(packet)
    parsed = dissect(message)
    assert verifies(message)
    assert (parsed.src, parsed.dst, parsed.hlim) == (NOWHERE[6], OURS[6], 64)
    assert parsed[ICMPv6DestUnreach].code == 3
    assert message[44:48] == bytes(4)
    assert message[48:] == packet[:1232]
    assert len(message) <= 1280


def test_a_super_packet_gets_one_error() -> None:
    packet = lost(4) / tcp(bytes(60000))
    message = answer(packet, Vnet(NEEDS_CSUM, TCP4, 40, 1400, 20, TCP_CHECK))
    assert message[28:] == bytes(packet)[:548]


@pytest.mark.parametrize("kind", [0, 8, 13, 14])
def test_icmp_queries_get_errors(kind: int) -> None:
    assert dissect(answer(lost(4) / ICMP(type=kind)))[ICMP].type == 3


def test_icmpv6_queries_get_errors() -> None:
    assert ICMPv6DestUnreach in dissect(answer(lost(6) / ICMPv6EchoRequest()))


def test_the_first_fragment_gets_an_error() -> None:
    packet = IP(src=OURS[4], dst=NOWHERE[4], flags="MF") / udp(bytes(64))
    assert dissect(answer(packet))[ICMP].type == 3


@pytest.mark.parametrize("inner", [udp(bytes(64)), tcp(bytes(64)), ICMPv6EchoRequest()])
def test_the_first_fragment_of_ipv6_gets_an_error(inner: Packet) -> None:
    """Its sender would not learn the MTU otherwise."""
    packet = lost(6) / IPv6ExtHdrFragment(m=1) / inner
    assert ICMPv6DestUnreach in dissect(answer(packet))


SILENT: list[tuple[str, Packet]] = [
    ("destination unreachable", lost(4) / ICMP(type=3) / Raw(bytes(28))),
    ("source quench", lost(4) / ICMP(type=4) / Raw(bytes(28))),
    ("redirect", lost(4) / ICMP(type=5) / Raw(bytes(28))),
    ("time exceeded", lost(4) / ICMP(type=11) / Raw(bytes(28))),
    ("parameter problem", lost(4) / ICMP(type=12) / Raw(bytes(28))),
    ("ICMP of an unknown type", lost(4) / ICMP(type=200)),
    ("ICMP without a type", IP(src=OURS[4], dst=NOWHERE[4], proto=1)),
    ("a later fragment", IP(src=OURS[4], dst=NOWHERE[4], frag=1, proto=17) / Raw(bytes(64))),
    ("source 0.0.0.0", lost(4, src="0.0.0.0") / udp(b"x")),
    ("loopback source", lost(4, src="127.0.0.1") / udp(b"x")),
    ("multicast source", lost(4, src="224.0.0.1") / udp(b"x")),
    ("class E source", lost(4, src="255.255.255.255") / udp(b"x")),
    ("ICMPv6 unreachable", lost(6) / ICMPv6DestUnreach() / Raw(bytes(48))),
    ("ICMPv6 too big", lost(6) / ICMPv6PacketTooBig() / Raw(bytes(48))),
    ("a later fragment of IPv6", lost(6) / IPv6ExtHdrFragment(offset=1, nh=17) / Raw(bytes(64))),
    ("a fragment of ICMPv6 too big", lost(6) / IPv6ExtHdrFragment(m=1) / ICMPv6PacketTooBig()),
    ("a fragment of unknown content", lost(6) / IPv6ExtHdrFragment(m=1, nh=60) / Raw(bytes(64))),
    (
        "half a fragment header",
        lost(6).__class__(src=OURS[6], dst=NOWHERE[6], nh=44) / Raw(b"\x11"),
    ),
    ("ICMPv6 without a type", lost(6).__class__(src=OURS[6], dst=NOWHERE[6], nh=58)),
    ("source ::", lost(6, src="::") / udp(b"x")),
    ("IPv6 multicast source", lost(6, src="ff02::1") / udp(b"x")),
]


@pytest.mark.parametrize("packet", [pytest.param(packet, id=name) for name, packet in SILENT])
def test_packets_that_must_not_get_errors(packet: Packet) -> None:
    """RFC 1122, 3.2.2; RFC 4443, 2.4 (e)."""
    with Rig() as rig:
        rig.add_peer()
        rig.outbound(packet)
        assert rig.take() == []
        assert rig.drops(-1) == {"no_route": 1}
        assert rig.work()["icmp_sent"] == 0


@pytest.mark.parametrize("destination", ["224.0.0.251", "255.255.255.255", "ff02::1"])
def test_multicast_never_gets_errors(destination: str) -> None:
    with Rig() as rig:
        rig.add_peer()
        rig.outbound(lost(6 if ":" in destination else 4, dst=destination) / udp(b"x"))
        assert rig.take() == []


def test_errors_are_rate_limited() -> None:
    """A burst of 50, then 100 per second; all drops are counted."""
    with Rig() as rig:
        rig.add_peer()
        packet = bytes(lost(4) / udp(b"x"))
        start = time.monotonic()
        for _ in range(200):
            rig.outbound(packet)
        elapsed = time.monotonic() - start
        sent = len(rig.take())
        assert BURST <= sent <= BURST + 1 + elapsed * 100
        assert rig.work()["icmp_sent"] == sent
        assert rig.drops(-1) == {"no_route": 200}
        time.sleep(0.05)
        rig.outbound(packet)
        assert len(rig.take()) == 1


def test_packets_without_errors_do_not_count_towards_the_limit() -> None:
    with Rig() as rig:
        rig.add_peer()
        for _ in range(3 * BURST):
            rig.outbound(lost(4) / ICMP(type=3) / Raw(bytes(28)))
        rig.outbound(lost(4) / udp(b"x"))
        assert len(rig.take()) == 1
