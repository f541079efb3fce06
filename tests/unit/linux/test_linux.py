"""Sockets, probes and the socket pair: what of linux/ needs no privilege."""

import asyncio
import errno
import ipaddress
import os
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress

import pytest

from tunnel.config.node import Config
from tunnel.errors import DeviceError, UnderlayError
from tunnel.linux import udp
from tunnel.linux.netlink import Netlink
from tunnel.linux.socketpair import SocketPair
from tunnel.linux.underlay import Underlay
from tunnel.types import ANY_VTEP_MAC, Endpoint

LOCAL = ipaddress.ip_address("127.0.0.1")
BOTH = frozenset({"trains", "gro"})


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((str(LOCAL), 0))
        return int(sock.getsockname()[1])


@contextmanager
def opened_for(workers: int, *, count: int = 1) -> Iterator[list[list[socket.socket]]]:
    sockets = udp.open_sockets(LOCAL, port=free_port(), count=count, gro=True, workers=workers)
    try:
        yield sockets
    finally:
        udp.close_sockets(sockets)


@contextmanager
def opened(*, count: int = 1) -> Iterator[list[socket.socket]]:
    with opened_for(1, count=count) as (sockets,):
        yield sockets


@pytest.mark.parametrize(
    ("release", "segments", "gro", "reasons"),
    [
        ("5.4.0-200-generic", 63, False, 1),
        ("5.12.0", 63, True, 0),
        ("6.8.0-31-generic", 63, True, 0),
        ("6.9", 127, True, 0),
        ("6.18.44-fc-v669", 127, True, 0),
        ("7.0.0-rc3", 1, True, 1),
        ("7.1.4", 1, True, 1),
        ("7.1.5+", 127, True, 0),
        ("8.0", 127, True, 0),
    ],
)
def test_kernel_versions_decide(release: str, segments: int, gro: bool, reasons: int) -> None:
    found = udp.probe(BOTH, release=release)
    assert (found.segments, found.gro, len(found.reasons)) == (segments, gro, reasons)


def test_an_unwanted_offload_is_off_silently() -> None:
    assert udp.probe(frozenset()) == udp.Abilities(segments=1, gro=False)


def test_the_first_socket_receives_and_the_others_never_queue() -> None:
    with opened(count=3) as sockets, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        ports = {sock.getsockname()[1] for sock in sockets}
        assert len(ports) == 3
        for sock in sockets:
            sender.sendto(b"hello", sock.getsockname())
        assert sockets[0].recv(100) == b"hello"
        for sock in sockets[1:]:
            with pytest.raises(BlockingIOError):
                sock.recv(100)


def test_sockets_send_as_the_kernels_vxlan_does() -> None:
    with opened(count=2) as sockets:
        for sock in sockets:
            assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TTL) == 64
            assert sock.getsockopt(socket.IPPROTO_IP, 10) == 0  # IP_MTU_DISCOVER: DONT
            assert sock.getsockopt(socket.SOL_SOCKET, 11) == 0  # SO_NO_CHECK
            assert not sock.getblocking()
            assert not sock.get_inheritable()
        assert sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= 212_992
        assert sockets[0].getsockopt(socket.IPPROTO_UDP, 104) == 1  # UDP_GRO
        assert sockets[1].getsockopt(socket.IPPROTO_UDP, 104) == 0


def test_ipv6_sockets_leave_ipv4_alone() -> None:
    port = free_port()
    six = udp.open_sockets(ipaddress.ip_address("::"), port=port, count=1, gro=False)
    four = udp.open_sockets(ipaddress.ip_address("0.0.0.0"), port=port, count=1, gro=False)
    udp.close_sockets(six + four)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("holders", [1, 3])
def test_a_port_in_use_is_named_and_nothing_stays_open(holders: int, workers: int) -> None:
    """The sockets of one node's workers share a port, those of two nodes never."""
    with opened_for(holders) as sockets:
        port = sockets[0][0].getsockname()[1]
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(UnderlayError, match=rf"port {port} on 127.0.0.1 is in use") as caught:
            udp.open_sockets(LOCAL, port=port, count=2, gro=False, workers=workers)
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.EADDRINUSE
        assert len(os.listdir("/proc/self/fd")) == before


def test_each_worker_receives_on_the_port_and_sends_from_ports_of_its_own() -> None:
    """A flow of datagrams arrives at one of them, many flows at all."""
    with opened_for(3, count=8) as sockets, ExitStack() as senders:
        ports = [[sock.getsockname()[1] for sock in own] for own in sockets]
        assert len({own[0] for own in ports}) == 1
        sending = [port for own in ports for port in own[1:]]
        assert len(set(sending)) == len(sending) == 7
        assert sorted(map(len, ports)) == [3, 3, 4]
        for _ in range(64):
            sender = senders.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            for _ in range(3):
                sender.sendto(b"hello", sockets[0][0].getsockname())
        arrived = [Counter(senders_of(own[0])) for own in sockets]
        assert all(arrived)
        assert sum(arrived, Counter()).total() == 3 * 64
        assert all(count == 3 for counter in arrived for count in counter.values())


def senders_of(sock: socket.socket) -> Iterator[tuple[str, int]]:
    """Of all datagrams that wait."""
    with suppress(BlockingIOError):
        while True:
            yield sock.recvfrom(100)[1]


def test_an_address_of_another_host_is_named() -> None:
    with pytest.raises(UnderlayError, match=r"local address 192\.0\.2\.77 is not on this host"):
        udp.open_sockets(ipaddress.ip_address("192.0.2.77"), port=1, count=1, gro=False)


# The underlay of one tunnel.


async def test_routes_tell_our_address_and_mtu() -> None:
    async with Netlink() as netlink:
        with closing(Underlay(Config(), netlink=netlink)) as underlay:
            await underlay.choose_local_addresses([ipaddress.ip_address("127.0.0.9")])
            assert underlay.locals == {4: LOCAL}
            there = Endpoint("127.0.0.9")
            assert there.address
            assert await underlay.resolve_paths({0: (there, there.address)}) == {}
            # Of 65,536 on the loopback device, what one send carries.
            assert underlay.mtu == 65_000 - 50
            underlay.remove_peer(0)
            assert underlay.mtu == 1450


async def test_without_a_peer_it_is_the_wildcard() -> None:
    async with Netlink() as netlink:
        underlay = Underlay(Config(), netlink=netlink)
        await underlay.choose_local_addresses([])
        assert underlay.listening_addresses() == ["0.0.0.0:8472"]
        assert underlay.endpoints == []


async def test_a_peer_that_turns_out_to_be_us() -> None:
    async with Netlink() as netlink:
        underlay = Underlay(Config(), netlink=netlink)
        us = Endpoint("127.0.0.1")
        refused = await underlay.resolve_paths({0: (us, LOCAL)})
        assert "is this node itself" in str(refused[us])


async def test_a_name_that_does_not_resolve() -> None:
    async with Netlink() as netlink:
        underlay = Underlay(Config(), netlink=netlink)
        assert await underlay.resolve(Endpoint("localhost")) in (LOCAL, ipaddress.ip_address("::1"))
        why = await underlay.resolve(Endpoint("no-such-host.invalid"))
        assert isinstance(why, UnderlayError)
        assert "its name has no address: " in str(why)


async def test_the_mac_is_the_same_after_a_restart() -> None:
    async with Netlink() as netlink:
        macs = []
        for words in ["127.0.0.1 1 8472"] * 2 + [
            "127.0.0.1 2 8472",
            "127.0.0.1 1 4789",
            "::1 1 8472",
        ]:
            local, vni, port = words.split()
            config = Config(local=local, vni=int(vni), port=int(port))
            underlay = Underlay(config, netlink=netlink)
            await underlay.choose_local_addresses([])
            macs.append(underlay.mac)
    assert macs[0] == macs[1]
    assert len(set(macs)) == 4
    assert all(mac.packed[0] & 3 == 2 and mac != ANY_VTEP_MAC for mac in macs)


@pytest.mark.parametrize("mtu", [1280, 1430, 1450, 1500, 8950, 64_950])
@pytest.mark.parametrize("headers", [52, 72])
@pytest.mark.parametrize("reserve", [193, 321])
async def test_a_super_packet_fits_one_train(
    mtu: int, headers: int, reserve: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TCP with timestamps over IPv4 and IPv6, as large as the kernel's TCP makes them."""
    monkeypatch.setattr("tunnel.linux.underlay._forwards", lambda: False)
    async with Netlink() as netlink:
        underlay = Underlay(Config(mtu=mtu), netlink=netlink)
        segments = max((underlay.gso_max_size - reserve) // (mtu - headers), 1)
        assert segments == min(underlay.abilities.segments, 65_000 // (mtu + 22))


# The program as the device.


async def test_packets_stay_apart_and_in_order() -> None:
    with closing(SocketPair()) as pair, socket.socket(fileno=socket.dup(pair.output)) as forwarder:
        for packet in (b"a", b"b" * 65_535, b"c"):
            await pair.send(packet)
            assert forwarder.recv(65_535) == packet
        forwarder.send(b"d")
        forwarder.send(b"e")
        assert [await pair.receive(), await pair.receive()] == [b"d", b"e"]


async def test_a_full_buffer_makes_the_sender_wait() -> None:
    with closing(SocketPair()) as pair, socket.socket(fileno=socket.dup(pair.output)) as forwarder:
        sent = 0

        async def flood() -> None:
            nonlocal sent
            while sent < 5_000:
                await pair.send(struct.pack("I", sent) + bytes(1396))
                sent += 1

        task = asyncio.create_task(flood())
        await asyncio.sleep(0.05)
        assert 0 < sent < 5_000
        for expected in range(5_000):
            while True:
                try:
                    (number,) = struct.unpack_from("I", forwarder.recv(1400))
                    break
                except BlockingIOError:
                    await asyncio.sleep(0)
            assert number == expected
        await task


async def test_a_cancelled_receiver_loses_nothing() -> None:
    with closing(SocketPair()) as pair, socket.socket(fileno=socket.dup(pair.output)) as forwarder:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await pair.receive()
        forwarder.send(b"late")
        assert await pair.receive() == b"late"


async def test_closing_lets_everybody_go() -> None:
    pair = SocketPair()
    receivers = [asyncio.create_task(pair.receive()) for _ in range(3)]
    await asyncio.sleep(0.01)
    pair.close()
    assert await asyncio.gather(*receivers) == [None] * 3
    with pytest.raises(DeviceError, match="closed"):
        await pair.send(b"x")


@pytest.mark.parametrize("size", [0, 65_536])
async def test_what_cannot_be_a_packet_is_refused(size: int) -> None:
    with closing(SocketPair()) as pair, pytest.raises(DeviceError, match=f"{size} bytes"):
        await pair.send(bytes(size))


async def test_without_a_machine_id_the_mac_stays_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tunnel.linux.underlay._machine_id", str)
    async with Netlink() as netlink:
        with closing(Underlay(Config(), netlink=netlink)) as underlay:
            await underlay.choose_local_addresses([])
            assert underlay.locals[4].is_unspecified
            assert len({underlay.mac for _ in range(3)}) == 1
