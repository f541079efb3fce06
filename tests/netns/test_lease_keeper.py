"""What stays behind in an etcd when answers to writes are lost."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

from tests.netns.etcd import Etcd
from tunnel.cluster import lease_keeper
from tunnel.cluster.connection import StoreConnection
from tunnel.cluster.lease import Claim
from tunnel.cluster.lease_keeper import LeaseKeeper
from tunnel.cluster.network import Network, Pool
from tunnel.cluster.record import Record
from tunnel.cluster.stores.etcd import EtcdStore
from tunnel.types import parse_prefix

PREFIX = "/coreos.com/network/"
WRITES = ("lease/grant", "kv/txn", "lease/revoke", "lease/keepalive")


@asynccontextmanager
async def gateway(endpoint: str, *, is_lost: Callable[[str], bool]) -> AsyncIterator[str]:
    """A proxy that passes on every request, and closes the connection instead of answering where
    `is_lost` says so of its path."""
    target = urlsplit(endpoint)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.partition(b":")[2])
                for line in head.splitlines()
                if line.lower().startswith(b"content-length:")
            )
            body = await reader.readexactly(length)
            from_etcd, to_etcd = await asyncio.open_connection(target.hostname, target.port)
            to_etcd.write(head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1) + body)
            answered = await from_etcd.read()
            to_etcd.close()
            if not is_lost(head.split()[1].decode().removeprefix("/v3/")):
                writer.write(answered)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def make_keeper(store: EtcdStore, monkeypatch: pytest.MonkeyPatch, *, ttl: int) -> LeaseKeeper:
    """A keeper for which waiting takes no time."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(lease_keeper, "time", SimpleNamespace(monotonic=lambda: clock.now))
    claim = Claim(
        Network((Pool.of(parse_prefix("10.42.0.0/16")),)),
        Record(node="one", vni=1),
        directory=f"{PREFIX}subnets/",
        random=random.Random(1),
        ttl=ttl,
    )
    keeper = LeaseKeeper(
        claim,
        StoreConnection(store, name="tunnel1"),
        acquired=asyncio.Queue(),
        prefix=PREFIX,
        name="tunnel1",
        identity_path=Path("tunnel1.json"),
    )

    async def wait(until: float | None) -> None:
        assert until is not None
        clock.now = until
        await asyncio.sleep(0)

    monkeypatch.setattr(keeper, "_wait", wait)
    return keeper


def leases_of(etcd: Etcd) -> list[str]:
    return [one["ID"] for one in etcd.call("lease/leases", {}).get("leases", [])]


@pytest.mark.parametrize("limit", [0.3, 5.0], ids=["calls fail", "calls are repeated"])
async def test_lost_answers_leave_no_leases_behind(
    tmp_path: Path, limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance, lost = random.Random(7), 0

    def is_lost(path: str) -> bool:
        nonlocal lost
        found = path in WRITES and chance.random() < 0.6
        lost += found
        return found

    with Etcd(tmp_path) as etcd:
        async with (
            gateway(etcd.endpoints[0], is_lost=is_lost) as url,
            EtcdStore([url], timeout=limit) as store,
        ):
            keeper = make_keeper(store, monkeypatch, ttl=3600)
            await keeper.acquire()
            running = asyncio.create_task(keeper.run())
            most = 0
            while lost < 30:
                await asyncio.sleep(0.1)
                most = max(most, len(await asyncio.to_thread(leases_of, etcd)))
            running.cancel()
            await asyncio.wait([running])
        # The key is bound to one, the next write has one, and one is about to be revoked.
        assert most <= 3, f"{most} leases after {lost} lost answers"


async def test_renewals_leave_one_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Etcd(tmp_path) as etcd:
        async with EtcdStore(etcd.endpoints) as store:
            keeper = make_keeper(store, monkeypatch, ttl=3600)
            await keeper.acquire()
            running = asyncio.create_task(keeper.run())
            await asyncio.sleep(1)
            running.cancel()
            await asyncio.wait([running])
            assert (await store.read(PREFIX)).revision > 10
        assert len(leases_of(etcd)) <= 2


async def test_restarts_leave_one_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Etcd(tmp_path) as etcd:
        for _ in range(5):
            async with EtcdStore(etcd.endpoints) as store:
                keeper = make_keeper(store, monkeypatch, ttl=3600)
                await keeper.acquire()
        assert len(leases_of(etcd)) == 1
