"""
A node whose installation nobody but root may read, as in a home directory of mode 0700.

It drops its privileges as always. From then on nothing may be imported, and no file of the
installation opened: every verb, page and event must do without.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import tunnel
from tests.netns.member import keys_on, until
from tests.netns.node import Node
from tests.netns.test_metrics import get
from tunnel.testing.lab import Host, Lab

PACKAGE = Path(tunnel.__file__).parent

# Runs `tunnel`, and writes a line for each import and each file of the installation that is opened
# once privileges are dropped.
START = """
import os, sys
from tunnel.node import node

dropped = False
places = tuple({os.path.realpath(place) + os.sep for place in (sys.argv.pop(1), sys.prefix,
                                                               sys.base_prefix)})

def watch(event, arguments):
    if not dropped:
        return
    if event == "import":
        # Of what is imported already there is no such event.
        print("UNREADABLE: import of", arguments[0], file=sys.stderr)
    elif event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], str):
        if os.path.realpath(arguments[0]).startswith(places):
            print("UNREADABLE:", event, arguments[0], file=sys.stderr)

def drop(**arguments):
    global dropped
    drop_privileges(**arguments)
    dropped = True

drop_privileges, node.drop_privileges = node.drop_privileges, drop
sys.addaudithook(watch)

from tunnel.cli import main
sys.argv[0] = "tunnel"
sys.exit(main())
"""

EVENTS = """
import asyncio, sys
from tunnel.rpc.client import Client

async def main():
    async with Client(name="tunnel1") as node:
        print("listening", flush=True)
        async for event in node.events():
            print(type(event).__name__ if not isinstance(event, dict) else event["event"],
                  flush=True)

asyncio.run(main())
"""

CONFIG = "/run/tunnel/tunnel1.toml"  # of the host's own


class LockedNode:
    """``tunnel up`` from a copy of the package in a directory that only root may enter."""

    def __init__(self, host: Host, place: Path) -> None:
        self.host, self._place = host, place

    def start(self, *words: str) -> None:
        environment = f"PYTHONPATH={self._place / 'lib'}"
        command = ["env", environment, sys.executable, "-c", START, str(self._place), "up", *words]
        self._process: subprocess.Popen[str] = self.host.popen(command)
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        assert self._process.stdout.readline(), self._process.stderr.read()

    def tell(self, *words: str) -> str:
        """Runs a verb beside the node, as root; its exit code may say that something is wrong."""
        process = self.host.popen([sys.executable, "-m", "tunnel", *words])
        out, errors = process.communicate(timeout=60)
        assert "Traceback" not in errors, errors
        assert "does not answer" not in errors, errors
        return out + errors

    def down(self) -> None:
        """Stops it; nothing was amiss."""
        self.tell("down")
        _, logged = self._process.communicate(timeout=60)
        assert "UNREADABLE" not in logged, logged
        assert "Traceback" not in logged, logged
        assert self._process.returncode == 0, logged


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "locked"
    shutil.copytree(PACKAGE, place / "lib" / "tunnel", ignore=shutil.ignore_patterns("__pycache__"))
    place.chmod(0o700)
    yield place
    shutil.rmtree(place)


def verbs(b: Node, *, mode: str) -> Iterator[tuple[str, ...]]:
    endpoint = b.host.ipv4
    yield ("status",)
    yield ("status", "--json")
    yield ("peer", "list")
    yield ("peer", "add", "192.0.2.77=10.77.0.0/16,mac=02:00:00:00:00:77")
    yield ("peer", "add", "name.invalid=10.78.0.0/16")
    yield ("peer", "add", "xn--bcher-kva.invalid=10.79.0.0/16")
    yield ("peer", "add", "not a peer")
    yield ("peer", "remove", "192.0.2.77")
    yield ("peer", "remove", "192.0.2.78")
    yield ("route", "list")
    yield ("neighbour", "list")
    yield ("fdb", "list")
    if mode == "tap":
        yield ("fdb", "add", "02:00:00:00:00:09", endpoint)
        yield ("fdb", "remove", "02:00:00:00:00:09")
        yield ("fdb", "flush")
    yield ("explain", b.ipv4)
    yield ("explain", b.ipv6, "--protocol", "tcp", "--dport", "80")
    yield ("explain", "203.0.113.1")
    yield ("drops",)
    yield ("ping", endpoint, "--count", "2", "--interval", "0.1")
    yield ("ping", "192.0.2.99", "--count", "1")
    yield ("doctor",)
    yield ("doctor", "--json")
    yield ("capture", "--count", "1", "--duration", "3")
    yield ("capture", "--inner", "--count", "1", "--duration", "3", "icmp")


@pytest.mark.parametrize(
    ("mode", "loop", "workers"), [("tun", "uvloop", "2"), ("tap", "asyncio", "1")]
)
def test_every_verb_page_and_event(
    lab: Lab, place: Path, mode: str, loop: str, workers: str
) -> None:
    a, b = Node(lab.host("a"), 1), Node(lab.host("b"), 2)
    lab.link(a.host, b.host)
    lines = ["network = ['10.244.0.0/16', 'fd00:244::/32']", f"subnet = {list(a.prefixes)}"]
    peer = f"[[peer]]\nendpoint = '{b.host.ipv4}'\nprefix = {list(b.prefixes)}\n"
    write(a.host, "\n".join([*lines, peer]))
    node = LockedNode(a.host, place)
    node.start(
        *("--config", CONFIG, "--mode", mode, "--loop", loop, "--workers", workers, "-v"),
        *("--ip-masq", "--subnet-file", "/run/tunnel/made/subnet.env"),
        *("--metrics", "127.0.0.1:9472"),
    )
    events = a.host.popen([sys.executable, "-c", EVENTS])
    assert events.stdout is not None
    assert events.stdout.readline() == "listening\n"
    b.up("--mode", mode, peers=[a.at(4)])
    a.host.ping(b.ipv4)
    a.host.ping(b.ipv6)
    pinging = a.host.popen(["ping", "-i", "0.2", b.ipv4])
    for words in verbs(b, mode=mode):
        node.tell(*words)
    pages(a.host)
    repairs(a.host, b)
    reloads(node, "\n".join([*lines, peer]))
    pinging.kill()
    pinging.communicate()
    pages(a.host)
    node.down()
    said, _ = events.communicate(timeout=30)
    kinds = set(said.split())
    assert {"PeerAdded", "PeerRemoved", "PeerUp"} <= kinds, kinds
    b.down()


def pages(host: Host) -> None:
    for path, code in (("metrics", 200), ("healthz", 200), ("readyz", 200), ("nothing", 404)):
        assert get(host, f"http://127.0.0.1:9472/{path}")[0] == code
    request = (
        "import urllib.request as u; print(u.urlopen(u.Request('http://127.0.0.1:9472/metrics',"
        "headers={'Accept': 'application/openmetrics-text'})).read().decode())"
    )
    assert "# EOF" in host.run([sys.executable, "-c", request]).stdout


def repairs(host: Host, b: Node) -> None:
    """What other programs change is restored, and a peer that is silent is noticed."""
    host.run("nft flush ruleset")
    host.run("ip route flush proto 84")
    host.run(["sh", "-c", "until ip route | grep -q '^10.244.2.0/24 '; do sleep 0.05; done"])
    host.run(["sh", "-c", "until nft list ruleset | grep -q overlay; do sleep 0.05; done"])
    host.run("ip link set tunnel1 down")
    host.run("ip link set tunnel1 up")
    host.run(["sh", "-c", "until ip route | grep -q '^10.244.2.0/24 '; do sleep 0.05; done"])
    b.down()


def reloads(node: LockedNode, content: str) -> None:
    more = "[[peer]]\nendpoint = '2001:db8::3'\nprefix = ['10.244.3.0/24']\n"
    for text, fine in ((content + more, True), (content + "oops", False), (content, True)):
        write(node.host, text)
        said = node.tell("reload")
        assert fine or "tunnel1.toml" in said


def write(host: Host, content: str) -> None:
    host.run(["sh", "-c", 'printf %s "$1" >"$0"', CONFIG, content])


@contextmanager
def store(kind: str, host: Host, directory: Path) -> Iterator[tuple[str, ...]]:
    """Options of a store with a network in it."""
    if kind == "etcd":
        with keys_on(host, directory) as keys:
            keys.wait()
            keys.init({})
            yield keys.words
    else:
        with tempfile.TemporaryDirectory(dir="/tmp") as shared:
            Path(shared).chmod(0o777)
            words = ("--store", shared)
            init = ["network", "init", "--network", "10.42.0.0/16", *words]
            host.run([sys.executable, "-m", "tunnel", *init])
            host.run(["sh", "-c", f"chmod 666 {shared}/*"])
            yield words


@pytest.mark.parametrize("kind", ["directory", "etcd"])
def test_a_node_of_a_cluster(lab: Lab, place: Path, tmp_path: Path, kind: str) -> None:
    a, b = lab.host("a"), lab.host("b")
    lab.link(a, b)
    with store(kind, a, tmp_path) as options:
        words = ("--iface", "eth0", "--state-dir", "/run/tunnel/state", *options)
        node, other = LockedNode(a, place), LockedNode(b, place)
        node.start(*words, "--metrics", "127.0.0.1:9472", "-v")
        other.start(*words)
        until(lambda: b.ipv4 in node.tell("peer", "list"))
        for verb in ("status", "doctor", "peer list", "route list", "reload"):
            node.tell(*verb.split())
        pages(a)
        other.down()
        node.down()
