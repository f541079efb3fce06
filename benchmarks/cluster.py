"""
What many members of a cluster cost: when they join at once, and when they change while packets
flow.

    python -m benchmarks.cluster arrive
    python -m benchmarks.cluster records
    python -m benchmarks.cluster churn [--rounds N] [--seconds S] [--rate R]
"""

import asyncio
import ctypes
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Address
from itertools import cycle

import click

from benchmarks import rounds
from benchmarks.passport import iperf3_version, make_passport
from examples.cluster.__main__ import Node, cluster
from tunnel import Peer, Tunnel
from tunnel.cluster import cache
from tunnel.cluster.lease import Claim
from tunnel.cluster.network import Network, Pool
from tunnel.cluster.record import Record
from tunnel.cluster.roster import Roster
from tunnel.cluster.stores.base import Batch, Change, Entry, Snapshot
from tunnel.cluster.stores.etcd import EtcdStore
from tunnel.errors import TunnelError
from tunnel.testing import bench
from tunnel.testing.lab import Host, Lab, need_privilege
from tunnel.types import Mac, parse_prefix

DIRECTORY = "/coreos.com/network/subnets/"
ELSEWHERE = "/elsewhere/"
STRANGERS = IPv4Address("198.18.0.0")
"""The addresses of peers that do not exist (RFC 2544)."""

_CLONE_NEWNET = 0x40000000


@click.group()
def main() -> None:
    """Measure what many members of a cluster cost."""
    need_privilege([sys.executable, "-m", "benchmarks.cluster", *sys.argv[1:]])


def _stranger(number: int, prefixes: Sequence[str]) -> Peer:
    return Peer(str(STRANGERS + 1 + number), prefixes, mac=_mac(number))


def _prefixes(count: int) -> list[str]:
    return [f"{IPv4Address('16.0.0.0') + 256 * place}/24" for place in range(count)]


def _mac(number: int) -> Mac:
    return Mac(bytes([2, 0, 0, 1, number >> 8, number & 255]))


# Many at once, with a device.


@main.command()
@click.option("--peers", type=click.IntRange(1, 65535), default=1000, show_default=True)
@click.option("--routes", type=click.IntRange(1), default=100_000, show_default=True)
def arrive(*, peers: int, routes: int) -> None:
    """Seconds until peers are in the packet path, kernel routes and all."""
    with Lab() as lab:
        host, other = lab.host("a"), lab.host("b")
        lab.link(host, other)
        host.run(f"ip route add {STRANGERS}/15 via {other.ipv4}")
        _enter(host)
        for peer_by_peer in (True, False):
            took = asyncio.run(_arrive(peers, peer_by_peer=peer_by_peer))
            print(f"{peers} peers, {'one by one' if peer_by_peer else 'at once'}: {took:.2f} s")
        print(f"start with {routes} routes: {asyncio.run(_start(routes)):.2f} s")
    _print_passport()


async def _arrive(count: int, *, peer_by_peer: bool) -> float:
    come = [_stranger(number, [prefix]) for number, prefix in enumerate(_prefixes(count))]
    async with Tunnel(subnets=["10.255.0.0/24"]) as tunnel:
        begun = time.perf_counter()
        if peer_by_peer:
            for peer in come:
                await tunnel.add_peer(peer)
        else:
            refused = await tunnel.change_peers(add=come)
            assert not refused, refused
        return time.perf_counter() - begun


async def _start(count: int) -> float:
    prefixes = _prefixes(count)
    peers = [
        _stranger(first // 100, prefixes[first : first + 100]) for first in range(0, count, 100)
    ]
    begun = time.perf_counter()
    async with Tunnel(subnets=["10.255.0.0/24"], peers=peers):
        return time.perf_counter() - begun


def _enter(host: Host) -> None:
    """Moves this thread into the host's network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/proc/{host.pid}/ns/net") as there:
        if libc.setns(there.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


# The rules.


@main.command()
@click.option("--count", type=click.IntRange(1, 60_000), default=5000, show_default=True)
def records(*, count: int) -> None:
    """CPU time for which records occupy the event loop: the least of five runs."""
    found: dict[str, list[float]] = {}
    for turn in range(5):
        for name, step in _steps(count, turn=turn):
            begun = time.process_time()
            step()
            found.setdefault(name, []).append(time.process_time() - begun)
    for name, took in found.items():
        print(f"{count} records, {name}: {min(took) * 1e3:.1f} ms")
    _print_passport()


def _steps(count: int, *, turn: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """The steps of a node, in their order; another `turn` has other records."""
    network, ours = Network((Pool.of(parse_prefix("10.0.0.0/8")),)), _record(count)
    roster = Roster(network, ours, directory=DIRECTORY)
    claim = Claim(network, ours, directory=DIRECTORY, random=random.Random(1))
    snapshot = Snapshot(
        count,
        {
            DIRECTORY + f"10.{1 + n // 256}.{n % 256}.0-24": Entry(
                replace(_record(n), node=f"{turn}-{n}").text(), n + 1, 1, n + 1
            )
            for n in range(count)
        },
    )
    changes = tuple(_moved(key, entry) for key, entry in snapshot.entries.items())
    claim.step(now=0)
    yield "all for the first time", lambda: roster.read(snapshot, now=0)
    yield "a subnet is chosen", lambda: claim.read(snapshot, now=0)
    yield "ours among them", lambda: roster.set_own_subnets([parse_prefix("10.0.0.0/24")])
    yield "nothing is new", lambda: roster.read(snapshot, now=0)
    yield "one changes", lambda: roster.changed(Batch(count + 1, changes[:1]))
    yield "all change", lambda: roster.changed(Batch(count + 2, changes))
    yield "put on disk", lambda: cache.dump(roster.snapshot)


def _record(number: int) -> Record:
    return Record(address=STRANGERS + 1 + number, mac=_mac(number), vni=1, node=f"stranger{number}")


def _moved(key: str, entry: Entry) -> Change:
    record = Record.parse(entry.value)
    assert record.address
    return Change(key, replace(entry, value=replace(record, address=record.address + 9).text()))


# Changes under traffic.


@main.command()
@click.option("--rounds", "count", type=click.IntRange(1), default=6, show_default=True)
@click.option("--seconds", type=click.IntRange(2), default=10, show_default=True)
@click.option("--rate", type=click.IntRange(1), default=10, show_default=True, help="A second.")
@click.option("--crowd", type=click.IntRange(2), default=1000, show_default=True, help="Of peers.")
def churn(*, count: int, seconds: int, rate: int, crowd: int) -> None:
    """
    TCP throughput between two nodes while peers change in etcd, alternating with quiet runs.

    In a quiet run as much is written to etcd, under a prefix that no node watches: etcd and the
    writer share the CPUs here, unlike in a real cluster.
    """
    found: dict[bool, list[float]] = {False: [], True: []}
    with _ready(crowd=crowd) as (store, url, path):
        for turn in range(count):
            for busy in (False, True) if turn % 2 else (True, False):
                directory = DIRECTORY if busy else ELSEWHERE
                with _changes(store, url, directory, rate=rate, crowd=crowd):
                    run = bench.tcp(path, streams=1, seconds=seconds)
                found[busy].append(run.gbit_s)
                print(f"{'churn' if busy else 'quiet'}: {run.gbit_s:.2f} Gbit/s", flush=True)
    ratios = [busy / quiet for busy, quiet in zip(found[True], found[False], strict=True)]
    print(
        f"{rate} changes a second among {crowd} peers: {statistics.median(ratios):.3f} of the "
        f"quiet throughput (median of {count} rounds, {min(ratios):.3f} to {max(ratios):.3f})"
    )
    _print_passport(iperf3=iperf3_version())


@contextmanager
def _ready(*, crowd: int) -> Iterator[tuple[Host, str, bench.MeasuredPath]]:
    """The store, its URL, and the path between two nodes that have the crowd as peers."""
    with cluster() as (store, url, (near, far, third)):
        third.host.run([sys.executable, "-m", "tunnel", "down"])
        for node in (near, far):
            node.host.run(f"ip route add {STRANGERS}/15 via {store.ipv4}")
        rounds.serve(far.host)
        for directory in (DIRECTORY, ELSEWHERE):
            with _changes(store, url, directory, rate=1, crowd=crowd):
                pass
        _wait_for(near, crowd)
        yield store, url, bench.MeasuredPath("cluster", far.address, near.host.popen)


def _wait_for(node: Node, crowd: int) -> None:
    while True:
        shown = node.host.run("ip -4 route show dev tunnel1 proto 84").stdout
        if len(shown.splitlines()) > crowd:
            return
        time.sleep(0.2)


@contextmanager
def _changes(store: Host, url: str, directory: str, *, rate: int, crowd: int) -> Iterator[None]:
    """Writes the crowd, and changes some of it within the block."""
    words = ["write", url, directory, "--rate", str(rate), "--crowd", str(crowd)]
    writer = store.popen([sys.executable, "-m", "benchmarks.cluster", *words])
    assert writer.stdout is not None
    if not writer.stdout.readline():
        raise click.ClickException(f"cannot write to {url}: {writer.communicate()[1].strip()}")
    try:
        yield
    finally:
        writer.terminate()
        writer.wait()


@main.command(hidden=True)
@click.argument("url")
@click.argument("directory")
@click.option("--rate", type=int, required=True)
@click.option("--crowd", type=int, required=True)
def write(url: str, directory: str, *, rate: int, crowd: int) -> None:
    """Writes the crowd; then deletes one record and writes it again, in turn."""
    # The subnets of the nodes are in 10.42.0.0/16.
    keys = {
        f"{directory}10.{100 + number // 256}.{number % 256}.0-24": _record(number).text()
        for number in range(crowd)
    }
    asyncio.run(_write(url, directory, keys, rate=rate))


async def _write(url: str, directory: str, keys: Mapping[str, bytes], *, rate: int) -> None:
    async with EtcdStore([url]) as store:
        entries = (await store.read(directory)).entries
        revisions = {key: entry.revision for key, entry in entries.items()}
        for key, value in keys.items():
            if key not in revisions:
                revisions[key] = await store.put(key, value, expect=0)
        print("ready", flush=True)
        for key, value in cycle(keys.items()):
            await asyncio.sleep(1 / rate)
            await store.delete(key, expect=revisions[key])
            await asyncio.sleep(1 / rate)
            revisions[key] = await store.put(key, value, expect=0)


def _print_passport(**more: object) -> None:
    for word, value in make_passport("benchmarks.cluster", **more).items():
        print(f"{word}: {value}")


if __name__ == "__main__":
    try:
        main()
    except TunnelError as error:
        sys.exit(f"benchmarks.cluster: {error}")
