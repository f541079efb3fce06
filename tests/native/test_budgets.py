"""
Instructions per operation, counted by callgrind, which a busy machine does not change.

A budget is the measured number (gcc 12, x86-64) and 15 % more. If an operation exceeds its budget,
make it faster, or raise the budget and give the reason in the commit. ``benchmarks.micro`` measures
times with the same program.
"""

import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.micro import build

ROUNDS, SEGMENTS, FRAMES = 100, 40, 64

BUDGETS = {
    "checksum": (1, 386),
    "checksum_portable": (1, 1343),
    "split": (SEGMENTS, 619),
    "coalesce": (SEGMENTS, 838),
    "encap": (1, 29),
    "trains": (SEGMENTS, 145),
    "decap": (1, 168),
    "parse": (1, 69),
    "flow_hash": (1, 66),
    "route": (1, 168),
    "route6": (1, 161),
    "encode": (FRAMES, 270),
    "decode": (FRAMES, 57),
    "fdb": (1, 101),
    "outbound": (SEGMENTS, 842),
    "outbound_frames": (SEGMENTS, 842),
    "inbound": (SEGMENTS, 1083),
    "inbound_frames": (SEGMENTS, 1212),
}
"""Operation -> packets it moves, and the most instructions for each; what memcpy does for
encode is in it, what the C library's start-up does is not."""


@pytest.fixture(scope="module")
def instructions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Of one call of each operation, with all that it calls."""
    if not shutil.which("valgrind"):
        pytest.skip("valgrind is not installed (Debian package valgrind)")
    if platform.machine() != "x86_64":
        pytest.skip("budgets are for x86-64: other CPUs count otherwise")
    here = tmp_path_factory.mktemp("budgets")
    program = build(here)
    profile = here / "profile"
    words = [
        "valgrind",
        "--tool=callgrind",
        f"--callgrind-out-file={profile}",
        str(program),
    ]
    if "avx2" not in run(words):
        pytest.skip("this CPU has no AVX2, which the budgets are for")
    table = run(["callgrind_annotate", "--inclusive=yes", "--threshold=100", profile])
    found = re.findall(r"^\s*([\d,]+) .*:op_(\w+)", table, flags=re.MULTILINE)
    return {name: int(count.replace(",", "")) // ROUNDS for count, name in found}


def run(words: Sequence[str | Path]) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(done.stdout + done.stderr, pytrace=False)
    return done.stdout


@pytest.mark.parametrize("name", BUDGETS)
def test_budget(instructions: dict[str, int], name: str) -> None:
    packets, most = BUDGETS[name]
    assert instructions[name] / packets <= most


@pytest.mark.parametrize("name", ["route", "route6"])
def test_ten_thousand_routes_cost_at_most_twice_ten(
    instructions: dict[str, int], name: str
) -> None:
    assert instructions[name] <= 2 * instructions[f"{name}_of_ten"]
