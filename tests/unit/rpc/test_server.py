"""The control socket, with two tunnels without devices on loopback, on both event loops."""

# ruff: noqa: ASYNC240 - files are a matter of microseconds here

import asyncio
import os
import socket
import stat
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgpack
import pytest

from tunnel import (
    Client,
    Config,
    ConfigError,
    NoAnswerError,
    Peer,
    Service,
    Tunnel,
    TunnelError,
)
from tunnel.errors import PeerNotFoundError, StateError
from tunnel.events import Event, PathChanged, PeerAdded, PeerRemoved, PeerUp
from tunnel.rpc import socket_paths
from tunnel.rpc.client import VERSION
from tunnel.rpc.server import LARGEST_REQUEST, MOST_CLIENTS
from tunnel.types import Endpoint


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def two_tunnels() -> AsyncIterator[tuple[Tunnel, Tunnel]]:
    port = free_port()
    ones = Peer(f"127.0.0.1:{port}", ["10.1.0.0/16"])
    twos = Peer(f"127.0.0.2:{port}", ["10.2.0.0/16"])
    async with (
        Tunnel(device=None, local="127.0.0.1", port=port, peers=[twos]) as one,
        Tunnel(device=None, local="127.0.0.2", port=port, peers=[ones]) as two,
    ):
        yield one, two


@asynccontextmanager
async def served(path: Path, **words: Any) -> AsyncIterator[tuple[Tunnel, Client]]:
    """A tunnel with a control socket and a client at it."""
    async with (
        asyncio.timeout(20),
        two_tunnels() as (one, _),
        Service(one, path=path, **words),
        Client(path) as node,
    ):
        yield one, node


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "one.sock"


async def test_what_can_be_asked(path: Path) -> None:
    async with served(path) as (one, node):
        peer = str(one.peers[0])
        status = await node.call("status")
        assert (status["name"], status["device"], status["mtu"]) == ("tunnel1", None, one.mtu)
        assert [each["endpoint"] for each in status["peers"]] == [peer]
        assert [each["prefixes"] for each in await node.call("peers")] == [["10.2.0.0/16"]]
        route = {"prefix": "10.2.0.0/16", "peer": peer, "kernel": None}
        assert await node.call("routes") == [route]
        (neighbour,) = await node.call("neighbours")
        assert neighbour["mac"] == "02:76:74:65:70:00"
        assert neighbour["address"] == "127.0.0.2"
        assert (await node.call("ping", peer=peer, size=100))["rtt"] < 5
        assert await node.call("try_trains", peer=peer) == {"peer": peer, "trains": True}


async def test_peers_are_added_and_removed(path: Path) -> None:
    async with served(path) as (one, node):
        third = {"added": ["127.0.0.3:8472"]}
        assert await node.call("peer_add", peer="127.0.0.3=10.3.0.0/16") == third
        assert len(one.peers) == 2
        with pytest.raises(ConfigError, match="exists already"):
            await node.call("peer_add", peer="127.0.0.3=10.4.0.0/16")
        with pytest.raises(ConfigError, match="overlaps"):
            await node.call("peer_add", peer="127.0.0.4=10.3.0.0/24")
        assert await node.call("peer_remove", endpoint="127.0.0.3") == {
            "removed": ["127.0.0.3:8472"]
        }
        with pytest.raises(PeerNotFoundError, match="does not exist"):
            await node.call("peer_remove", endpoint="127.0.0.3")
        assert len(one.peers) == 1


async def test_drops_say_what_to_do(path: Path) -> None:
    async with served(path) as (one, node):
        await one.send(bytes.fromhex("45000014000000004011000a0a0100010a090001"))
        while not one.stats.drops:  # noqa: ASYNC110 - a counter gives no signal
            await asyncio.sleep(0.01)
        drops = {drop["reason"]: drop for drop in await node.call("drops")}
        assert drops["no_route"]["count"] == 1
        assert drops["no_route"]["direction"] == "outbound"
        assert "no peer has" in drops["no_route"]["meaning"]
        assert drops["spoofed"]["count"] == 0


@pytest.mark.parametrize("kind", ["endpoint", "host", "overlay address"])
async def test_a_peer_is_found_by_endpoint_host_or_address(kind: str, path: Path) -> None:
    async with served(path) as (one, node):
        (peer,) = one.peers
        text = {"endpoint": str(peer), "host": peer.host, "overlay address": "10.2.3.4"}[kind]
        assert (await node.call("ping", peer=text))["peer"] == str(peer)
        with pytest.raises(PeerNotFoundError, match=f"10.9.9.9 does not exist .peers: {peer}"):
            await node.call("ping", peer="10.9.9.9")


async def test_a_ping_without_an_answer_names_the_stage(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served(path) as (one, node):
        peer, whole = str(one.peers[0]), one._node.peers.requests.ping

        async def narrow(to: Endpoint, *, size: int = 0) -> float:
            if size > 1000:
                raise TimeoutError
            return await whole(to, size=size)

        monkeypatch.setattr(one._node.peers.requests, "ping", narrow)
        await one.add_peer("127.0.0.9=10.9.0.0/16")
        answer = await node.call("ping", peer="127.0.0.9")
        assert (answer["stage"], answer["rtt"]) == ("no_answer", None)
        assert "it has never answered" in answer["why"]
        assert (await node.call("ping", peer=peer, size=1000))["stage"] is None
        answer = await node.call("ping", peer=peer, size=1001)
        assert answer["stage"] == "too_big"


WRONG_ARGUMENTS: list[tuple[str, dict[str, Any], str]] = [
    ("ping", {"peer": 7}, "peer is 7"),
    ("ping", {}, "peer is None"),
    ("ping", {"peer": "127.0.0.2", "size": True}, "size is True"),
    ("ping", {"peer": "127.0.0.2", "size": 1 << 40}, "out of range"),
    ("ping", {"peer": "x" * 1000}, "does not exist"),
    ("peer_add", {"peer": "127.0.0.3"}, "has no prefix"),
    ("peer_remove", {"endpoint": "::1:"}, "endpoint"),
    ("frobnicate", {}, "known: status, peers"),
    ("reload", {}, "not started from a file"),
    ("down", {}, "end the program itself"),
]


async def test_wrong_arguments_get_one_line_and_the_connection_stays(path: Path) -> None:
    async with served(path) as (_, node):
        for call, args, says in WRONG_ARGUMENTS:
            with pytest.raises(TunnelError) as caught:
                await node.call(call, **args)
            assert says in str(caught.value) or call == "peer_remove"
            assert "\n" not in str(caught.value)
        assert await node.call("status")


async def test_a_program_adds_calls_of_its_own(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def greet(args: Mapping[str, Any]) -> object:
        return {"hello": args["who"]}

    async with served(path, calls={"greet": greet}) as (_, node):
        assert await node.call("greet", who="you") == {"hello": "you"}
        with pytest.raises(TunnelError, match="greet failed inside the node: KeyError"):
            await node.call("greet")
        assert "the call greet failed" in caplog.text
        assert await node.call("status")


async def test_reload_returns_removed_and_added_peers(path: Path) -> None:
    wanted: list[str] = []

    async def reload() -> None:
        words = {field: getattr(one.config, field) for field in ("local", "port")}
        await one.reload(Config(**words, peers=wanted))

    async with served(path, reload=reload) as (one, node):
        before = str(one.peers[0])
        wanted += [f"{before}=10.2.0.0/16", "127.0.0.3=10.3.0.0/16"]
        assert await node.call("reload") == {"removed": [], "added": ["127.0.0.3:8472"]}
        wanted[1] = "127.0.0.3=10.3.0.0/17"
        changed = {"removed": ["127.0.0.3:8472"], "added": ["127.0.0.3:8472"]}
        assert await node.call("reload") == changed
        wanted[1:] = ["127.0.0.4=10.4.0.0/16", "127.0.0.1=10.5.0.0/16"]
        wanted[2] = f"127.0.0.1:{one.config.port}=10.5.0.0/16"
        changes = (
            event async for event in one.events() if isinstance(event, PeerAdded | PeerRemoved)
        )
        change = asyncio.ensure_future(anext(changes))
        await asyncio.sleep(0)
        with pytest.raises(ConfigError, match="this node itself"):
            await node.call("reload")
        assert [str(peer) for peer in one.peers] == [before, "127.0.0.3:8472"]
        # No peer was removed, not even for a moment.
        assert not change.done()
        await one.remove_peer("127.0.0.3")
        assert await change == PeerRemoved(Endpoint("127.0.0.3"))


async def test_a_reload_that_fails_changes_no_peer() -> None:
    port = free_port()
    peers = [f"127.0.0.2:{port}=10.2.0.0/16", "127.0.0.3=10.3.0.0/16"]
    async with asyncio.timeout(20), Tunnel(device=None, port=port, peers=peers) as one:
        before = one.status().peers
        # Only the open node knows that this is its own address.
        wrong = ["127.0.0.3=10.3.0.0/16", "127.0.0.7=10.7.0.0/16", f"127.0.0.1:{port}=10.8.0.0/16"]
        with pytest.raises(ConfigError, match="this node itself"):
            await one.reload(Config(port=port, peers=wrong))
        after = {peer.endpoint: peer.prefixes for peer in one.status().peers}
        assert after == {peer.endpoint: peer.prefixes for peer in before}


async def test_an_option_that_needs_a_restart_is_named() -> None:
    async with asyncio.timeout(20), two_tunnels() as (one, _):
        with pytest.raises(ConfigError, match="source-ports cannot change") as caught:
            await one.reload(
                Config(local="127.0.0.1", port=one.config.port, source_ports=3, peers=[])
            )
        assert caught.value.key == ("source-ports",)
        assert len(one.peers) == 1


async def test_down_is_answered_when_the_tunnel_is_closed(path: Path) -> None:
    stop = asyncio.Event()
    async with asyncio.timeout(20), down_asked(path, down=stop.set) as (one, asking):
        await stop.wait()
        assert not asking.done()
    assert await asking == {"name": "tunnel1"}
    with pytest.raises(TunnelError, match="is closed"):
        await one.add_peer("127.0.0.3=10.3.0.0/16")
    assert not path.exists()


@asynccontextmanager
async def down_asked(path: Path, **words: Any) -> AsyncIterator[tuple[Tunnel, asyncio.Task[Any]]]:
    async def ask() -> Any:
        async with Client(path) as node:
            return await node.call("down")

    async with two_tunnels() as (one, _), Service(one, path=path, **words):
        yield one, asyncio.create_task(ask())


async def test_events_are_sent_as_they_happen(path: Path) -> None:
    async with served(path) as (one, node):
        events = node.events()
        seen = asyncio.ensure_future(take(events, 2))
        while not seen.done():
            await one.add_peer("127.0.0.3=10.3.0.0/16")
            await one.remove_peer("127.0.0.3")
            await asyncio.sleep(0.01)
        assert {type(event) for event in await seen} <= {
            PeerAdded,
            PeerRemoved,
            PeerUp,
            PathChanged,
        }
        await events.aclose()


async def take(events: AsyncIterator[Event], count: int) -> list[Event]:
    return [await anext(events) for _ in range(count)]


async def test_events_end_with_the_service(path: Path) -> None:
    async with asyncio.timeout(20):
        async with two_tunnels() as (one, _), a_client(one, path) as node:
            listening = asyncio.create_task(listen(node))
            await asyncio.sleep(0.05)
        await listening


@asynccontextmanager
async def a_client(one: Tunnel, path: Path) -> AsyncIterator[Client]:
    async with Service(one, path=path), Client(path) as node:
        yield node


async def listen(node: Client) -> None:
    async for _ in node.events():
        pass


# Hostile clients.


async def raw(path: Path, data: bytes) -> dict[str, Any] | None:
    """Sends bytes, and returns the reply of the node; None if it closes without one."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(data)
        writer.write_eof()
        said = await reader.read()
    except ConnectionError:
        return None
    finally:
        writer.close()
    reply: dict[str, Any] | None = msgpack.unpackb(said) if said else None
    return reply


GARBAGE = {
    "no msgpack": b"\xc1" * 10,
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "a number": b"\x01",
    "no version": msgpack.packb({"call": "status"}),
    "another version": msgpack.packb({"v": 2, "call": "status"}),
    "no call": msgpack.packb({"v": 1}),
    "arguments that are none": msgpack.packb({"v": 1, "call": "status", "args": 3}),
    "a deep one": b"\x81\xa1v" * 2000,
    "an extension": msgpack.packb({"v": 1, "call": msgpack.ExtType(5, b"x")}),
    "text that is none": b"\x81\xa1v\xa2\xff\xfe",
    "a list": b"\xdd\xff\xff\xff\xff",
    "a map without end": b"\xdf\xff\xff\xff\xff",
    "text that is too long": b"\xdb" + (LARGEST_REQUEST + 1).to_bytes(4) + bytes(1000),
    "more than there may be": b"\xdb" + (LARGEST_REQUEST - 10).to_bytes(4) + bytes(2 << 20),
}


@pytest.mark.parametrize("kind", GARBAGE)
async def test_garbage_gets_one_line_and_the_others_go_on(kind: str, path: Path) -> None:
    async with served(path) as (_, node):
        reply = await raw(path, GARBAGE[kind])
        assert reply is None or (reply["kind"], reply["v"]) == ("CodecError", 1)
        assert await node.call("status")


async def test_an_incomplete_request_delays_no_other_client(path: Path) -> None:
    async with served(path) as (_, node):
        silent = [await asyncio.open_unix_connection(path) for _ in range(5)]
        request = msgpack.packb({"v": 1, "call": "status", "args": {}})
        silent[0][1].write(request[:5])
        assert await node.call("status")
        silent[0][1].write(request[5:])
        assert await silent[0][0].read(1)
        for _, writer in silent:
            writer.close()


async def test_a_client_that_disconnects_during_a_reply(path: Path) -> None:
    async with served(path) as (one, node):
        for number in range(200):
            await one.add_peer(f"127.0.1.{number}:9999=10.3.{number}.0/24")
        request = msgpack.packb({"v": 1, "call": "status", "args": {}})
        for _ in range(20):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(request * 50)
            assert await reader.read(100)
            writer.transport.abort()
        assert len((await node.call("status"))["peers"]) == 201


async def test_a_client_that_does_not_read_delays_no_other(path: Path) -> None:
    async with served(path) as (_, node):
        with socket.socket(socket.AF_UNIX) as deaf:
            deaf.connect(str(path))
            deaf.setblocking(False)
            request = msgpack.packb({"v": 1, "call": "drops", "args": {}})
            with suppress(BlockingIOError):
                while True:
                    deaf.send(request * 100)
                    await asyncio.sleep(0)
            assert await node.call("status")


async def test_two_clients_at_once(path: Path) -> None:
    async with served(path) as (one, node), Client(path) as other:
        # The first client waits for an answer that never arrives.
        await one.add_peer("127.0.0.9=10.9.0.0/16")
        waiting = asyncio.create_task(node.call("ping", peer="127.0.0.9"))
        for _ in range(20):
            assert await other.call("status")
        assert not waiting.done()
        assert (await waiting)["stage"] == "no_answer"


async def test_one_client_too_many_is_refused(path: Path) -> None:
    async with served(path) as (_, node):
        others = [await asyncio.open_unix_connection(path) for _ in range(MOST_CLIENTS - 1)]
        for reader, writer in others:  # an answered client has been accepted
            writer.write(msgpack.packb({"v": 1, "call": "down"}))
            assert await reader.read(1)
        async with Client(path) as late:
            with pytest.raises(TunnelError, match="others are connected"):
                await late.call("status")
        assert await node.call("status")
        others.pop()[1].close()
        assert await status_when_accepted(path)
        for _, writer in others:
            writer.close()


async def status_when_accepted(path: Path) -> Any:
    """Returns the status once the node has noticed that another client left."""
    while True:
        async with Client(path) as late:
            with suppress(TunnelError):
                return await late.call("status")


# The file.


async def test_only_owner_and_group_may_connect(path: Path) -> None:
    before = os.umask(0)
    try:
        async with served(path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
    finally:
        os.umask(before)
    assert not path.exists()


async def test_a_client_waits_until_the_service_is_entered(path: Path) -> None:
    async with asyncio.timeout(20), two_tunnels() as (one, _):
        service = Service(one, path=path)
        service.listen()
        async with Client(path) as node:
            asking = asyncio.create_task(node.call("status"))
            await asyncio.sleep(0.05)
            assert not asking.done()
            async with service:
                assert await asking
    assert not path.exists()


def test_the_socket_is_removed_once(path: Path) -> None:
    service = Service(Tunnel(device=None), path=path)
    service.listen()
    service.remove()
    assert not path.exists()
    with socket.socket(socket.AF_UNIX) as successor:
        successor.bind(str(path))
        service.remove()
        assert path.exists()


async def test_a_dead_socket_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert not socket_paths.is_served(path)
    with pytest.raises(TunnelError, match=r'is dead: .* \("tunnel up" replaces the socket\)'):
        async with Client(path):
            pass
    async with served(path) as (_, node):
        assert await node.call("status")


async def test_a_living_socket_is_not_replaced(path: Path) -> None:
    async with served(path) as (one, node):
        with pytest.raises(TunnelError, match="belongs to another node"):
            async with Service(one, path=path):
                pass
        assert await node.call("status")


async def test_another_file_is_not_replaced(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(TunnelError, match="exists and is not a socket"):
        async with served(path):
            pass
    assert path.read_text() == "precious"


@pytest.mark.parametrize("where", ["x" * 200, "file/one.sock"])
async def test_an_impossible_path(where: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TunnelError, match="cannot create control socket"):
        async with served(tmp_path / where):
            pass


# Hostile nodes.


@asynccontextmanager
async def impostor(path: Path, says: bytes, *, stays: bool = False) -> AsyncIterator[Client]:
    """A client of a server that answers everything with these bytes."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(says)
        if stays:
            await reader.read(1 << 16)
            await reader.read(1 << 16)
        writer.close()

    server = await asyncio.start_unix_server(answer, path)
    async with asyncio.timeout(20), Client(path, timeout=0.2) as node:
        yield node
    server.close()


@pytest.mark.parametrize(
    ("says", "match"),
    [
        (b"", "closed the connection"),
        (b"\x82\xa1v\x01", "closed the connection"),
        (b"\xc1", "speaks another protocol"),
        (b"\x01", "another version"),
        (msgpack.packb({"v": 2, "result": 1}), "another version"),
        (msgpack.packb({"v": 1, "error": "no", "kind": "ConfigError"}), "no"),
        (msgpack.packb({"v": 1, "error": "no", "kind": "__doc__"}), "no"),
        (msgpack.packb({"v": 1, "error": "no", "kind": 7}), "no"),
    ],
)
async def test_a_server_that_is_no_node(says: bytes, match: str, path: Path) -> None:
    async with impostor(path, says) as node:
        with pytest.raises(TunnelError, match=match):
            await node.call("status")


async def test_a_node_that_does_not_answer(path: Path) -> None:
    async with impostor(path, b"", stays=True) as node:
        with pytest.raises(TunnelError, match="does not answer"):
            await node.call("status")


async def test_a_node_that_replies_a_timeout(path: Path) -> None:
    late = msgpack.packb({"v": 1, "error": "no answer", "kind": "TimeoutError"})
    async with impostor(path, late) as node:
        with pytest.raises(TimeoutError):
            await node.call("try_trains", peer="x")


# Several requests on one connection.


async def slow(_: Mapping[str, Any]) -> str:
    await asyncio.sleep(0.2)
    return "slow"


async def test_a_slow_request_does_not_delay_the_others(path: Path) -> None:
    async with served(path, calls={"slow": slow}) as (_, node):
        waiting = asyncio.create_task(node.call("slow"))
        await asyncio.sleep(0)
        assert (await node.status()).name == "tunnel1"
        assert not waiting.done()
        assert await waiting == "slow"


async def test_the_answer_of_a_cancelled_call_is_discarded(path: Path) -> None:
    """It used to be taken for the answer of the next call."""
    async with served(path, calls={"slow": slow}) as (_, node):
        cancelled = asyncio.create_task(node.call("slow"))
        await asyncio.sleep(0.05)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert isinstance(await node.call("drops"), list)
        await asyncio.sleep(0.3)
        assert (await node.call("status"))["name"] == "tunnel1"


async def test_a_call_without_an_answer_in_time_leaves_the_connection_usable(path: Path) -> None:
    async with served(path, calls={"slow": slow}) as (_, _other), Client(path, timeout=0.1) as node:
        with pytest.raises(TunnelError, match="does not answer"):
            await node.call("slow")
        await asyncio.sleep(0.2)
        assert (await node.call("status"))["name"] == "tunnel1"


async def test_many_requests_at_once_are_all_answered(path: Path) -> None:
    async with served(path) as (_, node):
        peer = str((await node.peers())[0].endpoint)
        answers = await asyncio.gather(*(node.ping(peer, size=size) for size in range(100, 150)))
        assert all(0 < rtt < 1 for rtt in answers)


async def test_a_client_without_ids_is_answered_in_order(path: Path) -> None:
    """Clients of the version before send no ids."""
    async with served(path, calls={"slow": slow}) as _:
        reader, writer = await asyncio.open_unix_connection(path)
        for call in ("slow", "drops", "nonsense"):
            writer.write(msgpack.packb({"v": VERSION, "call": call, "args": {}}))
        writer.write_eof()
        unpacker = msgpack.Unpacker()
        unpacker.feed(await reader.read())
        first, second, third = unpacker
        assert first["result"] == "slow"
        assert isinstance(second["result"], list)
        assert third["kind"] == "ConfigError"
        assert all("id" not in reply for reply in (first, second, third))
        writer.close()


@asynccontextmanager
async def old_node(path: Path, delays: list[float]) -> AsyncIterator[Client]:
    """A node that does not echo ids: it answers in order, with the name of the call."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        unpacker = msgpack.Unpacker()
        while chunk := await reader.read(1 << 16):
            unpacker.feed(chunk)
            for request in unpacker:
                await asyncio.sleep(delays.pop(0))
                writer.write(msgpack.packb({"v": 1, "result": request["call"]}))
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    async with asyncio.timeout(20), Client(path) as node:
        yield node
    server.close()


async def test_an_older_node_is_understood_also_after_a_cancelled_call(path: Path) -> None:
    async with old_node(path, [0.1, 0.0, 0.0]) as node:
        cancelled = asyncio.create_task(node.call("first"))
        await asyncio.sleep(0.02)
        cancelled.cancel()
        answers = await asyncio.gather(node.call("second"), node.call("third"))
        assert list(answers) == ["second", "third"]
        assert node.node is None


async def test_a_reply_names_the_node(path: Path) -> None:
    async with served(path) as (_, node):
        with pytest.raises(ConfigError):
            await node.call("nonsense")
        assert node.node is not None
        assert (node.node.name, node.node.pid) == ("tunnel1", os.getpid())
        assert node.node.netns == os.stat("/proc/self/ns/net").st_ino
        now = await node.status()
        assert (now.pid, now.netns) == (node.node.pid, node.node.netns)


# What the client returns.


async def test_a_client_returns_what_a_tunnel_returns(path: Path) -> None:
    async with served(path) as (one, node):
        assert await node.routes() == await one.routes()
        assert await node.drops() == one.drops()
        assert (await node.neighbours()).keys() == one.neighbours().keys()
        (peer,) = one.peers
        assert 0 < await node.ping(peer, size=200) < 1
        assert await node.try_trains(peer) is True
        assert (await node.neighbours())[peer].source is one.neighbours()[peer].source
        (known,) = await node.peers()
        assert (known.endpoint, known.prefixes) == (peer, one.status().peers[0].prefixes)
        third = Peer("127.0.0.3", ["10.3.0.0/16"], mac="02:00:00:00:00:01")
        await node.add_peer(third)
        assert [each.prefixes for each in await node.peers()][1] == third.prefixes
        assert (await node.neighbours())[third.endpoint] == one.neighbours()[third.endpoint]
        await node.remove_peer(third)
        assert one.peers == (peer,)
        with pytest.raises(ConfigError, match="no FDB"):
            await node.fdb()


async def test_a_client_changes_the_fdb_as_a_tunnel_does(path: Path) -> None:
    peer = f"127.0.0.2:{free_port()}"
    tunnel = Tunnel(device=None, mode="tap", local="127.0.0.1", port=free_port(), peers=[peer])
    async with asyncio.timeout(20), tunnel as one, Service(one, path=path), Client(path) as node:
        await node.add_fdb("02:00:00:00:00:07", peer=peer, vlan=7)
        await node.add_fdb("02:00:00:00:00:08", peer=peer)
        entries = await node.fdb()
        assert entries == one.fdb()
        await node.remove_fdb("02:00:00:00:00:08")
        (left,) = await node.fdb()
        assert (left.vlan, left.static, left.peer) == (7, True, one.peers[0])
        assert await node.flush_fdb() == (left,)
        assert one.fdb() == ()


async def test_a_ping_without_an_answer_raises_what_a_tunnel_raises(path: Path) -> None:
    async with served(path) as (_, node):
        await node.add_peer("127.0.0.9=10.9.0.0/16")
        with pytest.raises(NoAnswerError, match="never answered") as caught:
            await node.ping("127.0.0.9")
        assert caught.value.stage == "no_answer"
        with pytest.raises(NoAnswerError) as caught:
            await node.try_trains("127.0.0.9")
        assert caught.value.stage == "no_answer"


# Before the tunnel is open.


async def test_a_tunnel_that_is_not_open_says_what_it_does(path: Path) -> None:
    stop = asyncio.Event()
    tunnel = Tunnel(
        device=None, local="127.0.0.1", port=free_port(), peers=["192.0.2.9=10.9.0.0/16"]
    )
    async with asyncio.timeout(20), Service(tunnel, path=path, down=stop.set), Client(path) as node:
        status = await node.status()
        assert (status.name, status.phase, status.peers) == ("tunnel1", "not open", ())
        for request in (node.peers(), node.routes(), node.drops(), node.ping("10.9.0.1")):
            with pytest.raises(StateError, match="not open"):
                await request
        async with tunnel:
            assert (await node.status()).phase == "open"
            assert len(await node.peers()) == 1
        assert (await node.status()).phase == "closed"


async def test_down_before_the_tunnel_is_open(path: Path) -> None:
    stop = asyncio.Event()
    async with asyncio.timeout(5):
        async with Service(Tunnel(device=None), path=path, down=stop.set):
            node = await Client(path).__aenter__()
            ending = asyncio.create_task(node.down())
            await stop.wait()
        await ending
        await node.__aexit__(None, None, None)
    assert not path.exists()
