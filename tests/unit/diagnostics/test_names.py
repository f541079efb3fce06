"""The public names of ``tunnel.diagnostics``, and what importing them loads."""

import subprocess
import sys

import pytest

from tunnel import diagnostics

LOADS = """
import sys
import tunnel.diagnostics
heavy = {"scapy", "rich", "prometheus_client", "pyroute2"} & set(sys.modules)
sys.exit(", ".join(heavy) or 0)
"""


@pytest.mark.parametrize("name", diagnostics.__all__)
def test_each_public_name_resolves(name: str) -> None:
    assert getattr(diagnostics, name).__name__ == name
    assert name in dir(diagnostics)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(diagnostics, "nothing")  # noqa: B009 - mypy knows that there is no such name


def test_the_package_loads_no_heavy_library_when_imported() -> None:
    subprocess.run([sys.executable, "-c", LOADS], check=True)
