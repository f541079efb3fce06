"""``tunnel bench`` as people run it: alone, and between two nodes."""

import json
import signal
import subprocess
import sys
import time

import pytest

from tests.netns.test_demo import alive, children_of
from tunnel.testing import bench
from tunnel.testing.lab import Lab

TUNNEL = f"{sys.executable} -m tunnel"


def test_bench_alone_measures_both_paths() -> None:
    result = subprocess.run(
        [*TUNNEL.split(), "bench", "--seconds", "1", "--json"],
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    measured = json.loads(result.stdout)
    assert list(measured) == ["bare veth", "overlay"]
    assert set(measured["overlay"]) == set(bench.UNITS) - {"ping"}
    assert measured["overlay"]["rr_p50"] <= measured["overlay"]["rr_p999"]
    assert measured["overlay"]["cpu1"] > 0
    assert "cpu1" not in measured["bare veth"]


def test_a_peer_is_measured_and_our_process_found(lab: Lab) -> None:
    a, b = lab.host("a"), lab.host("b")
    lab.link(a, b)
    for host, peer, i in ((a, b, 1), (b, a, 2)):
        node = host.popen(
            f"{TUNNEL} up --local {host.ipv4} --subnet 10.244.{i}.0/24 "
            f"--peer {peer.ipv4}=10.244.{3 - i}.0/24"
        )
        assert node.stdout is not None
        assert node.stdout.readline()
    server = b.popen(f"{TUNNEL} bench --server --port 6000")
    assert server.stdout is not None
    assert "ports 6000 and 6001" in server.stdout.readline()
    result = a.run(f"{TUNNEL} bench 10.244.2.0 --port 6000 --seconds 1 --json", timeout=150)
    assert json.loads(result.stdout)["overlay"]["cpu1"] > 0


def test_a_port_in_use_is_one_line(lab: Lab) -> None:
    host = lab.host("a")
    first = host.popen(f"{TUNNEL} bench --server")
    assert first.stdout is not None
    first.stdout.readline()
    second = host.popen(f"{TUNNEL} bench --server")
    _, stderr = second.communicate(timeout=100)
    assert second.returncode == 2
    assert stderr.count("\n") == 1
    assert "5202: address already in use (choose another pair with --port)" in stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_bench_leaves_nothing(number: signal.Signals) -> None:
    with subprocess.Popen(
        [*TUNNEL.split(), "bench", "--seconds", "60"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 100
        # Two holders, two nodes, a server and iperf3: it is in the middle of its work.
        while len(children := children_of(process.pid)) < 6 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(children) >= 6
        process.send_signal(number)
        _, stderr = process.communicate(timeout=100)
    assert process.returncode != 0
    assert "Traceback" not in stderr
    while any(map(alive, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, children))
