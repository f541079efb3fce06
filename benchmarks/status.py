"""
What reading a node's state costs the event loop, with many peers and packets flowing.

    python -m benchmarks.status [--keep]

Each call below runs in the loop that also serves the control plane, and is measured from its
start to its return. A scrape is what ``GET /metrics`` reads in the loop; its text is made in a
thread.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from pathlib import Path

import click

from benchmarks import tables
from tunnel import Peer, Tunnel
from tunnel.types import Mac

PEERS = (1_000, 2_000, 4_000, 10_000)
ROUNDS = 7
GOALS = {1_000: 10, 10_000: 100}
"""The most milliseconds that a call may take."""

_UNDERLAY = IPv4Address("127.1.0.0")  # nobody is there: packets leave, and are lost
_OVERLAY = IPv4Address("16.0.0.0")
_PORT = 18_475


def make_peers(count: int) -> list[Peer]:
    """Peers on loopback that never answer, with a /24 each."""
    return [
        Peer(
            str(_UNDERLAY + 1 + number),
            [f"{_OVERLAY + 256 * number}/24"],
            mac=Mac((0x020000000000 + number).to_bytes(6, "big")),
        )
        for number in range(count)
    ]


def make_packet(destination: IPv4Address) -> bytes:
    """An IPv4 packet of 84 bytes, too large for no path."""
    head = bytes.fromhex("45000054000000004011") + bytes(2)
    return head + bytes([10, 0, 0, 1]) + destination.packed + bytes(64)


@asynccontextmanager
async def busy_tunnel(count: int) -> AsyncIterator[Tunnel]:
    """A tunnel with so many peers that sends a packet to each, then goes on at random; one packet
    in four is dropped because no peer has its destination."""
    async with Tunnel(
        device=None, name="status", local="127.0.0.1", port=_PORT, peers=make_peers(count)
    ) as tunnel:
        for number in range(count):
            await tunnel.send(make_packet(_OVERLAY + 256 * number))
        sending = asyncio.create_task(_send(tunnel, count))
        try:
            await asyncio.sleep(0.2)
            yield tunnel
        finally:
            sending.cancel()


async def _send(tunnel: Tunnel, count: int) -> None:
    draw = random.Random(1)
    while True:
        for _ in range(16):
            number = draw.randrange(count + count // 3)
            await tunnel.send(make_packet(_OVERLAY + 256 * number))
        await asyncio.sleep(0.001)


def calls(tunnel: Tunnel) -> dict[str, Callable[[], object]]:
    """What is measured."""
    return {
        "status()": lambda: tunnel.status(watch=False),
        "stats": lambda: tunnel.stats,
        "drops()": tunnel.drops,
        "a scrape": tunnel.snapshot,
        "last_drop of each": lambda: [one.last_drop for one in tunnel.status(watch=False).peers],
    }


async def measure(count: int) -> dict[str, list[float]]:
    """Milliseconds of loop time, by call."""
    found: dict[str, list[float]] = {}
    async with busy_tunnel(count) as tunnel:
        for _ in range(ROUNDS):
            for name, call in calls(tunnel).items():
                await asyncio.sleep(0.02)
                begun = time.perf_counter()
                call()
                found.setdefault(name, []).append((time.perf_counter() - begun) * 1e3)
    return found


@click.command()
@click.option("--keep", is_flag=True, help="Keep the result in benchmarks/results/.")
@click.option("--directory", type=click.Path(path_type=Path), default=tables.RESULTS)
@click.option("--peers", type=int, multiple=True, default=PEERS, show_default=True)
def main(*, keep: bool, directory: Path, peers: tuple[int, ...]) -> None:
    """Measure what status, counters and scrapes cost with 1,000 to 10,000 peers."""
    rows: list[list[tables.Cell]] = []
    for count in peers:
        found = asyncio.run(measure(count))
        rows = rows or [["peers", *found, "goal"]]
        rows.append([f"{count:,}", *found.values(), GOALS.get(count, "")])
    result = {"Loop time, ms": rows}
    tables.show(result)
    if keep:
        tables.keep(result, module="benchmarks.status", directory=directory)


if __name__ == "__main__":
    main()
