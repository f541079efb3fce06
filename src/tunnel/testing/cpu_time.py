"""CPU time of processes and of the whole machine, and which process holds a TUN device."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def process_seconds(pids: Iterable[int]) -> float:
    """Returns user and system time of these processes and their children so far. Work of the kernel
    in soft interrupts is charged to the process that happens to run, or to none."""
    parents = {pid: int(_stat(pid)[1]) for pid in _pids()}
    wanted = set(pids)
    while children := {pid for pid, parent in parents.items() if parent in wanted} - wanted:
        wanted |= children
    stats = [_stat(pid) for pid in wanted]
    return sum(int(one[11]) + int(one[12]) for one in stats) / os.sysconf("SC_CLK_TCK")


def machine_seconds() -> float:
    """Returns the time for which all CPUs have worked so far, soft interrupts included."""
    columns = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    fields = [int(column) for column in columns]
    idle, iowait = fields[3:5]
    return (sum(fields) - idle - iowait) / os.sysconf("SC_CLK_TCK")


def holders_of(device: str) -> list[int]:
    """Returns the processes in this network namespace that have the TUN device open, as far as
    this user may see them."""
    namespace = os.readlink("/proc/self/ns/net")
    return [pid for pid in _pids() if _holds(pid, device, namespace)]


def _holds(pid: int, device: str, namespace: str) -> bool:
    try:
        if os.readlink(f"/proc/{pid}/ns/net") != namespace:
            return False
        files = [file.read_text() for file in Path(f"/proc/{pid}/fdinfo").iterdir()]
    except OSError:
        return False
    return any(f"iff:\t{device}\n" in file for file in files)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _stat(pid: int) -> list[str]:
    """Returns /proc/PID/stat from field 3 on (proc(5)); the name before it may contain blanks.
    Zeros for a process that has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ["0"] * 50
