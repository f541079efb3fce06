"""TAP mode without a device: which peer gets a frame, and the FDB as callers change it."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import ARP, Dot1Q, Ether

from tests.unit.cli.test_node_verbs import check
from tests.unit.rpc.test_server import free_port
from tunnel import Config, ConfigError, Mac, Peer, Service, Tunnel
from tunnel.cli import main
from tunnel.errors import PeerNotFoundError
from tunnel.status import FdbEntry
from tunnel.types import Endpoint

A, B, C = (f"02:00:5e:00:00:0{number}" for number in (1, 2, 3))
EVERYBODY = "ff:ff:ff:ff:ff:ff"


@asynccontextmanager
async def ethernet(count: int = 3, **words: Any) -> AsyncIterator[list[Tunnel]]:
    """Nodes that are devices themselves, all peers of each other."""
    port = free_port()
    hosts = [f"127.0.0.{number}" for number in range(1, count + 1)]
    async with AsyncExitStack() as stack, asyncio.timeout(30):
        yield [
            await stack.enter_async_context(
                Tunnel(
                    device=None,
                    mode="tap",
                    local=host,
                    port=port,
                    peers=[f"{other}:{port}" for other in hosts if other != host],
                    **words,
                )
            )
            for host in hosts
        ]


def frame(source: str, destination: str, vlan: int = 0) -> bytes:
    ether = Ether(src=source, dst=destination)
    packet = IP(src="10.9.0.1", dst="10.9.0.2") / UDP(sport=1, dport=2) / b"hello"
    return bytes(ether / Dot1Q(vlan=vlan) / packet if vlan else ether / packet)


async def arrived(tunnel: Tunnel) -> bytes | None:
    """The next frame, None if none arrives soon."""
    try:
        async with asyncio.timeout(0.1):
            return await tunnel.receive()
    except TimeoutError:
        return None


def entry(mac: str, peer: Endpoint, *, vlan: int | None = None, static: bool = False) -> FdbEntry:
    return FdbEntry(Mac.parse(mac), vlan, peer, static=static, age=0)


def vteps(tunnel: Tunnel) -> set[FdbEntry]:
    """The entries of the peers' VTEPs."""
    return {
        FdbEntry(one.mac, None, end, static=True, age=0)
        for end, one in tunnel.neighbours().items()
        if one.mac is not None
    }


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110 - of what happens in C nobody tells
        await asyncio.sleep(0.01)


async def met(tunnels: list[Tunnel]) -> None:
    """Until each knows the others' MACs by their echoes."""
    await until(lambda: all(one.mac for tunnel in tunnels for one in tunnel.neighbours().values()))
    await until(lambda: all(set(tunnel.fdb()) == vteps(tunnel) for tunnel in tunnels))


async def test_an_unknown_mac_is_flooded_and_its_answer_is_not() -> None:
    async with ethernet() as (a, b, c):
        await a.send(frame(A, B))
        assert (await arrived(b), await arrived(c)) == (frame(A, B), frame(A, B))
        await b.send(frame(B, A))
        assert (await arrived(a), await arrived(c)) == (frame(B, A), None)
        await a.send(frame(A, B))
        assert (await arrived(b), await arrived(c)) == (frame(A, B), None)


async def test_vlans_are_learned_apart() -> None:
    async with ethernet() as (a, b, c):
        await b.send(frame(B, EVERYBODY, vlan=7))
        assert await arrived(a) == await arrived(c) == frame(B, EVERYBODY, vlan=7)
        assert entry(B, a.peers[0], vlan=7) in a.fdb()
        await a.send(frame(A, B, vlan=7))
        assert (await arrived(b), await arrived(c)) == (frame(A, B, vlan=7), None)
        await a.send(frame(A, B))
        assert await arrived(c) == frame(A, B)


async def test_a_move_is_learned_with_the_first_frame() -> None:
    async with ethernet() as (a, b, c):
        for tunnel, peer in ((b, a.peers[0]), (c, a.peers[1])):
            await tunnel.send(frame(B, A))
            assert await arrived(a)
            assert entry(B, peer) in a.fdb()


async def test_without_flooding_and_learning_only_static_entries_are_used() -> None:
    async with ethernet(flood=False, learning=False) as (a, b, c):
        await met([a, b, c])
        for destination in (B, EVERYBODY):
            await a.send(frame(A, destination))
            assert (await arrived(b), await arrived(c)) == (None, None)
        assert a.stats.drops == {"no_fdb": 1, "no_flood": 1}
        a.add_fdb(B, peer=a.peers[0])
        await a.send(frame(A, B))
        assert (await arrived(b), await arrived(c)) == (frame(A, B), None)
        assert set(b.fdb()) == vteps(b)


async def test_a_storm_is_limited() -> None:
    async with ethernet(2, storm_limit=5) as (a, b):
        for _ in range(20):
            await a.send(frame(A, EVERYBODY))
        await until(lambda: a.stats.drops.get("storm", 0) >= 10)
        assert await arrived(b)


async def test_the_fdb_is_changed_by_commands() -> None:
    async with ethernet() as tunnels:
        (a, b, _) = tunnels
        await met(tunnels)
        one, two = a.peers
        a.add_fdb(B, peer=one)
        a.add_fdb(Mac.parse(B), peer=str(two), vlan=7)
        assert set(a.fdb()) - vteps(a) == {
            entry(B, one, static=True),
            entry(B, two, vlan=7, static=True),
        }
        await b.send(frame(C, A))
        assert await arrived(a)
        assert a.flush_fdb(learned=True) == (entry(C, one),)
        a.remove_fdb(B)
        assert a.flush_fdb() == (entry(B, two, vlan=7, static=True),)
        assert set(a.fdb()) == vteps(a)


async def test_a_peer_that_is_removed_and_added_at_once_keeps_its_entry() -> None:
    async with ethernet(2) as (a, b):
        await met([a, b])
        (peer,) = a.peers
        before = a.fdb()
        other = Peer(peer, ["10.9.0.0/16"])
        assert await a.change_peers(add=[other], remove=[peer]) == {}
        assert a.fdb() == before
        await a.send(frame(A, str(before[0].mac)))
        while (received := await b.receive()) != frame(A, str(before[0].mac)):
            assert Ether(received).type == 0x0806  # solicitations for the new prefix
        # So does one whose MAC changes at the same time.
        other = Peer(peer, ["10.9.0.0/16"], mac="02:00:5e:00:53:09")
        assert await a.change_peers(add=[other], remove=[peer]) == {}
        assert [(one.mac, one.peer) for one in a.fdb()] == [(other.mac, peer)]


async def test_invalid_fdb_entries_are_refused() -> None:
    async with ethernet() as tunnels:
        (a, *_) = tunnels
        await met(tunnels)
        theirs = next(iter(vteps(a)))
        wrongs: list[tuple[Callable[[], object], str]] = [
            (lambda: a.add_fdb(B, peer="192.0.2.9"), "does not exist"),
            (lambda: a.add_fdb(B, peer=a.peers[0], vlan=4095), "out of range"),
            (lambda: a.add_fdb("01:00:5e:00:00:01", peer=a.peers[0]), "not a unicast address"),
            (lambda: a.add_fdb(theirs.mac, peer=a.peers[0]), "belongs to the VTEP of peer"),
            (lambda: a.add_fdb(a.status().mac, peer=a.peers[0]), "this node's own"),
            (lambda: a.remove_fdb(theirs.mac), "removed with the peer"),
            (lambda: a.remove_fdb(B), "does not exist"),
            (lambda: a.remove_fdb(B, vlan=7), f"{B} vlan 7 does not exist"),
        ]
        for wrong, says in wrongs:
            with pytest.raises((ConfigError, PeerNotFoundError), match=says):
                wrong()


async def test_entries_go_with_their_peer() -> None:
    async with ethernet() as (a, b, _):
        a.add_fdb(C, peer=a.peers[0])
        await b.send(frame(B, A))
        assert await arrived(a)
        await a.remove_peer(a.peers[0])
        assert {one.peer for one in a.fdb()} <= {a.peers[0]}
        assert not {one.mac for one in a.fdb()} & {Mac.parse(B), Mac.parse(C)}


async def test_tun_mode_has_none() -> None:
    async with Tunnel(device=None, local="127.0.0.1", port=free_port()) as tunnel:
        for call in (tunnel.fdb, tunnel.flush_fdb):
            with pytest.raises(ConfigError, match="see --mode tap"):
                call()


async def test_a_peer_that_owns_nothing_is_none_in_tun_mode() -> None:
    async with Tunnel(device=None, local="127.0.0.1", port=free_port()) as tunnel:
        with pytest.raises(ConfigError, match="has no prefix"):
            await tunnel.add_peer("127.0.0.2")
    assert Config(mode="tap", peers=["192.0.2.2"]).peers[0].prefixes == ()


async def test_arp_for_a_vtep_is_answered_here() -> None:
    """Once its MAC is known; the request reaches no peer."""
    async with ethernet(2) as (a, b):
        (peer,) = a.peers
        await a.remove_peer(peer)
        await a.add_peer(Peer(peer, ["10.7.0.0/16"]))
        question = Ether(src=A, dst=EVERYBODY) / ARP(hwsrc=A, psrc="10.9.0.1", pdst="10.7.0.0")
        await met([a, b])
        await a.send(bytes(question))
        answer = await arrived(a)
        assert answer is not None
        assert (Ether(answer)[ARP].psrc, Ether(answer)[ARP].hwdst) == ("10.7.0.0", A)
        assert Ether(answer)[ARP].hwsrc == str(b.status().mac)
        while (other := await arrived(b)) is not None:  # a asked b by ARP as well, for itself
            assert Ether(other).src != A
        assert a.stats.work["neighbour_answers"] == 1


async def test_a_peer_whose_name_does_not_resolve_harms_no_other() -> None:
    async with ethernet(2) as (a, b):
        await a.add_peer("nobody.invalid=10.8.0.0/16")
        await b.send(frame(B, A))
        assert await arrived(a) == frame(B, A)
        await a.remove_peer("nobody.invalid")


async def test_the_verbs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "one.sock"

    async def tell(*words: str, code: int = 0) -> str:
        assert await asyncio.to_thread(main, [*words, "--control", str(path)]) == code
        out, err = capsys.readouterr()
        return err if code else out

    async with ethernet(2) as tunnels, Service(tunnels[0], path=path):
        await met(tunnels)
        peer = str(tunnels[0].peers[0])
        assert await tell("fdb", "add", B, "127.0.0.2") == f"+ {B}\n"
        added = json.loads(await tell("fdb", "add", B, peer, "--vlan", "7", "--json"))
        check("change", added)
        assert added == {"added": [f"{B} vlan 7"]}
        listed = json.loads(await tell("fdb", "list", "--json"))
        check("fdb", listed)
        assert {(one["mac"], one["vlan"]) for one in listed} >= {(B, None), (B, 7)}
        assert f"{B} vlan 7 dst {peer} static\n" in await tell("fdb", "list")
        assert await tell("fdb", "remove", B, "--vlan", "7") == f"- {B} vlan 7\n"
        assert await tell("fdb", "flush") == f"- {B}\n"
        assert await tell("fdb", "flush", "--learned") == ""
        assert "does not exist" in await tell("fdb", "remove", B, code=2)
        # What is for a host behind this one is dropped by a routed node alone.
        assert "accepted" in await tell("decode", "0800000000000100" + frame(B, C).hex())
        neighbours = json.loads(await tell("neighbour", "list", "--json"))
        check("neighbour", neighbours)
        assert (neighbours[0]["prefix"], neighbours[0]["source"]) == (None, "control")
        assert (await tell("neighbour", "list")).startswith("- lladdr ")
