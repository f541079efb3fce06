"""
How the cost grows: with streams, packet sizes, peers, routes and nodes.

    python -m benchmarks.scaling [--keep]
"""

import asyncio
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

import click

from benchmarks import rounds, tables
from benchmarks.micro import nanoseconds
from tunnel import Peer, Tunnel, TunnelError, bench
from tunnel._native import Forwarder
from tunnel.lab import Host, Lab, LabError, need_privilege

CONTESTANTS = ("kernel", "tunnel")
STREAMS = (1, 2, 4, 8, 16, 32, 64)
SIZES = (64, 128, 256, 512, 1024, 1400)
ROUTES = (10, 100, 1_000, 10_000, 100_000)
PEERS = (1, 10, 100, 1_000)
NODES = (2, 3, 5)


def by_streams(field: rounds.Field, *, seconds: int) -> tables.Rows:
    """Median of three rounds; streams one after the other, contestants in turns."""
    rows: list[list[str | int | float]] = [
        ["streams", *(f"{name}, Gbit/s" for name in CONTESTANTS)]
    ]
    for streams in STREAMS:
        found: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
        for name in CONTESTANTS * 3:
            run = bench.tcp(field.paths[name], streams=streams, seconds=seconds)
            found[name].append(run.gbit_s)
        rows.append([streams, *(f"{statistics.median(one):.2f}" for one in found.values())])
    return rows


def by_size(field: rounds.Field, *, seconds: int) -> tables.Rows:
    rows: list[list[str | int | float]] = [
        ["payload, bytes", *(f"{name}, kpps" for name in CONTESTANTS)]
    ]
    for size in SIZES:
        runs = [bench.udp(field.paths[name], size=size, seconds=seconds) for name in CONTESTANTS]
        rows.append([size, *(f"{run.bytes / size / run.seconds / 1000:.0f}" for run in runs)])
    return rows


def by_routes() -> tables.Rows:
    """The table's own cost: replacing all routes, and one look-up through the binding."""
    rows = [["routes", "replace all, ms", "look-up, ns"]]
    return [*rows, *(_with_routes(count) for count in ROUTES)]


def _with_routes(count: int) -> list[str]:
    first = int(IPv4Address("10.0.0.0"))
    routes = [((first + (i << 7)).to_bytes(4, "big"), 25, 0) for i in range(count)]
    some = [network for network, _, _ in routes[:: max(1, count // 997)]]
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
        took = time.perf_counter() - start
        each = nanoseconds(lambda: [forwarder.lookup(one) for one in some], items=len(some))
    return [str(count), f"{took * 1e3:.2f}", f"{each:.0f}"]


async def _open(count: int) -> tuple[float, float]:
    """Seconds to open a tunnel without a device, and to put one peer more."""
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
    rows: list[list[str | int | float]] = [["peers", "open, ms", "one more, ms"]]
    for count in PEERS:
        opened, added = asyncio.run(_open(count))
        rows.append([count, f"{opened * 1e3:.1f}", f"{added * 1e3:.2f}"])
    return rows


def by_nodes(*, seconds: int) -> tables.Rows:
    """All send to the next one at once, one TCP stream each."""
    rows: list[list[str | int | float]] = [["nodes", "sum, Gbit/s", "least, Gbit/s"]]
    for count in NODES:
        with Lab() as lab:
            hosts = [lab.host(str(i)) for i in range(count)]
            lab.switch(*hosts)
            for i, host in enumerate(hosts):
                _join(host, i, hosts)
                rounds.serve(host)
            paths = [
                bench.Path(host.name, f"10.244.{(i + 1) % count}.0", host.popen)
                for i, host in enumerate(hosts)
            ]
            with ThreadPoolExecutor(count) as together:
                runs = together.map(partial(bench.tcp, streams=1, seconds=seconds), paths)
                found = [run.gbit_s for run in runs]
            rows.append([count, f"{sum(found):.2f}", f"{min(found):.2f}"])
    return rows


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


@click.command()
@click.option("--seconds", type=click.IntRange(1), default=2, show_default=True, help="Per run.")
@click.option("--keep", is_flag=True, help="Keep the result in benchmarks/results/.")
def main(*, seconds: int, keep: bool) -> None:
    """Measure how the cost grows."""
    result: dict[str, tables.Rows] = {}
    try:
        need_privilege([sys.executable, "-m", "benchmarks.scaling", *sys.argv[1:]])
        with rounds.field(CONTESTANTS, mtu=1500, veth_offloads=True) as field:
            result["TCP by streams"] = by_streams(field, seconds=seconds)
            result["UDP as fast as it goes, by payload"] = by_size(field, seconds=seconds)
        result["Nodes, each sending to the next"] = by_nodes(seconds=seconds)
    except TunnelError as error:
        raise click.ClickException(str(error)) from error
    result["Peers of one node"] = by_peers()
    result["Routes"] = by_routes()
    tables.show(result)
    if keep:
        tables.keep(
            result, module="benchmarks.scaling", directory=Path(__file__).parent / "results"
        )


if __name__ == "__main__":
    main()
