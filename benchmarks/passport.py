"""The passport of a result: date, commit, machine, kernel and command."""

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
    """Returns the passport of what ``python -m module`` has just measured."""
    models = [
        line.partition(": ")[2]
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _output("git describe --always --dirty"),
        "machine": f"{os.cpu_count()} x {models[0] if models else platform.machine()}",
        "kernel": platform.release(),
        "checksum": checksum_backend(),
        "python": platform.python_version(),
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
        **more,
    }


def iperf3_version() -> str:
    return _output("iperf3 --version").partition("\n")[0]


def _output(command: str) -> str:
    return subprocess.run(
        shlex.split(command), capture_output=True, text=True, check=False
    ).stdout.strip()
