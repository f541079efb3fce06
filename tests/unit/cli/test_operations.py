"""The commands and options in the documentation and the examples exist."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from tunnel.cli import verbs
from tunnel.cli.up import up

ROOT = Path(__file__).parents[3]
UNIT = ROOT / "examples" / "tunnel@.service"
PAPER = ROOT / "docs" / "operations.md"


def directives() -> list[tuple[str, str]]:
    lines = UNIT.read_text().splitlines()
    pairs = (line.partition("=") for line in lines if "=" in line and not line.startswith("#"))
    return [(name, value) for name, _, value in pairs]


def test_the_unit_starts_an_existing_verb() -> None:
    (command,) = [value for name, value in directives() if name == "ExecStart"]
    program, verb, *words = shlex.split(command)
    assert program == "/usr/local/bin/tunnel"
    assert verbs.get_command(click.Context(verbs), verb) is up
    known = {option for parameter in up.params for option in parameter.opts}
    assert {word for word in words if word.startswith("-")} <= known


def test_the_unit_gives_one_capability() -> None:
    given = dict(directives())
    assert given["AmbientCapabilities"] == given["CapabilityBoundingSet"] == "CAP_NET_ADMIN"
    assert given["NoNewPrivileges"] == "yes"
    assert given["User"] == given["Group"] == given["RuntimeDirectory"] == "tunnel"


def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    """systemd accepts every directive, and rates the sandbox."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed (Debian package systemd)")
    # It wants to see the program and the user that the unit names.
    text = UNIT.read_text().replace("/usr/local/bin/tunnel", sys.executable)
    unit = tmp_path / "tunnel@.service"
    unit.write_text(text.replace("=tunnel\nGroup=tunnel", "=daemon\nGroup=daemon"))
    verified = subprocess.run(
        [analyze, "verify", "--man=no", unit], check=False, capture_output=True, text=True
    )
    ours = [line for line in verified.stderr.splitlines() if str(unit) in line]
    assert (ours, verified.returncode) == ([], 0), verified.stderr
    judged = subprocess.run(
        [analyze, "security", "--offline=yes", "--threshold=25", unit],
        check=False,
        capture_output=True,
        text=True,
    )
    assert judged.returncode == 0, judged.stdout + judged.stderr


def commands_in(text: str) -> list[list[str]]:
    """Returns the arguments of each ``tunnel`` command in code, up to a pipe or comment."""
    quoted = re.findall(r"`tunnel ([^`]+)`", text) + re.findall(r"^tunnel (.+)$", text, re.M)
    return [shlex.split(one.partition(" | ")[0], comments=True) for one in quoted]


def test_every_command_in_the_documentation_exists() -> None:
    found = [
        words
        for paper in (PAPER, ROOT / "README.md", ROOT / "docs" / "wire.md")
        for words in commands_in(paper.read_text())
    ]
    assert len(found) > 10
    for words in found:
        command: click.Command = verbs
        rest = list(words)
        while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
            name = rest.pop(0)
            inner = command.get_command(click.Context(command), name)
            assert inner is not None, f"tunnel {' '.join(words)}"
            command = inner
        known = {"--help", "--version"}
        known |= {word for one in command.params for word in (*one.opts, *one.secondary_opts)}
        options = {word.partition("=")[0] for word in rest if re.match("--?[a-z]", word)}
        assert options <= known, f"tunnel {' '.join(words)}"
