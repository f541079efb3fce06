"""``tunnel up`` on a host, as a process of its own."""

import select
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tunnel.testing.lab import Host

_PATIENCE = 40.0  # seconds for what takes a fraction of one


def control_socket(host: Host) -> Path:
    """The control socket of the node ``tunnel1`` of a host, as seen from outside of the host."""
    (path,) = Path(f"/proc/{host.pid}/root/run/tunnel").glob("tunnel1*.sock")
    return path


class Node:
    """
    One member of the overlay: this program, or a kernel vxlan device.

    Attributes:
        ready: The line that it printed when it was ready.
        prefixes: The prefixes that it owns, of each family.
        ipv4, ipv6: Its addresses in the overlay, the first of each prefix.
    """

    def __init__(self, host: Host, number: int) -> None:
        self.host = host
        self.prefixes: tuple[str, ...] = (f"10.244.{number}.0/24", f"fd00:244:{number}::/64")
        self.ipv4, self.ipv6 = (prefix.partition("/")[0] for prefix in self.prefixes)
        self.ready = ""
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def at(self, family: int, *, mac: str = "") -> str:
        """This node as a peer: its underlay address of a family and what it owns."""
        address = self.host.ipv4 if family == 4 else self.host.ipv6
        words = [*self.prefixes, f"mac={mac}"] if mac else self.prefixes
        return f"{address}={','.join(words)}"

    def up(self, *words: str, peers: Iterable[str]) -> None:
        """Starts it and waits until it is ready."""
        command = [sys.executable, "-m", "tunnel", "up", *words]
        command += [word for prefix in self.prefixes for word in ("--subnet", prefix)]
        command += [word for peer in peers for word in ("--peer", peer)]
        self._process = process = self.host.popen(command)
        assert process.stdout is not None
        assert process.stderr is not None
        assert select.select([process.stdout], [], [], _PATIENCE)[0], "not ready in time"
        self.ready = process.stdout.readline().strip()
        assert self.ready, process.stderr.read()

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.communicate()

    def wait(self) -> None:
        """Waits until it has ended, with or without success."""
        assert self._process is not None
        self._process.communicate(timeout=_PATIENCE)

    def down(self) -> dict[str, int]:
        """Ends it as systemd would; returns its drops by reason."""
        assert self._process is not None
        self._process.terminate()
        return self.ended()

    def ended(self) -> dict[str, int]:
        """Its drops by reason, once it was stopped."""
        assert self._process is not None
        stdout, stderr = self._process.communicate(timeout=_PATIENCE)
        assert self._process.returncode == 0, stderr
        words = stdout.rpartition("drops: ")[2].split()
        pairs = (word.split("=") for word in words if "=" in word)
        return {reason: int(count) for reason, count in pairs}
