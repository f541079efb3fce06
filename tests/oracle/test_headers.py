"""The headers around a packet on the wire, byte for byte, and the handling of ECN."""

from typing import Any

import pytest

from .rig import Rig
from .wire import (
    ANY_MAC,
    OUR_MAC,
    OURS,
    PEER_MAC,
    THEIRS,
    frame,
    ip,
    udp,
    verifies,
    with_ecn,
)

NOT_ECT, ECT1, ECT0, CE = 0, 1, 2, 3

FAMILIES = pytest.mark.parametrize("family", [4, 6])
VERSIONS = pytest.mark.parametrize("version", [4, 6])


def outgoing(version: int, payload: bytes = b"data", **fields: Any) -> bytes:
    """A packet from this node to the peer."""
    packet = ip(version, src=OURS[version], dst=THEIRS[version], **fields) / udp(payload)
    return bytes(packet)


@FAMILIES
@VERSIONS
@pytest.mark.parametrize("vnet", [True, False])
@pytest.mark.parametrize("vni", [0, 1, 0xABCDEF, 0xFFFFFF])
@pytest.mark.parametrize("mac", [PEER_MAC, ANY_MAC])
def test_datagrams_equal_those_of_scapy(
    family: int, version: int, vnet: bool, vni: int, mac: bytes
) -> None:
    with Rig(family=family, vnet=vnet, vni=vni) as rig:
        peer = rig.add_peer(mac=mac)
        packet = outgoing(version, ttl=1)
        rig.outbound(packet)
        assert peer.take() == [frame(packet, vni=vni, to=mac, source=OUR_MAC)]
        assert rig.counters(0)[:4] == (1, len(packet), 0, 0)


@FAMILIES
@VERSIONS
@pytest.mark.parametrize("vnet", [True, False])
@pytest.mark.parametrize("mac", [OUR_MAC, ANY_MAC])
def test_packets_reach_the_device_unchanged(
    family: int, version: int, vnet: bool, mac: bytes
) -> None:
    with Rig(family=family, vnet=vnet) as rig:
        packet = bytes(ip(version, ttl=1) / udp(b"data"))
        rig.add_peer().send(frame(packet, to=mac))
        [(header, written)] = rig.inbound()
        assert (bytes(header), written) == (bytes(10), packet)
        assert rig.counters(0)[:4] == (0, 0, 1, len(packet))
        assert not rig.drops(0)
        assert not rig.drops(-1)


def test_reserved_bits_are_ignored() -> None:
    """RFC 7348, section 5."""
    with Rig() as rig:
        packet = bytes(ip(4) / udp(b"data"))
        datagram = bytearray(frame(packet))
        datagram[0], datagram[1:4], datagram[7] = 0xFF, b"\xff\xff\xff", 0xFF
        rig.add_peer().send(bytes(datagram))
        assert [written for _, written in rig.inbound()] == [packet]


@FAMILIES
@VERSIONS
def test_outer_ecn_equals_inner_ecn(family: int, version: int) -> None:
    """RFC 6040, 4.1, normal mode; DSCP is not copied. A different ECN value ends a train."""
    with Rig(family=family) as rig:
        peer = rig.add_peer()
        marks = [NOT_ECT, NOT_ECT, ECT0, ECT0, CE, ECT1, ECT0]
        rig.outbound(*(outgoing(version, ecn=0xB8 | ecn) for ecn in marks))
        expected = [(2, NOT_ECT), (2, ECT0), (1, CE), (1, ECT1), (1, ECT0)]
        assert peer.tos(len(marks)) == expected


COMBINED: dict[int, list[int | None]] = {
    # inner: the result for an outer Not-ECT, ECT(1), ECT(0), CE. RFC 6040, figure 4.
    NOT_ECT: [NOT_ECT, NOT_ECT, NOT_ECT, None],
    ECT1: [ECT1, ECT1, ECT1, CE],
    ECT0: [ECT0, ECT1, ECT0, CE],
    CE: [CE, CE, CE, CE],
}


@FAMILIES
@VERSIONS
@pytest.mark.parametrize("inner", COMBINED)
@pytest.mark.parametrize("outer", [NOT_ECT, ECT1, ECT0, CE])
def test_outer_ecn_is_merged_into_the_inner(
    family: int, version: int, inner: int, outer: int
) -> None:
    expected = COMBINED[inner][outer]
    with Rig(family=family) as rig:
        packet = bytes(ip(version, ecn=0xB8 | inner) / udp(b"data"))
        rig.add_peer().send(frame(packet), ecn=0x48 | outer)
        written = [written for _, written in rig.inbound()]
        if expected is None:
            assert written == []
            assert rig.drops(0) == {"bad_ecn": 1}
        else:
            assert written == [with_ecn(packet, expected)]
            assert verifies(written[0])


def test_ecn_does_not_correct_a_wrong_header_checksum() -> None:
    with Rig() as rig:
        packet = bytes(ip(4, ecn=ECT0, chksum=0x1234) / udp(b"data"))
        rig.add_peer().send(frame(packet), ecn=CE)
        [written] = [written for _, written in rig.inbound()]
        assert with_ecn(written, CE)[:10] == written[:10]
        assert not verifies(written)
