"""What a malicious peer, a bad moment or a failing helper does to a session."""

from __future__ import annotations

import asyncio
import os

import pytest

from p2ptunnel.errors import ChannelError, P2PTunnelError, RemoteProtocolError
from p2ptunnel.protocol.link import Health
from p2ptunnel.protocol.resume import Endpoint
from p2ptunnel.session import live
from p2ptunnel.session import migration as migration_module
from p2ptunnel.session.migration import Migration
from p2ptunnel.session.session import Rejoined, Session, SessionOptions
from p2ptunnel.trace import TraceEvent, Tracer
from p2ptunnel.wire.frames import Data, Frame, GoAway, GoAwayCode, Open, Opened, Ping, Resume, encode
from tests.helpers import run
from tests.helpers.peers import Peers, sessions
from tests.unit.session.serving import echoing


def cut(session: Session) -> None:
    leg = session._active
    assert leg is not None
    assert leg.channel._transport is not None
    leg.channel._transport.abort()


def feed(endpoint: Endpoint, link: int, *frames: Frame) -> None:
    endpoint.receive_data(link, memoryview(b"".join(map(encode, frames))), 0.0)
    endpoint.events()


def taken(endpoint: Endpoint, link: int, now: float = 0.0) -> memoryview:
    out = b""
    while data := endpoint.data_to_send(link, now):
        out += bytes(data)
    return memoryview(out)


# --- looking for another channel ----------------------------------------------------------------------------------------


def test_attempts_that_hang_do_not_become_a_storm(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt that makes room for a new one is seen to end, and that must not begin another one at once."""
    monkeypatch.setattr(migration_module, "REDIAL_STAGGER", 0.05)

    class Doubting:
        def __init__(self) -> None:
            self.in_doubt, self.settled = asyncio.Event(), asyncio.Event()
            self.in_doubt.set()

    async def scenario() -> None:
        attempts = 0

        async def redial() -> None:
            nonlocal attempts
            attempts += 1
            await asyncio.get_running_loop().create_future()

        running = asyncio.create_task(Migration(Doubting(), redial, lambda _: None).run())
        await asyncio.sleep(0.5)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert attempts <= 12

    run(scenario())


def test_a_session_that_ended_at_once_can_still_be_closed() -> None:
    """The peer said goodbye right behind ACCEPT, so the session was over before anybody could keep it up."""

    async def scenario() -> None:
        peers = Peers("web")
        peers.options = SessionOptions(resume_timeout=60)
        caller, callee = await peers.meet()
        assert isinstance(caller, Session)
        assert isinstance(callee, Session)
        callee.abort()
        caller.abort()
        caller.keep_up(lambda: asyncio.sleep(0))
        closing = asyncio.ensure_future(caller.close())
        await asyncio.wait([closing], timeout=1)
        is_closed = closing.done()
        for task in tuple(caller._work._tasks):
            task.cancel()
        await asyncio.gather(closing, callee.close(), return_exceptions=True)
        assert is_closed

    run(scenario())


def test_who_takes_back_the_channel_that_carries_the_session_suspends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "SESSION_TICK", 0.02)

    async def scenario() -> None:
        peers = Peers("web")
        peers.options = SessionOptions(resume_timeout=0.5)
        async with sessions(peers) as (caller, _):
            ours, _ = await peers.stream(caller, "web")
            await peers.rejoin(caller)
            while caller.resumes == 0:
                await asyncio.sleep(0.001)
            assert caller._endpoint.active is not None
            caller.withdraw(caller._endpoint.active)
            await asyncio.sleep(0)
            assert caller.state == "suspended"
            with pytest.raises(P2PTunnelError):
                await asyncio.wait_for(ours.read(), 3)

    run(scenario())


def test_who_no_longer_wants_a_channel_does_not_take_it_from_a_session_that_runs_over_it() -> None:
    """A call is cancelled when the session is settled, which may be because of the very channel that the call has made."""

    async def scenario() -> None:
        peers = Peers("web")
        peers.options = SessionOptions(resume_timeout=0.5)
        async with sessions(peers) as (caller, _):
            ours, theirs = await peers.stream(caller, "web")
            await peers.rejoin(caller)
            while caller.resumes == 0:
                await asyncio.sleep(0.001)
            assert caller._endpoint.active is not None
            Rejoined(caller, caller._endpoint.active).abort("cancelled")
            assert caller.state == "open"
            await ours.write(b"on")
            assert await theirs.read() == b"on"

    run(scenario())


def test_a_channel_that_ends_while_the_session_asks_for_another_suspends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two attempts fail, and the old channel is lost in between: who has none must say so, and wait for so long only."""
    monkeypatch.setattr(live, "SESSION_TICK", 0.02)

    async def scenario() -> None:
        peers = Peers("web")
        peers.options = SessionOptions(resume_timeout=0.5)
        async with sessions(peers) as (caller, _):
            ours, _ = await peers.stream(caller, "web")
            (leg,) = caller._legs.values()
            first, _ = await caller.join()
            caller.withdraw(first)
            second, _ = await caller.join()
            assert leg.channel._transport is not None
            leg.channel._transport.abort()
            await asyncio.sleep(0.05)
            caller.withdraw(second)
            await asyncio.sleep(0.05)
            assert caller._legs == {}
            assert caller.state == "suspended"
            with pytest.raises(P2PTunnelError):
                await asyncio.wait_for(ours.read(), 3)

    run(scenario())


def test_one_channel_is_asked_for_at_a_time_also_when_several_wait() -> None:
    async def scenario() -> None:
        peers = Peers("web")
        peers.options = SessionOptions(resume_timeout=60)
        async with sessions(peers) as (caller, _):
            number, _ = await caller.join()
            waiting = [asyncio.ensure_future(caller.join()) for _ in range(2)]
            await asyncio.sleep(0.01)
            caller.withdraw(number)
            await asyncio.sleep(0.05)
            joined = sum(task.done() for task in waiting)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            assert joined == 1

    run(scenario())


# --- the sequence -------------------------------------------------------------------------------------------------------


def test_a_question_that_was_overtaken_and_is_never_answered_is_asked_again() -> None:
    """RESUME 2 is under way on the first link; RESUME 3 overtakes it on another one, which then dies with its answer."""
    caller, callee = Endpoint(caller=True, now=0), Endpoint(caller=False, now=0)
    caller.begin(0)
    callee.begin(0)
    failed = caller.attach(0)
    caller.resume(failed)
    taken(caller, failed)
    caller.detach(failed)  # the attempt has reached nobody: the peer is asked to stay
    under_way = bytes(taken(caller, 1))
    other = caller.attach(0)
    caller.resume(other)
    question = taken(caller, other)
    theirs = callee.attach(0)
    callee.receive_data(theirs, question, 0)
    taken(callee, theirs)  # the answer, which nobody gets
    callee.receive_data(1, memoryview(under_way), 0)
    callee.detach(theirs)
    caller.detach(other)
    for turn in range(1, 200):
        now = turn / 10
        for sender, receiver in ((caller, callee), (callee, caller)):
            if data := bytes(taken(sender, 1, now)):
                receiver.receive_data(1, memoryview(data), now)
            sender.handle_timer(now, lambda _: 0.0)
            sender.events()
    assert (caller.active, callee.active) == (1, 1)


def test_a_question_that_another_one_overtook_is_not_waited_for_when_the_other_channel_dies() -> None:
    """No channel is left; two come up at once; the second RESUME is there first, and its channel dies before the answer."""
    caller, callee = Endpoint(caller=True, now=0), Endpoint(caller=False, now=0)
    for endpoint in (caller, callee):
        endpoint.begin(0)
        endpoint.detach(1)
    slow, quick = caller.attach(0), caller.attach(0)
    caller.resume(slow)
    caller.resume(quick)
    slow_there, quick_there = callee.attach(0), callee.attach(0)
    callee.receive_data(quick_there, taken(caller, quick), 0)
    callee.receive_data(slow_there, taken(caller, slow), 0)
    caller.detach(quick)
    callee.detach(quick_there)
    for turn in range(1, 200):
        now = turn / 10
        for sender, number, receiver, other in ((caller, slow, callee, slow_there), (callee, slow_there, caller, slow)):
            if data := bytes(taken(sender, number, now)):
                receiver.receive_data(other, memoryview(data), now)
            sender.handle_timer(now, lambda _: 0.0)
            sender.events()
    assert (caller.active, callee.active) == (slow, slow_there)


def test_a_path_that_dies_under_a_stalled_peer_is_seen_to_be_dead() -> None:
    """As long as nothing is sent there is nothing to acknowledge, so the kernel's word is none: it must be asked again."""
    caller = Endpoint(caller=True, now=0)
    caller.begin(0)
    caller.mux.open("web", 0)
    taken(caller, 1)
    caller.receive_data(1, memoryview(encode(Opened(1, 262_144))), 0.01)
    path_died_at, sent_at = 60.0, 0.0
    health = set()
    for turn in range(1, 4 * 300):
        now = turn / 4
        if taken(caller, 1, now) and now > path_died_at:
            sent_at = sent_at or now
        without_ack = now - sent_at if sent_at else 0.0
        caller.handle_timer(now, lambda _, seconds=without_ack: seconds)
        caller.events()
        health.add(caller.link(1).health)
    assert Health.STALLED in health
    assert caller.link(1).health is Health.DEAD


def test_a_peer_that_asks_to_resume_again_and_again_and_reads_no_answer_is_stopped() -> None:
    callee = Endpoint(caller=False, now=0)
    callee.begin(0)
    try:
        for number in range(1, 20_000):
            feed(callee, 1, Resume(number, 0))
    except RemoteProtocolError:
        return
    assert len(callee.link(1).control) < 200_000


@pytest.mark.bulk
def test_acknowledgements_do_not_pile_up_on_a_channel_that_is_not_read() -> None:
    """The peer moved us to a channel that it never reads, and sends and asks over the one before, which it does read."""
    callee = Endpoint(caller=False, now=0)
    callee.begin(0)
    unread = callee.attach(0)
    feed(callee, unread, Resume(1, 0))
    taken(callee, unread)
    feed(callee, 1, Open(1, 262_144, "web"))
    callee.mux.accept(1)
    try:
        for _ in range(30_000):
            feed(callee, 1, Data(1, memoryview(b"x")), Ping(bytes(8)))
            taken(callee, 1)
            callee.mux.consumed(1, 1, 0.0)
    except RemoteProtocolError:
        return
    assert len(callee.link(unread).control) < 200_000


@pytest.mark.parametrize(
    "frames", [(Open(1, 262_144, "web"), GoAway(GoAwayCode.EXPIRED)), (GoAway(GoAwayCode.EXPIRED), Resume(1, 0))]
)
def test_nothing_begins_on_a_session_that_has_ended_in_the_same_batch(frames: tuple[Frame, ...]) -> None:
    """OPEN and EXPIRED: the end is handled first, and the service would be begun on a session that nothing ends any more."""

    async def scenario() -> None:
        peers = echoing("web")
        peers.options = SessionOptions(resume_timeout=60)
        async with sessions(peers) as (_, callee):
            (leg,) = callee._legs.values()
            callee.received(leg, memoryview(b"".join(map(encode, frames))))  # must not raise, whatever a peer sends
            await asyncio.sleep(0.05)
            serving = set(callee._work._tasks)
            for task in serving:
                task.cancel()
            assert callee.error is not None
            assert serving == set()

    run(scenario())


# --- what fails beside it -----------------------------------------------------------------------------------------------


def test_a_sink_that_fails_costs_no_bytes_of_a_stream() -> None:
    """A full disk under --trace: it raises in the middle of what has come, the channel dies, the session goes on - where?"""

    async def scenario() -> None:
        peers = Peers("web")
        peers.options = SessionOptions(resume_timeout=60)

        def full(event: TraceEvent) -> None:
            if event.name == "stream_denied":
                raise OSError(28, "No space left on device")

        async with sessions(peers) as (caller, callee):
            asyncio.get_running_loop().set_exception_handler(lambda *_: None)
            caller.keep_up(lambda: peers.rejoin(caller))
            ours, theirs = await peers.stream(caller, "web")
            await ours.write(b"before ")
            assert await theirs.readexactly(7) == b"before "
            object.__setattr__(callee, "_trace", Tracer(full))
            caller.open("not yours")
            await ours.write(b"lost ")  # behind OPEN, in one batch
            await asyncio.sleep(0.3)
            await ours.write(b"after")
            await ours.write_eof()
            got = bytearray()
            try:
                while part := await asyncio.wait_for(theirs.read(), 3):
                    got += part
            except ChannelError:
                return  # a typed error is an honest end
            assert bytes(got) == b"lost after"

    run(scenario(), timeout=10)


def test_a_session_that_has_ended_keeps_no_replay_buffer() -> None:
    async def scenario() -> None:
        peers = Peers("web")
        peers.options = SessionOptions(resume_timeout=60)
        async with sessions(peers) as (caller, callee):
            ours, _ = await peers.stream(caller, "web")
            callee._endpoint._acknowledge = lambda: None  # type: ignore[method-assign]  # it never acknowledges
            await ours.write(os.urandom(200_000))
            cut(caller)
            await asyncio.sleep(0.05)
            caller.abort()
            assert ours.stats.unacknowledged > 0  # the number stays, and the bytes go
            assert caller._endpoint.unacknowledged == 0

    run(scenario())
