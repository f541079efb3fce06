"""
What a path carries: iperf3, and a request/response loop, between this end and a server.

    serve(PORT, ready=...)                  # at the far end
    MEASURES["tcp1"](path, seconds=3)       # {"tcp1": 5.1, "tcp1_back": 5.0, "cpu1": 1.4, ...}

``tunnel bench`` and the developers' benchmarks both stand on this. Of iperf3 only its JSON is
read. What lies in between, an overlay of ours or of others or a bare link, is not known here.
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
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path as File
from typing import Any

from tunnel.errors import TunnelError

PORT = 5201
"""iperf3's; requests are answered on the next one."""

REQUEST_BYTES = 64

UDP_BYTES = 1400
"""Payload in the runs of a fixed rate: fits any overlay on a 1500-byte underlay."""

RATES = (500, 1000, 2000)
"""Mbit/s of these runs."""

Start = Callable[[list[str]], "subprocess.Popen[str]"]
"""Starts a command at the near end of a path, with pipes for its output."""

_PATIENCE = 5.0
"""Seconds to go on asking a server that only just starts, or still ends its last run."""

_CONNECT_MS = 5000
"""Where nothing at all comes back, TCP would try for two minutes."""


class BenchError(TunnelError):
    """No iperf3, no server, or a path that broke while it was measured."""


@dataclass(frozen=True)
class Path:
    """
    One way to a server.

    Attributes:
        target: The server's address on this path.
        start: Runs a command at the near end.
        processes: Those that move the packets and that we can see; none for the kernel.
    """

    name: str
    target: str
    start: Start
    processes: Sequence[int] = ()
    port: int = PORT


@dataclass(frozen=True)
class Received:
    """What arrived in a run of iperf3, as the receiver counted it."""

    bytes: int
    seconds: float
    lost_percent: float = 0.0

    @property
    def gbit_s(self) -> float:
        return self.bytes * 8 / self.seconds / 1e9


# ---- at the near end ----


def start_here(words: list[str]) -> subprocess.Popen[str]:
    """
    Runs a command on this host; however this process ends, the command ends with it.

    Raises:
        BenchError: There is no such command; the message says how to get it.
    """
    if shutil.which(words[0]) is None:
        raise BenchError(f"cannot run {words[0]}: not found (apt-get install {words[0]})")
    return subprocess.Popen(
        ["setpriv", "--pdeathsig=KILL", "--", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def tcp(path: Path, *, streams: int, seconds: int, reverse: bool = False) -> Received:
    """TCP to the server, or back where `reverse`."""
    words = ["-P", str(streams), *(["-R"] if reverse else [])]
    summary = _iperf3(path, words, seconds=seconds)["sum_received"]
    return Received(summary["bytes"], summary["seconds"])


def udp(path: Path, *, size: int, seconds: int, mbit_s: int = 0) -> Received:
    """Datagrams of `size` payload bytes to the server, at a rate or as fast as we can send."""
    end = _iperf3(path, ["-u", "-b", f"{mbit_s}M", "-l", str(size)], seconds=seconds)
    summary = end["sum_received"]
    return Received(summary["bytes"], summary["seconds"], end["sum"]["lost_percent"])


def _iperf3(path: Path, words: list[str], *, seconds: int) -> Any:
    where = ["-c", path.target, "-p", str(path.port), "--connect-timeout", str(_CONNECT_MS)]
    command = ["iperf3", "-J", *where, "-t", str(seconds), *words]
    deadline = time.monotonic() + _PATIENCE
    while True:
        report = _json(_finish(path.start(command), seconds=seconds))
        if "error" not in report:
            return report["end"]
        # Once data flowed it is the path that broke, and that must not be glossed over.
        if report["start"].get("connected") or time.monotonic() > deadline:
            raise BenchError(
                f"iperf3 to {path.target} port {path.port}: {report['error']} "
                '(does "tunnel bench --server" run there?)'
            )
        time.sleep(0.1)


def requests(path: Path, *, seconds: float) -> list[float]:
    """Microseconds from request to response, over TCP, one at a time, for a while."""
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
    """The loop behind :func:`requests`, in a process of its own: prints what it found as JSON."""
    request = bytes(REQUEST_BYTES)
    times: list[float] = []
    # The collector's pauses would be taken for the network's.
    gc.disable()
    try:
        with socket.create_connection((target, port), timeout=_PATIENCE) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            deadline = time.perf_counter() + seconds
            while (start := time.perf_counter()) < deadline:
                connection.sendall(request)
                if not connection.recv(REQUEST_BYTES, socket.MSG_WAITALL):
                    raise ConnectionError("the server hung up")
                times.append((time.perf_counter() - start) * 1e6)
    except OSError as error:
        print(json.dumps({"error": str(error)}))
    else:
        print(json.dumps({"us": times}))


def _finish(process: subprocess.Popen[str], *, seconds: float) -> tuple[str, str]:
    """What a command said, once it has ended; it does not outlive us."""
    try:
        return process.communicate(timeout=seconds + 30)
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{process.args!r} did not end in {seconds + 30:g} s") from error
    finally:
        process.kill()
        process.wait()


def _json(said: tuple[str, str]) -> Any:
    stdout, stderr = said
    try:
        return json.loads(stdout)
    except ValueError as error:
        last = (stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise BenchError(f"no JSON came back: {last}") from error


# ---- at the far end ----


def serve(port: int, *, ready: Callable[[], None]) -> None:
    """
    Answers iperf3 on `port` and requests on the next one, until the process ends.

    Raises:
        BenchError: A port is in use, or iperf3 is missing or ended.
    """
    iperf3 = start_here(["iperf3", "-s", "-p", str(port)])
    try:
        with _listen(port + 1) as listening:
            threading.Thread(target=_accept, args=(listening,), daemon=True).start()
            ready()
            # Its report of each run is not read, but must not fill the pipe.
            _, stderr = iperf3.communicate()
    finally:
        iperf3.kill()
        iperf3.wait()
    raise BenchError(f"iperf3 -s on port {port} ended: {stderr.strip() or 'it said nothing'}")


def _listen(port: int) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise BenchError(
            f"cannot listen on port {port}: {os.strerror(error.errno or 0).lower()} "
            "(--port takes another pair of ports)"
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


# ---- what is measured ----


def measure_tcp(path: Path, *, streams: int, seconds: int) -> dict[str, float]:
    """Both directions, and what they cost."""
    processes, machine = cpu_seconds(path.processes), machine_seconds()
    there = tcp(path, streams=streams, seconds=seconds)
    back = tcp(path, streams=streams, seconds=seconds, reverse=True)
    gigabytes = (there.bytes + back.bytes) / 1e9
    values = {
        f"tcp{streams}": there.gbit_s,
        f"tcp{streams}_back": back.gbit_s,
        f"machine{streams}": (machine_seconds() - machine) / gigabytes,
    }
    if path.processes:
        values[f"cpu{streams}"] = (cpu_seconds(path.processes) - processes) / gigabytes
    return values


def measure_rates(path: Path, *, seconds: int) -> dict[str, float]:
    values: dict[str, float] = {}
    for rate in RATES:
        run = udp(path, size=UDP_BYTES, mbit_s=rate, seconds=seconds)
        values |= {f"udp{rate}": run.gbit_s, f"udp{rate}_loss": run.lost_percent}
    return values


def measure_small(path: Path, *, seconds: int) -> dict[str, float]:
    received = udp(path, size=64, seconds=seconds)
    return {"udp64": received.bytes / 64 / received.seconds / 1000}


def measure_requests(path: Path, *, seconds: int) -> dict[str, float]:
    times = statistics.quantiles(requests(path, seconds=seconds), n=1000)
    return {"rr_p50": times[499], "rr_p99": times[989], "rr_p999": times[998]}


MEASURES: Mapping[str, Callable[..., dict[str, float]]] = {
    "tcp1": partial(measure_tcp, streams=1),
    "tcp4": partial(measure_tcp, streams=4),
    "rates": measure_rates,
    "udp64": measure_small,
    "requests": measure_requests,
}
"""Each takes a path and ``seconds`` for each of its runs, and gives numbers of :data:`UNITS`."""

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


# ---- what it costs ----


def cpu_seconds(processes: Iterable[int]) -> float:
    """User and system time of these processes and their children so far. What the kernel does
    in soft interrupts is charged to whoever runs then, or to nobody."""
    parents = {pid: int(_stat(pid)[1]) for pid in _processes()}
    wanted = set(processes)
    while more := {pid for pid, parent in parents.items() if parent in wanted} - wanted:
        wanted |= more
    fields = [_stat(pid) for pid in wanted]
    return sum(int(one[11]) + int(one[12]) for one in fields) / os.sysconf("SC_CLK_TCK")


def machine_seconds() -> float:
    """The time that all CPUs of this machine have worked, soft interrupts included."""
    fields = [int(word) for word in File("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle, waiting = fields[3:5]
    return (sum(fields) - idle - waiting) / os.sysconf("SC_CLK_TCK")


def owners_of(device: str) -> list[int]:
    """Processes in this network namespace that hold a TUN device of this name open, as far as
    this user may see."""
    here = os.readlink("/proc/self/ns/net")
    return [pid for pid in _processes() if _holds(pid, device, here)]


def _holds(pid: int, device: str, namespace: str) -> bool:
    try:
        if os.readlink(f"/proc/{pid}/ns/net") != namespace:
            return False
        files = [file.read_text() for file in File(f"/proc/{pid}/fdinfo").iterdir()]
    except OSError:
        return False
    return any(f"iff:\t{device}\n" in file for file in files)


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _stat(pid: int) -> list[str]:
    """From field 3 on; see proc(5). The command's name before it may hold spaces. All zero for
    a process that is gone."""
    try:
        return File(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["0"] * 50
