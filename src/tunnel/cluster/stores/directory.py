"""
A shared directory as a store: one file with all keys, replaced as a whole under a lock.

With one file a snapshot is one read, and a crash leaves the old content or the new one. Each write
costs the whole file: that is for tens of nodes, not for thousands.

A watch learns of changes from inotify, and reads the file once a second: inotify does not report
what another host writes to a network file system.

Leases expire by a clock that is in the file, so the wall clocks of the hosts do not matter. Each
node advances it by its own monotonic clock and writes it with every change, at least every few
minutes. It stands still while no node runs. A file server's clock (the mtime of a file) would be
simpler, but some clients of network file systems set that from their own clock.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import stat
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from tunnel.cluster.stores.base import Batch, Snapshot
from tunnel.cluster.stores.keys import Keys
from tunnel.errors import StoreRefusedError, StoreUnavailableError
from tunnel.linux.files import replace_file
from tunnel.linux.inotify import DirectoryWatch

T = TypeVar("T")

_FILE, _LOCK = "store.json", "store.lock"
_MODE = 0o644  # of a new file; one that exists keeps its own
_MOST_BYTES = 64 << 20  # of the file
_POLL = 1.0  # seconds between two reads of the file by a watch
_PAUSE = 0.01  # seconds between two attempts to lock
_CLOCK_LAG = 300.0  # seconds by which the clock in the file may lag; a quarter of a shorter lease


class StoreClock:
    """
    The clock of a store, read with the help of a monotonic clock of this host.

    All nodes together advance it as one clock: it is the latest of what each of them derives from
    the value that it read last and the seconds since then.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._time = self._read_at = float("-inf")

    def read(self, stored: float) -> float:
        """The time now, if the file says `stored`."""
        now = self._monotonic()
        derived = self._time + now - self._read_at if self._time >= 0 else stored
        self._time, self._read_at = max(stored, derived), now
        return self._time


class DirectoryStore:
    """
    A directory that all nodes have mounted, as a :class:`tunnel.cluster.stores.base.Store`.

    Args:
        path: Must exist: a directory that this program made would hide that nothing is mounted.
        timeout: Seconds that a call takes at most; a network file system may hang.
        monotonic: A clock that never goes back, in seconds.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        timeout: float = 10.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = Path(path)
        self._timeout = timeout
        self._clock = StoreClock(monotonic)

    @property
    def address(self) -> str:
        return str(self._path)

    async def __aenter__(self) -> Self:
        # A thread of its own: a file system that hangs must not occupy the threads of others.
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
        keys, _ = await self._run(self._read_current)
        entries = {key: entry for key, entry in keys.entries.items() if key.startswith(prefix)}
        return Snapshot(keys.revision, entries)

    async def put(self, key: str, value: bytes, *, expect: int, lease: int | None = None) -> int:
        return await self._change(
            lambda keys, now: keys.put(key, value, expect=expect, lease=lease)
        )

    async def delete(self, key: str, *, expect: int) -> None:
        await self._change(lambda keys, now: keys.delete(key, expect=expect))

    async def grant(self, ttl: int, *, lease: int = 0) -> int:
        return await self._change(lambda keys, now: keys.grant(ttl, lease=lease, now=now))

    async def keep_alive(self, lease: int) -> float:
        return await self._change(lambda keys, now: keys.keep_alive(lease, now=now))

    async def time_left(self, lease: int) -> float:
        keys, now = await self._run(self._read_current)
        return keys.lease(lease).ends - now

    async def revoke(self, lease: int) -> None:
        await self._change(lambda keys, now: keys.revoke(lease))

    async def watch(self, prefix: str, *, after: int) -> AsyncGenerator[Batch, None]:
        with DirectoryWatch(self._path) as directory:
            while True:
                keys, now = await self._run(self._read_current)
                if keys.revision != after:
                    changes = keys.since(after, prefix)
                    after = keys.revision
                    yield Batch(after, changes)
                next_end = min((lease.ends for lease in keys.leases.values()), default=now + _POLL)
                await directory.wait(max(0.0, min(_POLL, next_end - now)))

    async def _change(self, operation: Callable[[Keys, float], T]) -> T:
        return await self._run(lambda: self._replace(operation))

    async def _run(self, work: Callable[[], T]) -> T:
        """The result of `work` in the thread; after the time limit the thread is left to it."""
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

    # The thread runs what follows.

    def _read_current(self) -> tuple[Keys, float]:
        """The keys without what has expired, which the first reader removes, and the time."""
        keys = self._load()
        now = self._clock.read(keys.clock)
        if keys.expired(now):
            keys = self._replace(lambda keys, now: keys)
        elif now - keys.clock > _clock_lag(keys):
            keys = self._replace(_write_clock)
        return keys, now

    def _replace(self, operation: Callable[[Keys, float], T]) -> T:
        """Applies `operation` to the keys while no other node writes them."""
        with self._locked():
            keys = self._load()
            before = keys.text()
            now = self._clock.read(keys.clock)
            keys.expire(now)
            try:
                return operation(keys, now)
            finally:
                if keys.text() != before:
                    keys.clock = now
                    self._save(keys)

    def _load(self) -> Keys:
        path = self._path / _FILE
        try:
            with path.open("rb") as file:
                text = file.read(_MOST_BYTES + 1)
        except FileNotFoundError:
            if not self._path.is_dir():
                raise
            return Keys()
        try:
            if len(text) > _MOST_BYTES:
                raise ValueError(f"more than {_MOST_BYTES >> 20} MiB")
            return Keys.parse(text)
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError) as error:
            raise StoreRefusedError(f"{path} is not the file of a store: {error!r}") from error
        except ValueError as error:
            raise StoreRefusedError(f"{path} is not the file of a store: {error}") from error

    def _save(self, keys: Keys) -> None:
        path, mode = self._path / _FILE, _MODE
        with suppress(FileNotFoundError):
            mode = stat.S_IMODE(path.stat().st_mode)
        replace_file(path, keys.text().encode("ascii"), mode=mode)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Excludes the other nodes, also on other hosts; the kernel unlocks when a process ends."""
        # Half the time limit: the error then names the lock.
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
                            f"{path}: locked by another process for too long"
                        ) from None
                    time.sleep(_PAUSE)
            yield


def _clock_lag(keys: Keys) -> float:
    """Seconds by which the clock in the file may lag: a node that restarts loses them."""
    return min((_CLOCK_LAG, *(lease.ttl / 4 for lease in keys.leases.values())))


def _write_clock(keys: Keys, now: float) -> Keys:
    keys.clock = now
    return keys
