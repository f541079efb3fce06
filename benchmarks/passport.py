"""When, where, on what and of what numbers are."""

import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tunnel._native import checksum_backend


def make_passport(module: str, **more: object) -> dict[str, Any]:
    """For numbers that ``python -m module`` has just measured."""
    models = [
        line.partition(": ")[2]
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _say("git describe --always --dirty"),
        "machine": f"{os.cpu_count()} x {models[0] if models else platform.machine()}",
        "kernel": platform.release(),
        "checksum": checksum_backend(),
        "python": platform.python_version(),
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
        **more,
    }


def iperf3_version() -> str:
    return _say("iperf3 --version").partition("\n")[0]


def _say(command: str) -> str:
    return subprocess.run(
        shlex.split(command), capture_output=True, text=True, check=False
    ).stdout.strip()
