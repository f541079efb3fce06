"""The pcapng writer against scapy's reader, the line on a packet, and filters that are none."""

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet as Layers
from scapy.utils import RawPcapReader

from tunnel.diagnostics import pcapng
from tunnel.diagnostics.packet_summary import summarize
from tunnel.errors import ConfigError
from tunnel.linux import bpf
from tunnel.linux.bpf import ETHERNET, RAW
from tunnel.linux.packet_socket import CaptureInterface, Packet
from tunnel.protocol import control_frames
from tunnel.types import ANY_VTEP_MAC

ETH0 = CaptureInterface("eth0", ETHERNET)
TUN = CaptureInterface("tunnel1", RAW)
NOON = 1_700_000_000_123_456_789


def read(content: bytes) -> list[tuple[bytes, Any]]:
    return list(RawPcapReader(io.BytesIO(content)))  # type: ignore[arg-type]  # takes files, too


@given(st.lists(st.tuples(st.binary(max_size=70), st.integers(0, 1), st.booleans()), max_size=5))
def test_scapy_reads_what_is_written(passed: list[tuple[bytes, int, bool]]) -> None:
    interfaces = [ETH0, TUN]
    content = pcapng.header("tunnel 1.0")
    content += b"".join(pcapng.interface(one, filtered="udp") for one in interfaces)
    for i, (data, number, outbound) in enumerate(passed):
        content += pcapng.packet(number, Packet(interfaces[number], NOON + i, outbound, data))
    content += pcapng.statistics(0, time=NOON, received=7, dropped=2)
    found = read(content) if passed else []
    assert len(found) == len(passed)
    for i, ((data, about), (written, number, outbound)) in enumerate(
        zip(found, passed, strict=True)
    ):
        assert data == written
        assert about.linktype == interfaces[number].link
        assert about.ifname == interfaces[number].name.encode()
        assert about.wirelen == len(written)
        assert about.direction == (2 if outbound else 1)
        assert about.tsresol == 10**9
        assert (about.tshigh << 32) + about.tslow == NOON + i


def test_a_super_packet_is_whole() -> None:
    data = bytes(range(256)) * 256
    content = pcapng.header("") + pcapng.interface(TUN)
    content += pcapng.packet(0, Packet(TUN, NOON, True, data))
    # scapy itself stops at 65,535 bytes.
    ((found, about),) = read(content)
    assert (found, about.wirelen) == (data[:65535], 65536)


def line(packet: Layers, *, interface: CaptureInterface = TUN) -> str:
    return summarize(Packet(interface, NOON, True, bytes(packet)))


FOUR, SIX = IP(src="10.1.0.1", dst="10.2.0.1"), IPv6(src="fd00::1", dst="fd00::2")


@pytest.mark.parametrize(
    ("packet", "says"),
    [
        (FOUR / TCP(sport=22, dport=4711, flags="SA"), "10.1.0.1.22 > 10.2.0.1.4711: tcp [S.], 40"),
        (SIX / TCP(sport=22, dport=4711, flags="FPA"), "fd00::1.22 > fd00::2.4711: tcp [FP.], 60"),
        (FOUR / UDP(sport=53, dport=5353) / b"x", "10.1.0.1.53 > 10.2.0.1.5353: udp, 29"),
        (FOUR / ICMP(), "10.1.0.1 > 10.2.0.1: icmp echo request, 28"),
        (SIX / ICMPv6EchoRequest(), "fd00::1 > fd00::2: icmp6 echo request, 48"),
        (IP(src="10.1.0.1", dst="10.2.0.1", proto=47), "10.1.0.1 > 10.2.0.1: protocol 47, 20"),
        (
            IP(src="10.1.0.1", dst="10.2.0.1", proto=17, frag=9) / bytes(9),
            "10.1.0.1 > 10.2.0.1: later fragment, 29",
        ),
    ],
)
def test_a_line_on_a_packet(packet: Layers, says: str) -> None:
    assert line(packet) == f"{says} bytes"


# Without addresses scapy asks the network for them, and without flags it sends VXLAN-GPE.
ETHER = Ether(src="02:00:5e:00:53:02", dst="02:00:5e:00:53:01")
VNI_7 = VXLAN(flags="Instance", vni=7)


def outer(content: bytes | Layers) -> Layers:
    return ETHER / IP(src="192.0.2.1", dst="192.0.2.2") / UDP(sport=40000, dport=8472) / content


def test_the_summary_of_an_encapsulated_packet() -> None:
    said = line(outer(VNI_7 / ETHER / FOUR / ICMP()), interface=ETH0)
    assert said == (
        "192.0.2.1.40000 > 192.0.2.2.8472: "
        "vni 7 (10.1.0.1 > 10.2.0.1: icmp echo request, 28 bytes), 78 bytes"
    )
    mac = ANY_VTEP_MAC
    echo = control_frames.encode(
        control_frames.EchoRequest(5, 8472), vni=7, source=mac, destination=mac
    )
    said = line(outer(echo), interface=ETH0)
    assert f"vni 7 (control echo, {len(echo) - 22} bytes)" in said
    assert "malformed control frame" in line(outer(echo[:22] + b"\xc1"), interface=ETH0)
    assert ": udp, " in line(outer(b"no vxlan"), interface=ETH0)
    assert line(ETHER / ARP(), interface=ETH0) == "ethertype 0x0806, 42 bytes"


@given(st.binary(max_size=100), st.sampled_from([ETH0, TUN]))
def test_any_bytes_have_a_line(data: bytes, interface: CaptureInterface) -> None:
    assert summarize(Packet(interface, NOON, False, data)).endswith(" bytes")


@given(st.integers(0, 120), st.sampled_from([4, 6]))
def test_any_packet_cut_anywhere_has_a_line(size: int, version: int) -> None:
    whole = bytes(outer(VNI_7 / ETHER / (FOUR if version == 4 else SIX) / TCP()))
    summarize(Packet(ETH0, NOON, False, whole[:size]))


def test_filters_that_are_none() -> None:
    assert len(bpf.compile_filter("icmp or udp port 53", link=RAW)) % 8 == 0
    with pytest.raises(ConfigError, match=r"filter 'frob': .*syntax error.* \(see pcap-filter"):
        bpf.compile_filter("frob", link=ETHERNET)
    with pytest.raises(ConfigError, match="rejects all packets"):
        bpf.compile_filter("udp and (port 8472) and (tcp)", link=ETHERNET)


def test_without_libpcap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpf, "_LIBPCAP", ("libnowhere.so",))
    with pytest.raises(ConfigError, match=r"apt-get install libpcap0\.8"):
        bpf.compile_filter("icmp", link=RAW)


def test_a_program_is_never_too_long() -> None:
    """linux/filter.h: 4,096 instructions of 8 bytes."""
    assert len(bpf.port_filter(range(1, 3000), link=ETHERNET)) <= 8 * 4096


def test_a_file_says_its_filter() -> None:
    assert b"\0icmp" in pcapng.interface(ETH0, filtered="icmp")
