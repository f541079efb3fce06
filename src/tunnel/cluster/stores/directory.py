"""
A shared directory as a store: one file with all keys, replaced whole under a lock.

One file, so that a snapshot is one read and a crash leaves the old one or the new one. That is
for tens of nodes, not for thousands: each write costs the whole file.

What tells a watch of changes is inotify, and a look at the file each second: another host's
writes to a network file system reach no inotify here. Leases end by wall clock, so the
clocks of hosts that share a directory have to agree, to a small part of a lease.

The file is JSON, and may be read and (while nobody is up) edited by hand::

    {"revision": 7, "forgotten": 0,
     "entries": {"/a": {"value": "text", "revision": 7, "created": 5, "lease": 1234}},
     "deleted": {"/b": 6},
     "leases": {"1234": {"ttl": 60, "until": 1790000000.5}}}
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import json
import os
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from tunnel.cluster.stores.base import Batch, Change, Entry, Snapshot
from tunnel.errors import (
    ConflictError,
    LeaseExpiredError,
    StoreRefusedError,
    StoreUnavailableError,
    WatchGapError,
)

T = TypeVar("T")

_FILE, _LOCK = "store.json", "store.lock"
_MOST_BYTES = 64 << 20  # of the file
_MOST_DELETED = 1000  # deletions that are remembered for watches
_POLL = 1.0  # seconds between two looks at the file, whatever inotify says
_PAUSE = 0.01  # seconds between two attempts to lock

_IN_MOVED_TO = 0x80


class DirectoryStore:
    """
    The keys in a directory that all members mount, as a :class:`tunnel.cluster.stores.base.Store`.

    Args:
        path: Has to be there: where it is a mount point, one made by us would hide that nothing
            is mounted.
        timeout: Seconds that a call takes at the most; with a network file system it may hang.
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout: float = 10.0) -> None:
        self._path = Path(path)
        self._timeout = timeout

    @property
    def address(self) -> str:
        return str(self._path)

    async def __aenter__(self) -> Self:
        # A thread of its own: a file system that hangs must not take those of all others.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def read(self, prefix: str) -> Snapshot:
        keys = await self._do(self._present)
        entries = {key: entry for key, entry in keys.entries.items() if key.startswith(prefix)}
        return Snapshot(keys.revision, entries)

    async def put(self, key: str, value: bytes, *, expect: int, lease: int | None = None) -> int:
        return await self._change(lambda keys: keys.put(key, value, expect=expect, lease=lease))

    async def delete(self, key: str, *, expect: int) -> None:
        await self._change(lambda keys: keys.delete(key, expect=expect))

    async def grant(self, ttl: int, *, lease: int = 0) -> int:
        return await self._change(lambda keys: keys.grant(ttl, now=time.time()))

    async def keep_alive(self, lease: int) -> float:
        return await self._change(lambda keys: keys.keep_alive(lease, now=time.time()))

    async def time_left(self, lease: int) -> float:
        keys = await self._do(self._present)
        return keys.lease(lease).until - time.time()

    async def revoke(self, lease: int) -> None:
        await self._change(lambda keys: keys.revoke(lease))

    async def watch(self, prefix: str, *, after: int) -> AsyncGenerator[Batch, None]:
        with _Notice(self._path) as notice:
            while True:
                keys = await self._do(self._present)
                if keys.revision != after:
                    changes = keys.since(after, prefix)
                    after = keys.revision
                    yield Batch(after, changes)
                soon = min((lease.until for lease in keys.leases.values()), default=0.0)
                await notice.wait(min(_POLL, soon - time.time()) if soon else _POLL)

    async def _change(self, operation: Callable[[_Keys], T]) -> T:
        return await self._do(lambda: self._replace(operation))

    async def _do(self, work: Callable[[], T]) -> T:
        """Has the thread do something; when that takes too long it is not waited for."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout):
                return await loop.run_in_executor(self._thread, work)
        except TimeoutError as error:
            raise StoreUnavailableError(
                f"{self._path}: no answer within {self._timeout:g} s"
            ) from error
        except PermissionError as error:
            raise StoreRefusedError(f"{error.filename}: permission denied") from error
        except OSError as error:
            why = os.strerror(error.errno or 0).lower()
            raise StoreUnavailableError(f"{self._path}: {why} (is it mounted?)") from error

    # What follows runs in the thread.

    def _present(self) -> _Keys:
        """What is there, without what has expired: whoever sees that first takes it away."""
        keys = self._load()
        if keys.expired(time.time()):
            return self._replace(lambda keys: keys)
        return keys

    def _replace(self, operation: Callable[[_Keys], T]) -> T:
        """Does something to the keys while nobody else does."""
        with self._locked():
            keys = self._load()
            before = keys.text()
            keys.expire(time.time())
            try:
                return operation(keys)
            finally:
                if keys.text() != before:
                    self._save(keys)

    def _load(self) -> _Keys:
        path = self._path / _FILE
        try:
            with path.open("rb") as file:
                text = file.read(_MOST_BYTES + 1)
        except FileNotFoundError:
            if not self._path.is_dir():
                raise
            return _Keys()
        try:
            if len(text) > _MOST_BYTES:
                raise ValueError(f"more than {_MOST_BYTES >> 20} MiB")
            return _Keys.parse(text)
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError) as error:
            raise StoreRefusedError(f"{path} is not a file of ours: {error!r}") from error
        except ValueError as error:
            raise StoreRefusedError(f"{path} is not a file of ours: {error}") from error

    def _save(self, keys: _Keys) -> None:
        path = self._path / _FILE
        new = path.with_suffix(".new")
        with new.open("w", encoding="ascii") as file:
            file.write(keys.text())
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keeps others out, on other hosts as well; the kernel unlocks it for whoever dies."""
        # Half, so that it is us who say why, not who waits for us.
        deadline = time.monotonic() + self._timeout / 2
        path = self._path / _LOCK
        with path.open("ab") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise StoreUnavailableError(
                            f"{path}: somebody has held it for too long"
                        ) from None
                    time.sleep(_PAUSE)
            yield


@dataclass
class _StoredLease:
    ttl: int
    until: float  # by the wall clock


@dataclass
class _Keys:
    """All that is in the file; ``deleted`` has revisions, and what was deleted until ``forgotten``
    is not known any more."""

    revision: int = 0
    forgotten: int = 0
    entries: dict[str, Entry] = field(default_factory=dict)
    deleted: dict[str, int] = field(default_factory=dict)
    leases: dict[int, _StoredLease] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: bytes) -> _Keys:
        """Raises what comes of it when that is no such text."""
        found = json.loads(text)
        return cls(
            int(found["revision"]),
            int(found["forgotten"]),
            {str(key): _entry(one) for key, one in found["entries"].items()},
            {str(key): int(revision) for key, revision in found["deleted"].items()},
            {
                int(lease): _StoredLease(int(one["ttl"]), float(one["until"]))
                for lease, one in found["leases"].items()
            },
        )

    def text(self) -> str:
        """Values are text in truth; a byte that is none survives as a lone surrogate."""
        found = asdict(self)
        for entry in found["entries"].values():
            entry["value"] = entry["value"].decode(errors="surrogateescape")
        return json.dumps(found, indent=1)

    def put(self, key: str, value: bytes, *, expect: int, lease: int | None) -> int:
        if lease is not None:
            self.lease(lease)
        there = self.entries.get(key)
        revision = there.revision if there else 0
        if revision == expect:
            self.revision += 1
            created = there.created if there else self.revision
            self.entries[key] = Entry(value, self.revision, lease=lease, created=created)
            self.deleted.pop(key, None)
            return self.revision
        if there and lease is not None and (there.value, there.lease) == (value, lease):
            return there.revision
        raise ConflictError(key, expect=expect, revision=revision)

    def delete(self, key: str, *, expect: int) -> None:
        there = self.entries.get(key)
        if there and there.revision != expect:
            raise ConflictError(key, expect=expect, revision=there.revision)
        if there:
            self._drop([key])

    def grant(self, ttl: int, *, now: float) -> int:
        lease = secrets.randbits(62)
        self.leases[lease] = _StoredLease(ttl, now + ttl)
        return lease

    def lease(self, lease: int) -> _StoredLease:
        if lease not in self.leases:
            raise LeaseExpiredError(lease)
        return self.leases[lease]

    def keep_alive(self, lease: int, *, now: float) -> float:
        one = self.lease(lease)
        one.until = now + one.ttl
        return one.ttl

    def revoke(self, lease: int) -> None:
        self.leases.pop(lease, None)
        self._drop([key for key, entry in self.entries.items() if entry.lease == lease])

    def expired(self, now: float) -> list[int]:
        return [lease for lease, one in self.leases.items() if one.until <= now]

    def expire(self, now: float) -> None:
        for lease in self.expired(now):
            self.revoke(lease)

    def since(self, after: int, prefix: str) -> tuple[Change, ...]:
        """What changed; of a key that did so more than once, the last."""
        if not self.forgotten <= after <= self.revision:
            raise WatchGapError(
                f"changes from {self.forgotten} to {self.revision} are known, not {after}"
            )
        written = [(entry.revision, Change(key, entry)) for key, entry in self.entries.items()]
        deleted = [(revision, Change(key, None)) for key, revision in self.deleted.items()]
        changes = sorted(written + deleted, key=lambda one: one[0])
        return tuple(
            change
            for revision, change in changes
            if revision > after and change.key.startswith(prefix)
        )

    def _drop(self, keys: list[str]) -> None:
        for key in keys:
            self.revision += 1
            del self.entries[key]
            self.deleted[key] = self.revision
        for key in list(self.deleted)[:-_MOST_DELETED]:
            self.forgotten = self.deleted.pop(key)


def _entry(found: Any) -> Entry:
    return Entry(
        found["value"].encode(errors="surrogateescape"),
        revision=int(found["revision"]),
        lease=None if found["lease"] is None else int(found["lease"]),
        created=int(found["created"]),
    )


class _Notice:
    """Says that the file was replaced, where the kernel knows of it."""

    def __init__(self, path: Path) -> None:
        self._replaced = asyncio.Event()
        libc = ctypes.CDLL(None)
        self._inotify = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        libc.inotify_add_watch(self._inotify, os.fsencode(path), _IN_MOVED_TO)

    def __enter__(self) -> Self:
        if self._inotify >= 0:  # else there are too many; the file is looked at each second
            asyncio.get_running_loop().add_reader(self._inotify, self._readable)
        return self

    def __exit__(self, *_: object) -> None:
        if self._inotify >= 0:
            asyncio.get_running_loop().remove_reader(self._inotify)
            os.close(self._inotify)

    async def wait(self, seconds: float) -> None:
        """Until it may have been replaced."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._replaced.wait()
        self._replaced.clear()

    def _readable(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._inotify, 4096)
        self._replaced.set()
