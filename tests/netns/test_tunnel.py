"""Tunnel as a library: device-less on loopback, on real devices in namespaces, and its end."""

import asyncio
import ctypes
import gc
import os
import resource
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP

from tunnel import ConfigError, Endpoint, Peer, Tunnel, TunnelError
from tunnel.errors import ClosedError, DeviceError, PeerNotFoundError, UnderlayError
from tunnel.linux.rtnetlink import PROTOCOL
from tunnel.testing.lab import Host, Lab

_CLONE_NEWNET = 0x40000000


@contextmanager
def inside(host: Host) -> Iterator[None]:
    """The network namespace of this thread is that of `host`."""
    libc = ctypes.CDLL(None, use_errno=True)
    ours = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    theirs = os.open(f"/proc/{host.pid}/ns/net", os.O_RDONLY)
    try:
        assert libc.setns(theirs, _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        yield
    finally:
        assert libc.setns(ours, _CLONE_NEWNET) == 0
        os.close(ours)
        os.close(theirs)


@pytest.fixture
def host(lab: Lab) -> Iterator[Host]:
    """A host linked to another; the test runs on it."""
    host, other = lab.host("a"), lab.host("b")
    lab.link(host, other)
    host.run("sysctl -w net.ipv4.ip_forward=0")  # a new namespace starts as the machine is
    with inside(host):
        yield host


def shell(command: str) -> str:
    return subprocess.run(
        command, shell=True, check=True, capture_output=True, text=True
    ).stdout.strip()


def system() -> str:
    """All that a tunnel could leave behind in this namespace."""
    return shell("ip -o link | cut -d: -f2; ip -o address show scope global; ip route; ip -6 route")


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - a counter of another's gives no signal
        await asyncio.sleep(0.01)


def packet(source: str, destination: str, payload: bytes = b"hello") -> bytes:
    return bytes(IP(src=source, dst=destination) / UDP(sport=1, dport=2) / payload)


PEER = Peer("192.0.2.2", ["10.2.0.0/16", "fd02::/64"])
SUBNETS = ["10.1.0.0/16", "fd01::/64"]


# Without a device: two tunnels in one process, on loopback.


@asynccontextmanager
async def pair_of_tunnels(*, port: int = 18472) -> AsyncIterator[tuple[Tunnel, Tunnel]]:
    ones = Peer(f"127.0.0.1:{port}", ["10.1.0.0/16"])
    twos = Peer(f"127.0.0.2:{port}", ["10.2.0.0/16"])
    async with (
        Tunnel(device=None, local="127.0.0.1", port=port, peers=[twos]) as one,
        Tunnel(device=None, local="127.0.0.2", port=port, peers=[ones]) as two,
    ):
        yield one, two


async def test_packets_go_both_ways() -> None:
    async with pair_of_tunnels() as (one, two), asyncio.timeout(30):
        there, back = packet("10.1.0.1", "10.2.0.1"), packet("10.2.0.1", "10.1.0.1")
        await one.send(there)
        assert await two.receive() == there
        await two.send(back)
        assert await one.receive() == back
        stats = one.stats
        assert stats.peers[Endpoint("127.0.0.2", 18472)].outbound.packets == 1
        assert (stats.outbound.bytes, stats.inbound.bytes) == (len(there), len(back))
        assert stats.drops == {}


async def test_iteration_ends_when_the_tunnel_closes() -> None:
    async with pair_of_tunnels() as (one, two), asyncio.timeout(30):
        sent = [packet("10.1.0.1", "10.2.0.1", bytes([n]) * 9) for n in range(20)]
        seen = []

        async def receive() -> None:
            async for one_packet in two:
                seen.append(one_packet)

        receiver = asyncio.create_task(receive())
        for one_packet in sent:
            await one.send(one_packet)
        await until(lambda: len(seen) == 20)
        await two.close()
        await receiver
        await two.wait_closed()
        assert seen == sent
        with pytest.raises(ClosedError, match="closed"):
            await two.receive()
        with pytest.raises(ClosedError, match="closed"):
            await two.add_peer("127.0.0.3=10.3.0.0/16")
        assert two.stats.inbound.packets == 20


async def test_a_packet_for_nobody_is_counted() -> None:
    async with pair_of_tunnels() as (one, _), asyncio.timeout(30):
        await one.send(packet("10.1.0.1", "10.99.0.1"))
        await until(lambda: bool(one.stats.drops))
        assert one.stats.drops == {"no_route": 1}


async def test_peers_come_and_go_under_traffic() -> None:
    async with pair_of_tunnels() as (one, two), asyncio.timeout(20):
        arrived = 0

        async def receive() -> None:
            nonlocal arrived
            async for _ in two:
                arrived += 1

        receiver = asyncio.create_task(receive())
        for number in range(300):
            await one.send(packet("10.1.0.1", "10.2.0.1"))
            if number % 3 == 0:
                await one.add_peer("[::1]:9=10.3.0.0/16,fd03::/64")
            elif number % 3 == 1:
                await one.remove_peer("[::1]:9")
        await until(lambda: arrived == 300)
        receiver.cancel()
        assert one.stats.drops == {}
        assert one.peers == (Endpoint("127.0.0.2", 18472),)


async def test_a_peer_that_cannot_be_leaves_all_as_it_was() -> None:
    async with pair_of_tunnels() as (one, _):
        described = one.describe()
        for bad in [
            "127.0.0.2:18472=10.9.0.0/16",
            "127.0.0.3=10.2.3.0/24",
            "[::1]:18472=fd09::/64",
        ]:
            with pytest.raises(ConfigError):
                await one.add_peer(bad)
        with pytest.raises(PeerNotFoundError, match="does not exist"):
            await one.remove_peer("127.0.0.3")
        assert described.startswith("tunnel1: vni 1, 127.0.0.1:18472, mtu 64950, 1 peer, no device")
        assert one.stats.drops == {}
        assert len(one.peers) == 1


async def test_a_name_is_a_peer() -> None:
    async with (
        Tunnel(device=None, port=18472, peers=["localhost:18473=10.2.0.0/16"]) as one,
        asyncio.timeout(30),
    ):
        assert one.peers == (Endpoint("localhost", 18473),)
        await one.send(packet("10.1.0.1", "10.2.0.1"))
        await until(lambda: one.stats.outbound.packets > 0)


async def test_a_name_without_an_address_drops_and_holds_nothing_up() -> None:
    async with (
        asyncio.timeout(30),
        Tunnel(device=None, port=18472, peers=["no-such-host.invalid=10.2.0.0/16"]) as one,
    ):
        await one.send(packet("10.1.0.1", "10.2.0.1"))
        await until(lambda: bool(one.stats.drops))
        assert one.stats.drops == {"unresolved": 1}


async def test_cancelling_the_block_closes() -> None:
    ready = asyncio.Event()

    async def run() -> None:
        async with Tunnel(device=None, local="127.0.0.1", port=18472) as tunnel:
            ready.set()
            await tunnel.wait_closed()

    for _ in range(2):  # the second finds the port free
        task = asyncio.create_task(run())
        await ready.wait()
        ready.clear()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_program_with_a_device_has_no_packets(host: Host) -> None:
    async with Tunnel(subnets=SUBNETS, peers=[PEER]) as tunnel:
        with pytest.raises(ConfigError, match="device=None"):
            await tunnel.send(b"")


# With a device.


async def test_all_is_made_and_all_is_undone(host: Host) -> None:
    before = system()
    async with Tunnel(subnets=SUBNETS, peers=[PEER]) as tunnel:
        assert tunnel.describe().startswith("tunnel1: vni 1, 192.0.2.1:8472, mtu 1450, 1 peer, ")
        assert tunnel.offloads >= {"tso", "trains", "gro"}
        link = shell("ip -d link show tunnel1")
        for word in ("mtu 1450", "qlen 4096", "gso_max_size 61884", "state UNKNOWN", "pi off"):
            assert word in link
        addresses = shell("ip -br address show tunnel1")
        assert addresses.split()[2:] == ["10.1.0.0/32", "fd01::/128"]
        for family, prefix in ((4, "10.2.0.0/16"), (6, "fd02::/64")):
            routes = shell(f"ip -{family} route show proto {PROTOCOL}")
            assert routes.startswith(f"{prefix} dev tunnel1")
            assert len(routes.splitlines()) == 1
        await tunnel.add_peer("192.0.2.3=10.3.0.0/16")
        assert "10.3.0.0/16" in shell("ip route")
        await tunnel.remove_peer("192.0.2.3")
        assert "10.3.0.0/16" not in shell("ip route")
    assert system() == before


async def test_a_host_that_forwards_takes_super_packets_of_any_size(host: Host) -> None:
    shell("sysctl -w net.ipv4.ip_forward=1")
    async with Tunnel(subnets=SUBNETS, peers=[PEER]):
        assert "gso_max_size 65536" in shell("ip -d link show tunnel1")


async def test_once_closed_it_stays_closed(host: Host) -> None:
    tunnel = Tunnel(subnets=SUBNETS, peers=[PEER])
    async with tunnel:
        pass
    with pytest.raises(ClosedError, match="closed"):
        async with tunnel:
            pass


async def test_the_mtu_follows_the_paths(host: Host) -> None:
    shell("ip route add 192.0.2.9/32 dev eth0 mtu 1400")
    async with Tunnel(subnets=SUBNETS, peers=[PEER]) as tunnel:
        for endpoint, mtu in (("192.0.2.9", 1350), ("[2001:db8::2]", 1430)):
            await tunnel.add_peer(f"{endpoint}=10.3.0.0/16")
            assert tunnel.mtu == mtu
            assert f"mtu {mtu} " in shell("ip link show tunnel1")
            await tunnel.remove_peer(endpoint)
            assert tunnel.mtu == 1450


async def test_offloads_that_are_not_wanted_are_off(host: Host) -> None:
    async with Tunnel(subnets=SUBNETS, peers=[PEER], offload="none") as tunnel:
        assert tunnel.offloads == frozenset()
        assert "vnet_hdr off" in shell("ip -d link show tunnel1")
    async with Tunnel(subnets=SUBNETS, peers=[PEER], offload="tso,gro") as tunnel:
        assert tunnel.offloads == {"tso", "gro"}


async def test_a_persistent_device_is_taken_over_and_left(host: Host) -> None:
    shell("ip tuntap add tunnel1 mode tun && ip link set tunnel1 up")
    shell("ip address add 10.77.0.1/24 dev tunnel1")
    shell(f"ip route add 10.78.0.0/24 dev tunnel1 proto {PROTOCOL}")
    for _ in range(2):
        async with Tunnel(subnets=SUBNETS, peers=[PEER]):
            assert "10.77.0.1" not in shell("ip address")
            assert shell(f"ip route show proto {PROTOCOL}").split()[0] == "10.2.0.0/16"
        assert "tunnel1" in shell("ip link")
        assert "inet" not in shell("ip address show tunnel1 scope global")
        assert shell(f"ip route show proto {PROTOCOL}; ip -6 route show proto {PROTOCOL}") == ""


async def test_a_device_that_vanishes_closes_the_tunnel(host: Host) -> None:
    async with Tunnel(subnets=SUBNETS, peers=[PEER]) as tunnel:
        waiting = asyncio.create_task(tunnel.wait_closed())
        await asyncio.sleep(0)
        shell("ip link delete tunnel1")
        async with asyncio.timeout(30):
            with pytest.raises(DeviceError, match="device tunnel1 no longer works"):
                await waiting


WRONG = {
    "ip link add tunnel1 type bridge": (DeviceError, "exists and is not a TUN device"),
    "ip tuntap add tunnel1 mode tap": (DeviceError, "exists and is not a TUN device"),
    "ip link add vx0 type vxlan id 9 dstport 8472 && ip link set vx0 up": (
        UnderlayError,
        "UDP port 8472 is in use by the kernel's vxlan device vx0 ",
    ),
    "ip route add 10.2.0.0/16 dev eth0": (
        DeviceError,
        "kernel route 10.2.0.0/16 exists already, via device eth0 ",
    ),
    "ip -6 route add fd02::/64 dev eth0": (
        DeviceError,
        "kernel route fd02::/64 exists already, via device eth0 ",
    ),
}


@pytest.mark.parametrize("command", WRONG)
async def test_what_stands_in_the_way_is_named(host: Host, command: str) -> None:
    shell(command)
    before = system()
    kind, text = WRONG[command]
    with pytest.raises(TunnelError) as caught:
        async with Tunnel(subnets=SUBNETS, peers=[PEER]):
            pass
    assert isinstance(caught.value, kind)
    assert text in str(caught.value)
    assert "(" in str(caught.value)  # the next step
    assert system() == before


async def test_a_device_in_use_is_named(host: Host) -> None:
    async with Tunnel(subnets=SUBNETS, peers=[PEER]):
        with pytest.raises(DeviceError, match="device tunnel1 is in use by another process"):
            async with Tunnel(subnets=SUBNETS, peers=[PEER], port=9):
                pass


async def test_an_mtu_that_the_underlay_cannot_carry(host: Host) -> None:
    with pytest.raises(ConfigError, match=r"mtu 1451 .*at most 1450") as caught:
        async with Tunnel(subnets=SUBNETS, peers=[PEER], mtu=1451):
            pass
    assert caught.value.key == ("mtu",)


async def test_a_peer_that_is_ourselves(host: Host) -> None:
    with pytest.raises(ConfigError, match="is this node itself"):
        async with Tunnel(subnets=SUBNETS, peers=["192.0.2.1=10.2.0.0/16"]):
            pass


async def test_a_prefix_that_holds_its_own_peer(host: Host) -> None:
    inside_out = Peer("192.0.2.2", ["192.0.2.0/25"])
    with pytest.raises(ConfigError, match=r"192\.0\.2\.2 itself.*kernel route of its own"):
        async with Tunnel(subnets=SUBNETS, peers=[inside_out]):
            pass
    host.run("ip route add 192.0.2.2/32 dev eth0")
    async with Tunnel(subnets=SUBNETS, peers=[inside_out]):
        pass


async def test_a_refused_peer_leaves_nothing(host: Host) -> None:
    shell("ip route add 10.3.1.0/24 dev eth0")
    async with Tunnel(subnets=SUBNETS, peers=[PEER]) as tunnel:
        with pytest.raises(DeviceError, match="kernel route"):
            await tunnel.add_peer("192.0.2.3=10.3.0.0/24,10.3.1.0/24")
        assert tunnel.peers == (PEER.endpoint,)
        assert "10.3.0.0/24" not in shell("ip route")
        assert "10.3.1.0/24 dev eth0" in shell("ip route")


async def test_a_hundred_starts_leave_nothing(host: Host) -> None:
    before = system()

    async def cycle() -> None:
        async with Tunnel(subnets=SUBNETS, peers=[PEER]) as tunnel:
            await tunnel.add_peer("[2001:db8::2]=10.3.0.0/16")

    for _ in range(20):
        await cycle()
    gc.collect()
    descriptors, memory = len(os.listdir("/proc/self/fd")), resident()
    for _ in range(80):
        await cycle()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert resident() - memory < 2 << 20
    assert system() == before


async def test_cancelled_at_any_step_it_undoes_what_it_made(host: Host) -> None:
    before = system()
    descriptors = None
    for steps in range(40):
        task = asyncio.create_task(open_and_wait())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        gc.collect()
        count = len(os.listdir("/proc/self/fd"))
        descriptors = descriptors or count
        assert count <= descriptors + 1
    assert system() == before


async def open_and_wait() -> None:
    async with Tunnel(subnets=SUBNETS, peers=[PEER]) as tunnel:
        await tunnel.wait_closed()


def resident() -> int:
    """Bytes of memory in use now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
