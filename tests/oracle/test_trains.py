"""Which datagrams are sent together, in which order and from which port."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from .rig import Rig
from .wire import OUR_MAC, OURS, THEIRS, USO, Vnet, frame, ip, udp

OVERHEAD = 22 + 28  # VXLAN and Ethernet; IPv4 and UDP of the inner packet


def outgoing(payload: bytes, *, to: str = THEIRS[4], **fields: Any) -> bytes:
    return bytes(ip(4, src=OURS[4], dst=to) / udp(payload, **fields))


def sizes(trains: list[list[bytes]]) -> list[list[int]]:
    return [[len(datagram) - OVERHEAD for datagram in train] for train in trains]


@pytest.mark.parametrize(
    ("payloads", "expected"),
    [
        ([10, 10, 10], [[10, 10, 10]]),
        ([10, 10, 4], [[10, 10, 4]]),
        ([10, 4, 10], [[10, 4], [10]]),
        ([10, 4, 4], [[10, 4], [4]]),
        ([4, 10, 10], [[4], [10, 10]]),
        ([10, 20, 30], [[10], [20], [30]]),
        ([10], [[10]]),
    ],
)
def test_equal_sizes_and_a_shorter_last(payloads: list[int], expected: list[list[int]]) -> None:
    with Rig() as rig:
        peer = rig.add_peer()
        rig.outbound(*(outgoing(bytes(size)) for size in payloads))
        assert sizes(peer.trains(len(payloads))) == expected
        assert rig.work()["datagrams_sent"] == len(payloads)
        assert rig.work()["trains_sent"] == sum(len(train) > 1 for train in expected)
        assert rig.work()["sends"] == 1


@pytest.mark.parametrize(
    ("segments", "expected"),
    [(127, [127, 127, 46]), (63, [63, 63, 63, 63, 48]), (2, [2] * 150), (1, [1] * 300)],
)
def test_the_number_of_datagrams_is_limited(segments: int, expected: list[int]) -> None:
    with Rig(segments=segments) as rig:
        peer = rig.add_peer()
        vnet = Vnet(1, USO, 0, 10, 20, 6)
        rig.put(ip(4, src=OURS[4], dst=THEIRS[4]) / udp(bytes(3000)), vnet)
        rig.outbound()
        assert [len(train) for train in peer.trains(300)] == expected


@pytest.mark.parametrize("size", [1000, 1422, 8900, 12950, 12951, 32450, 32451, 40000])
def test_the_number_of_bytes_is_limited(size: int) -> None:
    with Rig() as rig:
        peer = rig.add_peer()
        rig.outbound(*(outgoing(bytes(size)) for _ in range(100)))
        most = max(1, 65000 // (size + OVERHEAD))
        lengths = [len(train) for train in peer.trains(100)]
        assert sum(lengths) == 100
        assert max(lengths) == min(most, 64)


def test_trains_to_several_peers_are_sent_in_one_call() -> None:
    with Rig() as rig:
        a, b = rig.add_peer(), rig.add_peer()
        rig.outbound(*(outgoing(b"x", to=f"10.0.{1 + i % 2}.1") for i in range(20)))
        assert [len(train) for train in a.trains(10)] == [10]
        assert [len(train) for train in b.trains(10)] == [10]
        assert rig.work()["sends"] == 1


def test_a_receiver_without_gro_gets_the_datagrams() -> None:
    with Rig() as rig:
        peer = rig.add_peer()
        peer.socket.setsockopt(17, 104, 0)
        packets = [outgoing(bytes([i]) * 100) for i in range(50)]
        rig.outbound(*packets)
        assert peer.take(50) == [frame(p, to=peer.mac, source=OUR_MAC) for p in packets]


def test_a_flow_keeps_its_port_and_flows_are_spread() -> None:
    with Rig(sockets=8) as rig:
        peer = rig.add_peer()
        ports = set()
        for flow in range(64):
            packets = [outgoing(bytes(size), sport=5000 + flow) for size in (9, 200, 9, 1000)]
            rig.outbound(*packets)
            [port] = set(peer.ports(4))
            ports.add(port)
        assert ports == {sock.getsockname()[1] for sock in rig.sockets}


def test_fragments_of_one_datagram_keep_one_port() -> None:
    with Rig(sockets=8) as rig:
        peer = rig.add_peer()
        whole = bytes(udp(bytes(range(200))))
        for identity in range(20):
            fields: dict[str, Any] = {"src": OURS[4], "dst": THEIRS[4], "id": identity, "proto": 17}
            first = bytes(ip(4, **fields, flags="MF")) + whole[:104]
            second = bytes(ip(4, **fields, flags=0, frag=13)) + whole[104:]
            first = first[:2] + len(first).to_bytes(2, "big") + first[4:]
            second = second[:2] + len(second).to_bytes(2, "big") + second[4:]
            rig.outbound(first, second)
            assert len(set(peer.ports(2))) == 1


@settings(max_examples=60)
@given(
    packets=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 3), st.sampled_from([5, 5, 5, 100, 1400])),
        max_size=120,
    ),
    segments=st.sampled_from([1, 2, 63, 127]),
)
def test_order_within_a_flow_is_kept(packets: list[tuple[int, int, int]], segments: int) -> None:
    """One batch mixes flows to several peers."""
    with Rig(segments=segments, sockets=3) as rig:
        peers = [rig.add_peer() for _ in range(4)]
        sent: dict[tuple[int, int], list[bytes]] = {}
        for number, (to, flow, size) in enumerate(packets):
            payload = number.to_bytes(2, "big") + bytes(size)
            packet = outgoing(payload, to=f"10.0.{to + 1}.1", sport=flow + 1)
            sent.setdefault((to, flow), []).append(packet)
            rig.put(packet)
        rig.outbound()
        got: dict[tuple[int, int], list[bytes]] = {}
        for to, peer in enumerate(peers):
            expected = sum(len(flow) for key, flow in sent.items() if key[0] == to)
            for packet in peer.packets(expected):
                flow = int.from_bytes(packet[20:22], "big") - 1
                got.setdefault((to, flow), []).append(packet)
        assert got == sent
