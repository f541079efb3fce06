"""Kernel entries on a real device: entries that others remove are restored; the node's own removals
cost nothing more."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from tests.netns.traffic import inside
from tunnel import Peer, Tunnel
from tunnel.linux.netlink_socket import NetlinkSocket
from tunnel.node.reconciler import Reconciler
from tunnel.testing.lab import Host, Lab

PEERS, REMOVED = 3000, 100


@pytest.fixture
def host(lab: Lab) -> Iterator[Host]:
    """A host with a route to all of 198.18.0.0/15; the test runs on it."""
    host, other = lab.host("a"), lab.host("b")
    lab.link(host, other)
    host.run(f"ip route add 198.18.0.0/15 via {other.ipv4}")
    with inside(host):
        yield host


def peer(number: int) -> Peer:
    address = str(IPv4Address("198.18.0.1") + number)
    return Peer(address, [f"10.{number // 256}.{number % 256}.0/24"])


def routes(host: Host) -> set[str]:
    listed = json.loads(host.run("ip -j route show proto 84").stdout)
    return {one["dst"] for one in listed}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often tables are read and repairs are made."""
    counts = {"dumps": 0, "repairs": 0}
    dump, repair = NetlinkSocket.dump, Reconciler._repair

    async def counted_dump(self: NetlinkSocket, *arguments: Any, **more: Any) -> Any:
        counts["dumps"] += 1
        return await dump(self, *arguments, **more)

    async def counted_repair(self: Reconciler) -> Any:
        counts["repairs"] += 1
        return await repair(self)

    monkeypatch.setattr(NetlinkSocket, "dump", counted_dump)
    monkeypatch.setattr(Reconciler, "_repair", counted_repair)
    return counts


@pytest.fixture
async def tunnel(host: Host) -> AsyncIterator[Tunnel]:
    async with Tunnel(subnets=["10.255.0.0/24"], peers=[peer(0), peer(1)]) as tunnel:
        await asyncio.sleep(0.5)  # the notifications of the start are over
        yield tunnel


async def until(condition: Callable[[], bool], *, seconds: float) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_removing_peers_reads_no_table(
    host: Host, calls: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    peers = [peer(number) for number in range(PEERS)]
    async with Tunnel(subnets=["10.255.0.0/24"], peers=peers) as tunnel:
        await asyncio.sleep(1)
        calls.update(dumps=0, repairs=0)
        caplog.clear()
        for number in range(REMOVED):
            await tunnel.remove_peer(str(peers[number].endpoint))
        await asyncio.sleep(1)
        assert len(routes(host)) == PEERS - REMOVED
        assert calls == {"dumps": 0, "repairs": 0}
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


async def test_others_routes_wake_nothing(
    host: Host, tunnel: Tunnel, calls: dict[str, int], tmp_path: Path
) -> None:
    batch = tmp_path / "batch"
    for protocol in (84, 99):
        lines = [f"192.168.{n % 256}.{n // 256}/32 dev lo proto {protocol}" for n in range(500)]
        for verb in ("add", "del"):
            batch.write_text("".join(f"route {verb} {line}\n" for line in lines))
            host.run(f"ip -batch {batch}")
    host.run(
        ["sh", "-c", "ip route add 10.99.0.0/24 dev tunnel1 proto 99 && ip route del 10.99.0.0/24"]
    )
    host.run("ip route add 10.99.0.0/24 dev tunnel1 proto 84 table 99")
    host.run("ip route flush table 99")
    await asyncio.sleep(0.5)
    assert calls == {"dumps": 0, "repairs": 0}


async def test_a_removed_route_is_back_within_a_second_and_said_once(
    host: Host, tunnel: Tunnel, calls: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    before = routes(host)
    host.run("ip route del 10.0.1.0/24")
    await until(lambda: routes(host) == before, seconds=1)
    await asyncio.sleep(0.5)
    said = [one.getMessage() for one in caplog.records if "restored" in one.getMessage()]
    assert len(said) == 1
    assert "(addresses 0, neighbour entries 0, kernel routes 1)" in said[0]
    assert calls == {"dumps": 0, "repairs": 1}


async def test_a_flush_and_a_link_flap_are_repaired(
    host: Host, tunnel: Tunnel, caplog: pytest.LogCaptureFixture
) -> None:
    before = routes(host)
    for command in (
        "ip route flush proto 84",
        "ip link set tunnel1 down && ip link set tunnel1 up",
        "ip address flush dev tunnel1",
    ):
        await asyncio.sleep(1.2)  # repairs keep a distance
        caplog.clear()
        begun = time.monotonic()
        host.run(["sh", "-c", command])
        await until(lambda: routes(host) == before, seconds=2)
        assert time.monotonic() - begun < 1.5, command
        await until(lambda: "restored" in caplog.text, seconds=1)
        assert "10.255.0.0" in host.run("ip address show tunnel1").stdout


async def test_a_route_of_another_program_in_place_of_ours_is_reported(
    host: Host, tunnel: Tunnel, caplog: pytest.LogCaptureFixture
) -> None:
    host.run(["sh", "-c", "ip route del 10.0.1.0/24 && ip route add 10.0.1.0/24 dev lo"])
    await until(lambda: "10.0.1.0/24 exists already, via device lo" in caplog.text, seconds=2)
    assert "restored" not in caplog.text
