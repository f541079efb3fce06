"""What all tests share: hosts, both event loops, and no skips in CI."""

import asyncio
import os
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

import pytest
import uvloop

from tunnel.lab import Lab

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)


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
    """What is skipped in CI has never been tested: a missing tool is a failure there."""
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which is a failure in CI: {report.longrepr}"
    return report
