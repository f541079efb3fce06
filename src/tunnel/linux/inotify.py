"""Notices of changes in a directory (inotify(7)), through libc: Python's library has no inotify."""

from __future__ import annotations

import asyncio
import ctypes
import os
from contextlib import suppress
from pathlib import Path
from typing import Self

_IN_MOVED_TO = 0x80  # sys/inotify.h
_READ_BYTES = 4096  # more than one event with the longest file name


class DirectoryWatch:
    """
    Reports that a file was renamed into a directory, as :func:`tunnel.linux.files.replace_file`
    does.

    It reports what this host does. Changes that another host makes through NFS, or all of them when
    the user's inotify instances are used up, are not reported: call :meth:`wait` with a time limit
    and read the directory after it.
    """

    def __init__(self, path: Path) -> None:
        self._changed = asyncio.Event()
        libc = ctypes.CDLL(None)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        libc.inotify_add_watch(self._descriptor, os.fsencode(path), _IN_MOVED_TO)

    def __enter__(self) -> Self:
        if self._descriptor >= 0:
            asyncio.get_running_loop().add_reader(self._descriptor, self._read)
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor >= 0:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)

    async def wait(self, seconds: float) -> bool:
        """Whether a file was renamed into the directory since the last call, or is within `seconds`
        from now. If cancelled, the notice is kept for the next call."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        changed = self._changed.is_set()
        self._changed.clear()
        return changed

    def _read(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._descriptor, _READ_BYTES)
        self._changed.set()
