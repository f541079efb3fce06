"""Many peers at once, on a real device: what the kernel refuses, what moves, and how long it
takes."""

import ipaddress
import json
import socket
import time
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from tests.netns.traffic import inside
from tunnel import Config, Peer, Tunnel
from tunnel.errors import ConfigError, TunnelError
from tunnel.events import PeerAdded, PeerChanged, PeerRemoved
from tunnel.linux.netlink import Netlink
from tunnel.testing.lab import Host, Lab
from tunnel.types import Endpoint

SUBNET = "10.255.0.0/24"


@pytest.fixture
def host(lab: Lab) -> Iterator[Host]:
    """A host with a way to all of 198.18.0.0/15; the test runs on it."""
    host, other = lab.host("a"), lab.host("b")
    lab.link(host, other)
    host.run(f"ip route add 198.18.0.0/15 via {other.ipv4}")
    with inside(host):
        yield host


def peer(number: int, *, prefix: str = "", mac: int = 0) -> Peer:
    own = f"10.{number // 256}.{number % 256}.0/24"
    return Peer(
        str(IPv4Address("198.18.0.1") + number),
        [prefix or own],
        mac=f"02:00:00:{mac:02x}:{number // 256:02x}:{number % 256:02x}",
    )


def routes(host: Host, *, device: str = "tunnel1") -> dict[str, str]:
    """Gateways by prefix, empty for none."""
    listed = json.loads(host.run(f"ip -j -4 route show dev {device} proto 84").stdout)
    return {one["dst"]: one.get("gateway", "") for one in listed}


@pytest.mark.parametrize("mode", ["tun", "tap"])
async def test_a_thousand_within_a_second(host: Host, mode: str) -> None:
    words = {"subnets": [SUBNET], "mode": mode, "local": host.ipv4}
    async with Tunnel(**words) as tunnel:  # type: ignore[arg-type]
        come = [peer(number) for number in range(1000)]
        begun = time.process_time()
        assert await tunnel.change_peers(add=come) == {}
        took = time.process_time() - begun
        assert len(tunnel.peers) == len(routes(host)) == 1000
        assert took < 1, f"{took:.2f} s"
        await tunnel.reload(Config(**words, peers=come[:3]))  # type: ignore[arg-type]
        assert set(routes(host)) == {str(one.prefixes[0]) for one in come[:3]}
        assert len(json.loads(host.run("ip -j neigh show proto 84").stdout)) <= 3


async def test_one_that_the_kernel_refuses_keeps_nobody_out(host: Host) -> None:
    host.run("ip route add 10.0.1.0/24 dev lo")
    async with Tunnel(subnets=[SUBNET], peers=[peer(0)]) as tunnel:
        refused = await tunnel.change_peers(
            add=[
                *(peer(number) for number in range(1, 4)),
                peer(5, prefix="10.0.0.128/25"),
                peer(6, prefix="198.18.0.0/24"),
                Peer(host.ipv4, ["10.9.0.0/16"]),
            ]
        )
        said = {str(endpoint): str(error) for endpoint, error in refused.items()}
        assert sorted(said) == [
            "192.0.2.1:8472",
            "198.18.0.2:8472",
            "198.18.0.6:8472",
            "198.18.0.7:8472",
        ]
        assert "kernel route 10.0.1.0/24 exists already, via device lo" in said["198.18.0.2:8472"]
        assert "overlaps 10.0.0.0/24" in said["198.18.0.6:8472"]
        assert "would go into the tunnel" in said["198.18.0.7:8472"]
        assert "this node itself" in said["192.0.2.1:8472"]
        assert set(routes(host)) == {"10.0.0.0/24", "10.0.2.0/24", "10.0.3.0/24"}
        assert {one.endpoint for one in tunnel.status().peers} == {
            peer(number).endpoint for number in (0, 2, 3)
        }


async def test_a_reload_that_the_kernel_refuses_changes_nothing(host: Host) -> None:
    host.run("ip route add 10.0.1.0/24 dev lo")
    peers = [peer(0), peer(7)]
    async with Tunnel(subnets=[SUBNET], peers=peers) as tunnel:
        before = routes(host)
        wanted = [peer(0, prefix="10.0.200.0/24"), *(peer(number) for number in range(1, 5))]
        with pytest.raises(TunnelError, match="exists already"):
            await tunnel.reload(Config(subnets=[SUBNET], peers=wanted))
        assert routes(host) == before
        now = {one.endpoint: one.prefixes for one in tunnel.status().peers}
        assert now == {one.endpoint: one.prefixes for one in peers}


@pytest.mark.parametrize("mode", ["tun", "tap"])
async def test_a_prefix_that_moves_stays_routed(host: Host, mode: str) -> None:
    """By the kernel's notifications: no route of this program was deleted."""
    with inside(host):
        monitor = host.popen("stdbuf -oL ip monitor route neigh")
    async with Tunnel(subnets=[SUBNET], peers=[peer(0), peer(1)], mode=mode) as tunnel:
        heir = Peer("198.18.0.9", peer(0).prefixes, mac="02:00:00:00:99:99")
        assert await tunnel.change_peers(add=[heir], remove=[peer(0).endpoint]) == {}
        assert set(routes(host)) == {"10.0.0.0/24", "10.0.1.0/24"}
        if mode == "tap":
            listed = json.loads(host.run("ip -j neigh show 10.0.0.0 dev tunnel1").stdout)
            assert [one["lladdr"] for one in listed] == [str(heir.mac)]
            assert Endpoint("198.18.0.9") in {entry.peer for entry in tunnel.fdb()}
            assert len(tunnel.fdb()) == 2
        host.run("ip route add 203.0.113.0/24 dev lo")  # the mark up to which it is read
        assert monitor.stdout is not None
        seen = []
        while "203.0.113.0/24" not in (line := monitor.stdout.readline()):
            seen.append(line)
        assert not [line for line in seen if "Deleted 10.0.0.0/24" in line]


async def test_who_changes_is_told_as_such(host: Host) -> None:
    async with Tunnel(subnets=[SUBNET], peers=[peer(0), peer(1)]) as tunnel:
        events = tunnel.events()
        other = peer(0, mac=7)
        await tunnel.change_peers(add=[other, peer(2)], remove=[peer(1).endpoint, peer(4).endpoint])
        told = [await anext(events) for _ in range(3)]
        assert told == [
            PeerRemoved(peer(1).endpoint),
            PeerChanged(other.endpoint),
            PeerAdded(peer(2).endpoint),
        ]
        assert tunnel.neighbours()[other.endpoint].mac == other.mac


@pytest.mark.parametrize("mode", ["tun", "tap"])
async def test_a_node_that_moves(host: Host, mode: str) -> None:
    words = {"mode": mode, "local": host.ipv4, "peers": [peer(0)]}
    async with Tunnel(subnets=[SUBNET], **words) as tunnel:  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="overlaps"):
            await tunnel.renumber(Config(subnets=["10.0.0.0/16"], **words))  # type: ignore[arg-type]
        await tunnel.renumber(Config(subnets=["10.254.0.0/24"], **words))  # type: ignore[arg-type]
        shown = host.run("ip -4 -o address show dev tunnel1").stdout
        assert "10.254.0.0/32" in shown
        assert "10.255.0.0" not in shown
        assert await tunnel.change_peers(add=[peer(1, prefix=SUBNET)]) == {}
        assert [str(one) for one in tunnel.status().subnets] == ["10.254.0.0/24"]


async def test_very_many_routes_in_one_go(host: Host) -> None:
    """Ten thousand, IPv6 as well, twice: routes of this program may exist already."""
    host.run("ip link add d0 type veth peer name d1")
    host.run("ip link set d0 up")
    index = socket.if_nametoindex("d0")
    some = [ipaddress.ip_network((0x0A000000 + (n << 8), 24)) for n in range(9_000)]
    more = [ipaddress.ip_network((0xFD00 << 112 | n << 64, 64)) for n in range(1_000)]
    wanted = dict.fromkeys([*some, *more])
    async with Netlink() as netlink:
        for _ in range(2):
            assert await netlink.add_routes(index, wanted) == {}
            assert set(await netlink.routes(index)) == set(wanted)
        await netlink.remove_routes(index, [*wanted, some[0]])
        assert await netlink.routes(index) == []
