"""Several workers: flows keep their order and port, and counters are sums."""

import asyncio
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.netns.node import Node
from tests.netns.test_kernel_vxlan import KERNEL_MAC, OUR_MAC, flannel_up
from tests.netns.traffic import exchange, inside, numbered
from tunnel import ConfigError, Endpoint, Tunnel
from tunnel.config.node import AUTO_WORKERS
from tunnel.errors import DeviceError, UnderlayError
from tunnel.testing.lab import Host, Lab

FLOWS = 12
SMALL = 4 << 20
_ETH_P_ALL = 3
_SO_RCVBUFFORCE = 33

Flow = tuple[int, bytes, bytes]
"""Inner protocol, addresses, ports."""


def linked(lab: Lab) -> tuple[Host, Host]:
    a, b = lab.host("a"), lab.host("b")
    lab.link(a, b)
    return a, b


def nodes(lab: Lab, *, workers: int, against: int) -> tuple[Node, Node]:
    """Two running nodes; with ``against=0`` the other one is a kernel vxlan device."""
    a, b = (Node(host, number) for number, host in enumerate(linked(lab), start=1))
    if against:
        a.up("--workers", str(workers), peers=[b.at(4)])
        b.up("--workers", str(against), peers=[a.at(4)])
    else:
        flannel_up(b, a, outer=4)
        a.up("--workers", str(workers), "--mac", OUR_MAC, peers=[b.at(4, mac=KERNEL_MAC)])
    return a, b


@contextmanager
def ports_seen(host: Host) -> Iterator[dict[Flow, set[int]]]:
    """The outer source ports of each inner flow that the host sends, once the block ends."""
    with inside(host):
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    seen: dict[Flow, set[int]] = {}
    stop = threading.Event()

    def watch() -> None:
        while True:
            try:
                frame, (_, _, kind, *_) = tap.recvfrom(200)
            except TimeoutError:
                if stop.is_set():
                    return
                continue
            # IPv4 and UDP to 8472 outside; the inner packet begins at byte 64.
            if kind == socket.PACKET_OUTGOING and frame[36:38] == (8472).to_bytes(2):
                four = frame[62:64] == b"\x08\x00"
                protocol, at, size = (frame[73], 76, 4) if four else (frame[70], 72, 16)
                flow = protocol, frame[at : at + 2 * size], frame[at + 2 * size :][:4]
                if protocol in (6, 17):
                    seen.setdefault(flow, set()).add(int.from_bytes(frame[34:36]))

    with tap, ThreadPoolExecutor(1) as pool:
        tap.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
        tap.bind(("eth0", _ETH_P_ALL))
        tap.settimeout(0.2)
        watching = pool.submit(watch)
        try:
            yield seen
        finally:
            stop.set()
        watching.result()


@pytest.mark.parametrize(("workers", "against"), [(2, 1), (3, 2), (2, 0), (3, 3)])
def test_every_flow_keeps_its_port_and_order(lab: Lab, workers: int, against: int) -> None:
    """With replies in each flow: replies from several workers of the peer move no flow."""
    a, b = nodes(lab, workers=workers, against=against)
    with ports_seen(a.host) as ours, ports_seen(b.host) as theirs, ExitStack() as streams:
        for near, far in ((a, b), (b, a)):
            for _ in range(FLOWS // 2):
                streams.enter_context(numbered(near.host, far.host, far.ipv4, pause=0.002))
        with ThreadPoolExecutor(4) as pool:
            for done in [
                pool.submit(exchange, near.host, far.host, address, size=SMALL)
                for near, far in itertools.islice(itertools.cycle(((a, b), (b, a))), FLOWS)
                for address in (far.ipv4, far.ipv6)
            ]:
                done.result()
            pool.submit(echo, a.host, b.host, b.ipv4).result()
    for seen in (ours, theirs) if against else (ours,):
        assert len([flow for flow in seen if flow[0] == 6]) >= 2 * FLOWS
        assert len([flow for flow in seen if flow[0] == 17]) >= FLOWS // 2
        assert {len(ports) for ports in seen.values()} == {1}
        assert len(set().union(*seen.values())) > 2
    assert a.down() == {}


def echo(a: Host, b: Host, address: str) -> None:
    """UDP flows with a reply to each datagram, from several workers."""
    with ExitStack() as stack:
        for _ in range(FLOWS):
            with inside(b):
                far = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            with inside(a):
                near = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            far.bind((address, 0))
            far.settimeout(5)
            near.settimeout(5)
            near.connect(far.getsockname())
            for number in range(100):
                near.send(number.to_bytes(2))
                data, name = far.recvfrom(10)
                far.sendto(data, name)
                assert near.recv(10) == number.to_bytes(2)


def test_more_than_one_worker_moves_packets(lab: Lab) -> None:
    a, b = nodes(lab, workers=3, against=1)
    with ExitStack() as streams:
        for _ in range(FLOWS):
            streams.enter_context(numbered(a.host, b.host, b.ipv4, pause=0.001))
        before = worker_switches(a)
        time.sleep(0.5)
        after = worker_switches(a)
    moved = [after[thread] - before[thread] for thread in before]
    assert len(moved) == 3
    assert sum(count > 20 for count in moved) >= 2
    assert (a.down(), b.down()) == ({}, {})


def switches(pid: int) -> dict[str, int]:
    """Voluntary context switches of each thread of a process."""
    found = {}
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        match = re.search(r"^voluntary_ctxt_switches:\s*(\d+)", status.read_text(), re.MULTILINE)
        assert match
        found[status.parent.name] = int(match[1])
    return found


def worker_switches(node: Node) -> dict[str, int]:
    every = switches(node.pid)
    del every[str(node.pid)]  # the loop's
    return every


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("workers", [1, 2])
def test_idle_costs_nothing(lab: Lab, workers: int, loop: str) -> None:
    a, b = (Node(host, number) for number, host in enumerate(linked(lab), start=1))
    a.up("--workers", str(workers), "--loop", loop, peers=[b.at(4)])
    # On a busy machine the node is still starting, or pages are still being loaded.
    assert any(is_idle(a, threads=1 if workers == 1 else 1 + workers) for _ in range(6))
    a.down()


def is_idle(node: Node, *, threads: int) -> bool:
    """Whether each thread wakes once a second at most."""
    time.sleep(0.5)
    before = switches(node.pid)
    time.sleep(3)
    after = switches(node.pid)
    assert before.keys() == after.keys()
    assert len(before) == threads
    return all(after[thread] - before[thread] <= 3 for thread in before)


# As a library, in this process.


FLOOD = """
import itertools, socket, sys
near = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(8)]
for sock in itertools.cycle(near):
    try:
        sock.sendto(bytes(1000), (sys.argv[1], 9))
    except OSError:
        pass
"""


@contextmanager
def flooded(*ways: tuple[Host, str]) -> Iterator[None]:
    """Sends as many datagrams as possible from each host to an address."""
    floods = [host.popen([sys.executable, "-c", FLOOD, address]) for host, address in ways]
    try:
        yield
    finally:
        for flood in floods:
            flood.kill()
            flood.communicate()


@pytest.fixture
def pair(lab: Lab) -> Iterator[tuple[Host, Node]]:
    """A host in whose namespace the test runs, and a running node on another."""
    a, b = (Node(host, number) for number, host in enumerate(linked(lab), start=1))
    b.up("--workers", "2", peers=[a.at(4)])
    with inside(a.host):
        yield a.host, b


def ours(b: Node, *, workers: int | str = 2) -> Tunnel:
    return Tunnel(subnets=["10.244.1.0/24"], peers=[b.at(4)], workers=workers)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - a counter of another's gives no signal
        await asyncio.sleep(0.01)


def threads_and_descriptors() -> tuple[int, int]:
    return len(threading.enumerate()), len(os.listdir("/proc/self/fd"))


async def test_counters_are_sums(pair: tuple[Host, Node]) -> None:
    """Counters of a removed peer stay in the sums; those of a closed tunnel can be read."""
    _, b = pair
    async with ours(b, workers=3) as tunnel:
        with ExitStack() as stack:
            for _ in range(FLOWS):
                sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                for _ in range(10):
                    sock.sendto(bytes(72), (b.ipv4, 9))
        async with asyncio.timeout(30):
            await until(lambda: tunnel.stats.outbound.packets == 10 * FLOWS)
            # b has no socket at port 9 and sends ICMP errors, at a rate that its kernel limits.
            await until(lambda: tunnel.stats.inbound.packets > 0)
        await asyncio.sleep(0.1)
        stats = tunnel.stats
        one = stats.peers[Endpoint("192.0.2.2")]
        assert (one.outbound.packets, one.outbound.bytes) == (10 * FLOWS, 10 * FLOWS * 100)
        assert stats.outbound == one.outbound
        await tunnel.remove_peer("192.0.2.2")
        assert tunnel.stats.peers == {}
        assert (tunnel.stats.outbound, tunnel.stats.inbound) == (stats.outbound, stats.inbound)
    assert tunnel.stats.outbound == stats.outbound


async def test_closed_under_load_it_leaves_nothing(pair: tuple[Host, Node]) -> None:
    a, b = pair
    before = threads_and_descriptors()
    links = a.run("ip -o link").stdout
    with flooded((a, b.ipv4), (b.host, "10.244.1.0")):
        async with ours(b, workers=3) as tunnel:
            await asyncio.sleep(0.5)
            assert len(threading.enumerate()) == before[0] + 3
            begin = time.monotonic()
        assert time.monotonic() - begin < 10
    assert min(tunnel.stats.outbound.packets, tunnel.stats.inbound.packets) > 1000
    assert threads_and_descriptors() == before
    assert a.run("ip -o link").stdout == links


async def test_the_device_is_deleted_under_load(pair: tuple[Host, Node]) -> None:
    a, b = pair
    before = threads_and_descriptors()
    with flooded((a, b.ipv4), (b.host, "10.244.1.0")):
        async with ours(b) as tunnel, asyncio.timeout(30):
            await asyncio.sleep(0.3)
            await asyncio.to_thread(a.run, "ip link delete tunnel1")
            with pytest.raises(DeviceError, match="device tunnel1 no longer works"):
                await tunnel.wait_closed()
    await asyncio.get_running_loop().shutdown_default_executor()
    assert threads_and_descriptors() == before


async def test_opened_fifty_times(pair: tuple[Host, Node]) -> None:
    _, b = pair
    async with ours(b):
        pass
    before = threads_and_descriptors()
    for _ in range(50):
        async with ours(b) as tunnel:
            pass
        assert tunnel.offloads == {"tso", "uso", "trains", "gro"}
    assert threads_and_descriptors() == before


async def test_a_port_belongs_to_one_tunnel(pair: tuple[Host, Node]) -> None:
    a, b = pair
    async with ours(b):
        for workers in (1, 2):
            with pytest.raises(UnderlayError, match=r"UDP port 8472 on 192\.0\.2\.1 is in use"):
                async with Tunnel(name="other", local="192.0.2.1", workers=workers):
                    pass
        a.ping(b.ipv4)


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_device_belongs_to_one_tunnel(pair: tuple[Host, Node], workers: int) -> None:
    """The kernel would let another process open queues of the device, and take flows from it."""
    a, b = pair
    async with ours(b, workers=workers):
        with pytest.raises(DeviceError, match="device tunnel1 is in use by another process"):
            async with Tunnel(port=4789, local="192.0.2.1", workers=workers):
                pass
        await asyncio.to_thread(exchange, a, b.host, b.ipv4, size=SMALL)


async def test_a_persistent_device_needs_as_many_queues(pair: tuple[Host, Node]) -> None:
    a, b = pair
    a.run("ip tuntap add tunnel1 mode tun")
    with pytest.raises(DeviceError, match="is not a TUN device with several queues"):
        await ours(b).__aenter__()
    # Several were not requested: one is enough.
    async with ours(b, workers="auto") as tunnel:
        assert tunnel.describe().endswith(", 1 worker")
        await asyncio.to_thread(a.ping, b.ipv4)
    a.run("ip link delete tunnel1")
    a.run("ip tuntap add tunnel1 mode tun multi_queue")
    with pytest.raises(DeviceError, match="is not a TUN device with one queue"):
        await ours(b, workers=1).__aenter__()
    for _ in range(2):
        async with ours(b):
            a.ping(b.ipv4)
    assert "tunnel1" in a.run("ip -o link").stdout


async def test_without_a_device_there_is_one_worker() -> None:
    with pytest.raises(ConfigError, match="workers 2 need a device"):
        await Tunnel(device=None, local="127.0.0.1", port=18473, workers=2).__aenter__()
    before = len(threading.enumerate())
    async with Tunnel(device=None, local="127.0.0.1", port=18473, workers="auto"):
        assert len(threading.enumerate()) == before


# As a command.


def test_auto_means_one_worker_for_each_cpu(lab: Lab) -> None:
    a, b = nodes(lab, workers=2, against=2)
    a.down()
    a.up("--workers", "auto", peers=[b.at(4)])
    count = min(len(os.sched_getaffinity(0)), AUTO_WORKERS)
    assert len(switches(a.pid)) == (1 if count == 1 else 1 + count)
    exchange(a.host, b.host, b.ipv6, size=SMALL)
    assert (a.down(), b.down()) == ({}, {})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_under_load(lab: Lab, number: signal.Signals) -> None:
    a, b = nodes(lab, workers=2, against=2)
    with flooded((a.host, b.ipv4), (b.host, a.ipv4)):
        time.sleep(0.3)
        begin = time.monotonic()
        os.kill(a.pid, number)
        a.down()
        assert time.monotonic() - begin < 10
        assert "tunnel1" not in a.host.run("ip -o link").stdout


def test_in_a_user_namespace() -> None:
    """In a user namespace an unprivileged user is root of a network namespace."""
    script = f"""
        ip link set lo up
        {sys.executable} -m tunnel up --workers 2 --local 127.0.0.1 --subnet 10.244.1.0/24 \\
            --peer 127.0.0.2=10.244.2.0/24 &
        until ping -c 1 -W 1 10.244.1.0; do sleep 0.1; done
        ip -o link show tunnel1
        kill $!; wait $!
    """
    done = subprocess.run(
        ["unshare", "-Urn", "bash", "-c", script],
        check=False,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert "1 received" in done.stdout, done.stderr
    assert "drops: none" in done.stdout
    assert done.returncode == 0, done.stderr
