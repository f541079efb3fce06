"""
Two nodes behind a router whose link becomes narrower and wider while TCP runs between them.

    a - router - b      the link between router and b is the one that changes
"""

import itertools
import json
import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from tests.netns.node import Node
from tests.netns.test_kernel_vxlan import KERNEL_MAC, OUR_MAC, flannel_up
from tests.netns.traffic import connected, exchange
from tunnel.testing.lab import Host, Lab, LabError

OVERHEAD = {4: 50, 6: 70}
LONGEST_STALL = 6.0  # seconds; without path MTU discovery the stream stops for good
PATIENCE = 40.0  # seconds until a path has to be known

# A node that says what happens to it, a line each.
NODE = """
import asyncio, json, signal, sys
from tunnel import Config, Tunnel
from tunnel.events import PathChanged

def say(fact):
    sys.stdout.write(json.dumps(fact) + "\\n")
    sys.stdout.flush()

async def main():
    words = json.loads(sys.argv[1])
    tunnel = Tunnel(**words)
    events = tunnel.events()
    asyncio.get_running_loop().add_signal_handler(
        signal.SIGTERM, lambda: asyncio.ensure_future(tunnel.close())
    )
    async with tunnel:
        say("ready")
        async for event in events:
            if isinstance(event, PathChanged):
                say(event.mtu)
    say({"drops": dict(tunnel.stats.drops)})

asyncio.run(main())
"""


class Teller:
    """
    A node that tells how much the path to its only peer takes.

    Attributes:
        drops: By reason, once it is stopped.
    """

    def __init__(self, node: Node, peer: str, *, workers: str = "auto") -> None:
        words = {"subnets": node.prefixes, "peers": [peer], "workers": workers}
        self._process = node.host.popen([sys.executable, "-c", NODE, json.dumps(words)])
        self._said: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.drops: dict[str, int] = {}
        assert self._said.get(timeout=PATIENCE) == "ready"

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._said.put(json.loads(line))

    def wait_for(self, mtu: int) -> None:
        """Until it says that the path takes just so much."""
        deadline, said = time.monotonic() + PATIENCE, []
        while mtu not in said:
            try:
                said.append(self._said.get(timeout=max(0.0, deadline - time.monotonic())))
            except queue.Empty:
                pytest.fail(f"{mtu} was never said, but {said}")

    def stop(self) -> None:
        self._process.terminate()
        self._reader.join(PATIENCE)
        assert self._process.wait(PATIENCE) == 0
        while not self._said.empty():
            if isinstance(said := self._said.get(), dict):
                self.drops = said["drops"]


def route_between(lab: Lab, a: Host, b: Host, *, offloads: bool) -> Host:
    """Joins two hosts by a router; without `offloads` its links carry no train in one piece."""
    router = lab.host("router")
    for port, host in (("to_a", a), ("to_b", b)):
        router.run(f"ip link add {port} type veth peer name eth0 netns {host.pid}")
        router.run(f"ip address add fe80::1/64 dev {port} nodad")
        router.run(f"ip link set {port} up")
        host.run(f"ip address add {host.ipv4}/32 dev eth0")
        host.run(f"ip address add {host.ipv6}/128 dev eth0 nodad")
        host.run("ip link set eth0 up")
        if not offloads:
            for end, link in ((router, port), (host, "eth0")):
                end.run(f"ethtool -K {link} tx off rx off sg off tso off gso off gro off")
        for end, where, via in (
            (router, f"-4 route add {host.ipv4}", f"dev {port}"),
            (router, f"-6 route add {host.ipv6}", f"dev {port}"),
            (host, "-4 route add default", "via inet6 fe80::1 dev eth0"),
            (host, "-6 route add default", "via fe80::1 dev eth0"),
        ):
            end.run(f"ip {where} {via}")
    for switch in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        router.run(["sh", "-c", f"echo 1 >/proc/sys/net/{switch}"])
    return router


def narrow(router: Host, b: Host, mtu: int) -> None:
    """A link of that MTU, of which both its ends know."""
    router.run(f"ip link set to_b mtu {mtu}")
    b.run(f"ip link set eth0 mtu {mtu}")


def narrow_silently(router: Host, b: Host, mtu: int) -> None:
    """Longer packets are lost, and no ICMP is sent."""
    router.run("nft flush ruleset")
    if mtu < 1500:
        router.run("nft add table inet fault")
        hook = "{ type filter hook forward priority 0; }"
        router.run(["nft", "add", "chain", "inet", "fault", "forward", hook])
        router.run(f"nft add rule inet fault forward meta length > {mtu} drop")


@contextmanager
def streaming(a: Host, b: Host, address: str) -> Iterator[list[float]]:
    """Sends from `a` to `b` over TCP as fast as it goes; when bytes arrived, once it is over."""
    arrivals: list[float] = []
    stop = threading.Event()

    with connected(a, b, address) as (sender, receiver), ThreadPoolExecutor(2) as pool:
        for end in (sender, receiver):
            end.settimeout(PATIENCE)

        def send() -> None:
            chunk = bytes(1 << 15)
            while not stop.is_set():
                sender.sendall(chunk)
                time.sleep(0.002)  # packets all the time, and CPUs to spare
            sender.shutdown(1)

        def receive() -> None:
            while receiver.recv(1 << 18):
                arrivals.append(time.monotonic())

        running = [pool.submit(send), pool.submit(receive)]
        try:
            yield arrivals
        finally:
            stop.set()
        for one in running:
            one.result()


def longest_stall(arrivals: list[float]) -> float:
    return max(after - before for before, after in itertools.pairwise(arrivals))


@pytest.mark.parametrize("change", [narrow, narrow_silently])
@pytest.mark.parametrize("outer", [4, 6])
def test_tcp_goes_on_while_the_path_changes(
    lab: Lab, outer: int, change: Callable[[Host, Host, int], None]
) -> None:
    """Over IPv4 and IPv6 inside, at once."""
    a, b = Node(lab.host("a"), 1), Node(lab.host("b"), 2)
    router = route_between(lab, a.host, b.host, offloads=change is narrow)
    here, there = Teller(a, b.at(outer)), Teller(b, a.at(outer))
    for node in (here, there):
        node.wait_for(1500 - OVERHEAD[outer])
    # 1280 bytes of IPv6 do not fit into 1300: they leave as fragments, if the kernel is told.
    inner = [b.ipv4, b.ipv6] if change is narrow else [b.ipv4]
    with ExitStack() as stack:
        streams = [stack.enter_context(streaming(a.host, b.host, one)) for one in inner]
        time.sleep(1.5)
        for mtu in (1400, 1300, 1500):
            change(router, b.host, mtu)
            here.wait_for(mtu - OVERHEAD[outer])
            time.sleep(0.5)
    for arrivals in streams:
        assert longest_stall(arrivals) < LONGEST_STALL
    for address in (b.ipv4, b.ipv6):
        exchange(a.host, b.host, address, size=1 << 20)
    for node in (here, there):
        node.stop()
        assert node.drops.keys() <= {"too_big"}
    assert here.drops


@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("mtu", [1400, 1300])
def test_a_stream_that_begins_on_a_narrow_path(lab: Lab, outer: int, mtu: int) -> None:
    """Both ways at once, with a router that sends no ICMP."""
    a, b = Node(lab.host("a"), 1), Node(lab.host("b"), 2)
    router = route_between(lab, a.host, b.host, offloads=False)
    narrow_silently(router, b.host, mtu)
    here, there = Teller(a, b.at(outer), workers="1"), Teller(b, a.at(outer), workers="2")
    for node in (here, there):
        node.wait_for(mtu - OVERHEAD[outer])
    exchange(a.host, b.host, b.ipv4, size=1 << 20)
    exchange(b.host, a.host, a.ipv4, size=1 << 20)


@pytest.mark.parametrize("outer", [4, 6])
def test_who_sends_too_much_is_told(lab: Lab, outer: int) -> None:
    a, b = Node(lab.host("a"), 1), Node(lab.host("b"), 2)
    router = route_between(lab, a.host, b.host, offloads=True)
    narrow(router, b.host, 1400)
    here = Teller(a, b.at(outer))
    there = Teller(b, a.at(outer))
    mtu = 1400 - OVERHEAD[outer]
    here.wait_for(mtu)
    for family, header, address in ((4, 28, b.ipv4), (6, 48, b.ipv6)):
        said = told(a.host, f"ping -{family} -n -c 1 -W 1 -M do -s {mtu - header + 1} {address}")
        assert re.search(rf"(mtu = {mtu}|mtu={mtu})\b", said)
        a.host.run(f"ping -{family} -n -c 1 -W 1 -M do -s {mtu - header} {address}")
        # A packet that may be fragmented is not refused.
        a.host.run(f"ping -{family} -n -c 1 -W 1 -M dont -s {mtu - header + 1} {address}")
    here.stop()
    there.stop()
    assert here.drops == {"too_big": 2}


def told(host: Host, ping: str) -> str:
    with pytest.raises(LabError) as caught:
        host.run(ping)
    return str(caught.value)


def test_messages_have_a_limit(lab: Lab) -> None:
    """Four hundred packets at once that are too long: fifty get an ICMP error, and then a
    hundred a second."""
    a, b = Node(lab.host("a"), 1), Node(lab.host("b"), 2)
    router = route_between(lab, a.host, b.host, offloads=True)
    narrow(router, b.host, 1400)
    here, there = Teller(a, b.at(4)), Teller(b, a.at(4))
    here.wait_for(1350)
    before = messages(a.host)
    # Each to an address of its own: of what one told it the kernel makes a route.
    script = "for n in $(seq 1 200); do ping -n -c 1 -W 1 -M do -s 1400 10.244.2.$n & done; wait"
    a.host.run(["sh", "-c", f"{{ {script}; }} >/dev/null 2>&1; true"])
    assert 50 <= messages(a.host) - before < 190
    here.stop()
    there.stop()


def messages(host: Host) -> int:
    """ICMP "destination unreachable" that the host was sent."""
    names, values = host.run(["sh", "-c", "grep ^Icmp: /proc/net/snmp"]).stdout.splitlines()
    return int(dict(zip(names.split(), values.split(), strict=True))["InDestUnreachs"])


def test_a_kernel_vxlan_peer_stays_unknown_and_works(lab: Lab) -> None:
    ours, kernel = Node(lab.host("ours"), 1), Node(lab.host("kernel"), 2)
    lab.link(ours.host, kernel.host)
    flannel_up(kernel, ours, outer=4)
    ours.up("--mac", OUR_MAC, peers=[kernel.at(4, mac=KERNEL_MAC)])
    exchange(ours.host, kernel.host, kernel.ipv4, size=1 << 20)
    (peer,) = status(ours)["peers"]
    assert peer["state"] == "unknown"
    assert peer["rtt"] is peer["loss"] is peer["path_mtu"] is None
    ours.host.run(f"ping -n -c 1 -W 1 -M do -s 1422 {kernel.ipv4}")
    assert ours.down() == {}


def test_the_path_is_shown(lab: Lab) -> None:
    a, b = Node(lab.host("a"), 1), Node(lab.host("b"), 2)
    router = route_between(lab, a.host, b.host, offloads=True)
    a.up(peers=[b.at(4)])
    b.up(peers=[a.at(4)])
    for mtu in (1450, 1350):
        narrow(router, b.host, mtu + 50)
        ping = a.host.popen(f"ping -q -i 0.1 {b.ipv4}")
        until(lambda mtu=mtu: status(a)["peers"][0]["path_mtu"] == mtu)
        ping.terminate()


def status(node: Node) -> dict[str, list[dict[str, object]]]:
    made: dict[str, list[dict[str, object]]] = json.loads(
        node.host.run([sys.executable, "-m", "tunnel", "status", "--json"]).stdout
    )
    return made


def until(condition) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
