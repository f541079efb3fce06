"""The verbs that send requests to a running node, against a node in a thread of the test."""

import asyncio
import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from io import StringIO
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from rich.console import Console

from tests.unit.rpc.test_server import two_tunnels
from tunnel import Service
from tunnel.cli import main, output
from tunnel.cli.status_view import view

SCHEMAS = Path(__file__).parents[2] / "schemas"


def check(name: str, result: object) -> None:
    """Raises ValidationError if `result` does not match a schema."""
    schema = json.loads((SCHEMAS / f"{name}.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(result, schema)


@contextmanager
def running(path: Path) -> Iterator[str]:
    """Runs a node without a device at a control socket; yields the endpoint of its peer."""
    ready: Future[tuple[asyncio.AbstractEventLoop, str]] = Future()
    stop = asyncio.Event()

    async def serve() -> None:
        async with two_tunnels() as (one, _), Service(one, path=path, down=stop.set):
            ready.set_result((asyncio.get_running_loop(), str(one.peers[0])))
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    loop, peer = ready.result(10)
    try:
        yield peer
    finally:
        with suppress(RuntimeError):  # it is closed already
            loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        assert not thread.is_alive()


class Node:
    """A running node and the verbs that are used with it."""

    def __init__(self, path: Path, peer: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.peer = peer
        self._path, self._capsys = path, capsys

    def tell(self, *words: str, code: int = 0) -> str:
        """Returns what a verb prints; if it fails, its one line on stderr."""
        assert main([*words, "--control", str(self._path)]) == code
        out, err = self._capsys.readouterr()
        if code == 2:
            assert out == ""
            assert err.startswith("tunnel: ")
            assert err.count("\n") == 1
            return err
        assert err == ""
        return out

    def json(self, *words: str, code: int = 0) -> Any:
        return json.loads(self.tell(*words, "--json", code=code))


@pytest.fixture
def one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Node]:
    path = tmp_path / "one.sock"
    with running(path) as peer:
        yield Node(path, peer, capsys)


def test_status(one: Node) -> None:
    now = one.json("status")
    check("status", now)
    check("peer", now["peers"])
    said = one.tell("status")
    assert said.startswith("tunnel1   vni 1, mtu ")
    assert one.peer in said


def test_peers(one: Node) -> None:
    added = one.json("peer", "add", "127.0.0.3=10.3.0.0/16,10.4.0.0/16,mac=02:00:00:00:00:01")
    check("change", added)
    assert added == {"added": ["127.0.0.3:8472"]}
    peers = one.json("peer", "list")
    check("peer", peers)
    assert [peer["prefixes"] for peer in peers] == [["10.2.0.0/16"], ["10.3.0.0/16", "10.4.0.0/16"]]
    said = one.tell("peer", "list").splitlines()
    assert said[0].split() == ["peer", "address", "mac", "prefixes"]
    words = ["127.0.0.3:8472", "127.0.0.3", "02:00:00:00:00:01", "10.3.0.0/16,", "10.4.0.0/16"]
    assert said[2].split() == words
    assert one.tell("peer", "remove", "127.0.0.3") == "- 127.0.0.3:8472\n"
    assert one.tell("peer", "add", "127.0.0.4=10.4.0.0/16") == "+ 127.0.0.4:8472\n"
    check("change", one.json("peer", "remove", "127.0.0.4"))


def test_impossible_peers(one: Node) -> None:
    assert "overlaps" in one.tell("peer", "add", "127.0.0.3=10.2.0.0/24", code=2)
    assert "has no prefix" in one.tell("peer", "add", "127.0.0.3", code=2)
    assert "does not exist" in one.tell("peer", "remove", "127.0.0.3", code=2)
    assert len(one.json("peer", "list")) == 1


def test_routes_and_neighbours(one: Node) -> None:
    routes = one.json("route", "list")
    check("route", routes)
    assert routes == [{"prefix": "10.2.0.0/16", "peer": one.peer, "kernel": None}]
    assert one.tell("route", "list").splitlines()[1].split() == ["10.2.0.0/16", one.peer, "-"]
    check("neighbour", one.json("neighbour", "list"))
    said = one.tell("neighbour", "list")
    assert said.startswith(f"10.2.0.0/16 lladdr 02:76:74:65:70:00 dst {one.peer} ")


@pytest.mark.parametrize("verb", ["peer", "route"])
def test_a_narrow_terminal_leaves_nothing_out(
    one: Node, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one.tell("peer", "add", "2001:db8:1:2:3:4:5:6=2001:db8:7:8::/64")
    monkeypatch.setenv("COLUMNS", "40")
    said = one.tell(verb, "list")
    assert max(map(len, said.splitlines())) <= 40
    assert "…" not in said


def test_drops(one: Node) -> None:
    assert one.tell("drops") == "no packet was dropped\n"
    assert one.json("drops") == []
    every = one.json("drops", "--all")
    check("drops", every)
    said = one.tell("drops", "--all")
    assert all(drop["reason"] in said and drop["meaning"] in said for drop in every)


def test_ping(one: Node) -> None:
    answered = one.json("ping", "10.2.0.1", "-c", "2", "--size", "200")
    check("ping", answered)
    assert (answered["answered"], answered["stage"]) == (2, None)
    said = one.tell("ping", one.peer, "-c", "1").splitlines()
    assert said[0].startswith(f"{one.peer}: ")
    assert said[1].startswith("1 of 1 answered, least/mean/most ")


def test_ping_of_a_silent_peer(one: Node) -> None:
    one.tell("peer", "add", "127.0.0.9=10.9.0.0/16")
    silent = one.json("ping", "127.0.0.9", "-c", "1", code=1)
    check("ping", silent)
    assert (silent["answered"], silent["stage"]) == (0, "no_answer")
    said = one.tell("ping", "127.0.0.9", "-c", "1", code=1)
    assert "it has never answered" in said
    assert said.endswith("0 of 1 answered\n")
    assert "nobody does not exist" in one.tell("ping", "nobody", code=2)


def test_reload_without_a_file(one: Node) -> None:
    assert "not started from a file" in one.tell("reload", code=2)


def test_down(one: Node) -> None:
    assert one.tell("down") == "tunnel1 is down\n"
    assert "does not exist" in one.tell("status", code=2)


def test_down_as_json(one: Node) -> None:
    check("down", one.json("down"))


def test_watching_a_node_until_it_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "one.sock"
    with running(path):
        timer = threading.Timer(1.5, main, [["down", "--control", str(path)]])
        timer.start()
        assert main(["status", "--watch", "--json", "--control", str(path)]) == 1
        timer.join()
    out, err = capsys.readouterr()
    lines = [line for line in out.splitlines() if line.startswith("{")]
    assert len(lines) >= 2
    check("status", json.loads(lines[0]))
    assert err.startswith("tunnel: the node at ")
    assert err.endswith(" closed the connection (it ended, or was stopped)\n")


VERBS = [
    ["status"],
    ["status", "--watch"],
    ["peer", "list"],
    ["peer", "add", "127.0.0.3=10.3.0.0/16"],
    ["peer", "remove", "127.0.0.3"],
    ["route", "list"],
    ["neighbour", "list"],
    ["fdb", "list"],
    ["fdb", "add", "02:00:00:00:00:01", "127.0.0.3"],
    ["fdb", "remove", "02:00:00:00:00:01"],
    ["fdb", "flush"],
    ["drops"],
    ["explain", "10.2.0.1"],
    ["doctor"],
    ["capture"],
    ["ping", "127.0.0.3"],
    ["reload"],
    ["down"],
]


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
@pytest.mark.parametrize(
    ("state", "says"),
    [("none", "does not exist"), ("dead", "is dead"), ("file", "is not a socket")],
)
def test_no_node(
    words: list[str], state: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "one.sock"
    if state == "dead":
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
    elif state == "file":
        path.write_text("no socket")
    one = Node(path, "", capsys)
    assert says in one.tell(*words, code=2)


def test_no_node_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tunnel.rpc.socket_paths.directories", lambda: [tmp_path])
    assert main(["status"]) == 2
    assert 'start one with "tunnel up"' in capsys.readouterr().err
    assert main(["status", "--name", "other"]) == 2
    assert "no node other has" in capsys.readouterr().err


def test_every_verb_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    for verb in ("up", "down", "reload", "status", "peer", "route", "neighbour", "drops", "ping"):
        assert f"\n  {verb} " in out
    assert out.index("Run a node:") < out.index("Diagnose:") < out.index("Try it out:")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3599, "59 min"),
        (11520, "3 h 12 min"),
        (172800, "2 d 0 h"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    assert output.duration(seconds) == said


# Pictures.


def peer(endpoint: str, **words: Any) -> dict[str, Any]:
    return {
        "endpoint": endpoint,
        "address": endpoint.rpartition(":")[0].strip("[]"),
        "mac": None,
        "prefixes": ["10.244.2.0/24"],
        "state": "up",
        "state_age": 754.0,
        "rtt": 0.000213,
        "loss": 0.0,
        "path_mtu": 1450,
        "trains": True,
        "outbound": {"packets": 1_234_567, "bytes": 1_700_000_000},
        "inbound": {"packets": 7, "bytes": 420},
        "drops": {},
        "last_drop": None,
        **words,
    }


NOW: dict[str, Any] = {
    "name": "tunnel1",
    "device": "tunnel1",
    "vni": 1,
    "endpoints": ["192.0.2.1:8472", "[fd00:db8::1]:8472"],
    "mac": "02:00:5e:00:53:01",
    "mtu": 1430,
    "offloads": ["gro", "trains", "tso", "uso"],
    "workers": 2,
    "uptime": 11520.0,
    "drops": {"no_route": 12, "spoofed": 1},
    "subnets": ["10.244.1.0/24"],
    "device_up": True,
    "store": None,
    "peers": [
        peer("192.0.2.2:8472"),
        peer("[fd00:db8::3]:8472", state="silent", state_age=42.0, loss=0.35, last_drop="too_big"),
        peer("vtep.example.org:4789", state="unknown", rtt=None, loss=None, path_mtu=None),
    ],
}

BEFORE = NOW | {
    "uptime": 11518.0,
    "peers": [
        peer("192.0.2.2:8472", outbound={"packets": 0, "bytes": 700_000_000}),
        peer("[fd00:db8::3]:8472"),
    ],
}


def picture(now: Mapping[str, Any], *, width: int, before: Mapping[str, Any] | None = None) -> str:
    console = Console(file=StringIO(), width=width, highlight=False)
    console.print(view(now, before=before))
    assert isinstance(console.file, StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


PICTURES = Path(__file__).parent / "pictures"


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("kind", ["status", "watch"])
def test_pictures(kind: str, width: int) -> None:
    """The expected pictures were drawn by hand."""
    said = picture(NOW, width=width, before=BEFORE if kind == "watch" else None)
    assert said + "\n" == (PICTURES / f"{kind}-{width}.txt").read_text()


@pytest.mark.parametrize("width", [80, 200])
def test_a_device_that_was_set_down(width: int) -> None:
    said = picture(NOW | {"device_up": False}, width=width)
    assert "\ndevice    tunnel1 (down), mac 02:" in said


@pytest.mark.parametrize("width", range(20, 200, 9))
def test_no_line_wraps(width: int) -> None:
    lines = picture(NOW, width=width, before=BEFORE).splitlines()
    table = lines[lines.index("") + 1 :]
    assert len(table) == 1 + len(NOW["peers"])
    assert all(len(line) <= width for line in lines)


def test_a_node_without_peers_or_a_device() -> None:
    said = picture(NOW | {"peers": [], "device": None, "offloads": [], "drops": {}}, width=80)
    assert said.endswith("\n\nno peers")
    assert "device    none, mac" in said


def test_only_failed_tasks_are_shown() -> None:
    fine = {"name": "prober", "healthy": True, "failures": 0, "why": ""}
    failed = {"name": "lease", "healthy": False, "failures": 2, "why": "OSError: no buffers"}
    assert "failed" not in picture(NOW | {"tasks": [fine]}, width=80)
    assert "\nfailed    lease: OSError: no buffers" in picture(
        NOW | {"tasks": [fine, failed]}, width=80
    )


def test_a_status_names_the_process_and_its_namespace() -> None:
    said = picture(NOW | {"pid": 4711, "netns": 4026532249}, width=80)
    assert "\nprocess   4711, network namespace 4026532249\n" in said


def test_a_node_that_is_not_open_shows_what_it_waits_for() -> None:
    phase = "waits for the store http://192.0.2.9:2379: connection refused"
    said = picture(NOW | {"phase": phase, "pid": 7, "netns": 1}, width=80)
    assert said.splitlines() == [f"tunnel1  {phase}", "process  7, network namespace 1"]


def test_a_node_of_another_namespace_is_named(
    one: Node, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunnel.rpc.client.network_namespace", lambda: 7)
    assert main(["down", "--control", str(one._path)]) == 0
    said = capsys.readouterr().err
    assert said.startswith(
        f"tunnel: tunnel1 (pid {os.getpid()}) runs in another network namespace, "
    )
    assert said.endswith(f", {os.stat('/proc/self/ns/net').st_ino}\n")
