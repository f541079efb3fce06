"""What the package and the command load at their start: no library that they do not need yet."""

import subprocess
import sys

import click
import pytest

import tunnel
from tunnel.cli import SECTIONS, verbs

HEAVY = {"pyroute2", "rich", "prometheus_client", "scapy", "aiohttp"}

STARTS = {
    "import tunnel": "import tunnel",
    "import tunnel.vxlan": "import tunnel.vxlan",
    "from tunnel import Peer": "from tunnel import Peer",
    "import tunnel.diagnostics": "import tunnel.diagnostics",
    "from tunnel import Client": "from tunnel import Client",
    "tunnel --version": "from tunnel.cli import main; main(['--version'])",
    "tunnel --help": "from tunnel.cli import main; main(['--help'])",
    "tunnel status --json": "from tunnel.cli import main; main(['status', '--json'])",
}


@pytest.mark.parametrize("start", STARTS)
def test_a_start_loads_no_heavy_library(start: str) -> None:
    program = f"{STARTS[start]}; import sys; print(); print(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    modules = set(ran.stdout.splitlines()[-1].split())
    assert "tunnel" in modules
    assert modules & HEAVY == set()


def test_completion_loads_no_heavy_library() -> None:
    program = (
        "import sys; from tunnel.cli import verbs\n"
        "verbs.main([], prog_name='tunnel', complete_var='_TUNNEL_COMPLETE', standalone_mode=False)"
    )
    loaded = f"import atexit, sys; atexit.register(lambda: print(*sys.modules)); {program}"
    environment = {
        "_TUNNEL_COMPLETE": "bash_complete",
        "COMP_WORDS": "tunnel st",
        "COMP_CWORD": "1",
    }
    ran = subprocess.run(
        [sys.executable, "-c", loaded], check=False, capture_output=True, text=True, env=environment
    )
    assert "plain,status" in ran.stdout.splitlines()
    assert set(ran.stdout.splitlines()[-1].split()) & HEAVY == set()


@pytest.mark.parametrize("section", SECTIONS)
def test_each_listed_verb_exists(section: str) -> None:
    for name, text in SECTIONS[section].items():
        verb = verbs.get_command(click.Context(verbs), name)
        assert verb is not None
        assert verb.name == name
        assert len(text) <= 68


@pytest.mark.parametrize("name", tunnel.__all__)
def test_each_public_name_resolves(name: str) -> None:
    assert getattr(tunnel, name).__name__ == name
    assert name in dir(tunnel)


def test_the_version_is_a_public_name() -> None:
    assert tunnel.__version__[0].isdigit()
    assert "__version__" in dir(tunnel)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(tunnel, "nothing")  # noqa: B009 - mypy knows that there is no such name
