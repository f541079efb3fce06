"""The promises of a store, kept by each kind."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from tests.netns.etcd import Etcd
from tunnel.cluster.stores.base import Batch, Change, Entry, Snapshot, Store
from tunnel.cluster.stores.directory import DirectoryStore
from tunnel.cluster.stores.etcd import EtcdStore
from tunnel.errors import ConflictError, LeaseExpiredError, WatchGapError
from tunnel.testing.fakes import MemoryStore

PATIENCE = 30.0  # seconds for what takes a fraction of one

_tests = itertools.count()


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with Etcd(tmp_path_factory.mktemp("etcd")) as etcd:
        yield etcd


@pytest.fixture(params=["etcd", "directory", "memory"])
def another(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    """Makes stores with the same keys, one for each node."""
    if request.param == "directory":
        return lambda: DirectoryStore(tmp_path)
    if request.param == "memory":
        memory = MemoryStore()
        return lambda: memory
    etcd: Etcd = request.getfixturevalue("etcd")
    return lambda: EtcdStore(etcd.endpoints)


@pytest.fixture
async def store(another: Callable[[], Store]) -> AsyncIterator[Store]:
    async with another() as store:
        yield store


@pytest.fixture
def prefix() -> str:
    return f"/test/{next(_tests)}/"


async def first(batches: AsyncIterator[Batch], *, count: int = 1) -> list[Change]:
    """That many changes or more: a batch may have several."""
    changes: list[Change] = []
    async with asyncio.timeout(PATIENCE):
        while len(changes) < count:
            changes += (await anext(batches)).changes
    return changes


async def test_what_was_written_is_read(store: Store, prefix: str) -> None:
    empty = await store.read(prefix)
    assert empty.entries == {}

    once = await store.put(prefix + "a", b'{"PublicIP":"192.0.2.1"}', expect=0)
    twice = await store.put(prefix + "a", b"\xff\x00 \xed\xa0\x80", expect=once)
    other = await store.put(prefix + "b&fd00::-64", b"", expect=0)
    assert empty.revision < once < twice < other

    read = await store.read(prefix)
    assert read == Snapshot(
        other,
        {
            prefix + "a": Entry(b"\xff\x00 \xed\xa0\x80", revision=twice, created=once),
            prefix + "b&fd00::-64": Entry(b"", revision=other, created=other),
        },
    )


async def test_other_prefixes_are_not_read(store: Store, prefix: str) -> None:
    for name in ("subnets", "subnets/a", "subnetsx", "subnett"):
        await store.put(prefix + name, b"", expect=0)
    assert set((await store.read(prefix + "subnets/")).entries) == {prefix + "subnets/a"}


async def test_a_write_too_late_changes_nothing(store: Store, prefix: str) -> None:
    key = prefix + "a"
    revision = await store.put(key, b"first", expect=0)
    for late in (0, revision - 1, revision + 1):
        with pytest.raises(ConflictError) as conflict:
            await store.put(key, b"late", expect=late)
        assert conflict.value.revision == revision
    with pytest.raises(ConflictError):
        await store.delete(key, expect=revision + 1)
    with pytest.raises(ConflictError) as conflict:
        await store.put(prefix + "b", b"", expect=revision)
    assert conflict.value.revision == 0
    assert (await store.read(prefix)).entries == {key: Entry(b"first", revision, None, revision)}


async def test_a_write_is_done_twice_as_well(store: Store, prefix: str) -> None:
    """Its answer may have been lost. Without a lease the write may be another node's."""
    key, lease = prefix + "a", await store.grant(60)
    revision = await store.put(key, b"ours", expect=0, lease=lease)
    assert await store.put(key, b"ours", expect=0, lease=lease) == revision
    with pytest.raises(ConflictError):
        await store.put(key, b"ours", expect=0, lease=await store.grant(60))
    with pytest.raises(ConflictError):
        await store.put(key, b"ours", expect=0)
    await store.delete(key, expect=revision)
    await store.delete(key, expect=revision)
    assert not (await store.read(prefix)).entries

    await store.put(key, b"", expect=0)
    with pytest.raises(ConflictError):
        await store.put(key, b"", expect=0)


async def test_one_of_many_wins(store: Store, another: Callable[[], Store], prefix: str) -> None:
    async with another() as rival:
        writes = [
            one.put(prefix + "a", str(number).encode(), expect=0)
            for number, one in enumerate([store, rival] * 5)
        ]
        results = await asyncio.gather(*writes, return_exceptions=True)
    won = [number for number, result in enumerate(results) if isinstance(result, int)]
    assert len(won) == 1
    assert sum(isinstance(result, ConflictError) for result in results) == 9
    assert (await store.read(prefix)).entries[prefix + "a"].value == str(won[0]).encode()


async def test_a_watch_tells_what_others_do(
    store: Store, another: Callable[[], Store], prefix: str
) -> None:
    start = (await store.read(prefix)).revision
    async with another() as other, aclosing(store.watch(prefix, after=start)) as watch:
        a = await other.put(prefix + "a", b"1", expect=0)
        assert await first(watch) == [Change(prefix + "a", Entry(b"1", a, created=a))]

        await other.put("/elsewhere" + prefix, b"", expect=0)
        b = await other.put(prefix + "a", b"2", expect=a)
        assert await first(watch) == [Change(prefix + "a", Entry(b"2", b, created=a))]

        await other.delete(prefix + "a", expect=b)
        assert await first(watch) == [Change(prefix + "a", None)]


async def test_a_watch_begins_in_the_past(store: Store, prefix: str) -> None:
    start = (await store.read(prefix)).revision
    revisions = {}
    for name in "abc":
        revisions[prefix + name] = await store.put(prefix + name, b"", expect=0)
    async with aclosing(store.watch(prefix, after=start)) as watch:
        changes = await first(watch, count=3)
    told = {change.key: change.entry.revision for change in changes if change.entry}
    assert list(told.items()) == list(revisions.items())

    async with aclosing(store.watch(prefix, after=revisions[prefix + "b"])) as watch:
        assert [change.key for change in await first(watch)] == [prefix + "c"]


async def test_a_watch_goes_on_after_its_batches(store: Store, prefix: str) -> None:
    after = (await store.read(prefix)).revision
    for number in range(5):
        await store.put(f"{prefix}{number}", b"", expect=0)
        async with aclosing(store.watch(prefix, after=after)) as watch:
            async with asyncio.timeout(PATIENCE):
                batch = await anext(watch)
        assert [change.key for change in batch.changes] == [f"{prefix}{number}"]
        after = batch.revision


async def test_a_watch_of_the_future_is_a_gap(store: Store, prefix: str) -> None:
    """The store was restored from a backup."""
    revision = (await store.read(prefix)).revision
    async with aclosing(store.watch(prefix, after=revision + 1000)) as watch:
        with pytest.raises(WatchGapError):
            await first(watch)


async def test_what_is_bound_to_a_lease_ends_with_it(store: Store, prefix: str) -> None:
    lease = await store.grant(1)
    revision = await store.put(prefix + "a", b"", expect=0, lease=lease)
    stays = await store.put(prefix + "stays", b"", expect=0)
    assert (await store.read(prefix)).entries[prefix + "a"].lease == lease
    async with aclosing(store.watch(prefix, after=stays)) as watch:
        assert await first(watch) == [Change(prefix + "a", None)]
    assert set((await store.read(prefix)).entries) == {prefix + "stays"}

    for call in (store.keep_alive(lease), store.time_left(lease)):
        with pytest.raises(LeaseExpiredError):
            await call
    with pytest.raises(LeaseExpiredError):
        await store.put(prefix + "a", b"", expect=0, lease=lease)
    with pytest.raises(ConflictError):
        await store.put(prefix + "a", b"", expect=revision)
    await store.revoke(lease)


async def test_a_lease_is_kept_alive(store: Store, prefix: str) -> None:
    lease = await store.grant(2)
    await store.put(prefix + "a", b"", expect=0, lease=lease)
    for _ in range(3):
        await asyncio.sleep(0.8)
        assert await store.keep_alive(lease) == 2
    assert 1 <= await store.time_left(lease) <= 2
    assert (await store.read(prefix)).entries


async def test_a_lease_is_revoked(store: Store, prefix: str) -> None:
    lease = await store.grant(60)
    revision = await store.put(prefix + "a", b"", expect=0, lease=lease)
    await store.revoke(lease)
    assert not (await store.read(prefix)).entries
    async with aclosing(store.watch(prefix, after=revision)) as watch:
        assert await first(watch) == [Change(prefix + "a", None)]
    await store.revoke(lease)


async def test_a_new_lease_takes_over(store: Store, prefix: str) -> None:
    """A put renews a key: the end of the old lease deletes nothing."""
    key, old, new = prefix + "a", await store.grant(60), await store.grant(60)
    revision = await store.put(key, b"", expect=0, lease=old)
    renewed = await store.put(key, b"", expect=revision, lease=new)
    await store.revoke(old)
    entries = (await store.read(prefix)).entries
    assert entries == {key: Entry(b"", renewed, lease=new, created=revision)}


async def test_a_cancelled_call_spoils_nothing(store: Store, prefix: str) -> None:
    for number in range(20):
        call = asyncio.ensure_future(store.put(f"{prefix}{number}", b"", expect=0))
        await asyncio.sleep(number * 0.0005)
        call.cancel()
        await asyncio.wait([call])
    revision = await store.put(prefix + "last", b"", expect=0)
    assert (await store.read(prefix)).entries[prefix + "last"].revision == revision


async def test_a_cancelled_watch_spoils_nothing(store: Store, prefix: str) -> None:
    after = (await store.read(prefix)).revision
    for number in range(10):
        watch = store.watch(prefix, after=after)
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(number * 0.002)
        waiting.cancel()
        await asyncio.wait([waiting])
    await store.put(prefix + "a", b"", expect=0)
    async with aclosing(store.watch(prefix, after=after)) as watch:
        assert len(await first(watch)) == 1
