"""Shared by all tests: hosts, both event loops, a network for each process, no skips in CI."""

import asyncio
import ctypes
import os
import subprocess
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

import pytest
import uvloop
from hypothesis import settings

from tunnel.testing.lab import Lab

_CLONE_NEWNET = 0x40000000

# The time an example takes measures the load of the machine, not the code.
settings.register_profile("tunnel", deadline=None)
settings.load_profile("tunnel")

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


def pytest_configure(config: pytest.Config) -> None:
    """Gives each worker of ``pytest -n`` a network namespace, so that ports do not collide, and
    hides the width of the terminal. Without root the workers share the host's loopback: the unit
    tests bind no fixed port."""
    os.environ.pop("COLUMNS", None)
    # Tests start hundreds of nodes: each would otherwise compile every module that it imports.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if not hasattr(config, "workerinput") or os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) < 0:
        raise pytest.UsageError(f"no network namespace: {os.strerror(ctypes.get_errno())}")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Every async test runs once on each loop."""
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _skip_is_failure_in_ci((yield))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _skip_is_failure_in_ci((yield))


def _skip_is_failure_in_ci(report: Report) -> Report:
    """In CI a skipped test is a failed one: a tool is missing there."""
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which is a failure in CI: {report.longrepr}"
    return report
