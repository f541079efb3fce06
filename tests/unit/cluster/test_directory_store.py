"""What is particular to a directory as a store; test_stores.py tests what all stores do."""

import asyncio
import fcntl
import json
import os
import random
import sys
import time
from contextlib import aclosing
from pathlib import Path

import pytest

from tunnel.cluster.stores import directory, keys
from tunnel.cluster.stores.directory import DirectoryStore
from tunnel.errors import (
    ConflictError,
    LeaseExpiredError,
    StoreRefusedError,
    StoreUnavailableError,
    WatchGapError,
)
from tunnel.linux import inotify
from tunnel.testing.fakes import FakeClock

PATIENCE = 30.0  # seconds for what takes a fraction of one


async def add(store: DirectoryStore) -> None:
    """Increments the count, together with other writers."""
    while True:
        entry = (await store.read("/count")).entries.get("/count")
        value = int(entry.value) if entry else 0
        try:
            await store.put(
                "/count", str(value + 1).encode(), expect=entry.revision if entry else 0
            )
            return
        except ConflictError:
            await asyncio.sleep(0)


async def test_the_file_can_be_read_by_people(tmp_path: Path) -> None:
    async with DirectoryStore(tmp_path) as store:
        lease = await store.grant(60)
        await store.put("/a", b'{"PublicIP":"192.0.2.1"}', expect=0, lease=lease)
        gone = await store.put("/b", b"", expect=0)
        await store.delete("/b", expect=gone)
        assert store.address == str(tmp_path)
    found = json.loads((tmp_path / "store.json").read_text())
    ends = found["leases"][str(lease)].pop("ends")
    assert 60 <= ends < 61
    assert 0 <= found.pop("clock") < 1
    entry = {"value": '{"PublicIP":"192.0.2.1"}', "revision": 1, "lease": lease, "created": 1}
    assert found == {
        "version": 2,
        "revision": 3,
        "forgotten": 0,
        "entries": {"/a": entry},
        "deleted": {"/b": 3},
        "leases": {str(lease): {"ttl": 60}},
    }


async def test_the_directory_must_exist(tmp_path: Path) -> None:
    """The store does not make a directory where something should be mounted."""
    file = tmp_path / "file"
    file.touch()
    for path in (tmp_path / "missing", file):
        async with DirectoryStore(path) as store:
            for call in (store.read("/"), store.put("/a", b"", expect=0)):
                with pytest.raises(StoreUnavailableError, match=r"is it mounted\?"):
                    await call
            async with aclosing(store.watch("/", after=0)) as watch:
                with pytest.raises(StoreUnavailableError):
                    await anext(watch)
    assert not (tmp_path / "missing").exists()


KEYS = '{"revision": 1, "forgotten": 0, "entries": %s, "deleted": {}, "leases": %s}'
CLOCK = '{"version": 2, "clock": %s, "revision": 1, "forgotten": 0, "entries": {}, "deleted": {}, '
CLOCK += '"leases": {}}'


@pytest.mark.parametrize(
    "text",
    [
        '{"version": 3, "clock": 0.0}',
        CLOCK % "1e999",
        CLOCK % '"x"',
        "",
        "{",
        "[]",
        "null",
        "{}",
        "[" * 100_000,
        "\xff",
        KEYS % ("[]", "{}"),
        KEYS % ('{"/a": {}}', "{}"),
        KEYS % ('{"/a": {"value": 1, "revision": 1, "created": 1, "lease": null}}', "{}"),
        KEYS % ('{"/a": {"value": "", "revision": 1e999, "created": 1, "lease": null}}', "{}"),
        KEYS % ("{}", '{"a": {}}'),
        " " * 1001,
    ],
)
async def test_another_file_is_left_alone(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "_MOST_BYTES", 500_000 if len(text) != 1001 else 1000)
    file = tmp_path / "store.json"
    file.write_text(text, encoding="latin-1")
    async with DirectoryStore(tmp_path) as store:
        for call in (store.read("/"), store.put("/a", b"", expect=0)):
            with pytest.raises(StoreRefusedError, match=r"is not the file of a store: "):
                await call
    assert file.read_text(encoding="latin-1") == text


async def test_an_old_watch_is_a_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_MOST_DELETED", 3)
    async with DirectoryStore(tmp_path) as store:
        for number in range(5):
            revision = await store.put(f"/{number}", b"", expect=0)
            await store.delete(f"/{number}", expect=revision)
        async with aclosing(store.watch("/", after=4)) as watch:
            assert [one.key for one in (await anext(watch)).changes] == ["/2", "/3", "/4"]
        async with aclosing(store.watch("/", after=3)) as watch:
            with pytest.raises(WatchGapError, match="changes from 4 to 10 are known, not 3"):
                await anext(watch)


@pytest.mark.parametrize(("poll", "event"), [(60.0, 0x80), (0.05, 0)], ids=["inotify", "polling"])
async def test_changes_are_noticed(
    tmp_path: Path, poll: float, event: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "_POLL", poll)
    monkeypatch.setattr(inotify, "_IN_MOVED_TO", event)
    async with (
        DirectoryStore(tmp_path) as store,
        DirectoryStore(tmp_path) as other,
        aclosing(store.watch("/", after=0)) as watch,
    ):
        for number in range(5):
            waiting = asyncio.ensure_future(anext(watch))
            await asyncio.sleep(0.02)
            await other.put(f"/{number}", b"", expect=0)
            async with asyncio.timeout(PATIENCE):
                assert [one.key for one in (await waiting).changes] == [f"/{number}"]


async def test_no_write_is_lost(tmp_path: Path) -> None:
    async with DirectoryStore(tmp_path) as one, DirectoryStore(tmp_path) as two:
        await asyncio.gather(*(add(store) for store in (one, two) for _ in range(10)))
        assert (await one.read("/")).entries["/count"].value == b"20"


async def test_a_lock_that_is_held_is_not_waited_for(tmp_path: Path) -> None:
    async with DirectoryStore(tmp_path, timeout=0.4) as store:
        with (tmp_path / "store.lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert (await store.read("/")).revision == 0
            with pytest.raises(
                StoreUnavailableError, match=r"store\.lock: locked by another process for too long"
            ):
                await store.put("/a", b"", expect=0)
        await store.put("/a", b"", expect=0)


async def test_a_file_system_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: time.sleep(0.5))
    async with DirectoryStore(tmp_path, timeout=0.1) as store:
        for call in (store.put("/a", b"", expect=0), store.read("/"), store.grant(60)):
            with pytest.raises(StoreUnavailableError, match=r"no answer within 0\.1 s"):
                await call


WRITER = """
import asyncio, itertools, sys
from tunnel.cluster.stores.directory import DirectoryStore

async def main():
    async with DirectoryStore(sys.argv[1]) as store:
        for number in itertools.count():
            await store.put(f"/{sys.argv[2]}/{number}", b"x" * 1000, expect=0)

asyncio.run(main())
"""


async def test_whoever_dies_leaves_it_whole(tmp_path: Path) -> None:
    random_ = random.Random(6)
    async with DirectoryStore(tmp_path) as store:
        for number in range(4):
            words = (sys.executable, "-c", WRITER, str(tmp_path), str(number))
            writer = await asyncio.create_subprocess_exec(*words)
            async with (
                aclosing(store.watch(f"/{number}/", after=0)) as watch,
                asyncio.timeout(PATIENCE),
            ):
                while not (await anext(watch)).changes:
                    pass
            await asyncio.sleep(random_.uniform(0, 0.05))
            writer.kill()
            await writer.wait()
            entries = (await store.read(f"/{number}/")).entries
            assert set(entries) == {f"/{number}/{one}" for one in range(len(entries))}
            await store.put(f"/{number}/after", b"", expect=0)


# Leases, and the clocks of hosts.


@pytest.mark.parametrize("error", [86_400.0, -86_400.0], ids=["a day ahead", "a day behind"])
async def test_wall_clocks_do_not_matter(
    tmp_path: Path, error: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with DirectoryStore(tmp_path) as right, DirectoryStore(tmp_path) as wrong:
        lease = await right.grant(60)
        await right.put("/a", b"", expect=0, lease=lease)
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + error)
        assert "/a" in (await wrong.read("/")).entries
        other = await wrong.grant(60)
        await wrong.put("/b", b"", expect=0, lease=other)
        monkeypatch.setattr(time, "time", now)
        assert set((await right.read("/")).entries) == {"/a", "/b"}
        assert 59 < await right.time_left(other) <= 60
        assert 59 < await wrong.time_left(lease) <= 60


@pytest.mark.parametrize("start", [0.0, 1e6, 5.0])
async def test_the_lease_of_a_dead_node_expires(tmp_path: Path, start: float) -> None:
    """Monotonic clocks begin at the start of each host."""
    dead, alive = FakeClock(1000.0), FakeClock(start)
    async with DirectoryStore(tmp_path, monotonic=dead) as store:
        lease = await store.grant(60)
        await store.put("/dead", b"", expect=0, lease=lease)
    async with DirectoryStore(tmp_path, monotonic=alive) as store:
        for _ in range(2):
            assert "/dead" in (await store.read("/")).entries
            alive.now += 29
        assert await store.time_left(lease) == pytest.approx(2)
        alive.now += 2
        assert (await store.read("/")).entries == {}
        with pytest.raises(LeaseExpiredError):
            await store.time_left(lease)


async def test_the_clock_continues_after_restarts(tmp_path: Path) -> None:
    """No node runs for as long as the lease lasts, but together they do."""
    async with DirectoryStore(tmp_path, monotonic=FakeClock(0)) as store:
        await store.put("/dead", b"", expect=0, lease=await store.grant(80))
    for _ in range(4):
        clock = FakeClock(random.uniform(0, 1e6))
        async with DirectoryStore(tmp_path, monotonic=clock) as store:
            assert (await store.read("/")).entries
            clock.now += 21  # more than a quarter of the lease, so the clock is written
            await store.read("/")
    async with DirectoryStore(tmp_path, monotonic=FakeClock(0)) as store:
        assert not (await store.read("/")).entries


async def test_nodes_advance_one_clock_together(tmp_path: Path) -> None:
    """Many nodes do not make it faster, and one that renews keeps its key."""
    clocks = [FakeClock(1e5 * number) for number in range(3)]
    stores = [DirectoryStore(tmp_path, monotonic=clock) for clock in clocks]
    async with stores[0], stores[1], stores[2]:
        lease = await stores[0].grant(60)
        await stores[0].put("/a", b"", expect=0, lease=lease)
        for _ in range(20):
            for clock in clocks:
                clock.now += 30
            await stores[0].keep_alive(lease)
            for store in stores:
                assert "/a" in (await store.read("/")).entries
        clock_in_file = json.loads((tmp_path / "store.json").read_text())["clock"]
        assert clock_in_file == pytest.approx(600)


OLD = (
    '{"revision": 3, "forgotten": 0, "entries": {"/a": {"value": "x", "revision": 1, '
    '"created": 1, "lease": 7}}, "deleted": {}, "leases": {"7": {"ttl": 60, "until": 1.5}}}'
)


async def test_a_file_of_version_1_is_read(tmp_path: Path) -> None:
    """Its leases get their full time, because the clock by which they end is unknown."""
    (tmp_path / "store.json").write_text(OLD)
    clock = FakeClock(0)
    async with DirectoryStore(tmp_path, monotonic=clock) as store:
        assert (await store.read("/")).entries["/a"].value == b"x"
        assert await store.time_left(7) == pytest.approx(60)
        clock.now += 61
        assert not (await store.read("/")).entries
    found = json.loads((tmp_path / "store.json").read_text())
    assert (found["version"], found["entries"], found["leases"]) == (2, {}, {})


async def test_a_file_keeps_its_mode(tmp_path: Path) -> None:
    async with DirectoryStore(tmp_path) as store:
        revision = await store.put("/a", b"", expect=0)
        file = tmp_path / "store.json"
        assert file.stat().st_mode & 0o777 == 0o644
        file.chmod(0o660)
        await store.put("/a", b"1", expect=revision)
        assert file.stat().st_mode & 0o777 == 0o660


async def test_a_lease_that_exists_is_extended(tmp_path: Path) -> None:
    clock = FakeClock(0)
    async with DirectoryStore(tmp_path, monotonic=clock) as store:
        assert await store.grant(60, lease=5) == 5
        clock.now += 50
        assert await store.grant(60, lease=5) == 5
        assert await store.time_left(5) == 60
