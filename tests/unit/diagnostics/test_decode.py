"""Explanations of packets: layers, notes, and the verdict of the packet path."""

import io
import json
import sys
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6ND_NS, IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw
from scapy.utils import wrpcap

from tests.unit.cli.test_node_verbs import check
from tunnel._native import DROP_REASONS
from tunnel.cli import main
from tunnel.diagnostics import pcapng
from tunnel.diagnostics.decode import (
    KINDS,
    CapturedPacket,
    Receiver,
    explain_packet,
    read_packets,
)
from tunnel.diagnostics.decode.packet_file import MAGICS
from tunnel.errors import CodecError
from tunnel.linux import bpf, packet_socket
from tunnel.protocol import control_frames
from tunnel.types import ANY_VTEP_MAC, Mac

OURS, THEIRS = Mac.parse("02:00:5e:00:53:01"), Mac.parse("02:00:5e:00:53:02")
ANY = ANY_VTEP_MAC
# Without addresses scapy asks the network for them, and without flags it sends VXLAN-GPE.
ETHER = Ether(src="02:00:5e:00:53:03", dst="02:00:5e:00:53:04")
INNER = IP(src="10.2.0.1", dst="10.1.0.1") / ICMP()
NODE = Receiver(
    vni=1,
    mac=OURS,
    addresses=frozenset({ip_address("192.0.2.1")}),
    owners={ip_address("192.0.2.2"): (ip_network("10.2.0.0/16"),)},
)


def inner(packet: Packet | bytes = INNER, *, vni: int = 1, mac: Mac = ANY) -> Packet:
    return VXLAN(flags="Instance", vni=vni) / Ether(src=str(THEIRS), dst=str(mac)) / packet


def outer(content: Packet | bytes, *, source: str = "192.0.2.2", **words: Any) -> Packet:
    ip = IP(src=source, dst="192.0.2.1", **words)
    return ETHER / ip / UDP(sport=40000, dport=8472) / content


def said(packet: Packet | bytes, *, receiver: Receiver = NODE, kind: str = "ethernet") -> str:
    """The reason of the drop, "accepted", or "" where nothing is checked."""
    verdict = explain_packet(CapturedPacket(bytes(packet), kind), receiver=receiver).verdict
    return "" if verdict is None else verdict.reason or "accepted"


def control(body: bytes, *, mac: Mac = ANY) -> bytes:
    head = control_frames.HEADERS.pack(
        8, 1 << 8, mac.packed, THEIRS.packed, control_frames.ETHERTYPE
    )
    return head + body


ECHO = control_frames.encode(
    control_frames.EchoRequest(5, 8472), vni=1, source=THEIRS, destination=ANY
)

VERDICTS = {
    "all well": (outer(inner()), "accepted"),
    "its own MAC": (outer(inner(mac=OURS)), "accepted"),
    "IPv6 inside": (outer(inner(IPv6(src="fd02::1") / TCP())), "spoofed"),
    "an echo": (outer(ECHO), "accepted"),
    "an echo for another": (
        outer(control(ECHO[22:], mac=Mac.parse("02:00:5e:00:53:09"))),
        "other_mac",
    ),
    "an echo that is none": (outer(control(b"\xc1")), "bad_control"),
    "nobody we know": (outer(inner(), source="192.0.2.9"), "unknown_source"),
    "another's prefix": (outer(inner(IP(src="10.3.0.1") / UDP())), "spoofed"),
    "another VNI": (outer(inner(vni=2)), "other_vni"),
    "another MAC": (outer(inner(mac=Mac.parse("02:00:5e:00:53:09"))), "other_mac"),
    "neither IP nor ARP inside": (outer(inner(bytes(46))), "ethertype"),
    # Which is for the node itself, and not for this to judge.
    "ARP inside": (outer(inner(ARP())), ""),
    "NDP inside": (outer(inner(IPv6(src="fe80::2") / ICMPv6ND_NS())), ""),
    "no VNI": (outer(b"\0" + bytes(inner())[1:]), "no_vni"),
    "nothing inside": (outer(b"\x08\0\0\0"), "short_frame"),
    "cut inside": (outer(bytes(inner())[:-1]), "bad_inner"),
    "congestion mark on a packet without ECN": (outer(inner(), tos=3), "bad_ecn"),
    "no VXLAN": (ETHER / IP() / UDP(sport=1, dport=53) / b"x", ""),
    "no IP": (ETHER / ARP(), ""),
}


@pytest.mark.parametrize("case", VERDICTS)
def test_verdicts(case: str) -> None:
    packet, reason = VERDICTS[case]
    assert said(packet) == reason


BRIDGE = replace(
    NODE,
    bridged=True,
    owners={**(NODE.owners or {}), ip_address("192.0.2.3"): (ip_network("10.3.0.0/16"),)},
)
POD, EVERYBODY = "02:00:5e:00:53:09", "ff:ff:ff:ff:ff:ff"


def framed(content: Packet | bytes, *, mac: str = POD, **words: Any) -> Packet:
    ether = Ether(src=str(THEIRS), dst=mac, **words)
    return outer(VXLAN(flags="Instance", vni=1) / ether / content)


FRAMES = {
    "for a container": (framed(INNER), "accepted"),
    "from an address of no peer": (framed(IP(src="172.16.0.1") / ICMP()), "accepted"),
    "another's prefix": (framed(IP(src="10.3.0.1") / ICMP()), "spoofed"),
    "another's prefix, tagged": (
        framed(Dot1Q(vlan=7) / IP(src="10.3.0.1") / ICMP(), type=0x8100),
        "spoofed",
    ),
    "tagged": (framed(Dot1Q(vlan=7) / INNER, type=0x8100), "accepted"),
    "ARP for all": (framed(ARP(), mac=EVERYBODY), "accepted"),
    "no IP": (framed(bytes(46)), "accepted"),
    "a control frame that is passing by": (outer(control(b"\xc1", mac=Mac.parse(POD))), "accepted"),
    "one for us": (outer(control(b"\xc1")), "bad_control"),
    "spanning tree": (framed(bytes(46), mac="01:80:c2:00:00:00"), "peer_link_local"),
    "another VNI": (outer(inner(vni=2)), "other_vni"),
    "half a packet": (outer(bytes(inner())[:-1]), "bad_inner"),
}


@pytest.mark.parametrize("case", FRAMES)
def test_verdicts_on_frames(case: str) -> None:
    packet, reason = FRAMES[case]
    assert said(packet, receiver=BRIDGE) == reason


def test_a_frame_with_this_nodes_own_mac() -> None:
    packet = outer(VXLAN(flags="Instance", vni=1) / Ether(src=str(OURS), dst=POD) / INNER)
    assert said(packet, receiver=BRIDGE) == "loop"


def test_every_reason_that_one_datagram_can_have_is_among_them() -> None:
    reasons = {reason for _, reason in VERDICTS.values()}
    # These are about more than one datagram: a queue, a device.
    others = {"control_full", "device_full", "device_refused"}
    # And these about neighbours, and how many frames there were; groups see below.
    others |= {"peer_storm", "bad_neighbour", "group_mac"}
    reasons |= {reason for _, reason in FRAMES.values()} | {"loop"}
    inbound = {reason for reason, direction, _ in DROP_REASONS if direction == "inbound"}
    assert inbound - reasons <= others


def test_without_a_node_only_general_checks_apply() -> None:
    anybody = Receiver()
    assert (
        said(outer(inner(vni=77, mac=OURS), source="203.0.113.9"), receiver=anybody) == "accepted"
    )
    assert said(outer(inner(bytes(46))), receiver=anybody) == "ethertype"
    group = Mac.parse("02:00:5e:00:53:01")
    object.__setattr__(group, "packed", b"\xff" * 6)
    assert said(outer(inner(mac=group)), receiver=anybody) == "group_mac"


def test_a_sent_datagram_is_checked_as_by_a_peer() -> None:
    assert said(outer(inner(IP(src="10.1.0.1") / UDP()), source="192.0.2.1")) == "accepted"


def names(packet: Packet | bytes, kind: str = "ethernet") -> list[str]:
    return [layer.name for layer in explain_packet(CapturedPacket(bytes(packet), kind)).layers]


def test_layers() -> None:
    whole = ["Ethernet", "IP", "UDP", "VXLAN", "Ethernet", "IP", "ICMP"]
    assert names(outer(inner())) == whole
    assert names(bytes(outer(inner()))[14:], "ip") == whole[1:]
    assert names(inner(), "vxlan") == whole[3:]
    assert names(outer(ECHO)) == [*whole[:5], "Control Echo"]
    tagged = ETHER / Dot1Q(vlan=7, type=0x0800) / bytes(outer(inner()))[14:]
    assert names(tagged)[:3] == ["Ethernet", "802.1Q", "IP"]
    found = explain_packet(CapturedPacket(bytes(outer(inner(vni=9))), "ethernet"))
    vxlan, icmp = found.layers[3], found.layers[6]
    assert vxlan.fields["vni"] == "9"
    assert icmp.fields["type"] == "echo-request"
    odd_port = ETHER / IP() / UDP(sport=9, dport=5555) / inner()
    assert names(odd_port) == whole


def notes(packet: Packet | bytes, *, missing: int = 0) -> str:
    return " / ".join(explain_packet(CapturedPacket(bytes(packet), "ethernet", missing)).notes)


def test_a_packet_without_enough_bytes_gets_no_verdict() -> None:
    assert "a node gets it reassembled" in notes(outer(inner(), flags="MF"))
    assert said(outer(inner(), flags="MF")) == ""
    six = ETHER / IPv6() / IPv6ExtHdrFragment(m=1) / UDP(dport=8472) / inner()
    assert said(six) == ""
    assert "the capture cut off 7 bytes" in notes(outer(inner()), missing=7)


def test_a_train_is_taken_apart() -> None:
    one = bytes(inner(IP(src="10.2.0.1") / UDP() / bytes(500)))
    train = outer(one * 3 + one[:-4])
    assert f"a train of 4 datagrams of {len(one)} bytes" in notes(train)
    assert said(train) == "accepted"
    six = bytes(inner(IPv6(src="fd02::1") / UDP() / bytes(500)))
    assert "a train of 2 datagrams" in notes(outer(six * 2))


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_explained(kind: str, data: bytes) -> None:
    found = explain_packet(CapturedPacket(data, kind), receiver=NODE)
    assert found.size == len(data)
    check("decode", json.loads(json.dumps(found.as_json())))


@given(data=st.binary(max_size=120), port=st.sampled_from([8472, 4789, 53]))
def test_any_content_is_explained(data: bytes, port: int) -> None:
    packet = ETHER / IP(src="192.0.2.2") / UDP(dport=port) / Raw(data)
    found = explain_packet(CapturedPacket(bytes(packet), "ethernet"), receiver=NODE)
    text = "".join(value for layer in found.layers for value in layer.fields.values())
    assert text.isprintable()


def test_a_routing_header_cut_off() -> None:
    """At which scapy raises IndexError."""
    cut = bytes(IPv6(nh=43, plen=1)) + b"\0"
    assert [layer.name for layer in explain_packet(CapturedPacket(cut, "ip")).layers] == ["Bytes"]


def test_headers_nested_for_ever() -> None:
    nested = bytes(IP(proto=4, len=20)) * 3000
    assert explain_packet(CapturedPacket(nested, "ip")).verdict is None


WHOLE = bytes(outer(inner()))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (WHOLE.hex(), "ethernet"),
        (WHOLE.hex(":"), "ethernet"),
        ("0x" + WHOLE[14:].hex(), "ip"),
        (bytes(inner()).hex(" ", 2).upper() + "\n", "vxlan"),
        (f"\t0x0000:  {WHOLE[14:30].hex(' ', 2)}\n\t0x0010:  {WHOLE[30:].hex(' ', 2)}\n", "ip"),
        (bytes(IPv6() / UDP()).hex(), "ip"),
    ],
)
def test_hex_as_people_have_it(text: str, kind: str) -> None:
    (frame,) = read_packets(text.encode())
    assert frame.kind == kind


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "'' is neither hex nor a pcap file"),
        (b"xyz", "'xyz' is neither"),
        (b"123", "'123' is neither"),
        (b"00" * 30, "cannot tell what these 30 bytes begin with"),
        (b"\xa1\xb2\xc3\xd4", "malformed or truncated"),
        (b"\x0a\x0d\x0d\x0a" + bytes(40), "malformed or truncated"),
    ],
)
def test_what_is_neither(content: bytes, says: str) -> None:
    with pytest.raises(CodecError, match=says):
        list(read_packets(content))


@given(st.binary(max_size=200), st.sampled_from(sorted(MAGICS)))
def test_any_file_is_read_or_refused(content: bytes, magic: bytes) -> None:
    with suppress(CodecError):
        assert all(frame.kind for frame in read_packets(magic + content))


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    wrpcap(str(path), [outer(inner()), outer(ECHO)])
    assert [frame.kind for frame in read_packets(path.read_bytes())] == ["ethernet"] * 2
    tun = packet_socket.CaptureInterface("tunnel1", bpf.RAW)
    content = pcapng.header("") + pcapng.interface(tun)
    content += pcapng.packet(0, packet_socket.Packet(tun, 1, True, bytes(INNER)))
    assert list(read_packets(content)) == [CapturedPacket(bytes(INNER), "ip")]
    odd = pcapng.interface(packet_socket.CaptureInterface("ib0", 247))
    content = pcapng.header("") + odd + pcapng.packet(0, packet_socket.Packet(tun, 1, True, b"x"))
    with pytest.raises(CodecError, match="link type 247"):
        list(read_packets(content))


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decode", WHOLE.hex()]) == 0
    text = capsys.readouterr().out
    assert text.startswith(
        "checked as by a node that accepts every VNI and every source\npacket 1, 92 "
    )
    assert text.index("VXLAN") < text.index("ICMP") < text.index("accepted")
    path = tmp_path / "x.pcap"
    wrpcap(str(path), [outer(inner(vni=2)), outer(inner())])
    assert main(["decode", "--vni", "1", "--json", str(path)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for line in lines:
        check("decode", line)
    assert [line["verdict"]["reason"] for line in lines] == ["other_vni", None]
    assert "compare --vni" in lines[0]["verdict"]["meaning"]
    assert main(["decode", "--as", "ip", WHOLE[14:].hex()]) == 0


def test_it_reads_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(WHOLE.hex().encode())))
    assert main(["decode"]) == 0
    assert "accepted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere.pcap"], "cannot read nowhere.pcap: no such file, and not hex"),
        (["123"], "'123' is neither hex nor a pcap file"),
        (["/"], "cannot read /: is a directory"),
        (["--as", "frob", "00"], "Invalid value for '--as'"),
        (["--vni", "16777216", "00"], "Invalid value for '--vni'"),
    ],
)
def test_bad_words(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decode", *words]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_without_scapy(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scapy", None)
    monkeypatch.setitem(sys.modules, "scapy.config", None)
    for name in [name for name in sys.modules if name.startswith("tunnel.diagnostics.decode")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("tunnel.diagnostics.decode")
    assert main(["decode", "00"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("tunnel: decode needs scapy")
    assert 'pip install "tunnel[inspect]"' in err
