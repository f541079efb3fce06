"""
The C tests of the C core, each by its name, under ASan, UBSan and LeakSanitizer; those with
threads under ThreadSanitizer as well.

All of it is built by gcc; where clang is, it builds it too: its vector code is not gcc's.
"""

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from tests.c_build import BUILD, make

HERE = Path(__file__).parent
PROGRAMS = sorted(HERE.glob("test_*.c"))


def names_in(program: Path) -> list[str]:
    return re.findall(r"^TEST\((\w+)\)", program.read_text(), flags=re.MULTILINE)


@cache
def build(compiler: str, *, sanitize: str) -> Path:
    """Builds the programs and returns their directory."""
    goal = "threads" if sanitize == "thread" else "all"
    make(HERE, goal, f"CC={compiler}", f"SANITIZE={sanitize}")
    return BUILD / f"native-{compiler}-{sanitize.partition(',')[0]}"


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize(
    ("program", "test"),
    [
        pytest.param(program.stem, test, id=f"{program.stem.removeprefix('test_')}-{test}")
        for program in PROGRAMS
        for test in names_in(program)
    ],
)
def test_native(compiler: str, program: str, test: str) -> None:
    run(compiler, program, test, sanitize="address,undefined")


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize(
    ("program", "test"),
    [
        *(("test_priority_lock", test) for test in names_in(HERE / "test_priority_lock.c")),
        ("test_fdb", "many_threads_at_once"),
    ],
)
def test_threads(compiler: str, program: str, test: str) -> None:
    run(compiler, program, test, sanitize="thread")


def run(compiler: str, program: str, test: str, *, sanitize: str) -> None:
    if not shutil.which(compiler):
        pytest.skip(f"{compiler} is not installed (Debian package {compiler})")
    path = build(compiler, sanitize=sanitize) / program
    done = subprocess.run([path, test], check=False, capture_output=True, text=True, timeout=120)
    if done.returncode:
        pytest.fail(done.stdout + done.stderr, pytrace=False)
