"""Nodes in contact: states, round trips and letters, between tunnels in one process on loopback."""

import asyncio
import ipaddress
import os
import resource
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from tests.netns.node import Node
from tunnel import Endpoint, Tunnel
from tunnel.errors import PeerNotFoundError
from tunnel.events import Event, PathChanged, PeerAdded, PeerRemoved, PeerSilent, PeerUp
from tunnel.linux.underlay import Underlay
from tunnel.protocol import control_frames
from tunnel.protocol.control_frames import EchoReply, EchoRequest, Message
from tunnel.status import PeerState, PeerStatus
from tunnel.testing.lab import Lab
from tunnel.types import ANY_VTEP_MAC, Address, Mac

PORT = 18472
LOOPBACK_MTU = 64950
ONE, TWO = "127.0.0.1", "127.0.0.2"
THEIRS = Mac.parse("02:00:5e:00:53:02")


def tunnel(local: str, *peers: str, port: int = PORT) -> Tunnel:
    return Tunnel(device=None, local=local, port=port, peers=peers)


def one_and_two() -> tuple[Tunnel, Tunnel]:
    return (
        tunnel(ONE, f"{TWO}:{PORT}=10.2.0.0/16"),
        tunnel(TWO, f"{ONE}:{PORT}=10.1.0.0/16"),
    )


@asynccontextmanager
async def both_up() -> AsyncIterator[tuple[Tunnel, Tunnel]]:
    one, two = one_and_two()
    async with asyncio.timeout(30), one, two:
        await until(lambda: state(one) is state(two) is PeerState.UP)
        yield one, two


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - a counter of another's gives no signal
        await asyncio.sleep(0.01)


def peer_of(one: Tunnel) -> PeerStatus:
    return one.status(watch=False).peers[0]


def state(one: Tunnel) -> PeerState:
    return peer_of(one).state


class Stranger:
    """A socket that sends what it likes, as a peer without a tunnel."""

    def __init__(self, local: str, *, port: int = PORT) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind((local, port))

    def send(self, body: bytes, *, to: str = ONE) -> None:
        headers = control_frames.HEADERS.pack(
            0x08, 1 << 8, ANY_VTEP_MAC.packed, THEIRS.packed, control_frames.ETHERTYPE
        )
        self.socket.sendto(headers + body, (to, PORT))

    def say(self, message: Message, *, to: str = ONE) -> None:
        frame = control_frames.encode(message, vni=1, source=THEIRS, destination=ANY_VTEP_MAC)
        self.socket.sendto(frame, (to, PORT))

    def heard(self) -> list[tuple[Message | None, int]]:
        """Messages that arrived, and their bytes after the Ethernet header. Skips the ARP requests
        that it also receives."""
        messages: list[tuple[Message | None, int]] = []
        while True:
            try:
                datagram = self.socket.recv(1 << 16)
            except BlockingIOError:
                return messages
            *_, ethertype = control_frames.HEADERS.unpack_from(datagram)
            body = datagram[control_frames.HEADERS.size :]
            if ethertype == control_frames.ETHERTYPE:
                messages.append((control_frames.decode(body), len(body)))

    async def next(self) -> Message:
        while True:
            for message, _ in self.heard():
                if message is not None:
                    return message
            await asyncio.sleep(0.01)


@asynccontextmanager
async def with_stranger() -> AsyncIterator[tuple[Tunnel, Stranger]]:
    """A tunnel whose peer is an impostor."""
    stranger = Stranger(TWO)
    with stranger.socket:
        async with asyncio.timeout(30), tunnel(ONE, f"{TWO}:{PORT}=10.2.0.0/16") as one:
            yield one, stranger


async def test_peers_are_up_soon_and_their_path_is_known() -> None:
    one, two = one_and_two()
    events = one.events()
    async with asyncio.timeout(30), one, two:
        # The first echo of one found nobody there; that of the other tells it.
        seen: list[Event] = [await anext(events) for _ in range(2)]
        peer = Endpoint(TWO, PORT)
        assert seen == [PeerUp(peer), PathChanged(peer, LOOPBACK_MTU)]
        known = peer_of(one)
        assert known.state is PeerState.UP
        assert known.rtt is not None
        assert 0 < known.rtt < 5
        assert known.path_mtu == LOOPBACK_MTU
        assert known.loss is not None
        assert known.state_age < 10
        assert one.stats.drops == two.stats.drops == {}


async def test_who_goes_is_silent_and_up_again_when_it_comes_back() -> None:
    one, two = one_and_two()
    events = one.events()
    peer = Endpoint(TWO, PORT)
    async with asyncio.timeout(40), one:
        async with two:
            while await anext(events) != PathChanged(peer, LOOPBACK_MTU):
                pass
        looking = asyncio.create_task(look(one))  # so that it is noticed in seconds
        assert await anext(events) == PeerSilent(peer)
        known = peer_of(one)
        assert (known.state, known.path_mtu) == (PeerState.SILENT, LOOPBACK_MTU)
        assert known.loss
        looking.cancel()
        _, again = one_and_two()
        begun = time.monotonic()
        async with again:
            assert await anext(events) == PeerUp(peer)
            assert time.monotonic() - begun < 10


async def look(one: Tunnel) -> None:
    while True:
        one.status()
        await asyncio.sleep(0.5)


async def test_peers_that_come_and_go_are_told() -> None:
    async with both_up() as (one, _):
        events = one.events()
        await one.add_peer("127.0.0.3=10.3.0.0/16")
        await one.remove_peer("127.0.0.3")
        third = Endpoint("127.0.0.3")
        await one.close()
        # The search for the path MTU of the other peer may still report.
        told = [event async for event in events if not isinstance(event, PathChanged)]
        assert told == [PeerAdded(third), PeerRemoved(third)]


async def test_ping_of_any_size() -> None:
    async with both_up() as (one, _):
        for size in (0, 64, 65, 1400, LOOPBACK_MTU):
            assert 0 < await one.ping(f"{TWO}:{PORT}", size=size) < 1
        with pytest.raises(TimeoutError):
            await one.ping(f"{TWO}:{PORT}", size=70_000)
        with pytest.raises(PeerNotFoundError, match="does not exist"):
            await one.ping("127.0.0.9")


async def test_many_pings_at_once_are_told_apart() -> None:
    async with both_up() as (one, two):
        pings = [one.ping(f"{TWO}:{PORT}", size=size) for size in range(0, 5000, 50)]
        back = [two.ping(f"{ONE}:{PORT}") for _ in range(50)]
        assert len(await asyncio.gather(*pings, *back)) == 150
        assert one.stats.drops == two.stats.drops == {}


async def test_who_waits_for_a_peer_that_is_removed_waits_no_longer() -> None:
    async with tunnel(ONE, f"{TWO}:{PORT}=10.2.0.0/16") as one:
        ping = asyncio.create_task(one.ping(f"{TWO}:{PORT}"))
        await asyncio.sleep(0.05)
        begun = time.monotonic()
        await one.remove_peer(f"{TWO}:{PORT}")
        with pytest.raises(TimeoutError):
            await ping
        assert time.monotonic() - begun < 5


async def test_who_waits_when_it_closes_waits_no_longer() -> None:
    async with tunnel(ONE, f"{TWO}:{PORT}=10.2.0.0/16") as one:
        ping = asyncio.create_task(one.ping(f"{TWO}:{PORT}"))
        trains = asyncio.create_task(one.try_trains(f"{TWO}:{PORT}"))
        await asyncio.sleep(0.05)
    for task in (ping, trains):
        with pytest.raises(TimeoutError):
            await task


async def test_closing_with_a_tick_pending_is_the_end() -> None:
    """Also for a later caller: nothing is scheduled, nothing is sent."""
    failures: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: failures.append(context))
    async with both_up() as (one, two):
        one.status()
        await two.close()
        await one.close()
        assert one.status().peers[0].state is PeerState.UP
        await asyncio.sleep(1.5)
        assert failures == []


async def test_peers_that_come_and_go_in_the_middle_of_everything() -> None:
    """Removed while its echoes, probes and answers are under way."""
    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    async with both_up() as (one, _):
        for number in range(60):
            await one.remove_peer(f"{TWO}:{PORT}")
            await asyncio.sleep(number / 10_000)
            await one.add_peer(f"{TWO}:{PORT}=10.2.0.0/16")
            await asyncio.sleep(number / 10_000)
        await until(lambda: state(one) is PeerState.UP)
        await until(lambda: peer_of(one).path_mtu == LOOPBACK_MTU)
        assert failures == []
        # What the other one asked in between came from nobody.
        assert one.stats.drops.keys() <= {"unknown_source"}


async def test_nodes_that_share_an_address_are_told_apart() -> None:
    """By the port that their messages name."""
    two = tunnel(TWO, f"{ONE}:{PORT}=10.1.0.0/16")
    three = tunnel(TWO, f"{ONE}:{PORT}=10.1.0.0/16", port=PORT + 1)
    one = tunnel(ONE, f"{TWO}:{PORT}=10.2.0.0/16", f"{TWO}:{PORT + 1}=10.3.0.0/16")
    async with asyncio.timeout(30), one, two:
        await until(lambda: state(one) is PeerState.UP)
        second = one.status(watch=False).peers[1]
        assert (second.endpoint.port, second.state) == (PORT + 1, PeerState.UNKNOWN)
        async with three:
            await until(lambda: one.status(watch=False).peers[1].state is PeerState.UP)


async def test_a_node_whose_port_is_another_for_us() -> None:
    """Behind a NAT; its address alone has to do."""
    one = tunnel(ONE, f"{TWO}:{PORT + 5}=10.2.0.0/16")
    two = tunnel(TWO, f"{ONE}:{PORT}=10.1.0.0/16")
    with Stranger(TWO, port=PORT + 5).socket as outside, Stranger(ONE, port=0).socket as inside:
        async with asyncio.timeout(30), one, two:
            loop = asyncio.get_running_loop()
            loop.add_reader(outside, lambda: inside.sendto(outside.recv(1 << 16), (TWO, PORT)))
            try:
                await until(lambda: state(one) is state(two) is PeerState.UP)
            finally:
                loop.remove_reader(outside)


async def test_a_name_that_moves_leads_to_another_node(monkeypatch: pytest.MonkeyPatch) -> None:
    three = "127.0.0.3"
    leads_to = TWO

    async def resolve(_: Underlay, endpoint: Endpoint) -> Address | None:
        return endpoint.address or ipaddress.ip_address(leads_to)

    monkeypatch.setattr(Underlay, "resolve", resolve)
    named = Endpoint("node.example", PORT)
    one = tunnel(ONE, f"{named}=10.2.0.0/16")
    others = [tunnel(at, f"{ONE}:{PORT}=10.1.0.0/16") for at in (TWO, three)]
    async with asyncio.timeout(20), one, others[0], others[1]:
        await until(lambda: peer_of(one).path_mtu == LOOPBACK_MTU)
        leads_to = three
        await one._node.peers.resolver.resolve(named)
        known = peer_of(one)
        assert str(known.address) == three
        assert (known.state, known.path_mtu, known.rtt) == (PeerState.UNKNOWN, None, None)
        await until(lambda: peer_of(one).path_mtu == LOOPBACK_MTU)
        await until(lambda: state(others[1]) is PeerState.UP)


# What comes from others.


async def test_an_answer_is_never_larger_than_its_question() -> None:
    async with with_stranger() as (_, stranger):
        stranger.say(EchoRequest(5, PORT))
        answer = EchoReply(5, PORT, control_frames.LEAST), control_frames.LEAST
        await until(lambda: answer in stranger.heard())


async def test_what_cannot_be_read_is_counted_and_not_answered() -> None:
    async with with_stranger() as (one, stranger):
        unpadded = bytes.fromhex("84a17601a46b696e64a46563686fa2696407a4706f7274cd2118")
        for body in (b"", unpadded, bytes(100)):
            stranger.send(body)
        stranger.send(os.urandom(1000))
        await until(lambda: one.stats.drops.get("bad_control", 0) == 4)
        assert peer_of(one).drops == {"bad_control": 4}
        assert not [one for one, _ in stranger.heard() if not isinstance(one, EchoRequest)]


async def test_strangers_are_not_answered() -> None:
    stranger = Stranger("127.0.0.9")
    with stranger.socket:
        async with asyncio.timeout(30), tunnel(ONE, f"{TWO}:{PORT}=10.2.0.0/16") as one:
            stranger.say(EchoRequest(5, PORT))
            await until(lambda: one.stats.drops == {"unknown_source": 1})
            assert stranger.heard() == []


async def test_forged_answers_change_nothing() -> None:
    """A sender at a peer's address that has not seen the request."""
    async with with_stranger() as (one, stranger):
        echo = await stranger.next()
        assert isinstance(echo, EchoRequest)
        for number in (*range(300), echo.id ^ 1, echo.id + 2**32, 2**64 - 1):
            stranger.say(EchoReply(number, PORT, 64))
        stranger.say(EchoRequest(5, PORT))
        while not isinstance(await stranger.next(), EchoReply):  # all before it were read
            pass
        assert state(one) is PeerState.UNKNOWN
        assert one.stats.drops == {}
        stranger.say(EchoReply(echo.id, PORT, 64))
        await until(lambda: state(one) is PeerState.UP)


async def test_questions_begin_anywhere() -> None:
    seen = set()
    for _ in range(3):
        async with with_stranger() as (_, stranger):
            echo = await stranger.next()
            assert isinstance(echo, EchoRequest)
            seen.add(echo.id >> 16)
    assert len(seen) == 3


async def test_a_flood_of_letters_starves_nobody() -> None:
    """Packets and timers go on, most of the letters are turned away, and little time is spent."""
    async with with_stranger() as (one, stranger):
        payload = bytes.fromhex("45000014000000004011000a0a0200010a010001")
        headers = control_frames.HEADERS.pack(
            0x08, 1 << 8, ANY_VTEP_MAC.packed, THEIRS.packed, 0x0800
        )
        frame = control_frames.encode(
            EchoRequest(5, PORT), vni=1, source=THEIRS, destination=ANY_VTEP_MAC
        )
        letters, latest, spent = 0, 0.0, cpu()
        end = time.monotonic() + 2
        while time.monotonic() < end:
            for _ in range(200):
                stranger.socket.sendto(frame, (ONE, PORT))
                letters += 1
            stranger.socket.sendto(headers + payload, (ONE, PORT))
            begun = time.monotonic()
            async with asyncio.timeout(10):
                assert await one.receive() == payload
            latest = max(latest, time.monotonic() - begun)
            stranger.heard()
        assert latest < 3
        drops = one.stats.drops
        assert drops.keys() == {"control_full"}
        assert drops["control_full"] > letters / 2
        assert cpu() - spent < 3


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


# At rest.


async def test_a_thousand_peers_cost_little() -> None:
    """None of the peers exists; every echo is lost."""
    peers = [f"127.1.{n // 250}.{n % 250 + 1}=10.{n // 250}.{n % 250}.0/24" for n in range(1000)]
    async with asyncio.timeout(60), tunnel(ONE, *peers):
        await asyncio.sleep(3)  # until all were asked once
        spent = cpu()
        await asyncio.sleep(3)
        assert cpu() - spent < 0.5


def test_an_idle_pair_hardly_wakes(lab: Lab) -> None:
    a, b = Node(lab.host("a"), 1), Node(lab.host("b"), 2)
    lab.link(a.host, b.host)
    for node, other in ((a, b), (b, a)):
        node.up("--workers", "2", peers=[other.at(4)])
    time.sleep(3)
    before, packets = switches(a.pid), sent(a)
    time.sleep(5)
    # One look a second at the traffic, and an echo each way now and then.
    assert switches(a.pid) - before < 15
    assert sent(a) - packets < 6


def switches(pid: int) -> int:
    """How often its threads have slept."""
    count = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/status", encoding="ascii") as file:
            count += sum(int(line.split()[1]) for line in file if line.startswith("voluntary_ct"))
    return count


def sent(node: Node) -> int:
    line = node.host.run("ip -s -o link show eth0").stdout
    return int(line.split("TX:")[1].split("\\")[1].split()[1])
