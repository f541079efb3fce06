"""Builds the C programs of the tests, once for all workers of ``pytest -n``."""

import fcntl
import os
import subprocess
from pathlib import Path

import pytest

BUILD = Path(__file__).parent / "build"


def make(directory: Path, *words: str) -> None:
    """
    Runs ``make`` in `directory`, with a job for each CPU. Objects stay in ``tests/build``, so that
    only changed files are compiled again. A failure fails the test with the compiler's messages.
    """
    BUILD.mkdir(exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = subprocess.run(
            ["make", "-s", f"-j{os.cpu_count()}", "-C", directory, *words],
            check=False,
            capture_output=True,
            text=True,
        )
    if made.returncode:
        pytest.fail(made.stderr, pytrace=False)
