"""Files that are replaced as a whole: a reader sees the old content or the new one."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path


def replace_file(path: Path, content: bytes, *, mode: int = 0o600, sync: bool = True) -> None:
    """
    Writes `content` to a temporary file beside `path` and renames it to `path`.

    It blocks, with `sync` until the disk has answered: a coroutine calls it with
    :func:`asyncio.to_thread`.

    Args:
        mode: The permissions of the new file, regardless of the umask.
        sync: Whether the content survives a power failure once this returns (fsync(2), of the file
            and of its directory).

    Raises:
        OSError: `path` is unchanged, and the temporary file is removed.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(descriptor, mode)
            if sync:
                file.flush()
                os.fsync(descriptor)
        os.rename(temporary, path)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    if sync:
        _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    """Makes a rename durable. Some network file systems refuse this; their renames are durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
