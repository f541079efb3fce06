"""Notices of changes in a directory."""

import asyncio
from pathlib import Path

from tunnel.linux.files import replace_file
from tunnel.linux.inotify import DirectoryWatch


async def test_a_replaced_file_is_reported_once(tmp_path: Path) -> None:
    with DirectoryWatch(tmp_path) as watch:
        waiting = asyncio.create_task(watch.wait(10))
        await asyncio.sleep(0)
        replace_file(tmp_path / "file", b"")
        assert await waiting
        assert not await watch.wait(0.01)
        # A change between two calls is not lost.
        replace_file(tmp_path / "file", b"")
        assert await watch.wait(10)


async def test_a_directory_that_does_not_exist_reports_nothing(tmp_path: Path) -> None:
    with DirectoryWatch(tmp_path / "gone") as watch:
        assert not await watch.wait(0.01)
