"""Peers of tunnels without a device on loopback: found, changed, refused; a fault of one alone."""

import asyncio
import ipaddress
import itertools
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.unit.rpc.test_server import free_port, two_tunnels
from tunnel import Endpoint, Peer, Tunnel
from tunnel.errors import ClosedError, ConfigError, PeerNotFoundError, StateError, UnderlayError
from tunnel.events import Event, PathChanged, PeerChanged, PeerUp
from tunnel.linux import udp, underlay
from tunnel.linux.underlay import Underlay
from tunnel.node.control_channel import ControlChannel
from tunnel.status import PeerState
from tunnel.types import Address


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 - a state gives no signal
            await asyncio.sleep(0.01)


def state_of(tunnel: Tunnel, endpoint: Endpoint) -> PeerState:
    peers = tunnel.status(watch=False).peers
    return next(one.state for one in peers if one.endpoint == endpoint)


@asynccontextmanager
async def collected(tunnel: Tunnel) -> AsyncIterator[list[Event]]:
    """All events while the block is entered, except those of echoes."""
    events: list[Event] = []

    async def collect() -> None:
        async for event in listener:
            events.append(event)

    listener = tunnel.events()
    task = asyncio.create_task(collect())
    yield events
    await asyncio.sleep(0.01)
    task.cancel()


# Found.


async def test_a_peer_is_found_by_endpoint_host_or_overlay_address() -> None:
    async with two_tunnels() as (one, _):
        (peer,) = one.peers
        for text in (str(peer), peer.host, "10.2.3.4", peer):
            assert one.find_peer(text) == peer
        assert 0 < await one.ping("10.2.0.1") < 1
        assert await one.try_trains("10.2.0.1") in (True, False)


@pytest.mark.parametrize("text", ["10.9.9.9", "127.0.0.7", "127.0.0.2:9", "nobody", "x" * 300])
async def test_an_unknown_peer_is_an_error_that_lists_some(text: str) -> None:
    async with two_tunnels() as (one, _):
        with pytest.raises(PeerNotFoundError, match=f"peers: {one.peers[0]}"):
            one.find_peer(text)
        with pytest.raises(PeerNotFoundError):
            await one.ping(text)
        with pytest.raises(PeerNotFoundError):
            await one.remove_peer(text)


async def test_a_host_with_several_peers_takes_a_port() -> None:
    peers = ["127.0.0.9:1001=10.2.0.0/16", "127.0.0.9:1002=10.3.0.0/16"]
    async with Tunnel(device=None, local="127.0.0.1", port=free_port(), peers=peers) as one:
        with pytest.raises(PeerNotFoundError):
            one.find_peer("127.0.0.9")
        assert one.find_peer("10.3.0.1").port == 1002


async def test_a_peer_that_is_added_twice_is_an_error_that_says_what_to_do() -> None:
    async with two_tunnels() as (one, _):
        (peer,) = one.peers
        with pytest.raises(ConfigError, match=r"exists already$"):
            await one.add_peer(Peer(peer, ["10.2.0.0/16"]))
        with pytest.raises(ConfigError, match=r"already, with 10\.2\.0\.0/16 .use change_peers"):
            await one.add_peer(Peer(peer, ["10.7.0.0/16"]))


# Changed.


async def test_a_peer_that_is_removed_and_added_at_once_is_changed() -> None:
    async with two_tunnels() as (one, two):
        (peer,) = one.peers
        await until(lambda: state_of(one, peer) is PeerState.UP)
        async with collected(one) as events:
            other = Peer(peer, ["10.2.0.0/16", "10.3.0.0/16"])
            assert await one.change_peers(add=[other], remove=[peer]) == {}
        assert [event for event in events if not isinstance(event, PeerUp | PathChanged)] == [
            PeerChanged(peer)
        ]
        assert state_of(one, peer) is PeerState.UP
        assert [route.peer for route in await one.routes()] == [peer, peer]
        assert one.find_peer("10.3.0.1") == peer
        assert two.ready


# Names.


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Addresses of names, which the test may change."""
    addresses: dict[str, str] = {}

    async def resolve(_: Underlay, endpoint: Endpoint) -> Address | UnderlayError:
        return endpoint.address or ipaddress.ip_address(addresses[endpoint.host])

    monkeypatch.setattr(Underlay, "resolve", resolve)
    return addresses


async def test_an_address_of_a_family_without_a_socket_is_taken_back(
    named: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    opened = udp.open_sockets

    def open_ipv4_only(local: Address, **words: Any) -> Any:
        if local.version == 6:
            raise UnderlayError("no IPv6 here")
        return opened(local, **words)

    monkeypatch.setattr(udp, "open_sockets", open_ipv4_only)
    named["node.example"] = "127.0.0.3"
    three, name = Endpoint("127.0.0.2", port), Endpoint("node.example", port)
    async with (
        Tunnel(device=None, local="127.0.0.2", port=port, peers=[f"127.0.0.1:{port}=10.1.0.0/16"]),
        Tunnel(
            device=None,
            local="127.0.0.1",
            port=port,
            peers=[f"{three}=10.2.0.0/16", f"{name}=10.3.0.0/16"],
        ) as one,
    ):
        listening = one.status().endpoints
        named["node.example"] = "::1"
        await one._node.peers.resolver.resolve(name)
        addresses = {peer.endpoint: str(peer.address) for peer in one.status().peers}
        assert addresses[name] == "127.0.0.3"
        assert one.status().endpoints == listening
        # Its echoes, and those of the others, go on.
        assert 0 < await one.ping(three) < 1
        one.status()  # makes echoes frequent
        await until(lambda: state_of(one, three) is PeerState.UP)
        await asyncio.sleep(1.2)
        assert one.ready
        named["node.example"] = "127.0.0.4"
        await one._node.peers.resolver.resolve(name)
        assert str(one.status().peers[1].address) == "127.0.0.4"


# A fault of one peer.


async def test_a_fault_of_one_peer_shows_and_leaves_the_others_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with two_tunnels() as (one, _):
        (peer,) = one.peers
        send = ControlChannel.send
        faulty = Endpoint("127.0.0.9")

        def fail(self: ControlChannel, message: Any, to: Peer, *args: Any, **words: Any) -> None:
            if to.endpoint == faulty:
                raise KeyError(6)
            send(self, message, to, *args, **words)

        monkeypatch.setattr(ControlChannel, "send", fail)
        await one.change_peers(add=[Peer(faulty, ["10.9.0.0/16"])])
        await until(lambda: not one.ready)
        assert {task.name for task in one.supervisor.tasks if not task.healthy} == {"prober"}
        assert "KeyError: 6" in caplog.text
        monkeypatch.setattr(ControlChannel, "send", send)
        for _ in range(3):
            one.status()
            await asyncio.sleep(0.5)
        await until(lambda: one.ready)
        assert state_of(one, peer) is PeerState.UP


# Opened and closed.


async def test_a_tunnel_that_is_open_is_not_opened_again() -> None:
    async with two_tunnels() as (one, _):
        with pytest.raises(StateError, match="open already"):
            await one.__aenter__()
        assert (one.ready, one.phase) == (True, "open")
        assert await one.ping(one.peers[0]) < 1


async def test_nobody_waits_for_the_end_of_a_tunnel_that_was_not_entered() -> None:
    one = Tunnel(device=None, port=free_port())
    assert one.phase == "not open"
    with pytest.raises(StateError, match="is not open"):
        await one.wait_closed()
    await one.close()
    async with asyncio.timeout(1):
        await one.wait_closed()
    with pytest.raises(ClosedError):
        await one.__aenter__()


async def test_closing_ends_an_opening_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is opened after it, and the task that opens is told, not cancelled."""
    resolving = asyncio.Event()

    async def resolve(*_: object) -> Address | UnderlayError:
        resolving.set()
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(Underlay, "resolve", resolve)
    one = Tunnel(device=None, port=free_port(), peers=["peer.test=10.2.0.0/16"])
    opening = asyncio.create_task(one.__aenter__())
    await resolving.wait()
    async with asyncio.timeout(5):
        await one.close()
        with pytest.raises(ClosedError):
            await opening
        await one.wait_closed()
    assert not opening.cancelled()
    assert one.phase == "closed"


async def test_closing_survives_any_number_of_cancellations() -> None:
    one = Tunnel(device=None, local="127.0.0.1", port=free_port())
    await one.__aenter__()
    undone = asyncio.Event()
    one._node._undo.push_async_callback(asyncio.sleep, 0.2)
    one._node._undo.callback(undone.set)
    closing = asyncio.create_task(one.close())
    for _ in range(5):
        await asyncio.sleep(0.01)
        closing.cancel()
        assert one.phase == "closes"
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert undone.is_set()
    assert one.phase == "closed"


async def test_nothing_runs_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look-ups that get no answer, requests and tasks."""

    async def resolve(_: Underlay, endpoint: Endpoint) -> Address | UnderlayError:
        if endpoint.address is None:
            await asyncio.Event().wait()
        return endpoint.address or UnderlayError("no address")

    before = asyncio.all_tasks()
    async with asyncio.timeout(20):
        async with Tunnel(device=None, local="127.0.0.1", port=free_port()) as one:
            monkeypatch.setattr(Underlay, "resolve", resolve)
            await one.add_peer("node.example=10.2.0.0/16")
            await one.add_peer("127.0.0.9=10.9.0.0/16")
            pinging = asyncio.create_task(one.ping("127.0.0.9"))
            await asyncio.sleep(0.05)
        with pytest.raises(TimeoutError):
            await pinging
    assert asyncio.all_tasks() <= {*before, pinging}


async def test_a_random_mac_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a local address and without a machine id, as in a container."""
    numbers = itertools.count()
    monkeypatch.setattr(underlay, "_machine_id", lambda: f"{os.getpid()} {next(numbers)}")
    async with Tunnel(device=None, port=free_port()) as one:
        assert len({one.status().mac for _ in range(3)}) == 1
        assert one.status().mac == one._node.underlay.mac
