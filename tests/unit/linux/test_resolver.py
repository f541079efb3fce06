"""Look-ups of names that do not answer."""

import asyncio
import ipaddress
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tunnel.linux.resolver import Resolver

ANSWER = ipaddress.ip_address("192.0.2.7")


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A server that answers for no name but "known", until the test is over; what it was asked."""
    asked: list[str] = []
    over = threading.Event()

    def getaddrinfo(name: str, *_: Any, **__: Any) -> list[Any]:
        asked.append(name)
        if name != "known":
            over.wait(60)
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (str(ANSWER), 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield asked
    over.set()


async def test_one_that_does_not_answer_holds_up_no_other(silent: list[str]) -> None:
    resolver = Resolver()
    waiting = [asyncio.create_task(resolver.resolve(f"name{n}")) for n in range(20)]
    async with asyncio.timeout(5):
        assert await resolver.resolve("known") == ANSWER
    resolver.close()
    await asyncio.wait(waiting)


async def test_a_name_is_looked_up_once_at_a_time(silent: list[str]) -> None:
    resolver = Resolver()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await resolver.resolve("slow")
    assert silent == ["slow"]
    resolver.close()


async def test_closing_ends_every_look_up(silent: list[str]) -> None:
    resolver = Resolver()
    waiting = asyncio.create_task(resolver.resolve("slow"))
    await asyncio.sleep(0.01)
    resolver.close()
    async with asyncio.timeout(1):
        for task in (waiting, asyncio.create_task(resolver.resolve("known"))):
            with pytest.raises(OSError, match="the node is closed"):
                await task


def test_nothing_waits_for_a_thread_at_the_end(silent: list[str]) -> None:
    async def start() -> None:
        asyncio.get_running_loop().create_task(Resolver().resolve("slow"))
        await asyncio.sleep(0.01)

    begun = time.monotonic()
    asyncio.run(start())
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("name", ["nowhere.invalid", "x" * 70])
async def test_a_name_without_an_address_is_an_error(name: str) -> None:
    with pytest.raises(OSError, match=r".+"):
        await Resolver().resolve(name)
