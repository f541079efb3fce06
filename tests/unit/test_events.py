"""A subscriber receives every event since it subscribed, in order."""

import asyncio
import gc

from tunnel.events import MOST, Event, Events, EventsLost, PeerAdded
from tunnel.types import Endpoint

ONES = [PeerAdded(Endpoint("192.0.2.1", port)) for port in range(1, MOST + 11)]


async def take(events: Events, count: int) -> list[Event]:
    listener = events.subscribe()
    return [await anext(listener) for _ in range(count)]


async def test_events_count_from_the_subscription_not_from_the_first_wait() -> None:
    events = Events()
    events.emit(ONES[0])
    listener = events.subscribe()
    events.emit(ONES[1])
    events.emit(ONES[2])
    assert [await anext(listener), await anext(listener)] == ONES[1:3]


async def test_two_subscribers_receive_the_same() -> None:
    events = Events()
    listening = [asyncio.create_task(take(events, 3)) for _ in range(2)]
    await asyncio.sleep(0)
    for one in ONES[:3]:
        events.emit(one)
        await asyncio.sleep(0)
    assert await asyncio.gather(*listening) == [ONES[:3]] * 2


async def test_the_end_comes_after_queued_events() -> None:
    events = Events()
    listener = events.subscribe()
    events.emit(ONES[0])
    events.close()
    assert [one async for one in listener] == ONES[:1]
    assert [one async for one in listener] == []
    assert [one async for one in events.subscribe()] == []


async def test_closing_ends_a_waiting_subscriber() -> None:
    events = Events()
    listener = events.subscribe()
    waiting = asyncio.create_task(anext(listener, None))
    await asyncio.sleep(0)
    events.close()
    async with asyncio.timeout(30):
        assert await waiting is None


async def test_a_slow_subscriber_learns_how_many_events_it_lost() -> None:
    events = Events()
    listener = events.subscribe()
    for one in ONES:
        events.emit(one)
    events.close()
    received = [one async for one in listener]
    assert received == [EventsLost(10), *ONES[10:]]


async def test_a_cancelled_wait_loses_no_event() -> None:
    events = Events()
    listener = events.subscribe()
    waiting = asyncio.create_task(anext(listener, None))
    await asyncio.sleep(0)
    events.emit(ONES[0])
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    events.emit(ONES[1])
    events.close()
    assert [one async for one in listener] == ONES[:2]


async def test_a_subscriber_that_is_gone_is_dropped() -> None:
    events = Events()
    async for _ in _first_of(events):
        break
    gc.collect()
    events.emit(ONES[1])
    assert not list(events._listeners)


def _first_of(events: Events):  # type: ignore[no-untyped-def]
    listener = events.subscribe()
    events.emit(ONES[0])
    return listener
