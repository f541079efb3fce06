"""``tunnel demo``: what it says, and that nothing is left however it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.netns.unprivileged import python_as_nobody

DEMO = ["-m", "tunnel", "demo", "--seconds"]

# /dev/net/tun with another mode.
OWN_TUN = """
mknod -m {mode} /mnt/tun c 10 200
mount --bind /mnt/tun /dev/net/tun
"""


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=170, check=False
    )


def run_as_ordinary_user(*words: str, mode: str) -> subprocess.CompletedProcess[str]:
    """Runs as nobody, with `mode` for /dev/net/tun."""
    return subprocess.run(
        [*python_as_nobody(more=OWN_TUN.format(mode=mode)), *words],
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )


def check_result(result: subprocess.CompletedProcess[str]) -> None:
    assert result.returncode == 0, result.stderr
    measured = json.loads(result.stdout)
    for path in ("bare", "overlay"):
        assert all(value > 0 for value in measured[path].values())
    assert len(measured["nodes"]) == 2
    assert all("vni 1" in node["ready"] for node in measured["nodes"])


def test_demo_measures() -> None:
    check_result(run(*DEMO, "1", "--json"))


def test_demo_prints_a_table() -> None:
    result = run(*DEMO, "1")
    assert result.returncode == 0, result.stderr
    for word in ("bare veth", "overlay", "Gbit/s", "round trip IPv6", "offloads", "drops"):
        assert word in result.stdout


def test_demo_as_ordinary_user() -> None:
    check_result(run_as_ordinary_user(*DEMO, "1", "--json", mode="666"))


def test_demo_says_why_it_cannot() -> None:
    result = run_as_ordinary_user(*DEMO, "1", mode="600")
    assert result.returncode != 0
    assert result.stderr.count("\n") == 1
    assert "cannot open /dev/net/tun: permission denied for this user (run as root" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_demo_leaves_nothing(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, *DEMO, "60"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as demo:
        deadline = time.monotonic() + 100
        # Two holders, two nodes, a receiver and a sender: it is in the middle of its work.
        while len(children := children_of(demo.pid)) < 6 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(children) >= 6
        demo.send_signal(number)
        _, stderr = demo.communicate(timeout=100)
    assert demo.returncode != 0
    assert "Traceback" not in stderr
    while any(map(alive, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, children))


def children_of(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(stat.parent.name))
    return found


def alive(pid: int) -> bool:
    # A zombie has no namespace any more.
    try:
        return bool(os.readlink(f"/proc/{pid}/ns/net"))
    except OSError:
        return False
