"""A session that outlives its channels: nothing is lost, nothing comes twice, and what cannot go on ends with an error."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable

import pytest

from p2ptunnel.errors import ChannelLostError, ResumeExpiredError
from p2ptunnel.events import ChannelLost, ChannelOpened, PathChanged, PathSuspected, PeerEvent, SessionExpired, SessionResumed
from p2ptunnel.session import live
from p2ptunnel.session.session import Session, SessionOptions
from p2ptunnel.session.stream import SessionStream
from tests.helpers import run
from tests.helpers.lasting import Resuming, cut, digest, resuming, until
from tests.helpers.peers import Peers, Wire, sessions
from tests.helpers.turns import cancelled_after, descriptors, settle

SIZE = 12_000_000


def test_a_stream_goes_on_over_the_next_channel_where_it_was() -> None:
    async def scenario() -> None:
        peers = Resuming("digest")
        peers.on_open = digest
        async with resuming(peers) as (caller, callee):
            block = os.urandom(SIZE)
            stream = await caller.open_confirmed("digest")
            for number in range(0, SIZE, SIZE // 12):
                await stream.write(block[number : number + SIZE // 12])
                cut(caller if number % 2 else callee)
            await stream.write_eof()
            assert await stream.readexactly(32) == hashlib.sha256(block).digest()
            assert await stream.read() == b""
            assert caller.resumes == callee.resumes == peers.dials >= 10
            assert caller.error is None

    run(scenario(), timeout=20)


# --- without a channel --------------------------------------------------------------------------------------------------


@pytest.fixture
def quick_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions look at their clocks often."""
    monkeypatch.setattr(live, "SESSION_TICK", 0.02)


async def still(value: Callable[[], int]) -> int:
    """The value when many turns of the loop no longer change it."""
    turns, before = 0, value()
    while turns < 300:
        await asyncio.sleep(0)
        turns = turns + 1 if value() == before else 0
        before = value()
    return before


def test_without_a_channel_writers_wait_and_no_more_is_kept_than_was_said() -> None:
    async def scenario() -> None:
        peers = Resuming("web")
        peers.options = SessionOptions(resume_timeout=60, resume_buffer=100_000)
        async with sessions(peers, peers.ends) as (caller, _):
            ours, theirs = await peers.stream(caller, "web")
            cut(caller)
            await until(lambda: caller.state == "suspended")
            block = os.urandom(400_000)
            writing = asyncio.ensure_future(ours.write(block))
            await still(lambda: ours.stats.sent)
            assert not writing.done()
            assert ours.stats.sent <= 100_000
            assert caller._endpoint.unacknowledged <= 100_000
            await peers.redial(caller)
            reading = asyncio.ensure_future(theirs.readexactly(len(block)))
            await writing
            assert await reading == block

    run(scenario())


@pytest.mark.usefixtures("quick_ticks")
def test_when_no_channel_comes_in_time_every_stream_ends_with_what_may_be_lost() -> None:
    async def scenario() -> None:
        peers = Resuming("web", timeout=0.3)
        async with sessions(peers, peers.ends) as (caller, callee):
            ours, theirs = await peers.stream(caller, "web")
            await ours.write(b"x" * 1000)
            cut(caller)
            assert await theirs.readexactly(1000) == b"x" * 1000  # it came, but the caller cannot know
            for stream in (ours, theirs):
                with pytest.raises(ResumeExpiredError) as error:
                    await stream.read()
                assert 0.3 <= error.value.gap < 2
            for session, unacknowledged in ((caller, 1000), (callee, 0)):
                assert isinstance(session.error, ResumeExpiredError)
                assert session.error.unacknowledged_bytes >= unacknowledged
                assert session.state == "closed"
            assert (ours.stats.unacknowledged, ours.stats.sent) == (1000, 1000)
            with pytest.raises(ResumeExpiredError):
                caller.open("web")
            assert of(caller, peers) == [ChannelOpened, ChannelLost, SessionExpired]
            assert of(callee, peers) == [ChannelOpened, ChannelLost, SessionExpired]

    run(scenario())


def of(session: Session, peers: Resuming) -> list[type[PeerEvent]]:
    """The kinds of events that one session has told; a suspicion may come before any other."""
    return [type(event) for event in peers.told if event.tag == session.tag and not isinstance(event, PathSuspected)]


def test_a_cut_and_a_resumption_are_told_in_order() -> None:
    async def scenario() -> None:
        peers = Resuming("web")
        async with resuming(peers) as (caller, callee):
            ours, theirs = await peers.stream(caller, "web")
            cut(caller)
            await until(lambda: caller.resumes == 1)
            await ours.write(b"hello")
            assert await theirs.read() == b"hello"
            for session in (caller, callee):
                assert of(session, peers) == [ChannelOpened, ChannelLost, ChannelOpened, PathChanged, SessionResumed]
            [resumed] = [event for event in peers.told if isinstance(event, SessionResumed) and event.tag == caller.tag]
            assert 0 <= resumed.gap < 5
            assert caller.suspended_for is None

    run(scenario())


def test_a_callee_that_has_forgotten_the_session_ends_it_at_once() -> None:
    async def scenario() -> None:
        peers = Resuming("web")
        async with sessions(peers, peers.ends) as (caller, callee):
            ours, _ = await peers.stream(caller, "web")
            cut(caller)
            await until(lambda: caller.state == callee.state == "suspended")
            peers.accepted.clear()  # as after a restart
            await peers.redial(caller)
            with pytest.raises(ResumeExpiredError, match="does not know the session any more"):
                await ours.read()
            assert of(caller, peers)[-1] is SessionExpired
            assert callee.state == "suspended"

    run(scenario())


def test_a_caller_without_streams_ends_with_its_channel_and_a_callee_waits() -> None:
    async def scenario() -> None:
        peers = Resuming("web")
        async with resuming(peers) as (caller, callee):
            await until(lambda: caller._endpoint.unacknowledged == 0)
            cut(caller)
            await caller.closed.wait()
            assert type(caller.error) is ChannelLostError
            await until(lambda: callee.state == "suspended")
            assert peers.dials == 0

    run(scenario())


@pytest.mark.parametrize("is_dead", [False, True])
def test_closing_without_a_channel_takes_no_time(is_dead: bool) -> None:
    async def scenario() -> None:
        wire, peers = Wire(), Peers("web")
        peers.options = SessionOptions(resume_timeout=60)
        try:
            async with sessions(peers, (wire.client, wire.server)) as (caller, callee):
                await peers.stream(caller, "web")
                if is_dead:
                    caller._on_dead()  # what the judge says after seconds of silence
                    callee._on_dead()
                else:
                    cut(caller)
                await until(lambda: caller.state == callee.state == "suspended")
                began = asyncio.get_running_loop().time()
                await asyncio.gather(caller.close(grace=10), callee.close(grace=10))
                assert asyncio.get_running_loop().time() - began < 1
                assert caller.state == callee.state == "closed"
        finally:
            await wire.close()

    run(scenario())


async def finish(stream: SessionStream, block: bytes) -> None:
    await stream.write(block)
    await stream.close()


def test_a_stream_that_was_closed_while_suspended_ends_cleanly_on_the_next_channel() -> None:
    async def scenario() -> None:
        peers = Resuming("web")
        async with sessions(peers, peers.ends) as (caller, callee):
            ours, theirs = await peers.stream(caller, "web")
            cut(callee)
            await until(lambda: caller.state == "suspended")
            late = caller.open("web")
            writing = [asyncio.ensure_future(late.write(b"opened without a channel"))]
            writing.append(asyncio.ensure_future(finish(ours, b"last words")))
            await still(lambda: late.stats.sent)
            await peers.redial(caller)
            await asyncio.gather(*writing)
            assert [part async for part in theirs] == [b"last words"]
            assert await (await peers.requests.get()).accept().read() == b"opened without a channel"

    run(scenario())


def test_rejoining_may_be_cancelled_anywhere_and_leaves_nothing() -> None:
    async def scenario() -> None:
        peers = Resuming("web")
        async with sessions(peers, peers.ends) as (caller, _):
            ours, theirs = await peers.stream(caller, "web")
            before, turns, is_done = descriptors(), 0, False
            while not is_done:
                task = asyncio.create_task(peers.rejoin(caller))
                with cancelled_after(turns, task):
                    await asyncio.wait([task])
                is_done = not task.cancelled() and not task.cancelling()
                await settle(before)
                turns += 1
            assert turns > 5
            await ours.write(b"still here")
            assert await theirs.read() == b"still here"

    run(scenario())
