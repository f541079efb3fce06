"""Each command as a method of Tunnel: its result, cancelled, closed, and without a device."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from ipaddress import ip_network
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, UDP

from tests.netns.traffic import inside
from tunnel import ConfigError, Endpoint, NoAnswerError, Tunnel
from tunnel.cli import SECTIONS
from tunnel.diagnostics import Capture, Finding, Level, Packet
from tunnel.errors import ClosedError, StateError, UnderlayError
from tunnel.status import Drop, Route
from tunnel.testing.lab import Host, Lab
from tunnel.types import parse_prefix

PORT = 18474
TWO = Endpoint("127.0.0.2", PORT)

METHODS = {
    "capture": "capture",
    "doctor": "doctor",
    "down": "close",
    "drops": "drops",
    "explain": "explain",
    "fdb": "fdb",
    "neighbour": "neighbours",
    "peer": "add_peer",
    "ping": "ping",
    "reload": "reload",
    "route": "routes",
    "status": "status",
}
"""The method of each command that is about a running node."""
OF_NO_NODE = {"bench", "config", "decode", "demo", "network", "up"}


def test_every_command_is_a_method() -> None:
    assert {
        verb for section in SECTIONS.values() for verb in section
    } == METHODS.keys() | OF_NO_NODE
    assert all(callable(getattr(Tunnel, method)) for method in METHODS.values())


# Without a device, on loopback.


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Tunnel, Tunnel]]:
    words: dict[str, Any] = {"device": None, "port": PORT}
    async with (
        asyncio.timeout(30),
        Tunnel(**words, local="127.0.0.1", peers=[f"{TWO}=10.2.0.0/16"]) as one,
        Tunnel(**words, local="127.0.0.2", peers=[f"127.0.0.1:{PORT}=10.1.0.0/16"]) as two,
    ):
        yield one, two


async def test_drops() -> None:
    async with pair() as (one, _):
        await one.send(bytes(IP(src="10.1.0.1", dst="10.9.0.1") / UDP()))
        while not one.stats.drops:  # noqa: ASYNC110 - a counter gives no signal
            await asyncio.sleep(0.01)
    drops = {drop.reason: drop for drop in one.drops()}  # closed, it still tells
    assert drops["no_route"] == Drop("no_route", "outbound", 1, drops["no_route"].meaning, peers={})
    assert "no peer has the destination" in drops["no_route"].meaning
    assert drops["spoofed"].count == 0


async def test_routes_without_a_device() -> None:
    async with pair() as (one, _):
        assert await one.routes() == (Route(parse_prefix("10.2.0.0/16"), TWO, None),)


async def test_a_ping_names_the_stage_of_its_failure() -> None:
    async with pair() as (one, _):
        assert await one.ping(TWO) < 5
        for peer in ("127.0.0.9=10.9.0.0/16", "no-such-host.invalid=10.8.0.0/16"):
            await one.add_peer(peer)
        large = one.ping(TWO, size=70_000)
        asked = (large, one.ping("127.0.0.9"), one.ping("no-such-host.invalid"))
        failed = await asyncio.gather(*asked, return_exceptions=True)
    for error, stage, text in zip(
        failed,
        ("too_big", "no_answer", "unresolved"),
        ("70000 bytes do not reach it", "it has never answered", "check DNS"),
        strict=True,
    ):
        assert isinstance(error, NoAnswerError)
        assert isinstance(error, TimeoutError)
        assert (error.stage, text in str(error)) == (stage, True)


async def test_doctor_tries_trains_with_each_peer_that_is_up() -> None:
    async with pair() as (one, _):
        found = await one.doctor()
        assert Finding("trains", Level.OK, "arrive undamaged at 1 peer") in found
        assert Finding("peers", Level.OK, "1 peer heard from") in found
        await one.remove_peer(TWO)
        checks = {finding.check for finding in await one.doctor()}
        assert checks.isdisjoint({"trains", "peers"})


async def test_doctor_cancelled_changes_nothing() -> None:
    async with pair() as (one, two):
        await two.close()
        before = one.status(watch=False)
        asking = asyncio.create_task(one.doctor())
        await asyncio.sleep(0.1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        after = one.status(watch=False)
        assert (after.offloads, len(after.peers)) == (before.offloads, 1)
        assert after.peers[0].trains


async def test_a_program_that_is_the_device_captures_what_is_outside_alone() -> None:
    async with pair() as (one, _):
        with pytest.raises(ConfigError, match="has no device to capture on"):
            async with one.capture():
                pass
        async with one.capture("src host 127.0.0.1", outer=True) as packets:
            await one.ping(TWO)
            packet = await anext(packets)
        assert packet.interface.name == "lo"
        assert not packet.interface.inner
        assert IP(packet.data[14:])[UDP].dport == PORT


ASKING: dict[str, Callable[[Tunnel], Awaitable[object]]] = {
    "routes": lambda one: one.routes(),
    "doctor": lambda one: one.doctor(),
    "ping": lambda one: one.ping(TWO),
    "try_trains": lambda one: one.try_trains(TWO),
    "explain": lambda one: one.explain("10.2.0.1", source="10.1.0.1"),
    "add_peer": lambda one: one.add_peer("127.0.0.3=10.3.0.0/16"),
    "remove_peer": lambda one: one.remove_peer(TWO),
    "change_peers": lambda one: one.change_peers(remove=[TWO]),
    "reload": lambda one: one.reload(one.config),
    "renumber": lambda one: one.renumber(one.config),
    "capture": lambda one: one.capture(outer=True).__aenter__(),
}


@pytest.mark.parametrize("method", ASKING)
async def test_closed_or_not_open_yet_it_says_so(method: str) -> None:
    one = Tunnel(device=None, local="127.0.0.1", port=PORT, peers=[f"{TWO}=10.2.0.0/16"])
    with pytest.raises(StateError, match="tunnel1 is not open"):
        await ASKING[method](one)
    async with one:
        pass
    with pytest.raises(ClosedError, match="tunnel1 is closed"):
        await ASKING[method](one)


TELLING: dict[str, Callable[[Tunnel], object]] = {
    "stats": lambda one: one.stats,
    "status": lambda one: one.status(),
    "drops": lambda one: one.drops(),
    "describe": lambda one: one.describe(),
    "peers": lambda one: one.peers,
    "neighbours": lambda one: one.neighbours(),
    "gateway": lambda one: one.gateway(ip_network("10.2.0.0/16")),
    "mtu": lambda one: one.mtu,
    "offloads": lambda one: one.offloads,
    "fdb": lambda one: one.fdb(),
}


@pytest.mark.parametrize("what", TELLING)
def test_never_open_it_says_so(what: str) -> None:
    one = Tunnel(peers=[f"{TWO}=10.2.0.0/16"])
    assert not one.ready
    with pytest.raises(StateError, match="tunnel1 is not open"):
        TELLING[what](one)


async def test_never_open_it_is_no_device() -> None:
    one = Tunnel(device=None)
    for packets in (one.send(b""), one.receive(), anext(one)):
        with pytest.raises(StateError, match="tunnel1 is not open"):
            await packets


async def test_that_could_not_be_opened_it_says_so() -> None:
    async with pair():
        one = Tunnel(device=None, local=TWO.host, port=PORT)
        with pytest.raises(UnderlayError):
            await one.__aenter__()
    with pytest.raises(ClosedError, match="tunnel1 is closed"):
        one.status()


async def test_closed_it_tells_what_it_knew() -> None:
    async with pair() as (one, _):
        await one.ping(TWO)
    assert [peer.endpoint for peer in one.status().peers] == [TWO]
    assert one.describe().startswith("tunnel1: vni 1, 127.0.0.1")
    assert one.peers == tuple(one.neighbours()) == (TWO,)
    assert not one.ready


# With a device.


@pytest.fixture
def host(lab: Lab) -> Iterator[Host]:
    """A host that is linked to another; the test runs on it."""
    host, other = lab.host("a"), lab.host("b")
    lab.link(host, other)
    with inside(host):
        yield host


@asynccontextmanager
async def on_device() -> AsyncIterator[Tunnel]:
    async with (
        asyncio.timeout(30),
        Tunnel(subnets=["10.1.0.0/16"], peers=["192.0.2.2=10.2.0.0/16,fd02::/64"]) as one,
    ):
        yield one


async def test_routes_that_the_kernel_has_lost(host: Host) -> None:
    async with on_device() as one:
        assert {str(route.prefix): route.kernel for route in await one.routes()} == {
            "10.2.0.0/16": True,
            "fd02::/64": True,
        }
        host.run("ip link set tunnel1 down")  # on a link that is down nothing is restored
        assert [route.kernel for route in await one.routes()] == [False, False]


async def test_packets_inside_are_captured(host: Host) -> None:
    async with on_device() as one, one.capture("icmp") as packets:
        ping = host.popen("ping -c 1 -W 1 10.2.0.1")
        packet = await anext(packets)
        ping.kill()
    assert isinstance(packet, Packet)
    assert (packet.interface.name, packet.interface.inner, packet.outbound) == (
        "tunnel1",
        True,
        True,
    )
    assert IP(packet.data)[ICMP].type == 8


@pytest.mark.parametrize("outer", [False, True])
async def test_a_capture_ends_with_its_tunnel(host: Host, outer: bool) -> None:
    async with on_device() as one, one.capture("src host 203.0.113.9", outer=outer) as packets:
        reading = asyncio.create_task(read(packets))
        await asyncio.sleep(0)
        await one.close()
        assert await reading == 0
        assert packets.counts == [(0, 0)]


async def test_a_capture_that_is_cancelled_loses_nothing(host: Host) -> None:
    async with on_device() as one, one.capture("icmp") as packets:
        waiting = asyncio.create_task(anext(packets))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        ping = host.popen("ping -c 1 -W 1 10.2.0.1")
        assert IP((await anext(packets)).data)[ICMP].type == 8
        ping.kill()


async def read(packets: Capture) -> int:
    return len([packet async for packet in packets])


async def test_a_filter_that_is_none(host: Host) -> None:
    async with on_device() as one:
        with pytest.raises(ConfigError, match="see pcap-filter"):
            async with one.capture("no such words"):
                pass


async def test_doctor_gives_peers_a_while_to_answer(host: Host) -> None:
    async with on_device() as one:
        begun = time.monotonic()
        found = {finding.check: finding for finding in await one.doctor()}
        assert 2.9 < time.monotonic() - begun < 30
    assert {found[check].level for check in ("node", "routes", "mtu")} == {Level.OK}
    assert found["peers"].level is Level.FAILED
    assert "has never answered" in found["peers"].text
