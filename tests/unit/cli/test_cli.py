"""The command line: one line of error, and the exit code."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import pytest

from tunnel.cli import main, up
from tunnel.config.node import Config
from tunnel.errors import ConfigError, DeviceError, TunnelError
from tunnel.status import Stats, Traffic

PEER = "192.0.2.2=10.244.2.0/24"


class FakeTunnel:
    """A tunnel whose behaviour a test sets, and that records its use."""

    opened: ClassVar[list[Config]] = []
    failure: ClassVar[DeviceError | None] = None
    refusal: ClassVar[TunnelError | None] = None
    opens: ClassVar[bool] = True
    signals: ClassVar[tuple[signal.Signals, ...]] = ()
    cleaned_up: ClassVar[bool] = False
    drops: ClassVar[dict[str, int]] = {}

    def __init__(self, config: Config, *, confined: bool, user: str | None) -> None:
        assert confined
        self.config = config

    async def __aenter__(self) -> Self:
        if self.refusal:
            raise self.refusal
        if not self.opens:
            await self.wait_closed()
        self.opened.append(self.config)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number in self.signals[1:]:
            os.kill(os.getpid(), number)
        await asyncio.sleep(0.05)
        type(self).cleaned_up = True

    def describe(self) -> str:
        return f"{self.config.name}: ready"

    async def wait_closed(self) -> None:
        if self.failure:
            raise self.failure
        for number in self.signals[:1]:
            os.kill(os.getpid(), number)
        await asyncio.Event().wait()

    @property
    def stats(self) -> Stats:
        return Stats(Traffic(), Traffic(), self.drops, {}, {}, frozenset())


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeTunnel]:
    class Fake(FakeTunnel):
        opened: ClassVar[list[Config]] = []

    monkeypatch.setenv("TUNNEL_CONTROL", "none")
    monkeypatch.setattr(up, "Tunnel", Fake)
    return Fake


INVALID = [
    (["--vni", "x"], "not a valid integer"),
    (["--vni", "16777216"], "out of range"),
    (["--frobnicate"], "No such option"),
    (["extra"], "unexpected extra argument"),
    (["--name", "sixteen-bytes-xx"], "has 16 bytes"),
    (["--port", "0"], "out of range"),
    (["--local", "::1", "--peer", PEER], "is IPv6, but no peer is"),
    (["--local", "192.0.2.2", "--peer", PEER], "this node itself"),
    (["--subnet", "10.244.2.0/24", "--peer", PEER], "of this node"),
    (["--peer", PEER, "--peer", "192.0.2.3=10.244.0.0/16"], "overlaps"),
    (["--peer", "192.0.2.2"], "has no prefix"),
    (["--mtu", "100", "--subnet", "fd00::/64"], "at least 1280"),
    (["--mac", "ff:ff:ff:ff:ff:ff"], "not a unicast address"),
    (["--offload", "tsp"], "did you mean 'tso'"),
    (["--loop", "twisted"], "known: uvloop, asyncio"),
    (["--source-ports", "65"], "out of range"),
    (["--workers", "0"], "workers 0 is out of range (1 to 64)"),
    (["--workers", "1.5"], "workers '1.5' is neither auto nor a number (1 to 64)"),
    (["--config", "/nowhere/tunnel.toml"], "no such file"),
    (["--config", "/"], "is a directory"),
]


@pytest.mark.parametrize(("flags", "text"), INVALID)
def test_invalid_options_are_one_line_and_exit_code_2(
    flags: list[str], text: str, fake: type[FakeTunnel], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["up", *flags]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("tunnel: ")
    assert err.count("\n") == 1
    assert text in err
    assert not fake.opened


@pytest.mark.parametrize(
    ("args", "text"), [(["dwon"], "No such command"), (["config"], "Missing command")]
)
def test_an_unknown_verb(args: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    assert re.fullmatch(
        rf'tunnel: {text}.*(?<!\.) \(see "tunnel.*--help"\)\n', capsys.readouterr().err
    )


def test_without_a_verb_it_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(verb in out for verb in ("up", "config", "demo"))
    assert main(["--version"]) == 0
    assert re.fullmatch(r"tunnel \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_up_until_a_signal(
    loop: str, number: signal.Signals, fake: type[FakeTunnel], capsys: pytest.CaptureFixture[str]
) -> None:
    # The second and third arrive while the node closes.
    fake.signals = (number, signal.SIGINT, signal.SIGTERM)
    assert main(["up", "--vni", "7", "--peer", PEER, "--loop", loop]) == 0
    assert capsys.readouterr().out == "tunnel7: ready\ndrops: none\n"
    assert fake.cleaned_up


def test_a_signal_ends_up_while_the_node_opens(
    fake: type[FakeTunnel], capsys: pytest.CaptureFixture[str]
) -> None:
    fake.opens = False
    fake.signals = (signal.SIGTERM,)
    assert main(["up"]) == 0
    assert capsys.readouterr().out == ""


def test_the_last_line_lists_the_drops(
    fake: type[FakeTunnel], capsys: pytest.CaptureFixture[str]
) -> None:
    fake.signals = (signal.SIGTERM,)
    fake.drops = {"no_route": 3, "wrong_vni": 1}
    assert main(["up"]) == 0
    assert capsys.readouterr().out.endswith("drops: no_route=3 wrong_vni=1\n")


def test_a_failed_start_is_exit_code_2(
    fake: type[FakeTunnel], capsys: pytest.CaptureFixture[str]
) -> None:
    fake.refusal = DeviceError("cannot open /dev/net/tun: permission denied (run as root)")
    assert main(["up"]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"tunnel: {fake.refusal}\n")


def test_a_fault_found_on_the_host_has_its_line_in_the_file(
    fake: type[FakeTunnel], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tunnel.toml"
    file.write_text('vni = 4\npeer = [\n "192.0.2.2=10.2.0.0/16",\n "192.0.2.3=10.3.0.0/16"]\n')
    fake.refusal = ConfigError("peer 192.0.2.3 is this node itself", key=("peer", 1))
    assert main(["up", "--config", str(file)]) == 2
    assert capsys.readouterr().err == f"tunnel: {file}:4: peer[1]: {fake.refusal}\n"
    # The option of this fault is not in the file.
    fake.refusal = ConfigError("user nobody is not there", key=("user",))
    assert main(["up", "--config", str(file)]) == 2
    assert capsys.readouterr().err == f"tunnel: {fake.refusal}\n"


def test_a_failure_after_the_start_is_exit_code_1(
    fake: type[FakeTunnel], capsys: pytest.CaptureFixture[str]
) -> None:
    fake.failure = DeviceError("tunnel1 is gone (somebody deleted it; start again)")
    assert main(["up"]) == 1
    assert capsys.readouterr().err == f"tunnel: {fake.failure}\n"
    assert fake.cleaned_up


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_notified(
    abstract: bool, fake: type[FakeTunnel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.signals = (signal.SIGTERM,)
    name = f"tunnel-test-{os.getpid()}"
    path = f"@{name}" if abstract else str(tmp_path / name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.settimeout(1)
        systemd.bind(f"\0{name}" if abstract else path)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        assert main(["up"]) == 0
        assert systemd.recv(100) == b"READY=1"
        assert systemd.recv(100) == b"STOPPING=1"


def test_a_missing_supervisor_is_ignored(
    fake: type[FakeTunnel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.signals = (signal.SIGTERM,)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    assert main(["up"]) == 0


def test_flags_override_variables_and_both_override_the_file(
    fake: type[FakeTunnel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.signals = (signal.SIGTERM,)
    file = tmp_path / "tunnel.toml"
    file.write_text('vni = 2\nport = 2\nmtu = 1400\nsubnet = ["10.1.0.0/16", "10.2.0.0/16"]\n')
    monkeypatch.setenv("TUNNEL_PORT", "3")
    monkeypatch.setenv("TUNNEL_VNI", "3")
    monkeypatch.setenv("TUNNEL_SOURCE_PORTS", "3")
    monkeypatch.setenv("TUNNEL_WORKERS", "3")
    monkeypatch.setenv("TUNNEL_PEER", "192.0.2.2=10.8.0.0/16 192.0.2.3=10.9.0.0/16")
    assert main(["up", "--config", str(file), "--vni", "4", "--subnet", "10.3.0.0/16"]) == 0
    (config,) = fake.opened
    assert (config.vni, config.port, config.mtu) == (4, 3, 1400)
    assert (config.source_ports, config.workers) == (3, 3)
    assert [str(subnet) for subnet in config.subnets] == ["10.3.0.0/16"]
    assert len(config.peers) == 2


@pytest.mark.parametrize("value", ["0", "-1", "65", "1.5", "x"])
def test_invalid_workers_in_flag_variable_and_file(
    value: str,
    fake: type[FakeTunnel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "tunnel.toml"
    file.write_text(f"workers = {'true' if value == 'x' else value}\n")
    commands = [
        ["up", "--workers", value],
        ["up", "--config", str(file)],
        ["config", "check", str(file)],
        ["up"],
    ]
    for command in commands:
        if command == ["up"]:
            monkeypatch.setenv("TUNNEL_WORKERS", value)
        assert main(command) == 2
        out, err = capsys.readouterr()
        assert re.search(r"workers \S+ is .*\(1 to 64\)\n$", out + err)
    assert not fake.opened


def test_a_fault_has_a_line_only_if_it_is_in_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tunnel.toml"
    file.write_text("vni = 1\nmtu = 1\n")
    assert main(["up", "--config", str(file)]) == 2
    assert capsys.readouterr().err == (
        f"tunnel: {file}:2: mtu: mtu 1 is out of range (68 to 65535)\n"
    )
    assert main(["up", "--config", str(file), "--mtu", "2"]) == 2
    assert capsys.readouterr().err == "tunnel: mtu 2 is out of range (68 to 65535)\n"


GOOD = """\
vni = 9
peer = ["192.0.2.2=10.244.2.0/24"]
"""

BAD = """\
# vni = 1
vni = -1          # [[peer]]
"nmae" = 'x = 1'
subnet = [
  "10.0.0.0/8",   # [
  "10.0.0.1/8"]
offload = ["tso", "gr"]

[[peer]]
endpoint = "192.0.2.2"
prefix = ["10.244.2.0/24", "x"]
  [[peer]] # the second
mac = "zz"
prefix = [
  "11.0.0.0/8",
  '''11.3.0.1/16''',
]
[[peer]]
endpoint = "192.0.2.4"
prefix = "10.1.0.0/16"
"""

BAD_PLACES = [
    "2: vni",
    "3: nmae",
    "6: subnet[1]",
    "7: offload",
    "11: peer[0].prefix[1]",
    "13: peer[1].mac",
    "16: peer[1].prefix[1]",
    "18: peer[2]",
]

INLINE = """\
peer = [
  "192.0.2.2=10.0.0.0/8",
  { endpoint = "192.0.2.3", prefix = ["11.0.0.0/8", "x"] }, # , [
  "192.0.2.4=10.9.0.0/24"
]
mtu = 1
"""


@pytest.mark.parametrize(
    ("text", "places"),
    [
        (BAD, BAD_PLACES),
        (INLINE, ["3: peer[1].prefix[1]", "4: peer[2]", "6: mtu"]),
        ("vni = 1\nvni == 2\n", ["2: not TOML"]),
        ("peer = [\n\n", ["2: not TOML"]),
        ('peer = [\n "192.0.2.2"\n]\n[mtu]\nx = 1\n', ["2: peer[0]", "4: mtu"]),
        ('peer = "192.0.2.2"\n', ["1: peer[0]"]),
    ],
)
def test_config_check_prints_line_and_key_of_each_fault(
    text: str, places: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tunnel.toml"
    file.write_text(text)
    assert main(["config", "check", str(file)]) == 2
    out, err = capsys.readouterr()
    lines = (out or err.removeprefix("tunnel: ")).splitlines()
    parts = [line.removeprefix(f"{file}:").split(": ") for line in lines]
    assert [f"{line}: {key}" for line, key, *_ in parts] == places


def test_config_check_of_a_valid_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tunnel.toml"
    file.write_text('workers = "auto"\n' + GOOD)
    assert main(["config", "check", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: ok: tunnel9, vni 9, peers: 1\n"


def test_a_full_disk_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["--version"]) == 1
        monkeypatch.undo()
        with pytest.raises(OSError, match="No space"):
            full.close()
    assert capsys.readouterr().err == "tunnel: cannot write: no space left on device\n"


def test_config_check_of_a_file_that_is_not_utf_8(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tunnel.toml"
    file.write_bytes(b"\xff\xfe")
    assert main(["config", "check", str(file)]) == 2
    assert "byte 0 is not UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize(("module", "code"), [("click", -signal.SIGINT), ("uvloop", 130)])
def test_ctrl_c_during_an_import_prints_no_traceback(
    module: str, code: int, tmp_path: Path
) -> None:
    """A module that sends SIGINT when it is imported: for the command itself, and for its verb."""
    (tmp_path / f"{module}.py").write_text(
        "import os, time\nos.kill(os.getpid(), 2)\ntime.sleep(9)"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "tunnel", "up"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (ended.returncode, ended.stderr.strip()) == (code, "")
