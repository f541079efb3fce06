"""A node of a cluster without a device: its tasks, its end, and what it says while it waits."""

import asyncio
import errno
import ipaddress
import random
import re
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from examples import cluster_embed
from tunnel import supervise
from tunnel.cluster import Cluster, ClusterConfig, DirectoryStore, Registry, make_network
from tunnel.cluster.member import LEASE_KEEPER, PEER_UPDATER, STORE_FOLLOWER
from tunnel.cluster.record import Record
from tunnel.cluster.roster import Roster
from tunnel.cluster.stores.base import Batch, Snapshot
from tunnel.errors import StateError, StoreUnavailableError
from tunnel.types import Mac

pytestmark = pytest.mark.timeout(60)

PATIENCE = 60.0  # seconds for what takes a fraction of one
DIRECTORY = "/coreos.com/network/subnets/"


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it does not come to that"
        await asyncio.sleep(0.01)


class FaultyStore(DirectoryStore):
    """
    A directory store that fails on request.

    Attributes:
        faults: Method -> what its next call raises.
        silent: Whether it is unavailable.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.faults: dict[str, Exception] = {}
        self.silent = False
        self.entered = 0

    async def __aenter__(self) -> Self:
        self.entered += 1
        return await super().__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        self.entered -= 1
        await super().__aexit__(kind, error, trace)

    def check(self, method: str) -> None:
        if method in self.faults:
            raise self.faults.pop(method)
        if self.silent:
            raise StoreUnavailableError("nobody is there")

    async def read(self, prefix: str) -> Snapshot:
        self.check("read")
        return await super().read(prefix)

    async def put(self, key: str, value: bytes, *, expect: int, lease: int | None = None) -> int:
        self.check("put")
        return await super().put(key, value, expect=expect, lease=lease)

    async def watch(self, prefix: str, *, after: int) -> AsyncGenerator[Batch, None]:
        async with aclosing(super().watch(prefix, after=after)) as batches:
            async for batch in batches:
                self.check("watch")
                yield batch


@pytest.fixture
async def store(tmp_path: Path) -> FaultyStore:
    path = tmp_path / "store"
    path.mkdir()
    return FaultyStore(path)


async def create_network(store: DirectoryStore) -> None:
    async with DirectoryStore(store.address) as admin:
        await Registry(admin).create(make_network(["10.42.0.0/16"]))


async def add_peer(store: DirectoryStore, number: int) -> None:
    """The record of another node."""
    record = Record(
        address=ipaddress.IPv4Address(f"127.0.0.{number}"), mac=Mac.parse("02:00:00:00:00:09"),
        vni=1, node=f"node{number}",
    )  # fmt: skip
    async with DirectoryStore(store.address) as admin:
        await admin.put(f"{DIRECTORY}10.42.{200 + number}.0-24", record.text(), expect=0)


@pytest.fixture
def member(
    tmp_path: Path, store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Cluster]:
    """Makes a node whose lease lasts two seconds, at a loopback address that no other test uses."""
    local = f"127.{random.randrange(1, 255)}.{random.randrange(256)}.{random.randrange(1, 255)}"
    monkeypatch.setattr(supervise, "SHORTEST", 0.3)

    def make() -> Cluster:
        config = ClusterConfig(
            store=store.address,
            state_dir=tmp_path / "state",
            name="tunnel7",
            local=local,
            ttl=2,
        )
        return Cluster(config, device=None, store=store)

    return make


def lease_remaining(node: Cluster) -> float:
    status = node.tunnel.status().store
    assert status is not None
    return status.lease_remaining or 0


def unhealthy(node: Cluster) -> list[str]:
    return [task.name for task in node.tunnel.supervisor.tasks if not task.healthy]


@pytest.mark.parametrize(
    ("task", "fault"),
    [
        (LEASE_KEEPER, OSError(errno.ENOBUFS, "No buffer space available")),
        (STORE_FOLLOWER, RuntimeError("a bug")),
        (PEER_UPDATER, OSError(errno.ENOBUFS, "No buffer space available")),
    ],
)
async def test_a_fault_of_one_task_ends_no_other(
    member: Callable[..., Cluster],
    store: FaultyStore,
    task: str,
    fault: Exception,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await create_network(store)
    async with member() as node:
        assert node.tunnel.ready
        change_peers = node.tunnel.change_peers

        async def fail(**_: object) -> object:
            monkeypatch.setattr(node.tunnel, "change_peers", change_peers)
            raise fault

        match task:
            case "lease keeper":
                store.faults["put"] = fault
            case "store follower":
                store.faults["watch"] = fault
            case "peer updater":
                monkeypatch.setattr(node.tunnel, "change_peers", fail)
        await add_peer(store, 2)
        await until(lambda: unhealthy(node) == [task])
        assert not node.tunnel.ready
        await until(lambda: node.tunnel.ready)
        assert [one.failures for one in node.tunnel.supervisor.tasks].count(1) == 1
        await add_peer(store, 3)
        await until(lambda: len(node.tunnel.peers) == 2)
        before = lease_remaining(node)
        await until(lambda: lease_remaining(node) > before)


async def test_a_change_lost_with_a_failure_is_read_again(
    member: Callable[..., Cluster], store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create_network(store)
    async with member() as node:
        changed = Roster.changed

        def fail(*_: object, **__: object) -> object:
            monkeypatch.setattr(Roster, "changed", changed)
            raise RuntimeError("a bug")

        monkeypatch.setattr(Roster, "changed", fail)
        await add_peer(store, 2)
        await until(lambda: unhealthy(node) == [PEER_UPDATER])
        await until(lambda: len(node.tunnel.peers) == 1)


async def test_the_lease_is_renewed_while_following_fails(
    member: Callable[..., Cluster], store: FaultyStore
) -> None:
    await create_network(store)
    async with member() as node:
        for number in range(2, 6):
            store.faults["watch"] = RuntimeError("a bug")
            await add_peer(store, number)
            await asyncio.sleep(0.6)  # longer than the lease in all
        assert unhealthy(node) == [STORE_FOLLOWER]
        assert lease_remaining(node) > 0.5


async def test_closing_finishes_however_often_it_is_cancelled(
    member: Callable[..., Cluster], store: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create_network(store)
    node = member()
    await node.__aenter__()
    close = node.tunnel.close

    async def close_slowly() -> None:
        await asyncio.sleep(0.2)
        await close()

    monkeypatch.setattr(node.tunnel, "close", close_slowly)
    closing = asyncio.create_task(node.close())
    for _ in range(3):
        await asyncio.sleep(0.02)
        closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert node.tunnel.phase == "closed"
    assert store.entered == 0
    await node.close()


async def test_a_cluster_is_entered_once(
    member: Callable[..., Cluster], store: FaultyStore
) -> None:
    await create_network(store)
    node = member()
    with pytest.raises(StateError, match="tunnel7 is not open"):
        await node.reload(node.config)
    async with node:
        with pytest.raises(StateError, match="entered before"):
            await node.__aenter__()
        assert node.tunnel.ready
    with pytest.raises(StateError, match="entered before"):
        await node.__aenter__()


async def test_a_node_says_what_it_waits_for(
    member: Callable[..., Cluster], store: FaultyStore
) -> None:
    store.silent = True
    node = member()
    entering = asyncio.create_task(node.__aenter__())
    await until(lambda: "waits for the store" in node.tunnel.phase)
    await until(lambda: "nobody is there" in node.tunnel.phase)
    store.silent = False
    await until(lambda: "tunnel network init" in node.tunnel.phase)
    async with DirectoryStore(store.address) as admin:
        network = make_network(["10.42.0.0/28"], lengths={4: 30})
        await Registry(admin).create(network)
        keys = [f"{DIRECTORY}10.42.0.{4 * number}-30" for number in (1, 2, 3)]
        record = Record(address=ipaddress.IPv4Address("127.0.0.9"), node="other").text()
        revisions = [await admin.put(key, record, expect=0) for key in keys]
        await until(lambda: "no subnet is free" in node.tunnel.phase)
        await admin.delete(keys[0], expect=revisions[0])
    await asyncio.wait_for(entering, PATIENCE)
    assert node.tunnel.phase == "open"
    assert list(map(str, node.tunnel.config.subnets)) == ["10.42.0.4/30"]
    await node.close()


async def test_a_node_that_waits_can_be_cancelled(
    member: Callable[..., Cluster], store: FaultyStore
) -> None:
    node = member()
    entering = asyncio.create_task(node.__aenter__())
    await until(lambda: "tunnel network init" in node.tunnel.phase)
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert store.entered == 0
    assert node.tunnel.phase == "closed"


async def test_members_are_saved_and_read_again(
    member: Callable[..., Cluster], store: FaultyStore
) -> None:
    await create_network(store)
    await add_peer(store, 2)
    async with member() as node:
        await until(lambda: len(node.tunnel.peers) == 1)
        subnets = node.tunnel.config.subnets
    store.silent = True
    async with member() as node:
        assert node.tunnel.config.subnets == subnets
        assert len(node.tunnel.peers) == 1
        status = node.tunnel.status().store
        assert status is not None
        assert (status.connected, status.why, status.key) == (False, "nobody is there", None)
        store.silent = False
        await until(lambda: (status := node.tunnel.status().store) and status.key)
        assert node.tunnel.config.subnets == subnets


async def test_a_program_makes_a_cluster_from_public_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await cluster_embed.main(tmp_path, port=random.randrange(20_000, 30_000))
    said = capsys.readouterr().out
    assert re.fullmatch(
        r"node1 has 10\.42\.\d+\.0/24\nnode2 has 10\.42\.\d+\.0/24\n"
        r"node2 got 'are you there\?'\n",
        said,
    )
