"""
A contestant: one way from one host to another over the link between them.

All stand side by side on one link, each with addresses of its own, so that rounds can take
turns; who is not measured has nothing to do. Each is one file in ``contestants/``: a function
that brings it up on two hosts, beside the Debian packages that it needs.
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
"""What everybody's MTU is less than the link's: the most that one of them needs, so that all
send equal segments."""

_PATIENCE = 15.0
"""Seconds until the two hosts must reach each other; some first learn who is there."""


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
            timeout=_PATIENCE,
        )

    def set_up(self, device: str, *, mtu: int) -> None:
        """Address and MTU for a device that its daemon makes, but leaves as it is."""
        self.wait_for(device)
        # Without a link-local address nothing is sent yet: vtun does not survive a packet for a
        # device that is down.
        self.host.run(f"ip link set {device} mtu {mtu} addrgenmode none")
        self.host.run(f"ip address add {self.address} peer {self.peer_address} dev {device}")
        self.host.run(f"ip link set {device} up")


@dataclass(frozen=True)
class Site:
    """
    Where a contestant stands.

    Attributes:
        number: Its own; it has 10.<number>.0.1 and 10.<number>.0.2.
        mtu: That of its devices.
        directory: For its files; gone at the end.
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
        """A file of the contestant's own."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path


@dataclass(frozen=True)
class Running:
    """
    Attributes:
        target: The second host's address.
        daemons: The user-space processes that move the packets, of both hosts.
        said: What it said about itself when it was ready.
    """

    target: str
    daemons: Sequence[subprocess.Popen[str]] = ()
    said: str = ""


@dataclass(frozen=True)
class Contestant:
    """
    Attributes:
        start: Brings it up; what does not work yet then must soon.
        packages: Debian packages that have it.
        remark: What to know before comparing: what it encrypts with, what it cannot do.
        most_mtu: The largest packet that it takes.
    """

    name: str
    start: Callable[[Site], Running]
    packages: Sequence[str] = ()
    remark: str = ""
    most_mtu: int = field(default=65535)

    def bring_up(self, site: Site) -> tuple[bench.MeasuredPath, str]:
        """
        The way through it, and what it said of itself.

        Raises:
            LabError: It did not come up; with what its daemons said.
        """
        running = self.start(site)
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                site.a.ping(running.target)
                break
            except LabError as error:
                if any(daemon.poll() for daemon in running.daemons) or time.monotonic() > deadline:
                    said = f"{self.name}: {error} / {_last_words(running)}"
                    raise LabError(" ".join(said.split())) from error
        self._check_way(site, running.target)
        processes = [daemon.pid for daemon in running.daemons]
        return bench.MeasuredPath(self.name, running.target, site.a.popen, processes), running.said

    def _check_way(self, site: Site, target: str) -> None:
        """Its packets take its own device, unless they are meant to take the bare link."""
        route = json.loads(site.a.run(f"ip -json route get {target}").stdout)[0]
        if route["dev"] == "eth0" and target != site.b.ipv4:
            raise LabError(f"{self.name}: packets to {target} go around it")


def _last_words(running: Running) -> str:
    for daemon in running.daemons:
        daemon.terminate()
    return " / ".join("".join(daemon.communicate()) for daemon in running.daemons)
