"""iperf3 between two hosts: what the receiver got."""

import json
from dataclasses import dataclass
from typing import Any

from tunnel.lab import Host, LabError


@dataclass(frozen=True)
class Received:
    bytes: int
    seconds: float

    @property
    def gbit_s(self) -> float:
        return self.bytes * 8 / self.seconds / 1e9


def tcp(a: Host, b: Host, target: str, *, streams: int, reverse: bool, seconds: int) -> Received:
    """TCP from `a` to `b` at `target`, or back where `reverse`."""
    options = ["-P", str(streams), *(["-R"] if reverse else [])]
    return _received(_run(a, b, target, options, seconds=seconds)["sum_received"])


def udp(a: Host, b: Host, target: str, *, size: int, seconds: int) -> Received:
    """Datagrams of `size` payload bytes, as fast as `a` can send them."""
    end = _run(a, b, target, ["-u", "-b", "0", "-l", str(size)], seconds=seconds)
    return _received(end["sum_received"])


def _received(summary: dict[str, Any]) -> Received:
    return Received(summary["bytes"], summary["seconds"])


def _run(a: Host, b: Host, target: str, options: list[str], *, seconds: int) -> Any:
    server = b.popen("iperf3 -s -1 --forceflush")
    assert server.stdout is not None
    while "listening" not in (line := server.stdout.readline()):
        if not line:
            raise LabError(f"iperf3 -s failed: {server.communicate()[1].strip()}")
    command = ["iperf3", "-J", "-c", target, "-t", str(seconds), *options]
    client = a.run(command, timeout=seconds + 30)
    server.communicate(timeout=30)
    return json.loads(client.stdout)["end"]
