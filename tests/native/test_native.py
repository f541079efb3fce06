"""
The C core tested in C, every test by its name, under ASan, UBSan and LeakSanitizer.

All of it is built by gcc; where clang is, it builds it too: its vector code is not gcc's.
"""

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
BUILD = HERE.parent / "build"
PROGRAMS = sorted(HERE.glob("test_*.c"))


def names_in(program: Path) -> list[str]:
    return re.findall(r"^TEST\((\w+)\)", program.read_text(), flags=re.MULTILINE)


@cache
def build(compiler: str) -> Path:
    """Where the programs are. Failing, it fails every test with what the compiler said."""
    made = subprocess.run(
        ["make", "-s", "-j2", "-C", HERE, f"CC={compiler}"],
        check=False,
        capture_output=True,
        text=True,
    )
    if made.returncode:
        pytest.fail(made.stderr, pytrace=False)
    return BUILD / f"native-{compiler}"


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
    if not shutil.which(compiler):
        pytest.skip(f"{compiler} is not installed (Debian package {compiler})")
    run = subprocess.run(
        [build(compiler) / program, test], check=False, capture_output=True, text=True, timeout=120
    )
    if run.returncode:
        pytest.fail(run.stdout + run.stderr, pytrace=False)
