"""Files that are replaced as a whole."""

import errno
import os
from pathlib import Path

import pytest

from tunnel.linux.files import replace_file


@pytest.mark.parametrize("sync", [True, False])
def test_a_file_is_made_and_replaced(tmp_path: Path, sync: bool) -> None:
    path = tmp_path / "file"
    for content in (b"first\n", b"second\n"):
        replace_file(path, content, mode=0o644, sync=sync)
        assert path.read_bytes() == content
        assert path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(tmp_path) == ["file"]


def test_a_disk_that_fails_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "broken")

    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="broken"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
