"""
A contestant: one overlay, or the bare link, between two hosts.

All of them run at the same time on one link, each with its own addresses, so that rounds can
measure them in turns; the others are idle meanwhile. Each is one file in ``contestants/``: a
function that starts it on two hosts, and the Debian packages that it needs.
"""

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tunnel.testing import bench
from tunnel.testing.lab import Host, LabError

OVERHEAD = 70
"""Bytes by which every contestant's MTU is less than the link's: the most that any of them needs,
so that all send segments of one size."""

_START_TIMEOUT = 30.0
"""Seconds until the two hosts must reach each other; some contestants discover peers first."""


@dataclass(frozen=True)
class End:
    """One of the two hosts, with its overlay address and that of the other."""

    host: Host
    address: str
    peer: Host
    peer_address: str
    letter: str

    def wait_for(self, device: str) -> None:
        self.host.run(
            ["sh", "-c", f"until ip link show {device} >/dev/null 2>&1; do sleep 0.05; done"],
            timeout=_START_TIMEOUT,
        )

    def set_up(self, device: str, *, mtu: int) -> None:
        """Configures a device that its daemon creates without address and MTU."""
        self.wait_for(device)
        # Without a link-local address nothing is sent yet: vtun ends when it writes a packet to a
        # device that is down.
        self.host.run(f"ip link set {device} mtu {mtu} addrgenmode none")
        self.host.run(f"ip address add {self.address} peer {self.peer_address} dev {device}")
        self.host.run(f"ip link set {device} up")


@dataclass(frozen=True)
class Site:
    """
    The two hosts, and what one contestant has there.

    Attributes:
        number: Selects its addresses, 10.<number>.0.1 and 10.<number>.0.2.
        mtu: Of its devices.
        directory: For its files; removed at the end.
    """

    a: Host
    b: Host
    number: int
    mtu: int
    directory: Path

    @property
    def near(self) -> str:
        return f"10.{self.number}.0.1"

    @property
    def far(self) -> str:
        return f"10.{self.number}.0.2"

    @property
    def ends(self) -> tuple[End, End]:
        return (
            End(self.a, self.near, self.b, self.far, "a"),
            End(self.b, self.far, self.a, self.near, "b"),
        )

    def file(self, name: str, text: str, *, mode: int = 0o600) -> Path:
        """Writes a file into the contestant's directory."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path


@dataclass(frozen=True)
class Running:
    """
    A contestant that was started.

    Attributes:
        target: The second host's address.
        daemons: The user-space processes that move packets, on both hosts.
        ready_line: What it printed when it was ready.
    """

    target: str
    daemons: Sequence[subprocess.Popen[str]] = ()
    ready_line: str = ""


@dataclass(frozen=True)
class Contestant:
    """
    A contestant that can be started.

    Attributes:
        start: Starts it; it may become ready later.
        packages: Debian packages that contain it.
        remark: What to know for a comparison: its cipher, its limits.
        max_mtu: The largest packet that it accepts.
    """

    name: str
    start: Callable[[Site], Running]
    packages: Sequence[str] = ()
    remark: str = ""
    max_mtu: int = field(default=65535)

    def bring_up(self, site: Site) -> tuple[bench.MeasuredPath, str]:
        """
        Returns the path through it, and what it printed when it was ready.

        Raises:
            LabError: It did not start; with the output of its daemons.
        """
        running = self.start(site)
        deadline = time.monotonic() + _START_TIMEOUT
        while True:
            try:
                site.a.ping(running.target)
                break
            except LabError as error:
                if any(daemon.poll() for daemon in running.daemons) or time.monotonic() > deadline:
                    text = f"{self.name}: {error} / {_stop(running)}"
                    raise LabError(" ".join(text.split())) from error
        self._check_route(site, running.target)
        processes = [daemon.pid for daemon in running.daemons]
        return bench.MeasuredPath(
            self.name, running.target, site.a.popen, processes
        ), running.ready_line

    def _check_route(self, site: Site, target: str) -> None:
        """Raises LabError if packets to `target` take the bare link, unless that is measured."""
        route = json.loads(site.a.run(f"ip -json route get {target}").stdout)[0]
        if route["dev"] == "eth0" and target != site.b.ipv4:
            raise LabError(f"{self.name}: packets to {target} bypass it")


def _stop(running: Running) -> str:
    """Stops the daemons, and returns their output."""
    for daemon in running.daemons:
        daemon.terminate()
    return " / ".join("".join(daemon.communicate()) for daemon in running.daemons)
