"""
What a path between two hosts carries, measured by iperf3 and by a loop of requests.

    serve(PORT, ready=...)                  # on the far host
    MEASURES["tcp1"](path, seconds=3)       # {"tcp1": 5.1, "tcp1_back": 5.0, "cpu1": 1.4, ...}

``tunnel bench`` and the benchmarks of this project use it. It reads nothing but iperf3's JSON, and
does not know what the path is: this overlay, another one, or a bare link.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tunnel.errors import TunnelError
from tunnel.testing.cpu_time import machine_seconds, process_seconds

PORT = 5201
"""iperf3's; requests are answered on the next port."""

REQUEST_BYTES = 64

UDP_BYTES = 1400
"""Payload of the runs at a fixed rate: fits every overlay on an underlay of 1500 bytes."""

RATES = (500, 1000, 2000)
"""Mbit/s of these runs."""

Start = Callable[[list[str]], "subprocess.Popen[str]"]
"""Starts a command on the near host of a path, with pipes for its output."""

_RETRY_TIMEOUT = 5.0
"""Seconds in which a refused run is repeated: the server starts, or still ends its last run."""

_CONNECT_MS = 5000
"""iperf3's time limit to connect; without one, TCP tries for two minutes."""

_HANG_TIMEOUT = 120.0
"""Seconds beyond a run's own time after which a command counts as hung. Generous, because other
programs may use the CPU; a run that ends is never cut short by it."""


class BenchError(TunnelError):
    """iperf3 or the server is missing, or the path failed while it was measured."""


@dataclass(frozen=True)
class MeasuredPath:
    """
    One path to a server.

    Attributes:
        target: The server's address on this path.
        start: Starts a command on the near host.
        processes: Pids of the processes that move the packets; none for the kernel.
    """

    name: str
    target: str
    start: Start
    processes: Sequence[int] = ()
    port: int = PORT


@dataclass(frozen=True)
class Received:
    """What arrived in one run of iperf3, as the receiver counted it."""

    bytes: int
    seconds: float
    lost_percent: float = 0.0

    @property
    def gbit_s(self) -> float:
        return self.bytes * 8 / self.seconds / 1e9


# The near host.


def start_here(command: list[str]) -> subprocess.Popen[str]:
    """
    Starts a command on this host; it ends when this process ends, however that happens.

    Raises:
        BenchError: The command is not installed; the message says how to get it.
    """
    if shutil.which(command[0]) is None:
        raise BenchError(f"cannot run {command[0]}: not found (apt-get install {command[0]})")
    return subprocess.Popen(
        ["setpriv", "--pdeathsig=KILL", "--", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def tcp(path: MeasuredPath, *, streams: int, seconds: int, reverse: bool = False) -> Received:
    """Sends TCP to the server, or receives from it if `reverse`."""
    options = ["-P", str(streams), *(["-R"] if reverse else [])]
    summary = _iperf3(path, options, seconds=seconds)["sum_received"]
    return Received(summary["bytes"], summary["seconds"])


def udp(path: MeasuredPath, *, size: int, seconds: int, mbit_s: int = 0) -> Received:
    """Sends datagrams of `size` payload bytes to the server, at a rate or, with 0, unlimited."""
    end = _iperf3(path, ["-u", "-b", f"{mbit_s}M", "-l", str(size)], seconds=seconds)
    summary = end["sum_received"]
    return Received(summary["bytes"], summary["seconds"], end["sum"]["lost_percent"])


def _iperf3(path: MeasuredPath, options: list[str], *, seconds: int) -> Any:
    """Returns the summary of one run, which is repeated while the server refuses it."""
    server = ["-c", path.target, "-p", str(path.port), "--connect-timeout", str(_CONNECT_MS)]
    command = ["iperf3", "-J", *server, "-t", str(seconds), *options]
    deadline = time.monotonic() + _RETRY_TIMEOUT
    while True:
        report = _json(_finish(path.start(command), seconds=seconds))
        if "error" not in report:
            return report["end"]
        # After a connection was made the path itself has failed, which must not be hidden.
        if report["start"].get("connected") or time.monotonic() > deadline:
            raise BenchError(
                f"iperf3 to {path.target} port {path.port}: {report['error']} "
                '(check that "tunnel bench --server" runs there)'
            )
        time.sleep(0.1)


def requests(path: MeasuredPath, *, seconds: float) -> list[float]:
    """Returns the microseconds from each request to its response, over TCP, one at a time."""
    call = (
        "from tunnel.testing.bench import ask; "
        f"ask({path.target!r}, {path.port + 1}, seconds={seconds})"
    )
    report = _json(_finish(path.start([sys.executable, "-c", call]), seconds=seconds))
    if "error" in report:
        raise BenchError(f"requests to {path.target} port {path.port + 1}: {report['error']}")
    times: list[float] = report["us"]
    return times


def ask(target: str, port: int, *, seconds: float) -> None:
    """Runs the loop of :func:`requests`, in a process of its own; prints the result as JSON."""
    request = bytes(REQUEST_BYTES)
    times: list[float] = []
    # Pauses of the garbage collector would count as the network's.
    gc.disable()
    try:
        with socket.create_connection((target, port), timeout=_RETRY_TIMEOUT) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            deadline = time.perf_counter() + seconds
            while (start := time.perf_counter()) < deadline:
                connection.sendall(request)
                if not connection.recv(REQUEST_BYTES, socket.MSG_WAITALL):
                    raise ConnectionError("the server closed the connection")
                times.append((time.perf_counter() - start) * 1e6)
    except OSError as error:
        print(json.dumps({"error": str(error)}))
    else:
        print(json.dumps({"us": times}))


def _finish(process: subprocess.Popen[str], *, seconds: float) -> tuple[str, str]:
    """Returns a command's output when it has ended; kills it if this is interrupted."""
    limit = seconds + _HANG_TIMEOUT
    try:
        return process.communicate(timeout=limit)
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{process.args!r} did not end within {limit:g} s") from error
    finally:
        process.kill()
        process.wait()


def _json(output: tuple[str, str]) -> Any:
    stdout, stderr = output
    try:
        return json.loads(stdout)
    except ValueError as error:
        last = (stderr.strip().splitlines() or ["no output"])[-1]
        raise BenchError(f"the command printed no JSON: {last}") from error


# The far host.


def serve(port: int, *, ready: Callable[[], None]) -> None:
    """
    Answers iperf3 on `port` and requests on the next port, until the process ends.

    Raises:
        BenchError: A port is in use, or iperf3 is missing or ended.
    """
    iperf3 = start_here(["iperf3", "-s", "-p", str(port)])
    try:
        with _listen(port + 1) as listening:
            threading.Thread(target=_accept, args=(listening,), daemon=True).start()
            ready()
            # Its reports are not used, but they must not fill the pipe.
            _, stderr = iperf3.communicate()
    finally:
        iperf3.kill()
        iperf3.wait()
    raise BenchError(f"iperf3 -s on port {port} ended: {stderr.strip() or 'no output'}")


def _listen(port: int) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise BenchError(
            f"cannot listen on port {port}: {os.strerror(error.errno or 0).lower()} "
            "(choose another pair with --port)"
        ) from error


def _accept(listening: socket.socket) -> None:
    while True:
        connection, _ = listening.accept()
        threading.Thread(target=_answer, args=(connection,), daemon=True).start()


def _answer(connection: socket.socket) -> None:
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while request := connection.recv(REQUEST_BYTES):
            connection.sendall(request)


# Measures.


def measure_tcp(path: MeasuredPath, *, streams: int, seconds: int) -> dict[str, float]:
    """Both directions, and their CPU time."""
    processes, machine = process_seconds(path.processes), machine_seconds()
    forth = tcp(path, streams=streams, seconds=seconds)
    back = tcp(path, streams=streams, seconds=seconds, reverse=True)
    gigabytes = (forth.bytes + back.bytes) / 1e9
    values = {
        f"tcp{streams}": forth.gbit_s,
        f"tcp{streams}_back": back.gbit_s,
        f"machine{streams}": (machine_seconds() - machine) / gigabytes,
    }
    if path.processes:
        values[f"cpu{streams}"] = (process_seconds(path.processes) - processes) / gigabytes
    return values


def measure_rates(path: MeasuredPath, *, seconds: int) -> dict[str, float]:
    values: dict[str, float] = {}
    for rate in RATES:
        run = udp(path, size=UDP_BYTES, mbit_s=rate, seconds=seconds)
        values |= {f"udp{rate}": run.gbit_s, f"udp{rate}_loss": run.lost_percent}
    return values


def measure_small(path: MeasuredPath, *, seconds: int) -> dict[str, float]:
    received = udp(path, size=64, seconds=seconds)
    return {"udp64": received.bytes / 64 / received.seconds / 1000}


def measure_requests(path: MeasuredPath, *, seconds: int) -> dict[str, float]:
    times = statistics.quantiles(requests(path, seconds=seconds), n=1000)
    return {"rr_p50": times[499], "rr_p99": times[989], "rr_p999": times[998]}


MEASURES: Mapping[str, Callable[..., dict[str, float]]] = {
    "tcp1": partial(measure_tcp, streams=1),
    "tcp4": partial(measure_tcp, streams=4),
    "rates": measure_rates,
    "udp64": measure_small,
    "requests": measure_requests,
}
"""Each takes a path and the seconds of each of its runs, and returns numbers by :data:`UNITS`."""

UNITS = {
    "tcp1": "TCP 1 stream, Gbit/s",
    "tcp1_back": "TCP 1 stream, back",
    "tcp4": "TCP 4 streams, Gbit/s",
    "tcp4_back": "TCP 4 streams, back",
    "udp64": "UDP 64 B, kpps",
    "ping": "ping, us",
    "rr_p50": "request/response, p50 us",
    "rr_p99": "request/response, p99 us",
    "rr_p999": "request/response, p99.9 us",
    **{
        key: text
        for rate in RATES
        for key, text in {
            f"udp{rate}": f"UDP sent at {rate / 1000:g} Gbit/s, Gbit/s",
            f"udp{rate}_loss": f"UDP sent at {rate / 1000:g} Gbit/s, % lost",
        }.items()
    },
    "cpu1": "CPU s/GB, 1 stream",
    "cpu4": "CPU s/GB, 4 streams",
    "machine1": "whole machine s/GB, 1 stream",
    "machine4": "whole machine s/GB, 4 streams",
}
