"""ARP and NDP messages, compared with scapy's."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from tunnel.protocol import arp
from tunnel.types import Address, Mac

OURS, THEIRS = Mac.parse("02:00:5e:00:53:01"), Mac.parse("02:00:5e:00:53:02")


def ip(text: str) -> Address:
    return ipaddress.ip_address(text)


def parsed(packet: Packet) -> tuple[str, str] | None:
    ethertype = arp.ARP if ARP in packet else arp.IPV6
    said = arp.parse(ethertype, bytes(packet))
    return None if said is None else (str(said[0]), str(said[1]))


@pytest.mark.parametrize("op", ["who-has", "is-at"])
def test_arp_tells_of_its_sender(op: str) -> None:
    packet = ARP(op=op, hwsrc=str(THEIRS), psrc="10.9.0.2", pdst="10.9.0.1")
    assert parsed(packet) == ("10.9.0.2", str(THEIRS))


def test_arp_probes_tell_nothing() -> None:
    assert parsed(ARP(op="who-has", hwsrc=str(THEIRS), psrc="0.0.0.0", pdst="10.9.0.1")) is None
    assert parsed(ARP(op="is-at", hwsrc="ff:ff:ff:ff:ff:ff", psrc="10.9.0.2")) is None


def test_a_solicitation_tells_of_its_source() -> None:
    option = ICMPv6NDOptSrcLLAddr(lladdr=str(THEIRS))
    packet = IPv6(src="fd09::2", dst="ff02::1:ff00:1") / ICMPv6ND_NS(tgt="fd09::1")
    assert parsed(packet / option) == ("fd09::2", str(THEIRS))
    assert parsed(packet) is None
    packet[IPv6].src = "::"
    assert parsed(packet / option) is None


def test_an_advertisement_tells_of_its_target() -> None:
    packet = IPv6(src="fe80::2", dst="fd09::1") / ICMPv6ND_NA(tgt="fd09::2")
    assert parsed(packet / ICMPv6NDOptDstLLAddr(lladdr=str(THEIRS))) == ("fd09::2", str(THEIRS))
    assert parsed(packet) is None


@given(st.sampled_from([arp.ARP, arp.IPV6]), st.binary(max_size=120))
def test_any_bytes_are_a_message_or_none(ethertype: int, body: bytes) -> None:
    arp.parse(ethertype, body)


@pytest.mark.parametrize("source", [None, "10.9.0.1"])
def test_arp_asks_as_scapy_would(source: str | None) -> None:
    destination, ethertype, body = arp.solicit(
        ip("10.9.0.2"), source=ip(source) if source else None, mac=OURS
    )
    wanted = ARP(
        op="who-has",
        hwsrc=str(OURS),
        psrc=source or "0.0.0.0",
        hwdst="00:00:00:00:00:00",
        pdst="10.9.0.2",
    )
    assert (destination, ethertype) == (b"\xff" * 6, 0x0806)
    assert body == bytes(wanted)


@pytest.mark.parametrize("target", ["fd09::2", "2001:db8:1:2:3:4:5678:9abc"])
@pytest.mark.parametrize("source", [None, "fd09::1"])
def test_ndp_asks_as_scapy_would(source: str | None, target: str) -> None:
    destination, ethertype, body = arp.solicit(
        ip(target), source=ip(source) if source else None, mac=OURS
    )
    group = f"ff02::1:ff{ip(target).packed[13]:02x}:{ip(target).packed[14:].hex()}"
    wanted = (
        IPv6(src=source or "fe80::5eff:fe00:5301", dst=group, hlim=255)
        / ICMPv6ND_NS(tgt=target)
        / ICMPv6NDOptSrcLLAddr(lladdr=str(OURS))
    )
    assert ethertype == 0x86DD
    assert destination == bytes(Ether(dst="33:33:ff:00:00:00"))[:3] + ip(target).packed[13:]
    assert body == bytes(wanted)
