"""A trace reports what the packet path then does with a packet."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnel._native import DROP_REASONS, Fdb

from .rig import Rig
from .wire import OUR_MAC, PEER_MAC, frame, ip, tcp, udp

REASONS = [name for name, _, _ in DROP_REASONS]
TAG = bytes.fromhex("81000007")
NOWHERE = (-1, False, REASONS.index("no_route"), -1, b"")


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("inner", [4, 6])
def test_peer_port_and_headers_match_what_is_sent(inner: int, family: int) -> None:
    with Rig(family=family, sockets=8) as rig:
        peers = [rig.add_peer(mac=bytes([2, 0, 0, 0, 1, number])) for number in range(3)]
        prefix = "10.0." if inner == 4 else "fd00:"

        @settings(max_examples=60)
        @given(st.integers(0, 2), st.integers(1, 65535), st.integers(1, 65535), st.booleans())
        def same(number: int, sport: int, dport: int, streams: bool) -> None:
            host = f"{number + 1}.9" if inner == 4 else f"{number + 1}::9"
            transport = (tcp if streams else udp)(b"x" * 40, sport=sport, dport=dport)
            packet = bytes(
                ip(inner, src="10.9.9.9" if inner == 4 else "fd09::9", dst=prefix + host)
                / transport
            )
            index, flooded, reason, descriptor, headers = rig.forwarder.trace(packet)
            assert (index, flooded, reason) == (number, False, -1)
            rig.outbound(packet)
            ((datagrams, _, port),) = peers[number]._arrivals(1)
            (sender,) = [one for one in rig.sockets if one.fileno() == descriptor]
            assert datagrams == [headers + packet]
            assert port == sender.getsockname()[1]

        same()


def test_nothing_is_counted_or_sent() -> None:
    with Rig() as rig:
        peer = rig.add_peer()
        rig.forwarder.set_mtu(0, 600)
        before = rig.work()
        small, large = (ip(4, dst="10.0.1.9") / tcp(b"x" * size) for size in (10, 900))
        assert rig.forwarder.trace(bytes(small))[2] == -1
        assert rig.forwarder.trace(bytes(large))[:3] == (0, False, REASONS.index("too_big"))
        assert rig.forwarder.trace(bytes(ip(4, dst="10.77.0.1") / udp())) == NOWHERE
        assert rig.forwarder.trace(b"")[2] == REASONS.index("not_ip")
        assert rig.work() == before
        assert rig.drops(0) == rig.drops(-1) == {}
        assert rig.counters(0).last_drop is rig.counters(-1).last_drop is None
        assert rig.take() == []
        # Earlier counts stay, and the next packet takes the same path.
        rig.outbound(small, large)
        assert rig.drops(0) == {"too_big": 1}
        rig.forwarder.trace(bytes(small))
        assert rig.counters(0).last_drop == "too_big"
        assert len(peer.packets()) == 1
        assert len(rig.take()) == 1  # the ICMP of the one that was real


def test_a_packet_of_any_bytes() -> None:
    with Rig() as rig:
        rig.add_peer()
        for size in (*range(48), 1500, 65_553):
            rig.forwarder.trace(os.urandom(size))
        with pytest.raises(ValueError, match="at most"):
            rig.forwarder.trace(bytes(65_554))


@pytest.mark.parametrize("tag", [b"", TAG])
def test_frames(tag: bytes) -> None:
    fdb = Fdb(limit=100, share=100, ageing=300)
    with Rig(fdb=fdb, sockets=8) as rig:
        peer, other = rig.add_peer(), rig.add_peer()
        vlan = 7 if tag else None
        packet = frame(ip(4, dst="10.0.2.9") / udp(b"x"), to=PEER_MAC, source=OUR_MAC)[8:]
        packet = packet[:12] + tag + packet[12:]
        assert rig.forwarder.trace(packet)[:3] == (-1, True, -1)  # every peer would get it
        fdb.put(PEER_MAC, vlan, 0)
        index, flooded, reason, descriptor, headers = rig.forwarder.trace(packet)
        assert (index, flooded, reason) == (0, False, -1)
        assert len(headers) == 22 + len(tag)
        rig.outbound(packet)
        ((datagrams, _, port),) = peer._arrivals(1)
        assert datagrams == [headers[:8] + packet]
        assert headers[8:] == packet[: 14 + len(tag)]
        assert port in [one.getsockname()[1] for one in rig.sockets if one.fileno() == descriptor]
        assert other.take(0) == []


def test_frames_for_unknown_macs_without_flooding() -> None:
    with Rig(fdb=Fdb(limit=1, share=1, ageing=300), flood=False) as rig:
        rig.add_peer()
        packet = frame(ip(4) / udp(), to=PEER_MAC)[8:]
        assert rig.forwarder.trace(packet)[:3] == (-1, False, REASONS.index("no_fdb"))
        assert rig.drops(-1) == {}
