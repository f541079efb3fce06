"""
Replays the corpus, and fuzzes each target for ten seconds.

A crash or a broken rule leaves its input in ``tests/build/``; add it to the corpus once it is
understood. To search for longer: ``tests/build/fuzz-clang/fuzz_parse DIRECTORY``.
"""

import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from tests.c_build import BUILD, make

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
TARGETS = ["parse", "split", "coalesce", "inbound", "frames"]


@cache
def build(compiler: str) -> Path:
    """Builds the targets and returns their directory."""
    make(HERE, f"CC={compiler}")
    return BUILD / f"fuzz-{compiler}"


def run(*command: str | Path) -> None:
    run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    if run.returncode:
        pytest.fail(run.stdout + run.stderr[-5000:], pytrace=False)


@pytest.mark.parametrize("target", TARGETS)
def test_corpus(target: str) -> None:
    corpus = sorted((CORPUS / target).iterdir())
    assert corpus
    run(build("gcc") / f"fuzz_{target}", *corpus)


@pytest.mark.parametrize("target", TARGETS)
def test_new_inputs(target: str, tmp_path: Path) -> None:
    if not shutil.which("clang"):
        pytest.skip("clang is not installed (Debian packages clang, libclang-rt-14-dev)")
    run(
        build("clang") / f"fuzz_{target}",
        "-max_total_time=10",
        "-max_len=4096",
        f"-artifact_prefix={BUILD}/{target}-",
        tmp_path,  # new inputs go to the first directory
        CORPUS / target,
    )
