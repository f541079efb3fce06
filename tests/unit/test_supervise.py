"""Tasks that fail are restarted, are seen to fail, and leave the others alone."""

import asyncio
import logging

import pytest

from tunnel import supervise
from tunnel.supervise import Supervisor


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "SHORTEST", 0.01)
    monkeypatch.setattr(supervise, "LONGEST", 0.05)


class Failing:
    """Fails so many times, then runs until it is cancelled."""

    def __init__(self, times: int) -> None:
        self.times, self.runs = times, 0
        self.runs_on = asyncio.Event()

    async def __call__(self) -> None:
        self.runs += 1
        if self.runs <= self.times:
            raise OSError(105, "No buffer space available")
        self.runs_on.set()
        await asyncio.Event().wait()


async def test_a_failure_restarts_the_task_alone(caplog: pytest.LogCaptureFixture) -> None:
    one, other = Failing(3), Failing(0)
    changes = 0

    def changed() -> None:
        nonlocal changes
        changes += 1

    supervisor = Supervisor("tunnel1", changed=changed)
    supervisor.start("one", one)
    supervisor.start("other", other)
    async with asyncio.timeout(30):
        await one.runs_on.wait()
        assert not supervisor.healthy
        while not supervisor.healthy:  # noqa: ASYNC110 - as a scrape would see it
            await asyncio.sleep(0.01)
    assert other.runs == 1
    health = {task.name: task for task in supervisor.tasks}
    assert (health["one"].failures, health["other"].failures) == (3, 0)
    assert "No buffer space" in health["one"].why
    assert changes == 4
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [bool(record.exc_info) for record in errors] == [True, False, False]
    await supervisor.close()


async def test_closing_ends_a_task_that_waits_for_its_restart() -> None:
    failing = Failing(1000)
    supervisor = Supervisor("tunnel1")
    supervisor.start("one", failing)
    await asyncio.sleep(0.05)
    await supervisor.close()
    runs = failing.runs
    await asyncio.sleep(0.1)
    assert failing.runs == runs


async def test_stopping_one_leaves_the_others() -> None:
    one, other = Failing(0), Failing(0)
    supervisor = Supervisor("tunnel1")
    supervisor.start("one", one)
    supervisor.start("other", other)
    await other.runs_on.wait()
    await supervisor.stop(["one", "nobody"])
    supervisor.start("one", one)
    await asyncio.sleep(0)
    assert (one.runs, other.runs) == (2, 1)
    await supervisor.close()


async def test_a_task_that_ended_no_longer_counts() -> None:
    runs = 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise OSError(105, "No buffer space available")

    supervisor = Supervisor("tunnel1")
    supervisor.start("ends", work)
    supervisor.start("stopped", Failing(1000))
    await asyncio.sleep(0)
    assert not supervisor.healthy
    await asyncio.sleep(0.1)
    await supervisor.stop(["stopped"])
    assert supervisor.healthy
    assert all(task.failures for task in supervisor.tasks)


async def test_a_thread_can_say_that_it_failed() -> None:
    supervisor = Supervisor("tunnel1")
    supervisor.failed("worker 0", RuntimeError("boom"))
    assert not supervisor.healthy
    supervisor.recovered("worker 0")
    assert supervisor.healthy
