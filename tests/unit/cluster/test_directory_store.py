"""A directory as a store, where it is unlike others; what it has in common is tested with them."""

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

from tunnel.cluster.stores import directory
from tunnel.cluster.stores.directory import DirectoryStore
from tunnel.errors import ConflictError, StoreRefusedError, StoreUnavailableError, WatchGapError

PATIENCE = 5.0  # seconds for what takes a fraction of one


async def add(store: DirectoryStore) -> None:
    """Counts one up, however many others do."""
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
    until = found["leases"][str(lease)].pop("until")
    assert time.time() < until < time.time() + 61
    entry = {"value": '{"PublicIP":"192.0.2.1"}', "revision": 1, "lease": lease, "created": 1}
    assert found == {
        "revision": 3,
        "forgotten": 0,
        "entries": {"/a": entry},
        "deleted": {"/b": 3},
        "leases": {str(lease): {"ttl": 60}},
    }


async def test_it_has_to_be_there(tmp_path: Path) -> None:
    """What is not mounted is not made."""
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


@pytest.mark.parametrize(
    "text",
    [
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
            with pytest.raises(StoreRefusedError, match=r"store\.json is not a file of ours: "):
                await call
    assert file.read_text(encoding="latin-1") == text


async def test_an_old_watch_is_a_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "_MOST_DELETED", 3)
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
    monkeypatch.setattr(directory, "_IN_MOVED_TO", event)
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
                StoreUnavailableError, match=r"store\.lock: somebody has held it for too long"
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
