"""Every example does what its docstring says."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

from tests.netns.node import Node
from tests.netns.traffic import exchange, inside
from tunnel.testing.lab import Host, Lab

EXAMPLES = Path(__file__).parents[2] / "examples"
NO_PRIVILEGE = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--"]


def start(host: Host, example: str, *words: str) -> subprocess.Popen[str]:
    """Starts a script with the ``tunnel`` of this Python in its PATH."""
    script = f'PATH={Path(sys.executable).parent}:$PATH exec "$0" "$@"'
    return host.popen(["sh", "-c", script, str(EXAMPLES / example), *words])


def ready(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()
    return line


def stop(process: subprocess.Popen[str], number: signal.Signals = signal.SIGINT) -> str:
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (0, "")
    return stdout


def linked(lab: Lab) -> tuple[Host, Host]:
    a, b = lab.host("a"), lab.host("b")
    lab.link(a, b)
    return a, b


def test_two_hosts(lab: Lab) -> None:
    a, b = linked(lab)
    running = [
        start(a, "two_hosts.sh", "first", b.ipv4),
        start(b, "two_hosts.sh", "second", a.ipv4),
    ]
    for process in running:
        assert "tunnel1: vni 1" in ready(process)
    a.ping("10.244.2.0")
    b.ping("fd00:244:1::")
    for host, process in zip((a, b), running, strict=True):
        assert "drops: none" in stop(process)
        assert "tunnel1" not in host.run("ip link").stdout


def test_kernel_vxlan_peer(lab: Lab) -> None:
    ours, kernel = linked(lab)
    made = start(kernel, "kernel_vxlan_peer.sh", "kernel", kernel.ipv4, ours.ipv4, "eth0")
    assert made.communicate() == ("", "")
    running = start(ours, "kernel_vxlan_peer.sh", "tunnel", ours.ipv4, kernel.ipv4)
    assert "tunnel1: vni 1" in ready(running)
    kernel.ping("10.244.1.0")
    exchange(ours, kernel, "10.244.2.0", size=4 << 20)
    assert "drops: none" in stop(running)


def test_embed(lab: Lab) -> None:
    a, b = Node(lab.host("a"), 1), Node(lab.host("b"), 2)
    lab.link(a.host, b.host)
    words = [a.prefixes[0], f"{b.host.ipv4}={b.prefixes[0]}"]
    program = a.host.popen([sys.executable, str(EXAMPLES / "embed.py"), *words])
    assert "tunnel1: vni 1" in ready(program)
    b.up(peers=[a.at(4)])
    b.host.ping(a.ipv4)
    with inside(b.host):
        caller = socket.create_connection((a.ipv4, 7007), timeout=30)
    with caller:
        assert caller.makefile().read() == f"hello {b.ipv4}\n"
    said = stop(program)
    assert f"{b.host.ipv4}:8472: " in said
    assert "drops: {}" in said
    assert b.down() == {}


def test_embed_control(lab: Lab) -> None:
    a, b = Node(lab.host("a"), 1), Node(lab.host("b"), 2)
    lab.link(a.host, b.host)
    example = [sys.executable, str(EXAMPLES / "embed_control.py")]
    words = [a.prefixes[0], f"{b.host.ipv4}={b.prefixes[0]}"]
    program = a.host.popen([*example, *words])
    assert "control socket /run/tunnel/tunnel1@" in ready(program)
    b.up(peers=[a.at(4)])
    verb = f"{sys.executable} -m tunnel"
    assert "4 of 4 answered" in a.host.run(f"{verb} ping {b.ipv4}").stdout
    assert f"{b.host.ipv4}:8472" in a.host.run(f"{verb} status").stdout
    assert a.host.run([*example, "greet"]).stdout == "hello from inside\n"
    assert a.host.run(f"{verb} down").stdout == "tunnel1 is down\n"
    stdout, stderr = program.communicate(timeout=30)
    assert (program.returncode, stderr) == (0, "")
    assert "PeerUp(" in stdout
    assert b.down() == {}


def test_no_privileges(lab: Lab) -> None:
    program = [*NO_PRIVILEGE, sys.executable, str(EXAMPLES / "no_privileges.py")]
    said = lab.host("a").run(program).stdout
    assert said == "right got 'are you there?'\nleft got 'yes'\n"


def test_scripts_say_how_to_use_them(lab: Lab) -> None:
    host = lab.host("a")
    for script in EXAMPLES.glob("*.sh"):
        process = start(host, script.name)
        _, stderr = process.communicate()
        assert process.returncode == 2
        assert stderr.startswith("usage: ")
