"""A worker that fails is restarted and is seen to fail; a dead descriptor ends the node."""

import asyncio
import errno
import logging
import os
import select
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from tunnel import supervise
from tunnel._native import Forwarder
from tunnel.node.workers import CONTROL_MESSAGES, Workers
from tunnel.supervise import Supervisor

EVERY_KIND = pytest.mark.parametrize("count", [1, 2], ids=["in the loop", "in threads"])


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervise, "SHORTEST", 0.01)
    monkeypatch.setattr(supervise, "LONGEST", 0.05)


class FakeForwarder:
    """Reads one byte a call from its pipe; raises the errors it was given first."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.moved = list(errors), 0
        self.reader, self.writer = os.pipe()

    def move(self) -> bool:
        if self.errors:
            raise self.errors.pop(0)
        os.read(self.reader, 1)
        self.moved += 1
        return True

    def run(self, epoll: int, stop: int) -> bool:
        with select.epoll.fromfd(os.dup(epoll)) as waiting:
            if stop in dict(waiting.poll()):
                return False
        return self.move()


class Running:
    def __init__(
        self, forwarders: list[FakeForwarder], *, attend: Callable[[], None] | None = None
    ) -> None:
        self.attended, self.failures = asyncio.Event(), list[OSError]()
        self.supervisor = Supervisor("tunnel1")
        self.workers = Workers(
            cast(list[Forwarder], forwarders),
            supervisor=self.supervisor,
            attend=attend or self.attended.set,
            failed=self.failures.append,
        )


@asynccontextmanager
async def running(forwarders: list[FakeForwarder], **kwargs: Any) -> AsyncIterator[Running]:
    started = Running(forwarders, **kwargs)
    await started.workers.start([forwarder.reader for forwarder in forwarders])
    try:
        async with asyncio.timeout(30):
            yield started
    finally:
        started.workers.close()
        await started.supervisor.close()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - as a scrape would see it
        await asyncio.sleep(0.005)


@EVERY_KIND
async def test_an_unexpected_exception_restarts_the_worker(
    count: int, caplog: pytest.LogCaptureFixture
) -> None:
    forwarders = [FakeForwarder() for _ in range(count)]
    forwarders[0].errors = [MemoryError("no room"), MemoryError("no room")]
    async with running(forwarders) as started:
        os.write(forwarders[0].writer, b"x")
        await until(lambda: not started.supervisor.healthy)
        await started.attended.wait()
        await until(lambda: started.supervisor.healthy)
        health = started.supervisor.tasks
        assert [(task.name, task.failures) for task in health] == [
            (f"worker {number}", 2 if number == 1 else 0) for number in range(1, count + 1)
        ]
        assert "no room" in health[0].why
        assert forwarders[0].moved == 1
        assert not started.failures
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [bool(record.exc_info) for record in errors] == [True, False]


@EVERY_KIND
async def test_a_dead_descriptor_is_reported_once(count: int) -> None:
    gone = OSError(errno.EBADFD, "gone")
    forwarders = [FakeForwarder() for _ in range(count)]
    forwarders[0].errors = [gone]
    async with running(forwarders) as started:
        os.write(forwarders[0].writer, b"x")
        await until(lambda: bool(started.failures))
        await asyncio.sleep(0.05)
        assert started.failures == [gone]
        assert forwarders[0].moved == 0
        assert started.supervisor.healthy


@EVERY_KIND
async def test_a_fault_in_the_control_plane_does_not_stop_packets(count: int) -> None:
    """An OSError of its own is not one of a descriptor that packets go through."""
    faults: list[Exception] = [OSError(errno.ENOBUFS, "No buffer space available"), KeyError(7)]
    attended = []

    def attend() -> None:
        if faults:
            raise faults.pop(0)
        attended.append(True)

    forwarders = [FakeForwarder() for _ in range(count)]
    async with running(forwarders, attend=attend) as started:
        for left in (1, 0):
            os.write(forwarders[0].writer, b"x")
            await until(lambda left=left: len(faults) == left)  # type: ignore[misc]
            assert not started.supervisor.healthy
        os.write(forwarders[0].writer, b"x")
        await until(lambda: bool(attended))
        assert started.supervisor.healthy
        assert started.supervisor.tasks[-1].name == CONTROL_MESSAGES
        assert started.supervisor.tasks[-1].failures == 2
        assert not started.failures
        assert forwarders[0].moved == 3


@EVERY_KIND
async def test_closing_ends_a_worker_that_waits_for_its_restart(count: int) -> None:
    forwarders = [FakeForwarder() for _ in range(count)]
    forwarders[0].errors = [MemoryError() for _ in range(1000)]
    async with running(forwarders) as started:
        os.write(forwarders[0].writer, b"x")
        await until(lambda: not started.supervisor.healthy)
    started.workers.close()


@EVERY_KIND
async def test_packets_move_once_it_has_started(count: int) -> None:
    forwarders = [FakeForwarder() for _ in range(count)]
    async with running(forwarders):
        threads = [one for one in threading.enumerate() if one.name == "tunnel worker"]
        assert len(threads) == (count if count > 1 else 0)
