"""What a running node may still do, and what it may not: asked of the kernel, and tried."""

import json
import pwd
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.netns.node import Node
from tests.netns.traffic import exchange, inside
from tunnel.errors import ConfigError
from tunnel.linux.users import choose_user
from tunnel.testing.lab import Host, Lab

NET_ADMIN, NET_BIND_SERVICE = 1 << 12, 1 << 10
NOBODY = pwd.getpwnam("nobody").pw_uid
NO_OTHER_USER = ["setpriv", "--bounding-set=-setuid,-setgid", "--inh-caps=-all", "--"]

# Drops all it can, then says what happens when it tries.
TRIES = """
import ctypes, json, os, socket, subprocess, sys
from tunnel.linux.privileges import drop_privileges

def attempt(what):
    try:
        what()
    except Exception as error:
        return type(error).__name__
    return "done"

drop_privileges(user=sys.argv[1], port=int(sys.argv[2]))

def bind(port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", port))

def capture():
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3).close()

def force_a_buffer():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)

print(json.dumps({
    "shadow": attempt(lambda: open("/etc/shadow").read()),
    "bind": attempt(lambda: bind(99)),
    "capture": attempt(capture),
    "chown": attempt(lambda: os.chown(sys.argv[3], 1, 1)),
    "root again": attempt(lambda: os.setuid(0)),
    "buffer": attempt(force_a_buffer),
    "child": subprocess.run(
        ["grep", "CapEff", "/proc/self/status"], capture_output=True, text=True
    ).stdout.split()[-1],
}))
"""


@pytest.fixture
def host(lab: Lab) -> Host:
    host = lab.host("a")
    host.run("sysctl -q -w net.ipv4.ip_unprivileged_port_start=1024")
    return host


def statuses(pid: int) -> list[dict[str, str]]:
    """What the kernel says of each thread."""
    texts = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status")]
    return [dict(line.split(":\t", 1) for line in text.splitlines()) for text in texts]


def check(pid: int, *, uid: int, capabilities: int = NET_ADMIN) -> None:
    threads = statuses(pid)
    assert threads
    for thread in threads:
        assert thread["Uid"].split() == [str(uid)] * 4
        for one in ("CapEff", "CapPrm", "CapBnd"):
            assert int(thread[one], 16) == capabilities, f"{thread['Name']}: {one}"
        for one in ("CapInh", "CapAmb"):
            assert int(thread[one], 16) == 0, f"{thread['Name']}: {one}"
        assert thread["NoNewPrivs"] == "1"


def tries(host: Host, *, user: str, port: int = 8472, file: Path) -> dict[str, str]:
    run = host.run([sys.executable, "-c", TRIES, user, str(port), str(file)])
    said: dict[str, str] = json.loads(run.stdout)
    return said


def test_as_another_user_nothing_but_the_network(host: Host, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert tries(host, user="nobody", file=file) == {
        "shadow": "PermissionError",
        "bind": "PermissionError",
        "capture": "PermissionError",
        "chown": "PermissionError",
        "root again": "PermissionError",
        "buffer": "done",
        "child": "0000000000000000",
    }


def test_who_stays_root_has_no_power_over_others_but_its_own_files(
    host: Host, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    said = tries(host, user="root", file=file)
    assert said["chown"] == said["capture"] == said["bind"] == "PermissionError"
    assert said["buffer"] == "done"
    # What root runs gets what root may have: no more than we.
    assert int(said["child"], 16) == NET_ADMIN


def test_a_low_port_stays_possible(host: Host, tmp_path: Path) -> None:
    assert tries(host, user="nobody", port=443, file=tmp_path)["bind"] == "done"


def test_who_may_not_becomes_nobody_else(host: Host, tmp_path: Path) -> None:
    command = [sys.executable, "-c", TRIES, "nobody", "8472", str(tmp_path)]
    process = host.popen([*NO_OTHER_USER, *command])
    _, errors = process.communicate(timeout=20)
    last = errors.splitlines()[-1]
    assert "cannot change to user nobody: operation not permitted (start it as root" in last


def test_who_is_that_user_already_stays_so(host: Host, tmp_path: Path) -> None:
    """As under systemd, which may have given us nothing at all."""
    program = TRIES.replace("\ndrop_", f"\nos.setuid({NOBODY})\ndrop_", 1)
    run = host.run([sys.executable, "-c", program, "nobody", "8472", str(tmp_path)])
    said = json.loads(run.stdout)
    assert said.pop("child") == "0000000000000000"
    assert set(said.values()) == {"PermissionError"}


def test_a_user_that_is_not_there(lab: Lab) -> None:
    with pytest.raises(ConfigError, match="user no-such-user does not exist"):
        choose_user("no-such-user")
    a = Node(lab.host("a"), 1)
    command = [sys.executable, "-m", "tunnel", "up", "--user", "no-such-user"]
    process = a.host.popen(command)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert errors.startswith("tunnel: user no-such-user does not exist (")
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize("words", [(), ("--user", "root")])
@pytest.mark.parametrize(("workers", "loop"), [("1", "asyncio"), ("3", "uvloop")])
def test_a_node_runs_on_with_one_capability(
    lab: Lab, workers: str, loop: str, words: tuple[str, ...]
) -> None:
    a, b = Node(lab.host("a"), 1), Node(lab.host("b"), 2)
    lab.link(a.host, b.host)
    # A name is resolved in threads, which must not have been there before.
    named = "localhost:9=10.99.0.0/16"
    a.up("--workers", workers, "--loop", loop, *words, peers=[b.at(4), named])
    b.up("--workers", workers, "--loop", loop, *words, peers=[a.at(4)])
    a.host.ping(b.ipv4)
    exchange(a.host, b.host, b.ipv6, size=4 << 20)
    for node in (a, b):
        check(node.pid, uid=0 if words else NOBODY)
    assert b.down() == {}
    a.down()
    assert "tunnel1" not in a.host.run("ip link").stdout


def test_it_still_ends_with_who_started_it(host: Host) -> None:
    """setpriv --pdeathsig, as of every process of a lab."""
    starts = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    up = ["setpriv", "--pdeathsig=KILL", "--", sys.executable, "-m", "tunnel", "up"]
    parent = host.popen([sys.executable, "-c", starts, *up])
    assert parent.stdout is not None
    assert parent.stdout.readline().startswith("tunnel1: ")
    parent.kill()
    parent.communicate(timeout=30)  # until nobody has the other ends of its pipes any more


def test_a_low_port_is_kept(lab: Lab) -> None:
    a, b = Node(lab.host("a"), 1), Node(lab.host("b"), 2)
    lab.link(a.host, b.host)
    words = ("--port", "443", "--user", "nobody")
    a.up(*words, peers=[b.at(4).replace("=", ":443=", 1)])
    b.up(*words, peers=[a.at(4).replace("=", ":443=", 1)])
    a.host.ping(b.ipv4)
    check(a.pid, uid=NOBODY, capabilities=NET_ADMIN | NET_BIND_SERVICE)


PATH = "/run/tunnel/tunnel1.toml"  # of the host's own
FILE = """
subnet = ["10.244.1.0/24", "fd00:244:1::/64"]

[[peer]]
endpoint = "192.0.2.2"
prefix = ["10.244.2.0/24", "fd00:244:2::/64"]
"""
MORE = """
[[peer]]
endpoint = "2001:db8::3"
prefix = ["10.244.3.0/24"]
"""


def test_peers_come_and_go_without_root(lab: Lab) -> None:
    """The later one is the first of its underlay family: sockets are opened, routes made."""
    a, b, c = (Node(lab.host(name), number) for number, name in enumerate("abc", start=1))
    lab.switch(a.host, b.host, c.host)
    write(a.host, FILE)
    command = [sys.executable, "-m", "tunnel", "up", "-v", "--config", PATH, "--user", "nobody"]
    process = a.host.popen(command)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("tunnel1: ")
    b.up(peers=[a.at(4)])
    c.up(peers=[a.at(6)])
    a.host.ping(b.ipv4)
    for content, routed in ((FILE + MORE, True), (FILE, False), (FILE + MORE, True)):
        write(a.host, content)
        process.send_signal(signal.SIGHUP)
        until_routed(a.host, "10.244.3.0/24", routed)
        a.host.ping(b.ipv4)
    a.host.ping(c.ipv4)
    check(process.pid, uid=NOBODY)
    assert stopped(process) == ""
    assert "tunnel1" not in a.host.run("ip link").stdout


def write(host: Host, content: str) -> None:
    host.run(["sh", "-c", f"cat >{PATH} <<END\n{content}END"])


def until_routed(host: Host, prefix: str, routed: bool) -> None:
    """Waits until the kernel has the route, or has not."""
    test = f"{'until' if routed else 'while'} ip route | grep -q '^{prefix} '; do sleep 0.05; done"
    host.run(["sh", "-c", test], timeout=30)


def stopped(process: subprocess.Popen[str]) -> str:
    """Ends a node, which has nothing to complain of; what it said on stderr but for news."""
    process.terminate()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    return "".join(line for line in errors.splitlines() if not re.match("INFO ", line))


def test_a_persistent_device_is_cleared_and_left(lab: Lab) -> None:
    a, b = Node(lab.host("a"), 1), Node(lab.host("b"), 2)
    lab.link(a.host, b.host)
    a.host.run("ip tuntap add tunnel1 mode tun multi_queue")
    for _ in range(2):
        a.up("--user", "nobody", peers=[b.at(4)])
        a.down()
        assert "10.244.2.0/24" not in a.host.run("ip route").stdout
        assert "inet " not in a.host.run("ip address show tunnel1").stdout


@pytest.mark.parametrize(("words", "owner"), [((), "root"), (("--user", "daemon"), "daemon")])
def test_the_control_socket_goes_with_the_node(
    lab: Lab, words: tuple[str, ...], owner: str
) -> None:
    """Many programs run as nobody, and not all of them may change peers."""
    a, b = Node(lab.host("a"), 1), Node(lab.host("b"), 2)
    lab.link(a.host, b.host)
    a.up(*words, peers=[b.at(4)])
    said = a.host.run(["sh", "-c", "stat -c '%a %U %G' /run/tunnel/tunnel1@*.sock"]).stdout
    assert said.split() == ["660", owner, owner]
    assert b.host.ipv4 in a.host.run([sys.executable, "-m", "tunnel", "status"]).stdout
    a.down()
    assert a.host.run(["sh", "-c", "ls /run/tunnel"]).stdout == ""


def test_a_file_that_cannot_be_read_again_is_told(lab: Lab) -> None:
    a = Node(lab.host("a"), 1)
    write(a.host, 'subnet = "10.244.1.0/24"\n')
    a.host.run(["chmod", "600", PATH])
    command = [sys.executable, "-m", "tunnel", "up", "--config", PATH]
    for words, said in (
        ([], f"WARNING {PATH} cannot be reloaded: uid {NOBODY}, "),
        (["--user", "root"], ""),
    ):
        process = a.host.popen([*command, *words])
        assert process.stdout is not None
        assert process.stdout.readline().startswith("tunnel1: ")
        assert stopped(process).startswith(said)


def test_metrics_on_a_low_port(host: Host) -> None:
    """Opened before the privilege for it is dropped."""
    process = host.popen([sys.executable, "-m", "tunnel", "up", "--metrics", "127.0.0.1:99"])
    assert process.stdout is not None
    assert process.stdout.readline().startswith("tunnel1: ")
    with inside(host):
        caller = socket.create_connection(("127.0.0.1", 99), timeout=30)
    with caller:
        caller.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
        assert caller.makefile().readline() == "HTTP/1.1 200 OK\n"
    check(process.pid, uid=NOBODY)
    assert stopped(process) == ""


def test_in_a_user_namespace_it_stays_who_it_is(host: Host) -> None:
    up = [sys.executable, "-m", "tunnel", "up", "-v", "--control", "none"]
    process = host.popen(["unshare", "--user", "--map-root-user", "--net", *up])
    assert process.stdout is not None
    assert process.stdout.readline().startswith("tunnel1: ")
    (thread, *_) = statuses(process.pid)
    assert thread["CapEff"] == f"{NET_ADMIN:016x}"
    process.terminate()
    _, errors = process.communicate(timeout=30)
    assert errors.splitlines()[0] == "INFO continues as root: cannot change to user nobody here"
    refused = host.popen(["unshare", "--user", "--map-root-user", "--net", *up, "--user", "nobody"])
    _, errors = refused.communicate(timeout=30)
    assert refused.returncode == 2
    assert "cannot change to user nobody: " in errors
