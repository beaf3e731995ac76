"""What may be opened in a session, and what becomes of those who ask for anything else."""

from __future__ import annotations

import asyncio
import logging

import pytest

from p2ptunnel.defaults import ASK_PATIENCE
from p2ptunnel.errors import (
    AccessDeniedError,
    ChannelBusyError,
    LocalProtocolError,
    StreamResetError,
    TargetRefusedError,
)
from p2ptunnel.session import live
from p2ptunnel.session.session import OpenRequest
from p2ptunnel.wire.frames import ResetCode
from tests.helpers import run
from tests.helpers.peers import CALLER, Peers, sessions
from tests.unit.session.serving import echoing


def test_a_stream_is_opened_without_waiting_and_confirmed_by_waiting() -> None:
    async def scenario() -> None:
        async with sessions(echoing("web")) as (caller, callee):
            first = caller.open("web")
            second = await caller.open_confirmed("web")
            for stream in (first, second):
                await stream.write(b"hello")
                assert await stream.read() == b"hello"
            assert (caller.streams, callee.streams) == (2, 2)
            for stream in (first, second):
                await stream.write_eof()
                assert await stream.read() == b""
            assert caller.streams == 0
            assert (caller.bytes_sent, caller.bytes_received) == (10, 10)

    run(scenario())


def test_a_request_tells_who_asks_for_what() -> None:
    async def scenario() -> None:
        peers = Peers("web")
        async with sessions(peers) as (caller, callee):
            caller.open("web")
            request = await peers.requests.get()
            assert (request.service, request.peer_key, request.session) == ("web", CALLER.public, callee)
            request.accept()
            for decide in (request.accept, request.refuse):
                with pytest.raises(LocalProtocolError, match="accepted or refused once"):
                    decide()

    run(scenario())


def test_what_is_not_granted_and_what_does_not_exist_are_one_answer_and_reach_nobody() -> None:
    async def scenario() -> None:
        peers = Peers("ssh", "web")
        async with sessions(peers) as (caller, _):
            for service in ("nowhere", "we", "web ", "SSH"):
                with pytest.raises(AccessDeniedError) as error:
                    await caller.open_confirmed(service)
                assert (error.value.tag, error.value.service) == ("home-nas", service)
                assert error.value.granted == ("ssh", "web")
                unconfirmed = caller.open(service)
                with pytest.raises(AccessDeniedError):
                    await unconfirmed.read()
                with pytest.raises(AccessDeniedError):
                    await unconfirmed.write(b"x")
            assert peers.requests.empty()
            assert caller.streams == 0

    run(scenario())


def test_who_is_told_again_and_again_that_somebody_is_asked_is_told_once_and_waits_no_longer_than_it_wants_to() -> None:
    """Else a callee could keep a caller that gave itself two seconds for ever."""

    async def scenario() -> None:
        peers = Peers("web")
        async with sessions(peers) as (caller, _):
            asked: list[float] = []
            opening = asyncio.create_task(caller.open_confirmed("web", on_asked=asked.append))
            request = await peers.requests.get()
            for _ in range(3):
                request.wait(65_535)
            request.accept()
            await opening
            assert asked == [ASK_PATIENCE]

    run(scenario())


def test_a_caller_serves_nothing() -> None:
    async def scenario() -> None:
        async with sessions(Peers("web")) as (_, callee):
            with pytest.raises(AccessDeniedError):
                await callee.open_confirmed("web")

    run(scenario())


def test_a_target_that_refuses_is_told_with_its_reason() -> None:
    async def scenario() -> None:
        peers = Peers("web")
        async with sessions(peers) as (caller, _):
            opening = asyncio.ensure_future(caller.open_confirmed("web"))
            (await peers.requests.get()).refuse(ResetCode.TARGET_REFUSED, "connection refused")
            with pytest.raises(TargetRefusedError) as error:
                await opening
            assert str(error.value) == "'web' on home-nas cannot be reached: connection refused"

    run(scenario())


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (TargetRefusedError("here", "web", "no answer in 10 s"), "'web' on home-nas cannot be reached: no answer in 10 s"),
        (StreamResetError("inside"), "the stream was reset: the peer's service failed"),
        (OSError("disk"), "the stream was reset: the peer's service failed"),
        (ZeroDivisionError(), "the stream was reset: the peer's service failed"),
        (None, "the stream was reset: nobody took the stream"),
    ],
    ids=repr,
)
def test_a_service_that_fails_or_forgets_is_answered_for(
    fault: Exception | None, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(request: OpenRequest) -> None:
        if fault is not None:
            raise fault

    async def scenario() -> None:
        peers = Peers("web")
        peers.on_open = fail
        async with sessions(peers) as (caller, callee):
            with pytest.raises((TargetRefusedError, StreamResetError)) as error:
                await caller.open_confirmed("web")
            assert str(error.value) == told
            assert callee.error is None

    with caplog.at_level(logging.ERROR):
        run(scenario())
    assert bool(caplog.records) == isinstance(fault, ZeroDivisionError)


def test_a_service_that_fails_later_resets_its_stream() -> None:
    async def fail(request: OpenRequest) -> None:
        stream = request.accept()
        await stream.read()
        raise OSError("disk")

    async def scenario() -> None:
        peers = Peers("web")
        peers.on_open = fail
        async with sessions(peers) as (caller, _):
            stream = await caller.open_confirmed("web")
            await stream.write(b"go")
            with pytest.raises(StreamResetError, match="the peer's service failed"):
                await stream.read()

    run(scenario())


def test_a_caller_that_gives_up_takes_its_stream_back() -> None:
    async def scenario() -> None:
        peers = Peers("web")
        async with sessions(peers) as (caller, callee):
            opening = asyncio.ensure_future(caller.open_confirmed("web"))
            request = await peers.requests.get()
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
            while callee.streams:
                await asyncio.sleep(0)
            stream = request.accept()  # too late, and harmless
            with pytest.raises(StreamResetError, match="cancelled"):
                await stream.read()

    run(scenario())


def test_more_streams_than_a_session_may_have_are_refused_here() -> None:
    async def scenario() -> None:
        peers = Peers("web")
        async with sessions(peers) as (caller, _):
            streams = [caller.open("web") for _ in range(1024)]
            with pytest.raises(ChannelBusyError):
                caller.open("web")
            streams[0].abort()
            caller.open("web")

    run(scenario())


def test_a_peer_that_opens_and_resets_without_end_keeps_only_so_many_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_TASKS_MAX", 5)

    async def scenario() -> None:
        peers = Peers("web")
        async with sessions(peers) as (caller, callee):
            for _ in range(20):
                caller.open("web").abort()
            with pytest.raises(StreamResetError, match="too many streams are being served"):
                await caller.open_confirmed("web")
            assert peers.requests.qsize() == len(callee._work) == 5

    run(scenario())


def test_what_is_no_service_name_is_our_own_error() -> None:
    async def scenario() -> None:
        async with sessions(Peers("web")) as (caller, _):
            with pytest.raises(LocalProtocolError):
                caller.open("line\nbreak")
            assert caller.streams == 0

    run(scenario())
