"""The verbs that send requests to a running node, against nodes that move packets."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.netns.node import Node, control_socket
from tests.netns.test_overlay import mesh, pair
from tests.netns.traffic import exchange, numbered
from tests.netns.unprivileged import python_as_nobody
from tests.unit.cli.test_node_verbs import check
from tunnel.testing.lab import Host, Lab, LabError

PYTHON = [sys.executable, "-m", "tunnel"]


def tell(host: Host, words: str, *, code: int = 0, python: Sequence[str] = PYTHON) -> str:
    """Returns what a verb prints on a host; if it does not start, its one line on stderr."""
    process = host.popen([*python, *words.split()])
    out, err = process.communicate(timeout=30)
    assert process.returncode == code, (out, err)
    assert len(err.splitlines()) == (1 if code == 2 else 0), err
    return err if code == 2 else out


def own_path(host: Host) -> str:
    """The control socket of the node ``tunnel1``, as the host itself sees it."""
    return f"/run/tunnel/{control_socket(host).name}"


def ask(host: Host, words: str, *, code: int = 0) -> Any:
    return json.loads(tell(host, f"{words} --json", code=code))


@pytest.fixture
def file() -> Iterator[Path]:
    """A configuration file that nobody, as which nodes run, can read."""
    with TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        yield Path(place) / "a.toml"


def up_from_file(node: Node, file: Path, peers: Sequence[str], *, extra: str = "") -> None:
    write(file, node, peers, extra=extra)
    node.up("--config", str(file), peers=[])


def write(file: Path, node: Node, peers: Sequence[str], *, extra: str = "") -> None:
    words = {"subnet": node.prefixes, "peer": peers}
    lines = [f"{word} = {json.dumps(list(values))}" for word, values in words.items()]
    file.write_text("\n".join([*lines, extra, ""]))


def until_up(host: Host, peer: str) -> dict[str, Any]:
    """Returns the status of a peer once it answers."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for line in ask(host, "status")["peers"]:
            if line["endpoint"] == peer and line["state"] == "up" and line["path_mtu"]:
                found: dict[str, Any] = line
                return found
    raise AssertionError(f"{peer} does not come up")


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_every_verb_against_a_pair(lab: Lab, loop: str) -> None:
    a, b = pair(lab)
    for node, other in ((a, b), (b, a)):
        node.up("--loop", loop, peers=[other.at(4)])
    at_b = f"{b.host.ipv4}:8472"
    a.host.ping(b.ipv4, count=3)
    line = until_up(a.host, at_b)
    assert line["path_mtu"] == 1450
    assert 0 < line["rtt"] < 5
    assert line["outbound"]["packets"] >= 3
    now = ask(a.host, "status")
    check("status", now)
    check("peer", now["peers"])
    assert now["device"] == "tunnel1"
    assert {"tso", "gro"} <= set(now["offloads"])
    said = tell(a.host, "status")
    assert re.search(rf"{re.escape(at_b)} +192\.0\.2\.2 +up ", said)

    routes = ask(a.host, "route list")
    check("route", routes)
    assert routes == [{"prefix": p, "peer": at_b, "kernel": True} for p in b.prefixes]
    # Those that somebody takes away come back, but not while the device is down.
    a.host.run("ip link set tunnel1 down")
    assert [route["kernel"] for route in ask(a.host, "route list")] == [False, False]
    assert "missing" in tell(a.host, "route list")
    a.host.run("ip link set tunnel1 up")
    while not all(route["kernel"] for route in ask(a.host, "route list")):
        time.sleep(0.05)

    check("neighbour", ask(a.host, "neighbour list"))
    neigh = f"{b.prefixes[0]} dev tunnel1 lladdr 02:76:74:65:70:00 dst {at_b} control up\n"
    assert tell(a.host, "neighbour list").startswith(neigh)

    a.host.run("ip route add 10.99.0.0/16 dev tunnel1")
    with pytest.raises(LabError):
        a.host.ping("10.99.0.1")
    (drop,) = ask(a.host, "drops")
    assert (drop["reason"], drop["count"]) == ("no_route", 1)
    assert "no_route" in tell(a.host, "drops")

    check("ping", ask(a.host, f"ping {b.ipv4} -c 2"))
    check("change", ask(a.host, "peer add 192.0.2.9=10.9.0.0/16"))
    assert "10.9.0.0/16 dev tunnel1" in a.host.run("ip route").stdout
    check("change", ask(a.host, "peer remove 192.0.2.9"))
    assert "10.9.0.0/16" not in a.host.run("ip route").stdout

    check("down", ask(a.host, "down"))
    assert "tunnel1" not in a.host.run("ip -o link").stdout
    assert a.ended() == {"no_route": 1}
    assert "start one" in tell(a.host, "status", code=2)
    assert tell(b.host, "down") == "tunnel1 is down\n"


def test_ping_says_at_which_stage_it_fails(lab: Lab) -> None:
    a, b = pair(lab)
    nobody, nowhere = "nobody.invalid=10.8.0.0/16", "203.0.113.9=10.9.0.0/16"
    a.up(peers=[b.at(4), nobody, nowhere])
    assert "does not exist (peers: " in tell(a.host, "ping 10.77.0.1", code=2)
    assert ask(a.host, "ping 10.8.0.1", code=1)["stage"] == "unresolved"
    assert ask(a.host, "ping 203.0.113.9", code=1)["stage"] == "no_route"
    # The peer does not run yet, then runs, then ends.
    silent = ask(a.host, f"ping {b.ipv4} -c 1", code=1)
    assert silent["stage"] == "no_answer"
    assert "never answered" in silent["why"]
    b.up(peers=[a.at(4)])
    assert ask(a.host, f"ping {b.ipv4} --size 1450 -c 2")["answered"] == 2
    large = ask(a.host, f"ping {b.ipv4} --size 1451 -c 1", code=1)
    assert large["stage"] == "too_big"
    b.kill()
    gone = ask(a.host, f"ping {b.ipv4} -c 1", code=1)
    assert gone["stage"] == "no_answer"
    assert "never" not in gone["why"]
    a.kill()


def test_an_interrupted_ping_prints_its_summary(lab: Lab) -> None:
    a, b = pair(lab)
    a.up(peers=[b.at(4)])
    b.up(peers=[a.at(4)])
    process = a.host.popen([*PYTHON, "ping", b.ipv4, "-c", "1000"])
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")
    assert re.search(r"^(\d+) of \1 answered, least/mean/most ", out, re.MULTILINE)


def test_a_user_without_permission_is_refused(lab: Lab) -> None:
    """Also another process of the user that the node runs as."""
    a, b = pair(lab)
    a.up(peers=[b.at(4)])
    for verb in ("status", "doctor", "capture"):
        for words in (verb, f"{verb} --control {own_path(a.host)}"):
            said = tell(a.host, words, code=2, python=[*python_as_nobody(), "-m", "tunnel"])
            assert f"{own_path(a.host)}: permission denied (run as its owner" in said
    assert a.down() == {}


def test_two_nodes_on_one_host(lab: Lab) -> None:
    a, b = pair(lab)
    other = Node(a.host, 3)
    a.up(peers=[b.at(4)])
    other.up("--name", "other", "--port", "4789", peers=["192.0.2.2:4789=10.9.0.0/16"])
    assert "choose by --name: other, tunnel1" in tell(a.host, "status", code=2)
    assert ask(a.host, "status --name other")["name"] == "other"
    assert ask(a.host, f"status --control {own_path(a.host)}")["name"] == "tunnel1"
    assert other.down() == {}
    assert ask(a.host, "status")["name"] == "tunnel1"
    assert a.down() == {}


@contextmanager
def other_namespace(host: Host) -> Iterator[list[str]]:
    """Another network namespace that shares /run with a host; yields the command to enter it."""
    holder = host.popen(["unshare", "--net", "sh", "-c", "ip link set lo up; echo; exec sleep 600"])
    assert holder.stdout is not None
    assert holder.stdout.readline() == "\n"
    yield ["nsenter", f"--net=/proc/{holder.pid}/ns/net"]
    holder.kill()
    holder.communicate()


def test_two_nodes_of_one_name_share_run(lab: Lab) -> None:
    """Each has a control socket, and a command asks the node of its own network namespace."""
    a, b = pair(lab)
    with other_namespace(a.host) as enter:
        inside = [*enter, *PYTHON]
        a.up(peers=[b.at(4)])
        assert "no node has a control socket in this network namespace" in tell(
            a.host, "status", code=2, python=inside
        )
        other = a.host.popen(
            [*inside, "up", "--local", "127.0.0.1", "--peer", "127.0.0.2=10.9.0.0/16"]
        )
        assert other.stdout is not None
        assert other.stdout.readline().startswith("tunnel1: ")
        assert a.host.run("ls /run/tunnel").stdout.count("tunnel1@") == 2
        ours, theirs = (
            ask(a.host, "status"),
            json.loads(tell(a.host, "status --json", python=inside)),
        )
        assert ours["peers"][0]["prefixes"][0] == b.prefixes[0]
        assert theirs["peers"][0]["prefixes"] == ["10.9.0.0/16"]
        assert (ours["netns"], ours["pid"]) == (Path(f"/proc/{a.pid}/ns/net").stat().st_ino, a.pid)
        assert theirs["netns"] not in (0, ours["netns"])
        assert f"network namespace {theirs['netns']}" in tell(a.host, "status", python=inside)
        assert tell(a.host, "down", python=inside) == "tunnel1 is down\n"
        other.communicate(timeout=20)
        # By name a command reaches a node elsewhere, and says so.
        process = a.host.popen([*inside, "status", "--name", "tunnel1", "--json"])
        out, err = process.communicate(timeout=30)
        assert json.loads(out)["pid"] == a.pid
        assert err == (
            f"tunnel: tunnel1 (pid {a.pid}) runs in another network namespace, {ours['netns']}\n"
        )
    assert a.down() == {}
    assert a.host.run("ls /run/tunnel").stdout == ""


def test_a_node_that_waits_for_its_store_says_so(lab: Lab) -> None:
    """It answers at once, and "tunnel down" ends it."""
    host = pair(lab)[0].host
    etcd = "http://127.0.0.1:1"
    node = host.popen([*PYTHON, "up", "--etcd-endpoints", etcd, "--iface", "eth0"])
    deadline = time.monotonic() + 20
    now: dict[str, Any] = {"phase": ""}
    while not now["phase"].startswith("waits for the store"):
        assert time.monotonic() < deadline, now
        assert node.poll() is None, node.communicate()
        time.sleep(0.1)
        process = host.popen([*PYTHON, "status", "--json"])
        out, _ = process.communicate(timeout=5)
        now = json.loads(out) if process.returncode == 0 else now
    check("status", now)
    assert etcd in now["phase"]
    assert (now["peers"], now["endpoints"], now["pid"]) == ([], [], node.pid)
    assert tell(host, "status").startswith("tunnel1  waits for the store")
    assert "tunnel1 is not open yet: it waits for the store" in tell(host, "peer list", code=2)
    before = time.monotonic()
    assert tell(host, "down") == "tunnel1 is down\n"
    assert time.monotonic() < before + 5
    node.communicate(timeout=10)
    assert node.returncode == 0
    assert host.run("ls /run/tunnel").stdout == ""


def test_a_node_that_was_killed_leaves_a_dead_socket(lab: Lab) -> None:
    a, b = pair(lab)
    a.up(peers=[b.at(4)])
    a.kill()
    assert 'is dead: its node was killed ("tunnel up" replaces the socket)' in tell(
        a.host, "status", code=2
    )
    a.up(peers=[b.at(4)])
    assert ask(a.host, "status")["name"] == "tunnel1"
    assert a.down() == {}
    assert a.host.run("ls /run/tunnel").stdout == ""


def test_up_without_a_control_socket(lab: Lab) -> None:
    a, b = pair(lab)
    a.up("--control", "none", peers=[b.at(4)])
    assert a.host.run("ls /run").stdout  # the host is as it was
    assert "no node has a control socket" in tell(a.host, "status", code=2)
    assert a.down() == {}


def test_up_with_an_impossible_control_socket(lab: Lab) -> None:
    a, b = pair(lab)
    said = tell(a.host, f"up --peer {b.at(4)} --control /nowhere/x/y.sock", code=2)
    assert "cannot create control socket /nowhere/x/y.sock: no such file" in said
    assert "tunnel1" not in a.host.run("ip -o link").stdout


def test_a_device_that_vanishes_takes_the_socket_with_it(lab: Lab) -> None:
    a, b = pair(lab)
    a.up(peers=[b.at(4)])
    a.host.run("ip link delete tunnel1")
    a.wait()
    assert a.host.run("ls /run/tunnel").stdout == ""


@pytest.mark.parametrize("how", ["peer add", "reload"])
def test_changes_under_load_lose_no_packet_of_other_peers(lab: Lab, how: str, file: Path) -> None:
    """TCP both ways at full speed and numbered datagrams, while a third peer is added and removed
    through the control socket: no byte and no datagram of the others is lost."""
    a, b, c = mesh(lab)
    up_from_file(a, file, [b.at(4)])
    b.up(peers=[a.at(4)])
    c.up(peers=[a.at(4)])

    def change(number: int) -> None:
        come = number % 2 == 0
        if how == "peer add":
            verb = f"peer add {c.at(4)}" if come else f"peer remove {c.host.ipv4}"
            tell(a.host, verb)
        else:
            write(file, a, [c.at(4), b.at(4)] if come else [b.at(4)])
            assert ask(a.host, "reload")["added" if come else "removed"] == ["192.0.2.3:8472"]

    with (
        repeated(change) as rounds,
        numbered(a.host, b.host, b.ipv4, pause=0.0002),
        numbered(b.host, a.host, a.ipv6, pause=0.0002),
    ):
        while len(rounds) < 6:
            exchange(a.host, b.host, b.ipv6)
            exchange(b.host, a.host, a.ipv4)
    (line,) = [peer for peer in ask(a.host, "status")["peers"] if "192.0.2.2" in peer["endpoint"]]
    assert line["drops"] == {}
    assert b.down() == {}


@contextmanager
def repeated(change: Any) -> Iterator[list[int]]:
    """Calls `change` with 0, 1, 2 ... in a thread while the block runs; raises its errors."""
    rounds: list[int] = []
    wrong: list[BaseException] = []
    stop = threading.Event()

    def run() -> None:
        try:
            while not stop.is_set():
                change(len(rounds))
                rounds.append(len(rounds))
        except BaseException as error:
            wrong.append(error)
            rounds.extend(range(1000))

    # Children end with the thread that started them: those here are waited for.
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield rounds
    finally:
        stop.set()
        thread.join()
    if wrong:
        raise wrong[0]


MISTAKES = {
    "mtu = 1": r"a\.toml:3: mtu: mtu 1 is out of range",
    "mtu = 1300": r"a\.toml:3: mtu: mtu cannot change while the node runs \(restart the node\)",
    "peer = 3": r"a\.toml:3: not TOML: Cannot overwrite a value",
    'loop = "twisted"': r"a\.toml:3: loop: ",
}


def test_a_file_with_a_mistake_changes_nothing(lab: Lab, file: Path) -> None:
    a, b = pair(lab)
    up_from_file(a, file, [b.at(4)])
    b.up(peers=[a.at(4)])
    before = ask(a.host, "route list")
    with numbered(a.host, b.host, b.ipv4):
        for mistake, says in MISTAKES.items():
            write(file, a, ["192.0.2.9=10.9.0.0/16"], extra=mistake)
            assert re.search(says, tell(a.host, "reload", code=2))
            assert ask(a.host, "route list") == before
        # Faults that only this host knows: its own address, the route of another program.
        write(file, a, [b.at(4), f"{a.host.ipv4}=10.9.0.0/16"])
        said = tell(a.host, "reload", code=2)
        assert re.search(r"a\.toml:2: peer\[1\]: peer 192\.0\.2\.1:8472 is this node itself", said)
        assert ask(a.host, "route list") == before
        a.host.run("ip route add 10.9.0.0/16 dev eth0")
        write(file, a, ["192.0.2.8=10.8.0.0/16", "192.0.2.9=10.9.0.0/16", b.at(4)])
        assert "kernel route 10.9.0.0/16 exists already" in tell(a.host, "reload", code=2)
        assert ask(a.host, "route list") == before
        file.unlink()
        assert "a.toml: no such file" in tell(a.host, "reload", code=2)
        assert ask(a.host, "route list") == before
    assert a.down() == {}


def test_sighup_reads_the_file_again(lab: Lab, file: Path) -> None:
    a, b = pair(lab)
    up_from_file(a, file, [b.at(4)])
    write(file, a, [b.at(4), "192.0.2.9=10.9.0.0/16"])
    os.kill(a.pid, signal.SIGHUP)
    a.host.run(
        ["sh", "-c", "until ip route | grep -q ^10.9.0.0/16; do sleep 0.05; done"], timeout=10
    )
    write(file, a, ["nonsense"])
    os.kill(a.pid, signal.SIGHUP)
    assert len(ask(a.host, "peer list")) == 2
    a.down()


def test_watching_on_a_terminal_until_the_node_ends(lab: Lab) -> None:
    """On a terminal of 80 columns: rates, no wrapped line, one line at the end."""
    a, b = pair(lab)
    a.up(peers=[b.at(4)])
    b.up(peers=[a.at(4)])
    ours, theirs = pty.openpty()
    enter = ["nsenter", f"--target={a.host.pid}", "--net", "--mount", "--wd", "--"]
    watching = subprocess.Popen(
        [*enter, *PYTHON, "status", "--watch"],
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "80", "LINES": "24", "TERM": "xterm"},
    )
    os.close(theirs)
    with numbered(a.host, b.host, b.ipv4):
        read_until(ours, "out/s")  # what a second look can tell
        assert b.host.ipv4 in read_until(ours, "[kM]B")
    a.down()
    drain = threading.Thread(target=read_until, args=(ours, "\0"))
    drain.start()
    _, said = watching.communicate(timeout=20)
    drain.join()
    os.close(ours)
    assert watching.returncode == 1
    assert re.fullmatch(r"tunnel: the node at \S+ closed the connection \(.*\)\n", said)
    b.down()


def read_until(terminal: int, pattern: str) -> str:
    """Returns what a terminal shows, up to `pattern` or its end."""
    seen, deadline = "", time.monotonic() + 20
    while not re.search(pattern, seen) and time.monotonic() < deadline:
        if select.select([terminal], [], [], 1)[0]:
            try:
                seen += os.read(terminal, 4096).decode()
            except OSError:
                break
    return seen
