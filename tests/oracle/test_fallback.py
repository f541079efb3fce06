"""
Errors of the kernel at run time: an offload that the kernel refuses is turned off, and no packet is
lost or sent twice; every other error is counted under its own drop reason.
"""

import errno
import fcntl
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from scapy.layers.inet import ICMP
from scapy.layers.inet6 import ICMPv6PacketTooBig
from scapy.packet import Packet

from tunnel._native import Fdb
from tunnel.testing.lab import Host, Lab

from .rig import Rig, inside, packed, send_all
from .wire import (
    NEEDS_CSUM,
    OURS,
    TCP4,
    TCP6,
    TCP_CHECK,
    THEIRS,
    Vnet,
    dissect,
    frame,
    ip,
    split_twin,
    tcp,
    udp,
    verifies,
)

SO_NO_CHECK = 11
MTU = 1500


def outgoing(payload: bytes, *, to: str = THEIRS[4], **fields: Any) -> bytes:
    return bytes(ip(4, src=OURS[4], dst=to, **fields) / udp(payload))


def super_packet(version: int, size: int, **fields: Any) -> tuple[Packet, Vnet]:
    packet = ip(version, src=OURS[version], dst=THEIRS[version], **fields) / tcp(bytes(10_000))
    gso_type, start = (TCP4, 20) if version == 4 else (TCP6, 40)
    return packet, Vnet(NEEDS_CSUM, gso_type, 0, size, start, TCP_CHECK)


@pytest.fixture
def host(lab: Lab) -> Iterator[Host]:
    """Runs the test in the namespace of a host that only has a loopback with an MTU of 1500."""
    host = lab.host("alone")
    host.run(f"ip link set lo mtu {MTU}")
    with inside(host):
        yield host


# ---- trains ----


def test_trains_are_turned_off_for_a_path_that_refuses_them() -> None:
    """UDP_SEGMENT on a socket without checksums fails with EINVAL, although the size fits the path.
    Each datagram is still sent once, in order; other peers keep their trains."""
    with Rig() as rig:
        a, b = rig.add_peer(), rig.add_peer()
        rig.sockets[0].setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
        packets = [outgoing(bytes([n]) * 100) for n in range(40)] + [outgoing(b"short")]
        rig.outbound(*packets)
        assert a.packets(41) == packets
        assert (rig.trains(0), rig.trains(1)) == (False, True)
        assert rig.drops(0) == {}
        assert rig.counters(0)[:2] == (41, sum(map(len, packets)))

        rig.sockets[0].setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 0)
        rig.outbound(*packets, *(outgoing(b"x", to="10.0.2.1") for _ in range(5)))
        assert [len(train) for train in a.trains(41)] == [1] * 41
        assert [len(train) for train in b.trains(5)] == [5]


def test_another_address_turns_trains_on_again() -> None:
    with Rig() as rig:
        peer = rig.add_peer()
        rig.sockets[0].setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
        rig.outbound(outgoing(b"x"), outgoing(b"x"))
        assert not rig.trains(0)
        rig.forwarder.set_peer(0, packed(peer.address), peer.port, b"\x02newer")
        assert not rig.trains(0)
        rig.forwarder.set_peer(0, packed("127.0.7.99"), peer.port, peer.mac)
        assert rig.trains(0)


def test_super_packets_are_sent_singly_if_trains_are_refused() -> None:
    with Rig() as rig:
        peer = rig.add_peer()
        rig.sockets[0].setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
        packet, vnet = super_packet(4, 1000)
        for _ in range(2):
            rig.put(packet, vnet)
            rig.outbound()
            assert peer.packets(10) == split_twin(packet, 1000)
        assert rig.counters(0).outbound_packets == 20


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("version", [4, 6])
def test_too_big_packets_get_an_icmp_error(host: Host, family: int, version: int) -> None:
    """The sender learns the MTU and uses it; trains stay on."""
    with Rig(family=family) as rig:
        peer = rig.add_peer()
        fits = MTU - (50 if family == 4 else 70)
        packet, vnet = super_packet(version, 2000)
        rig.put(packet, vnet)
        rig.outbound()
        assert peer.take(0) == []
        assert rig.drops(0) == {"too_big": 5}
        assert rig.trains(0)

        [message] = rig.take()
        parsed = dissect(message)
        assert verifies(message)
        assert (parsed.src, parsed.dst) == (THEIRS[version], OURS[version])
        headers = 40 if version == 4 else 60
        if version == 4:
            assert (parsed[ICMP].type, parsed[ICMP].code) == (3, 4)
            assert parsed[ICMP].nexthopmtu == fits
            quoted = message[28:]
        else:
            assert parsed[ICMPv6PacketTooBig].mtu == fits
            quoted = message[48:]
        assert split_twin(packet, 2000)[0].startswith(quoted)
        assert len(quoted) >= headers

        size = fits - headers
        rig.put(packet, vnet._replace(gso_size=size))
        rig.outbound()
        expected = split_twin(packet, size)
        assert [len(train) for train in peer.trains(len(expected))] == [len(expected)]
        rig.put(packet, vnet._replace(gso_size=size + 1))
        rig.outbound()
        # The last one is shorter and is sent; the sender gets one error for all the others.
        assert peer.packets(1) == split_twin(packet, size + 1)[-1:]
        assert len(rig.take()) == 1


@pytest.mark.parametrize("link", ["0800", "8100e0070800"])
@pytest.mark.usefixtures("host")
def test_too_big_frames_get_an_icmp_error_in_a_frame(link: str) -> None:
    """The error goes back to the source of the frame, in its VLAN."""
    here, there = bytes.fromhex("020000000a01"), bytes.fromhex("020000000b01")
    tail = bytes.fromhex(link)
    prefix = there + here + tail
    with Rig(fdb=Fdb(limit=9, share=9, ageing=300)) as rig:
        peer = rig.add_peer()
        packet, vnet = super_packet(4, 2000)
        rig.put(prefix + bytes(packet), vnet._replace(start=len(prefix) + 20))
        rig.outbound()
        assert peer.take(0) == []
        assert rig.drops(0) == {"too_big": 5}
        [message] = rig.take()
        assert message[: len(prefix)] == here + there + tail
        assert verifies(message[len(prefix) :])
        parsed = dissect(message[len(prefix) :])
        assert parsed[ICMP].nexthopmtu == MTU - 20 - 8 - 8 - len(prefix)


def test_packets_that_may_be_fragmented_are_sent(host: Host) -> None:
    """DF is clear: the underlay fragments it, as it does for a kernel vxlan device."""
    with Rig() as rig:
        peer = rig.add_peer()
        packet, vnet = super_packet(4, 2000, flags=0)
        rig.put(packet, vnet)
        rig.outbound()
        assert peer.packets(5) == split_twin(packet, 2000)
        assert rig.take() == []
        assert rig.drops(0) == {}
        assert rig.trains(0)


def test_small_packets_keep_their_train_on_a_narrow_path(host: Host) -> None:
    with Rig() as rig:
        peer = rig.add_peer()
        packet, vnet = super_packet(4, 2000)
        small = [outgoing(bytes([n]) * 50) for n in range(10)]
        for one in small[:5]:
            rig.put(one)
        rig.put(packet, vnet)
        for one in small[5:]:
            rig.put(one)
        rig.outbound()
        assert peer.packets(10) == small
        assert rig.drops(0) == {"too_big": 5}
        assert rig.work()["trains_sent"] == 2


# ---- refusals of the underlay ----


def test_a_firewall_has_its_own_drop_reason(host: Host) -> None:
    with Rig() as rig:
        a, b = rig.add_peer(), rig.add_peer()
        host.run("nft add table ip f")
        host.run("nft add chain ip f out { type filter hook output priority 0 ; }")
        host.run(f"nft add rule ip f out ip daddr {a.address} drop")
        rig.outbound(*(outgoing(b"x", to=f"10.0.{1 + n % 2}.1") for n in range(10)))
        rig.outbound(outgoing(b"alone"))
        assert rig.drops(0) == {"blocked": 6}
        assert (rig.drops(1), len(b.take(5))) == ({}, 5)
        assert rig.trains(0)
        host.run("nft flush chain ip f out")
        rig.outbound(outgoing(b"x"))
        assert a.packets() == [outgoing(b"x")]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("unreachable", "unreachable"), ("prohibit", "blocked"), ("blackhole", "send_failed")],
)
def test_a_refusing_kernel_route_has_its_own_reason(host: Host, kind: str, reason: str) -> None:
    with Rig() as rig:
        a, b = rig.add_peer(), rig.add_peer()
        rig.forwarder.set_peer(0, packed("198.51.100.1"), 8472, a.mac)
        host.run(f"ip route add {kind} 198.51.100.1")
        rig.outbound(*(outgoing(b"x", to=f"10.0.{1 + n % 2}.1") for n in range(10)))
        assert rig.drops(0) == {reason: 5}
        assert (rig.drops(1), len(b.take(5))) == ({}, 5)
        assert rig.trains(0)  # whatever it was, trains were not to blame


def test_no_kernel_route_at_all(host: Host) -> None:
    with Rig() as rig:
        peer = rig.add_peer()
        rig.forwarder.set_peer(0, packed("198.51.100.1"), 8472, peer.mac)
        rig.outbound(outgoing(b"x"), outgoing(b"longer"), outgoing(b"longer"))
        assert rig.drops(0) == {"unreachable": 3}


def test_a_send_buffer_that_stays_full(host: Host) -> None:
    """The underlay takes 1,000 bytes per second: the rest is dropped, and what is sent arrives once
    and in order."""
    host.run("tc qdisc add dev lo root tbf rate 8kbit burst 1600 limit 10mb")
    with Rig() as rig:
        peer = rig.add_peer()
        rig.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        packets = [outgoing(bytes([n]) * (100 + n)) for n in range(60)]
        rig.outbound(*packets)
        host.run("tc qdisc del dev lo root")  # with all that it holds
        lost = rig.drops(0)["send_full"]
        sent = rig.counters(0).outbound_packets
        assert (lost > 0, lost + sent) == (True, 60)
        arrived = peer.packets(0)
        assert arrived == packets[: len(arrived)]
        rig.outbound(packets[0])
        assert peer.packets() == packets[:1]


# ---- the device ----


@contextmanager
def picky_tun(host: Host, *, up: bool = True) -> Iterator[tuple[int, socket.socket]]:
    """
    A TUN device that refuses super-packets with EINVAL, and a socket that receives what it takes.

    The device expects virtio headers of 12 bytes instead of 10. So it reads the IP version from the
    third byte of the packet, which is in the total length. It takes packets of 16,384 to 20,479
    bytes, which look like IPv4 there, and refuses two of them joined.
    """
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
    try:
        fcntl.ioctl(device, 0x400454CA, struct.pack("16sH22x", b"picky", 0x5001))
        fcntl.ioctl(device, 0x400454D8, struct.pack("i", 12))
        host.run("sysctl -q net.ipv6.conf.picky.disable_ipv6=1")
        if up:
            host.run("ip link set picky up")
        sniffer.setblocking(False)
        sniffer.bind(("picky", 3))
        yield device, sniffer
    finally:
        sniffer.close()
        os.close(device)


@pytest.mark.parametrize("transport", [tcp, udp])
def test_coalescing_is_turned_off_if_the_device_refuses_it(
    host: Host, transport: Callable[..., Packet]
) -> None:
    """All packets arrive in order, and each protocol falls back by itself."""
    host.run("ip link set lo mtu 65536")
    with picky_tun(host) as (device, sniffer), Rig(device=device) as rig:
        peer = rig.add_peer()
        for _ in range(2):
            packets = []
            for n in range(3):
                fields = {"seq": n * 16400} if transport is tcp else {}
                packets.append(bytes(ip(4, id=n) / transport(bytes([n]) * 16400, **fields)))
            before = rig.work()["device_writes"]
            send_all(peer, map(frame, packets))
            rig.inbound()
            assert [sniffer.recv(1 << 16) for _ in packets] == [packet[2:] for packet in packets]
            assert rig.work()["device_writes"] - before == len(packets)
            assert rig.forwarder.coalescing == (transport is udp, transport is tcp)
        assert rig.counters(0)[2:4] == (6, 2 * sum(map(len, packets)))
        assert rig.drops(0) == {}
        assert rig.work()["super_packets_written"] == 0


def test_a_device_that_is_down(host: Host) -> None:
    with picky_tun(host, up=False) as (device, _), Rig(device=device) as rig:
        peer = rig.add_peer()
        send_all(peer, [frame(ip(4) / udp(b"x")), frame(ip(6) / tcp(b"x"))])
        rig.inbound()
        assert rig.drops(0) == {"device_refused": 2}
        assert rig.forwarder.coalescing == (True, True)


def test_a_slow_reader() -> None:
    with Rig(udp=False) as rig:
        peer = rig.add_peer()
        rig.device.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        packets = [bytes(ip(4) / udp(bytes([n]) * 1000)) for n in range(30)]
        send_all(peer, map(frame, packets))
        taken = rig.inbound()
        assert 0 < len(taken) < 30
        assert [packet for _, packet in taken] == packets[: len(taken)]
        assert rig.drops(0) == {"device_full": 30 - len(taken)}
        assert rig.counters(0).inbound_packets == len(taken)
        peer.send(frame(packets[0]))
        assert len(rig.inbound()) == 1


def test_a_full_device_drops_all_of_a_joined_packet() -> None:
    with Rig() as rig:
        peer = rig.add_peer()
        rig.device.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        for n in range(20):
            peer.send(frame(ip(6, fl=n) / udp(bytes(10))))
            rig.forwarder.inbound(4)
        before = rig.drops(0)["device_full"]
        send_all(peer, [frame(ip(4) / tcp(bytes(500), seq=500 * n)) for n in range(5)])
        rig.forwarder.inbound(4)
        assert rig.drops(0) == {"device_full": before + 5}
        assert rig.work()["super_packets_written"] == 0


@pytest.mark.parametrize("vnet", [True, False])
def test_a_closed_device(vnet: bool) -> None:
    with Rig(vnet=vnet) as rig:
        peer = rig.add_peer()
        rig.put(outgoing(b"last"))
        rig.program.close()
        rig.forwarder.outbound()
        assert peer.packets() == [outgoing(b"last")]
        with pytest.raises(BrokenPipeError):
            rig.forwarder.outbound()
        peer.send(frame(ip(4) / udp(b"x")))
        rig.forwarder.inbound(4)
        assert rig.drops(0) == {"device_refused": 1}


def test_a_closed_socket() -> None:
    with Rig() as rig:
        rig.add_peer()
        rig.forwarder.set_sockets(4, [])
        with pytest.raises(OSError, match="Bad file descriptor") as caught:
            rig.forwarder.inbound(4)
        assert caught.value.errno == errno.EBADF


# ---- threads ----


def test_one_thread_at_a_time_without_the_gil() -> None:
    """A blocking device holds one thread in C: this thread continues, others wait for the lock."""
    with Rig() as rig, ThreadPoolExecutor(12) as pool:
        peer = rig.add_peer()
        rig.device.setblocking(True)
        inside: Future[Any] = pool.submit(rig.forwarder.outbound)
        while not wait([pool.submit(rig.forwarder.work)], timeout=0.05).not_done:
            pass
        waiting: list[Future[Any]] = [
            pool.submit(call)
            for call in (
                rig.forwarder.work,
                lambda: rig.counters(-1),
                lambda: rig.forwarder.set_sockets(4, []),
                lambda: rig.forwarder.set_peer(0, None, 1, peer.mac),
                lambda: rig.forwarder.lookup(packed("10.0.1.1")),
                lambda: rig.trains(0),
                lambda: rig.forwarder.coalescing,
            )
        ]
        assert not wait([inside, *waiting], timeout=0.2).done
        rig.program.close()
        with pytest.raises(BrokenPipeError):
            inside.result(timeout=2)
        assert not wait(waiting, timeout=2).not_done
        assert waiting[4].result() == 0


def test_other_threads_get_the_lock_under_load() -> None:
    """A thread in run() always has packets, and still other threads get the lock."""
    with Rig() as rig, running(rig) as end, ThreadPoolExecutor(1) as pool:
        peer = rig.add_peer()
        stop = threading.Event()
        flood = pool.submit(keep_full, rig, stop)
        visits, deadline = 0, time.monotonic() + 1
        try:
            while time.monotonic() < deadline:
                rig.forwarder.set_peer(1, packed("127.0.7.99"), 9, peer.mac)
                assert rig.counters(1).outbound_packets == 0
                rig.forwarder.remove_peer(1)
                visits += 1
        finally:
            stop.set()
        put = flood.result(timeout=2)
        # Some thousands on an idle machine; one or two if the threads starve.
        assert visits > 50
        assert rig.work()["device_reads"] > put / 2 > 500
        assert end() is False


def test_run_reports_which_descriptor_failed() -> None:
    with Rig() as rig, running(rig) as end:
        rig.program.close()
        with pytest.raises(BrokenPipeError) as caught:
            end()
        assert caught.value.filename == rig.device.fileno()


@contextmanager
def running(rig: Rig) -> Iterator[Callable[[], bool]]:
    """Starts a thread in run(). Returns a function that stops it and returns its result."""
    with (
        select.epoll() as watch,
        os.fdopen(os.eventfd(0), "wb", buffering=0) as stop,
        ThreadPoolExecutor(1) as pool,
    ):
        for descriptor in (rig.device.fileno(), stop.fileno()):
            watch.register(descriptor, select.EPOLLIN)
        result = pool.submit(rig.forwarder.run, watch.fileno(), stop.fileno())

        def end() -> bool:
            wait([result], timeout=0.05)
            os.eventfd_write(stop.fileno(), 1)
            return result.result(timeout=2)

        try:
            yield end
        finally:
            os.eventfd_write(stop.fileno(), 1)


def keep_full(rig: Rig, stop: threading.Event) -> int:
    """Sends packets as fast as the device takes them. Returns how many."""
    packet, count = outgoing(b"x"), 0
    while not stop.is_set():
        with suppress(BlockingIOError):
            rig.put(packet)
            count += 1
    return count
