"""Hosts of network namespaces: linked, separate, and removed with the process that made them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tunnel.testing.lab import Lab, LabError

MAKE_AND_WAIT = """
import time
from pathlib import Path
from tunnel.testing.lab import Lab
with Lab() as lab:
    host = lab.host("a")
    pid = host.popen("sleep 100").pid
    # Before it runs, nothing has asked the kernel to end it with its maker.
    while Path(f"/proc/{pid}/comm").read_text() != "sleep\\n":
        time.sleep(0.01)
    print(host.pid, pid, flush=True)
    time.sleep(100)
"""


def test_linked_hosts_reach_each_other(lab: Lab) -> None:
    a, b = lab.host("a"), lab.host("b")
    lab.link(a, b, mtu=1400)
    assert len(a.ping(b.ipv4, count=3)) == 3
    assert len(b.ping(a.ipv6)) == 1
    assert "mtu 1400" in b.run("ip link show eth0").stdout


def test_switched_hosts_reach_each_other(lab: Lab) -> None:
    hosts = [lab.host(name) for name in "abc"]
    lab.switch(*hosts)
    for host in hosts:
        for other in hosts:
            host.ping(other.ipv4)
            host.ping(other.ipv6)


def test_link_without_offloads(lab: Lab) -> None:
    a, b = lab.host("a"), lab.host("b")
    lab.link(a, b, offloads=False)
    features = b.run("ethtool -k eth0").stdout
    for feature in (
        "rx-checksumming",
        "tx-checksumming",
        "generic-segmentation-offload",
        "tcp-segmentation-offload",
        "generic-receive-offload",
    ):
        assert f"{feature}: off" in features
    a.ping(b.ipv4)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("ls /not-there", r"a: ls /not-there: .*No such file"),
        ("false", r"a: false: exit code 1"),
        ("not-a-command", r"cannot run not-a-command: not found \(install"),
        ("sleep 9", r"a: sleep 9: did not end within 0.1 s"),
    ],
)
def test_failing_command_is_one_clear_line(lab: Lab, command: str, said: str) -> None:
    with pytest.raises(LabError, match=said):
        lab.host("a").run(command, timeout=0.1)


def test_ping_counts_silence_as_failure(lab: Lab) -> None:
    a, b = lab.host("a"), lab.host("b")
    lab.link(a, b)
    with pytest.raises(LabError, match="ping"):
        a.ping("192.0.2.99")


def test_leaving_ends_what_runs_on_a_host() -> None:
    with Lab() as lab:
        host = lab.host("a")
        process = host.popen("sleep 100")
    assert process.returncode == -signal.SIGTERM
    assert not Path(f"/proc/{host.pid}").exists()


def test_nothing_outlives_a_killed_maker() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", MAKE_AND_WAIT], stdout=subprocess.PIPE, text=True
    ) as maker:
        assert maker.stdout is not None
        left = [Path(f"/proc/{pid}/ns/net") for pid in maker.stdout.readline().split()]
        assert len(left) == 2
        assert all(map(os.path.lexists, left))
        maker.kill()
    deadline = time.monotonic() + 60
    while any(map(_alive, left)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(_alive, left))


def _alive(namespace: Path) -> bool:
    # A zombie has no namespace any more.
    try:
        return bool(os.readlink(namespace))
    except OSError:
        return False
