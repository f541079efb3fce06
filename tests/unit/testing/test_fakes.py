"""The fakes: a store in memory that keeps a store's promises, and a clock that tests advance."""

import asyncio
from contextlib import aclosing

import pytest

from tunnel.errors import ConflictError, LeaseExpiredError, StoreUnavailableError
from tunnel.testing.fakes import FakeClock, MemoryStore


async def test_a_lease_ends_with_the_fake_clock() -> None:
    clock = FakeClock()
    store = MemoryStore(monotonic=clock)
    lease = await store.grant(60)
    revision = await store.put("/a", b"1", expect=0, lease=lease)
    clock.now = 59
    assert await store.time_left(lease) == 1
    assert await store.keep_alive(lease) == 60
    async with aclosing(store.watch("/", after=revision)) as watch:
        changes = asyncio.ensure_future(anext(watch))
        clock.now += 60
        assert (await changes).changes[0].entry is None
    assert (await store.read("/")).entries == {}
    with pytest.raises(LeaseExpiredError):
        await store.keep_alive(lease)


async def test_a_write_is_guarded_by_the_revision() -> None:
    store = MemoryStore()
    revision = await store.put("/a", b"1", expect=0)
    with pytest.raises(ConflictError):
        await store.put("/a", b"2", expect=0)
    await store.delete("/a", expect=revision)
    assert (await store.read("/")).entries == {}


async def test_an_outage_is_made_by_the_test() -> None:
    store = MemoryStore()
    store.available = False
    with pytest.raises(StoreUnavailableError):
        await store.read("/")
    with pytest.raises(StoreUnavailableError):
        await anext(store.watch("/", after=0))
    store.available = True
    assert (await store.read("/")).revision == 0
