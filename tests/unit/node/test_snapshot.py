"""Reading the state of a node costs what its peers cost, each once."""

import sys
import time
from collections import Counter
from collections.abc import Callable
from types import FrameType

import pytest

from benchmarks.status import busy_tunnel, calls
from tunnel.types import Endpoint

FEW, MANY = 250, 2000
NAMES = ["status()", "stats", "drops()", "a scrape", "last_drop of each"]


def calls_into_c(call: Callable[[], object]) -> Counter[str]:
    """How often `call` calls each function of the C core."""
    counted: Counter[str] = Counter()

    def count(frame: FrameType, event: str, argument: object) -> None:
        if event == "c_call":
            owner = type(getattr(argument, "__self__", None))
            module = getattr(argument, "__module__", None) or owner.__module__
            if module == "tunnel._native":
                counted[getattr(argument, "__name__", "")] += 1

    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(None)
    return counted


@pytest.mark.parametrize("name", NAMES)
async def test_peers_are_not_read_one_by_one(name: str) -> None:
    async with busy_tunnel(FEW) as tunnel:
        counted = calls_into_c(calls(tunnel)[name])
    assert counted["read_counters"] in (1, 2)
    assert sum(counted.values()) <= 8


async def test_the_cost_is_linear() -> None:
    """Eight times as many peers take eight times as long; were any of it quadratic, 64 times."""
    least: dict[int, dict[str, float]] = {}
    for count in (FEW, MANY):
        least[count] = dict.fromkeys(NAMES, float("inf"))
        async with busy_tunnel(count) as tunnel:
            for _ in range(15):
                for name, call in calls(tunnel).items():
                    begun = time.thread_time()
                    call()
                    least[count][name] = min(least[count][name], time.thread_time() - begun)
    ratios = {name: least[MANY][name] / least[FEW][name] for name in NAMES}
    assert max(ratios.values()) < 3 * MANY / FEW, ratios


async def test_counters_and_status_agree() -> None:
    async with busy_tunnel(40) as tunnel:
        status, stats = tunnel.status(watch=False), tunnel.stats
        assert [peer.endpoint for peer in status.peers] == list(stats.peers)
        assert all(peer.outbound.packets >= 1 for peer in status.peers)
        assert stats.outbound.packets == sum(one.outbound.packets for one in stats.peers.values())
        await tunnel.remove_peer(status.peers[0].endpoint)
        after = tunnel.stats
        assert after.outbound.packets >= stats.outbound.packets
        assert Endpoint("127.1.0.1") not in after.peers
        (no_route,) = [drop for drop in tunnel.drops() if drop.reason == "no_route"]
        assert no_route.count == tunnel.stats.drops["no_route"] > 0
