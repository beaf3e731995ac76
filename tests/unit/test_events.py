"""Events: each listener hears what it asked for, from when it asked, and is told what it lost."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from p2ptunnel.events import (
    ChannelLost,
    EventHub,
    Events,
    EventsDropped,
    PeerEvent,
    SessionExpired,
    SessionResumed,
    SessionStalled,
)
from tests.helpers import run


def lost(number: int) -> ChannelLost:
    return ChannelLost(tag="nas", cause=str(number))


def test_each_listener_hears_the_kinds_that_it_asked_for_in_order() -> None:
    async def scenario() -> None:
        hub = EventHub()
        everything, some = hub.listen(), hub.listen(SessionStalled, SessionResumed)
        told: list[PeerEvent] = [
            lost(1),
            SessionResumed(tag="nas", gap=1.5, replayed_bytes=7),
            SessionStalled(tag="nas"),
            SessionExpired(tag="nas", gap=600.0, unacknowledged_bytes=1),
        ]
        for event in told:
            hub(event)
        hub.close()
        assert [event async for event in everything] == told
        assert [event async for event in some] == told[1:3]

    run(scenario())


def test_a_listener_hears_nothing_from_before_and_waits_for_what_comes() -> None:
    async def scenario() -> None:
        hub = EventHub()
        hub(lost(1))
        listener = hub.listen()
        waiting = asyncio.ensure_future(anext(listener))
        await asyncio.sleep(0)
        assert not waiting.done()
        hub(lost(2))
        assert (await waiting).cause == "2"

    run(scenario())


def test_a_slow_listener_loses_the_oldest_is_told_how_many_and_holds_nobody_up() -> None:
    async def scenario() -> None:
        hub = EventHub()
        slow, quick = hub.listen(buffer=3), hub.listen()
        for number in range(10):
            hub(lost(number))
        assert await anext(slow) == EventsDropped(7)
        assert [(await anext(slow)).cause for _ in range(3)] == ["7", "8", "9"]
        hub(lost(10))
        assert (await anext(slow)).cause == "10"
        assert [(await anext(quick)).cause for _ in range(11)] == [str(number) for number in range(11)]

    run(scenario())


def test_the_end_of_the_peer_ends_every_iterator_behind_what_waits() -> None:
    async def scenario() -> None:
        hub = EventHub()
        behind, idle = hub.listen(), hub.listen()
        hub(lost(1))
        await anext(idle)
        waiting = asyncio.ensure_future(_all(idle))
        await asyncio.sleep(0)
        hub.close()
        assert await waiting == []
        assert len(await _all(behind)) == 1
        assert await _all(behind) == []
        assert await _all(hub.listen()) == []

    run(scenario())


async def _all(events: Any) -> list[PeerEvent]:
    return [event async for event in events]


def test_who_listens_no_more_is_told_no_more() -> None:
    async def scenario() -> None:
        hub = EventHub()
        listener: Any = hub.listen()
        waiting = asyncio.ensure_future(_all(listener))
        await asyncio.sleep(0)
        await listener.aclose()
        hub(lost(1))
        assert await waiting == []
        assert not hub._listeners

    run(scenario())


def test_a_loop_that_was_left_is_forgotten() -> None:
    async def scenario() -> None:
        hub = EventHub()

        heard: list[Any] = []

        async def first() -> None:
            async for event in hub.listen():
                heard.append(event)
                break

        hearing = asyncio.create_task(first())
        await asyncio.sleep(0)
        hub(lost(1))
        await hearing
        assert [event.cause for event in heard] == ["1"]
        del hearing
        gc.collect()
        assert not hub._listeners

    run(scenario())


def test_a_loop_that_nobody_else_knows_of_goes_on() -> None:
    async def scenario() -> None:
        hub = EventHub()
        heard: list[Any] = []

        async def watch() -> None:
            heard.extend([event async for event in hub.listen()])

        asyncio.create_task(watch())  # noqa: RUF006 - that is the point
        for number in range(3):
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            gc.collect()
            hub(lost(number))
        hub.close()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert [event.cause for event in heard] == ["0", "1", "2"]

    run(scenario())


def test_a_block_ends_the_listening() -> None:
    async def scenario() -> None:
        hub = EventHub()
        async with hub.listen() as events:
            hub(lost(1))
        hub(lost(2))
        assert isinstance(events, Events)
        assert [event.cause for event in await _all(events) if isinstance(event, ChannelLost)] == ["1"]
        await events.aclose()

    run(scenario())


@pytest.mark.parametrize(
    "kind", [EventsDropped, str, "ChannelLost", None, lost(1)], ids=["another class", "text", "a name", "nothing", "an event"]
)
def test_what_is_no_kind_of_event_is_refused_at_once(kind: Any) -> None:
    hub = EventHub()
    with pytest.raises(TypeError, match="is no kind of event"):
        hub.listen(ChannelLost, kind)
    assert not hub._listeners


def test_a_buffer_that_holds_nothing_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="a buffer of 0 events holds none"):
        EventHub().listen(buffer=0)


def test_who_waited_in_a_loop_that_is_closed_costs_the_teller_nothing() -> None:
    hub = EventHub()
    loop = asyncio.new_event_loop()
    listener = hub.listen()
    task = loop.create_task(_all(listener))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    hub(lost(1))
    assert not hub._listeners
    assert not task.done()
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # as it would say, the test means it so


def test_a_cancelled_wait_loses_nothing() -> None:
    async def scenario() -> None:
        hub = EventHub()
        listener = hub.listen()
        waiting = asyncio.ensure_future(anext(listener))
        await asyncio.sleep(0)
        hub(lost(1))
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert (await anext(listener)).cause == "1"

    run(scenario())


def test_events_carry_both_clocks() -> None:
    first, second = lost(1), lost(2)
    assert second.at >= first.at
    assert first.time > 1_600_000_000
