"""Looking for another channel: attempts one beside the other, all of them over when one has won; and who may join at all."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from p2ptunnel.defaults import REDIALS_AT_ONCE
from p2ptunnel.errors import ChannelLostError
from p2ptunnel.events import PeerEvent
from p2ptunnel.identity.keys import Identity
from p2ptunnel.net import backoff as backoff_module
from p2ptunnel.session import live
from p2ptunnel.session import migration as migration_module
from p2ptunnel.session.migration import Migration
from p2ptunnel.session.session import Session, SessionOptions, resume_session
from p2ptunnel.session.stream import SessionStream
from tests.helpers import run
from tests.helpers.lasting import cut, until
from tests.helpers.peers import Peers, new_pipe, sessions, tcp_pair


class Seeker:
    """A session that is in doubt or not, and attempts that the test ends one by one."""

    def __init__(self) -> None:
        self.in_doubt, self.settled = asyncio.Event(), asyncio.Event()
        self.attempts: list[asyncio.Future[None]] = []
        self.failures: list[Exception] = []
        self.migration = Migration(self, self._redial, self.failures.append)

    async def _redial(self) -> None:
        attempt: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.attempts.append(attempt)
        await attempt

    def doubt(self) -> None:
        self.settled.clear()
        self.in_doubt.set()

    def settle(self) -> None:
        self.in_doubt.clear()
        self.settled.set()

    @property
    def pending(self) -> int:
        return sum(not attempt.done() for attempt in self.attempts)


@asynccontextmanager
async def seeking() -> AsyncGenerator[tuple[Seeker, asyncio.Task[None]]]:
    seeker = Seeker()
    running = asyncio.create_task(seeker.migration.run())
    seeker.doubt()
    try:
        yield seeker, running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert seeker.pending == 0


class NoJitter:
    def random(self) -> float:
        return 1.0


# --- attempts ---------------------------------------------------------------------------------------------------------


def test_nothing_is_tried_while_nothing_is_wanted() -> None:
    async def scenario() -> None:
        seeker = Seeker()
        running = asyncio.create_task(seeker.migration.run())
        for _ in range(20):
            await asyncio.sleep(0)
        assert seeker.attempts == []
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    run(scenario())


def test_a_failed_attempt_is_told_and_followed_by_another_after_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff_module, "_dice", NoJitter())

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        async with seeking() as (seeker, _):
            pauses: list[float] = []
            for number in range(3):
                await until(lambda number=number: len(seeker.attempts) == number + 1)
                began = loop.time()
                seeker.attempts[number].set_exception(ChannelLostError("no route"))
                await until(lambda number=number: len(seeker.attempts) == number + 2)
                pauses.append(loop.time() - began)
            assert len(seeker.failures) == 3
            assert 0.15 < pauses[0] < pauses[1] < pauses[2] < 1.0

    run(scenario())


def test_who_hurries_tries_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff_module, "_dice", NoJitter())
    monkeypatch.setattr(backoff_module, "RECONNECT_FIRST", 1000.0)
    monkeypatch.setattr(backoff_module, "RECONNECT_QUICK_CAP", 1000.0)

    async def scenario() -> None:
        async with seeking() as (seeker, _):
            await until(lambda: seeker.attempts)
            seeker.attempts[0].set_exception(OSError("no route"))
            await until(lambda: seeker.failures)
            seeker.migration.hurry()
            await until(lambda: len(seeker.attempts) == 2)

    run(scenario())


def test_attempts_overlap_and_no_more_than_a_few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration_module, "REDIAL_STAGGER", 0.02)

    async def scenario() -> None:
        async with seeking() as (seeker, _):
            await until(lambda: len(seeker.attempts) == REDIALS_AT_ONCE)
            assert seeker.pending == REDIALS_AT_ONCE
            await until(lambda: len(seeker.attempts) > REDIALS_AT_ONCE + 2)
            await asyncio.sleep(0)
            assert seeker.pending <= REDIALS_AT_ONCE
            assert seeker.attempts[0].cancelled()  # the oldest makes room
            assert not seeker.attempts[-1].done()
            assert seeker.failures == []

    run(scenario())


def test_the_end_of_doubt_ends_all_attempts_and_the_next_doubt_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration_module, "REDIAL_STAGGER", 0.02)

    async def scenario() -> None:
        async with seeking() as (seeker, running):
            await until(lambda: len(seeker.attempts) >= 2)
            seeker.settle()
            await until(lambda: seeker.pending == 0)
            count = len(seeker.attempts)
            for _ in range(20):
                await asyncio.sleep(0.002)
            assert len(seeker.attempts) == count
            seeker.doubt()
            await until(lambda: len(seeker.attempts) > count)
            assert not running.done()

    run(scenario())


def test_a_channel_that_came_up_is_given_time_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration_module, "DEAD_ACTIVE", 0.1)

    async def scenario() -> None:
        async with seeking() as (seeker, _):
            await until(lambda: seeker.attempts)
            began = asyncio.get_running_loop().time()
            seeker.attempts[0].set_result(None)
            await until(lambda: len(seeker.attempts) == 2)  # it has not answered
            assert asyncio.get_running_loop().time() - began >= 0.1

    run(scenario())


def test_a_fault_of_ours_is_not_tried_for_ever() -> None:
    async def scenario() -> None:
        async with seeking() as (seeker, running):
            await until(lambda: seeker.attempts)
            seeker.attempts[0].set_exception(ZeroDivisionError())
            await asyncio.wait([running], timeout=2)
            assert isinstance(running.exception(), ZeroDivisionError)
            assert len(seeker.attempts) == 1

    run(scenario())


def test_a_session_that_ends_leaves_no_attempt() -> None:
    async def scenario() -> None:
        peers = Peers("web")
        peers.options = SessionOptions(resume_timeout=60)
        redials: list[asyncio.Task[None] | None] = []

        async def redial() -> None:
            redials.append(asyncio.current_task())
            await asyncio.get_running_loop().create_future()

        async with sessions(peers) as (caller, _):
            await peers.stream(caller, "web")
            caller.keep_up(redial)
            cut(caller)
            await until(lambda: redials)
            await caller.close()
            assert [task is not None and task.cancelled() for task in redials] == [True]

    run(scenario())


# --- sessions that move -------------------------------------------------------------------------------------------------


async def send(stream: SessionStream, block: bytes) -> None:
    for at in range(0, len(block), 100_000):
        await stream.write(block[at : at + 100_000])
        await asyncio.sleep(0)
    await stream.write_eof()


async def hashed(stream: SessionStream) -> bytes:
    seen = hashlib.sha256()
    async for part in stream:
        seen.update(part)
    return seen.digest()


def test_a_session_moves_while_its_channel_works_and_bytes_flow_both_ways() -> None:
    async def scenario() -> None:
        peers = Peers("web")
        peers.options = SessionOptions(resume_timeout=60)
        async with sessions(peers) as (caller, callee):
            ours, theirs = await peers.stream(caller, "web")
            blocks = os.urandom(5_000_000), os.urandom(5_000_000)
            work = asyncio.gather(send(ours, blocks[0]), send(theirs, blocks[1]), hashed(theirs), hashed(ours))
            for moves in range(1, 6):
                await peers.rejoin(caller)
                await until(lambda moves=moves: caller.resumes == moves)
            digests = await work
            assert digests[2:] == [hashlib.sha256(block).digest() for block in blocks]
            assert caller.resumes == callee.resumes == 5

    run(scenario())


def test_two_channels_that_join_at_once_do_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "JOIN_PATIENCE", 0)  # else they take turns

    async def scenario() -> None:
        peers = Peers("web")
        peers.options = SessionOptions(resume_timeout=60)
        async with sessions(peers) as (caller, _):
            caller.keep_up(lambda: peers.rejoin(caller))  # should one have closed what the other needed
            ours, theirs = await peers.stream(caller, "web")
            blocks = os.urandom(3_000_000), os.urandom(3_000_000)
            work = asyncio.gather(send(ours, blocks[0]), send(theirs, blocks[1]), hashed(theirs), hashed(ours))
            for _ in range(5):
                await asyncio.gather(*(peers.rejoin(caller) for _ in range(3)), return_exceptions=True)
            digests = await work
            assert digests[2:] == [hashlib.sha256(block).digest() for block in blocks]

    run(scenario())


def test_a_change_of_the_network_looks_for_another_channel_before_the_old_one_is_lost() -> None:
    async def scenario() -> None:
        peers, told = Peers("web"), list[PeerEvent]()
        peers.options = SessionOptions(resume_timeout=60, on_event=told.append)
        async with sessions(peers) as (caller, _):
            ours, theirs = await peers.stream(caller, "web")
            caller.keep_up(lambda: peers.rejoin(caller))
            caller.network_changed()
            await caller.settled.wait()
            await ours.write(b"hello")
            assert await theirs.read() == b"hello"
            assert caller.error is None
            assert caller.state == "open"

    run(scenario())


def test_a_caller_without_streams_looks_for_nothing_when_the_network_changes() -> None:
    async def scenario() -> None:
        peers = Peers("web")
        peers.options = SessionOptions(resume_timeout=60)
        async with sessions(peers) as (caller, _):
            await until(lambda: caller._endpoint.unacknowledged == 0)
            caller.network_changed()
            assert not caller.in_doubt.is_set()

    run(scenario())


def test_nobody_else_goes_on_with_a_session_whatever_id_he_names() -> None:
    """The attacker is admitted here with a key of its own, and has learned the id of somebody else's session."""

    async def scenario() -> None:
        peers = Peers("web")
        peers.options = SessionOptions(resume_timeout=60)
        thief = Peers("web")
        thief.caller = Identity.from_seed(b"\x63" * 32)
        thief.access, thief.accepted, thief.options = peers.access, peers.accepted, peers.options
        peers.access.allow(thief.caller.public, "web")
        async with sessions(peers) as (caller, callee), sessions(thief) as (own, _):
            ours, theirs = await peers.stream(caller, "web")
            stolen = own.open("web")
            request = await thief.requests.get()
            request.accept()
            await _rejoin_as(thief, own, caller.session_id)
            await until(lambda: len(own._legs) == 1)  # the answer to that was an end, of that channel only
            assert own.error is None
            assert stolen.stats.received == 0
            assert callee.resumes == 0
            assert len(callee._legs) == 1
            await ours.write(b"nobody heard this")
            assert await theirs.read() == b"nobody heard this"

    run(scenario())


async def _rejoin_as(peers: Peers, session: Session, session_id: bytes) -> None:
    """Join with the id of another session, as only a program that was changed would."""
    object.__setattr__(session, "session_id", session_id)
    client, server = tcp_pair()
    peers.selector = os.urandom(16)
    accepting = asyncio.ensure_future(peers.accept(server))
    await resume_session(session, new_pipe(client), identity=peers.caller, selector=peers.selector)
    await asyncio.gather(accepting, return_exceptions=True)
