"""
How cost grows with streams, packet sizes, workers, nodes, peers and routes.

    python -m benchmarks.scaling [--keep]
"""

import asyncio
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

import click
from rich.console import Console
from rich.progress import track

from benchmarks import rounds, tables
from benchmarks.contestant import OVERHEAD, Contestant
from benchmarks.contestants import CONTESTANTS
from benchmarks.contestants.tunnel import TUNNEL_LOOP, TUNNEL_WORKERS, contestant
from benchmarks.micro import nanoseconds
from tunnel import Peer, Tunnel, TunnelError
from tunnel._native import Forwarder
from tunnel.testing import bench
from tunnel.testing.lab import Host, Lab, LabError, need_privilege

COMPARED = {name: CONTESTANTS[name] for name in ("kernel", "tunnel", "loop")}
WORKERS = {"1": TUNNEL_LOOP, "2": TUNNEL_WORKERS, "4": contestant("tunnel, 4 workers", workers="4")}
STREAMS = (1, 2, 4, 8, 16, 32, 64)
SIZES = (64, 128, 256, 512, 1024, 1400, 1450)
ROUTES = (10, 100, 1_000, 10_000, 100_000)
PEERS = (1, 10, 100, 1_000)
NODES = (2, 3, 5)
SIZES_MTU = max(SIZES) + 28 + OVERHEAD
"""MTU of the link for varied sizes: the largest payload with its headers is not fragmented."""


@dataclass(frozen=True)
class Effort:
    rounds: int
    seconds: int


Load = Callable[..., float]
"""Takes a path and ``seconds``, and returns what the far host received."""


def stream_load(streams: int) -> Load:
    return lambda path, *, seconds: bench.tcp(path, streams=streams, seconds=seconds).gbit_s


def packet_load(size: int) -> Load:
    def load(path: bench.MeasuredPath, *, seconds: int) -> float:
        run = bench.udp(path, size=size, seconds=seconds)
        return run.bytes / size / run.seconds / 1000

    return load


def measure(
    contestants: Mapping[str, Contestant], loads: Mapping[str, Load], *, effort: Effort, mtu: int
) -> dict[str, dict[str, list[float]]]:
    """Returns contestant -> load -> one number per round. Contestants take turns; loads follow each
    other."""
    found: dict[str, dict[str, list[float]]] = {
        name: {load: [] for load in loads} for name in contestants
    }
    with rounds.lineup(contestants, mtu=mtu) as lineup:
        if lineup.absent:
            raise LabError("; ".join(lineup.absent.values()))
        plan = rounds.turns(list(contestants), list(loads), rounds=effort.rounds)
        for load, name in track(list(plan), console=Console(stderr=True), transient=True):
            value = loads[load](lineup.paths[name], seconds=effort.seconds)
            found[name][load].append(value)
    return found


def by_load(
    loads: Mapping[str, Load], *, head: str, unit: str, effort: Effort, mtu: int = 1500
) -> tables.Rows:
    """Returns a row for each load: ours and the kernel's vxlan."""
    found = measure(COMPARED, loads, effort=effort, mtu=mtu)
    rows: list[list[tables.Cell]] = [[head, *(f"{one.name}, {unit}" for one in COMPARED.values())]]
    rows += [[load, *(found[name][load] for name in COMPARED)] for load in loads]
    return rows


def by_contestant(
    contestants: Mapping[str, Contestant], loads: Mapping[str, Load], *, head: str, effort: Effort
) -> tables.Rows:
    """Returns a row for each variant of this project."""
    found = measure(contestants, loads, effort=effort, mtu=1500)
    rows: list[list[tables.Cell]] = [[head, *loads]]
    rows += [[name, *row.values()] for name, row in found.items()]
    return rows


def crowd(peers: int, prefixes: int, *, first: int) -> Contestant:
    """Returns our contestant whose first host has these peers and prefixes besides the measured."""
    return contestant("tunnel", crowd=(peers, prefixes, first))


def by_routes() -> tables.Rows:
    """The cost of the route table: replacing all routes, and one look-up through the binding."""
    rows: list[list[tables.Cell]] = [["routes", "replace all, ms", "look-up, ns"]]
    return [*rows, *(_with_routes(count) for count in ROUTES)]


def _with_routes(count: int) -> list[tables.Cell]:
    first = int(IPv4Address("10.0.0.0"))
    routes = [((first + (i << 7)).to_bytes(4, "big"), 25, 0) for i in range(count)]
    sample = [network for network, _, _ in routes[:: max(1, count // 997)]]
    with open("/dev/null", "r+b", buffering=0) as device:
        forwarder = Forwarder(
            device=device.fileno(),
            output=device.fileno(),
            vnet_header=False,
            coalesce_tcp=False,
            coalesce_udp=False,
            vni=1,
            mac=bytes.fromhex("02005e005301"),
            segments=1,
        )
        forwarder.set_peer(0, bytes([192, 0, 2, 2]), 8472, bytes.fromhex("02005e005302"))
        start = time.perf_counter()
        forwarder.set_routes(routes)
        duration = time.perf_counter() - start
        each = nanoseconds(lambda: [forwarder.lookup(one) for one in sample], items=len(sample))
    return [count, [duration * 1e3], [each]]


async def _open(count: int) -> tuple[float, float]:
    """Returns the seconds to open a tunnel without a device, and to add one more peer."""
    peers = [
        Peer(str(IPv4Address("127.1.0.1") + i), [f"10.{i // 256}.{i % 256}.0/24"])
        for i in range(count)
    ]
    start = time.perf_counter()
    async with Tunnel(device=None, local="127.0.0.1", port=18472, peers=peers) as tunnel:
        opened = time.perf_counter()
        await tunnel.add_peer(Peer("127.2.0.1", ["10.99.0.0/24"]))
        return opened - start, time.perf_counter() - opened


def by_peers() -> tables.Rows:
    rows: list[list[tables.Cell]] = [["peers", "open, ms", "one more, ms"]]
    for count in PEERS:
        opened, added = asyncio.run(_open(count))
        rows.append([count, [opened * 1e3], [added * 1e3]])
    return rows


def by_nodes(*, effort: Effort) -> tables.Rows:
    """Every node sends one TCP stream to the next one, all at the same time."""
    rows: list[list[tables.Cell]] = [["nodes", "sum, Gbit/s", "least, Gbit/s"]]
    for count in NODES:
        with Lab() as lab:
            hosts = [lab.host(str(i)) for i in range(count)]
            lab.switch(*hosts)
            for i, host in enumerate(hosts):
                _join(host, i, hosts)
                rounds.serve(host)
            paths = [
                bench.MeasuredPath(host.name, f"10.244.{(i + 1) % count}.0", host.popen)
                for i, host in enumerate(hosts)
            ]
            found = [_all_at_once(paths, seconds=effort.seconds) for _ in range(effort.rounds)]
            rows.append([count, [sum(one) for one in found], [min(one) for one in found]])
    return rows


def _all_at_once(paths: Sequence[bench.MeasuredPath], *, seconds: int) -> list[float]:
    with ThreadPoolExecutor(len(paths)) as together:
        return list(together.map(partial(stream_load(1), seconds=seconds), paths))


def _join(host: Host, number: int, hosts: list[Host]) -> None:
    peers = " ".join(
        f"--peer {peer.ipv4}=10.244.{i}.0/24" for i, peer in enumerate(hosts) if i != number
    )
    node = host.popen(
        f"{sys.executable} -m tunnel up --local {host.ipv4} --subnet 10.244.{number}.0/24 {peers}"
    )
    assert node.stdout is not None
    if not node.stdout.readline():
        raise LabError(f"tunnel up failed: {node.communicate()[1].strip()}")


def measure_all(effort: Effort) -> Iterator[tuple[str, tables.Rows]]:
    """Yields title and rows of each table."""
    streams = {str(count): stream_load(count) for count in STREAMS}
    yield (
        "TCP by streams",
        by_load(streams, head="streams", unit="Gbit/s", effort=effort),
    )
    sizes = {str(size): packet_load(size) for size in SIZES}
    yield (
        "UDP as fast as it goes, by payload",
        by_load(sizes, head="bytes", unit="kpps", effort=effort, mtu=SIZES_MTU),
    )
    one, small = {"TCP 1 stream, Gbit/s": stream_load(1)}, {"UDP 64 B, kpps": packet_load(64)}
    many = {f"TCP {count} streams, Gbit/s": stream_load(count) for count in (4, 16)}
    yield (
        "Workers",
        by_contestant(WORKERS, one | many | small, head="workers", effort=effort),
    )
    yield "Nodes, each sending to the next", by_nodes(effort=effort)
    peers = {str(count): crowd(count - 1, count - 1, first=count) for count in PEERS}
    yield (
        "Through a node with many peers",
        by_contestant(peers, one | small, head="peers", effort=effort),
    )
    routes = {str(count): crowd(1, count - 1, first=count) for count in ROUTES}
    yield (
        "Through a node with many routes",
        by_contestant(routes, one | small, head="routes", effort=effort),
    )
    yield "Peers of one node", by_peers()
    yield "Routes", by_routes()


@click.command()
@click.option("--rounds", "count", type=click.IntRange(1), default=3, show_default=True)
@click.option("--seconds", type=click.IntRange(1), default=2, show_default=True, help="Per run.")
@click.option("--keep", is_flag=True, help="Write the result to benchmarks/results/.")
@click.option("--directory", type=click.Path(path_type=Path), default=tables.RESULTS)
def main(*, count: int, seconds: int, keep: bool, directory: Path) -> None:
    """Measure how cost grows."""
    result: dict[str, tables.Rows] = {}
    try:
        need_privilege([sys.executable, "-m", "benchmarks.scaling", *sys.argv[1:]])
        for title, rows in measure_all(Effort(rounds=count, seconds=seconds)):
            result[title] = rows
            tables.show({title: rows})
            if keep:
                tables.keep(result, module="benchmarks.scaling", directory=directory)
    except TunnelError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
