"""Values read from iperf3's report, and errors if something is missing."""

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from tunnel.cli.bench import bench as bench_command
from tunnel.errors import TunnelError
from tunnel.testing import bench, cpu_time


def path_that_prints(text: str) -> bench.MeasuredPath:
    def start(command: list[str]) -> "subprocess.Popen[str]":
        return bench.start_here([sys.executable, "-c", f"print({text!r})"])

    return bench.MeasuredPath("path", "192.0.2.2", start)


def test_received_is_what_the_receiver_counted() -> None:
    end = {"sum_sent": {"bytes": 9, "seconds": 1}, "sum_received": {"bytes": 5e9, "seconds": 2}}
    path = path_that_prints(json.dumps({"start": {}, "end": end}))
    assert bench.tcp(path, streams=1, seconds=1).gbit_s == 20


def test_loss_is_reported() -> None:
    end = {"sum": {"lost_percent": 12.5}, "sum_received": {"bytes": 1e9, "seconds": 1}}
    path = path_that_prints(json.dumps({"start": {}, "end": end}))
    assert bench.udp(path, size=64, seconds=1).lost_percent == 12.5


def test_a_path_that_breaks_is_an_error_at_once() -> None:
    path = path_that_prints(json.dumps({"start": {"connected": [{}]}, "error": "it broke"}))
    with pytest.raises(bench.BenchError, match=r"iperf3 to 192\.0\.2\.2 port 5201: it broke"):
        bench.tcp(path, streams=1, seconds=1)


def test_no_server_is_an_error_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_RETRY_TIMEOUT", 0.3)
    path = path_that_prints(json.dumps({"start": {"connected": []}, "error": "refused"}))
    with pytest.raises(bench.BenchError, match="tunnel bench --server"):
        bench.tcp(path, streams=1, seconds=1)


def test_what_is_no_json_is_an_error() -> None:
    with pytest.raises(bench.BenchError, match="the command printed no JSON"):
        bench.tcp(path_that_prints("iperf 3"), streams=1, seconds=1)


def test_missing_iperf3_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(TunnelError, match=r"cannot run iperf3: not found \(apt-get install iperf3"):
        bench.start_here(["iperf3"])


def test_cpu_seconds_count_children_too() -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass\n"
    before = cpu_time.process_seconds([os.getpid()])
    child = f"{burn}print(flush=True); import sys; sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert cpu_time.process_seconds([os.getpid()]) - before > 0.25
        assert cpu_time.process_seconds([process.pid]) > 0.25


def test_the_machine_has_worked() -> None:
    assert cpu_time.machine_seconds() > 0


def test_server_takes_no_peer() -> None:
    result = CliRunner().invoke(bench_command, ["--server", "10.244.2.0"])
    assert result.exit_code == 2
    assert "--server takes no PEER (10.244.2.0)" in result.output


def test_peer_is_an_address() -> None:
    result = CliRunner().invoke(bench_command, ["node4.example"])
    assert result.exit_code == 2
    assert "PEER node4.example is not an IP address" in result.output


def test_a_connection_has_a_time_limit() -> None:
    started: list[list[str]] = []

    def start(command: list[str]) -> "subprocess.Popen[str]":
        started.append(command)
        return bench.start_here(["true"])

    with pytest.raises(bench.BenchError):
        bench.tcp(bench.MeasuredPath("path", "192.0.2.2", start), streams=1, seconds=1)
    assert "--connect-timeout" in started[0]
