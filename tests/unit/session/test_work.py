"""What runs for a session: it ends with it, and what fails is told."""

from __future__ import annotations

import asyncio
import logging

import pytest

from p2ptunnel.errors import ChannelClosedError
from p2ptunnel.session.work import Work
from p2ptunnel.trace import TraceEvent, Tracer
from tests.helpers import run


async def for_ever() -> None:
    await asyncio.Event().wait()


async def fail(error: Exception) -> None:
    raise error


def test_what_runs_is_cancelled_at_the_end_and_so_is_what_comes_later() -> None:
    async def scenario() -> None:
        work = Work("laptop", Tracer())
        running = work.start(for_ever())
        attempt = asyncio.create_task(for_ever())
        work.attend(attempt)
        assert len(work) == 2
        work.end()
        late = work.start(for_ever())
        await work.ended()
        assert [task.cancelled() for task in (running, attempt, late)] == [True] * 3
        assert len(work) == 0

    run(scenario())


def test_a_task_may_end_the_session_that_it_runs_for() -> None:
    async def scenario() -> None:
        work, has_gone_on = Work("laptop", Tracer()), asyncio.Event()

        async def end() -> None:
            work.end()
            await work.ended()
            await asyncio.sleep(0)
            has_gone_on.set()

        await work.start(end())
        assert has_gone_on.is_set()

    run(scenario())


def test_attempts_alone_are_waited_for() -> None:
    async def scenario() -> None:
        work, may_end = Work("laptop", Tracer()), asyncio.Event()
        work.start(for_ever())
        work.attend(asyncio.ensure_future(may_end.wait()))
        waiting = asyncio.create_task(work.attempted())
        await asyncio.sleep(0)
        assert not waiting.done()
        may_end.set()
        await waiting
        assert len(work) == 1
        work.end()
        await work.ended()

    run(scenario())


@pytest.mark.parametrize("error", [ChannelClosedError("the peer"), ConnectionResetError("reset")], ids=repr)
def test_what_comes_to_nothing_is_traced(error: Exception) -> None:
    async def scenario() -> None:
        events: list[TraceEvent] = []
        work = Work("laptop", Tracer(events.append))
        await asyncio.gather(work.start(fail(error)), return_exceptions=True)
        await work.ended()
        [event] = events
        assert (event.name, event.facts["reason"]) == ("work_failed", str(error))

    run(scenario())


def test_a_fault_of_ours_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        work = Work("laptop", Tracer())
        await asyncio.gather(work.start(fail(ZeroDivisionError())), return_exceptions=True)
        await work.ended()

    with caplog.at_level(logging.ERROR, "p2ptunnel.session"):
        run(scenario())
    [record] = caplog.records
    assert record.getMessage() == "a task of the session with laptop failed"
