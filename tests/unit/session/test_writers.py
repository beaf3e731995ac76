"""Writers that meet: with another writer, with `close`, with a cancellation, with the end of what they wrote."""

from __future__ import annotations

import asyncio

import pytest

from p2ptunnel.defaults import PING_ACTIVE, STREAM_WINDOW_BYTES
from p2ptunnel.errors import ChannelClosedError, ChannelLostError, LocalProtocolError, StreamResetError
from p2ptunnel.session.session import SessionOptions
from p2ptunnel.session.stream import SessionStream
from tests.helpers import run
from tests.helpers.peers import Peers, sessions

MORE_THAN_FITS = bytes(1 << 20)


async def blocked(stream: SessionStream) -> asyncio.Task[None]:
    """A write that waits for a peer that does not read."""
    writing = asyncio.create_task(stream.write(MORE_THAN_FITS))
    while stream.stats.sent < STREAM_WINDOW_BYTES:
        await asyncio.sleep(0)
    return writing


async def read_to_end(stream: SessionStream) -> int:
    count = 0
    while part := await stream.read():
        count += len(part)
    return count


def test_in_the_turn_in_which_a_write_drains_no_other_one_slips_in() -> None:
    async def scenario() -> None:
        peers = Peers("sink")
        async with sessions(peers) as (caller, _):
            ours, theirs = await peers.stream(caller, "sink")
            first = await blocked(ours)

            async def second() -> None:
                while not caller._mux.is_drained(ours.stream_id):
                    await asyncio.sleep(0)
                assert not first.done()  # it has been told, and has not run yet
                await ours.write(MORE_THAN_FITS)

            writing = asyncio.create_task(second())
            reading = asyncio.create_task(read_to_end(theirs))
            with pytest.raises(LocalProtocolError, match="another task is writing"):
                await writing
            await first
            await ours.write_eof()
            assert await reading == len(MORE_THAN_FITS)

    run(scenario())


@pytest.mark.parametrize("ending", ["write_eof", "close"])
def test_a_write_that_is_cancelled_behind_the_end_resets_the_stream_at_both_ends(ending: str) -> None:
    async def scenario() -> None:
        peers = Peers("sink")
        async with sessions(peers) as (caller, _):
            ours, theirs = await peers.stream(caller, "sink")
            writing = await blocked(ours)
            reading = asyncio.create_task(ours.read())
            await asyncio.sleep(0)
            await getattr(ours, ending)()
            writing.cancel()
            with pytest.raises(StreamResetError, match="a write was cancelled"):
                await read_to_end(theirs)
            [result] = await asyncio.gather(reading, return_exceptions=True)
            assert isinstance(result, Exception)
            assert caller.streams == 0
            await asyncio.wait_for(caller._quiet.wait(), 5)

    run(scenario())


def test_closing_beside_a_blocked_write_gives_credit_for_the_answers_that_nobody_reads() -> None:
    async def scenario() -> None:
        peers = Peers("echo")
        async with sessions(peers) as (caller, _):
            ours, theirs = await peers.stream(caller, "echo")

            async def echo() -> None:
                while part := await theirs.read():
                    await theirs.write(part)

            echoing = asyncio.create_task(echo())
            writing = asyncio.create_task(ours.write(4 * MORE_THAN_FITS))
            while theirs.stats.sent < STREAM_WINDOW_BYTES:  # nobody reads the echo
                await asyncio.sleep(0)
            await ours.close()
            await asyncio.wait_for(writing, 10)
            await asyncio.wait_for(asyncio.gather(echoing, return_exceptions=True), 10)

    run(scenario())


def test_delivered_is_what_the_peer_has_acknowledged() -> None:
    async def scenario() -> None:
        peers = Peers("sink")
        async with sessions(peers) as (caller, _):
            ours, _theirs = await peers.stream(caller, "sink")
            await ours.write(b"some bytes")
            assert ours.stats.unacknowledged
            await asyncio.wait_for(ours.delivered(), 10)
            assert not ours.stats.unacknowledged
            await ours.delivered()

    run(scenario())


def test_an_acknowledgement_is_asked_for_and_not_waited_for() -> None:
    async def scenario() -> None:
        peers = Peers("sink")
        async with sessions(peers) as (caller, _):
            ours, _theirs = await peers.stream(caller, "sink")
            async with asyncio.timeout(20 * PING_ACTIVE / 4):
                for _ in range(20):
                    await ours.write(b"some bytes")
                    await ours.delivered()

    run(scenario())


def test_what_was_not_delivered_is_told_of_a_stream_that_was_over_before_the_session() -> None:
    async def scenario() -> None:
        peers = Peers("sink")
        async with sessions(peers) as (caller, callee):
            ours, theirs = await peers.stream(caller, "sink")
            await theirs.write_eof()
            assert await ours.read() == b""
            await ours.write(b"some bytes")
            await ours.close()
            caller._end(ChannelLostError("a test"))
            assert ours.stats.unacknowledged == len(b"some bytes")
            with pytest.raises(ChannelLostError, match="a test"):
                await ours.delivered()
            callee.abort()

    run(scenario())


def test_what_is_not_delivered_when_the_session_ends_is_told() -> None:
    async def scenario() -> None:
        peers = Peers("sink")
        async with sessions(peers) as (caller, callee):
            ours, _theirs = await peers.stream(caller, "sink")
            await ours.write(b"some bytes")
            waiting = asyncio.create_task(ours.delivered())
            await asyncio.sleep(0)
            caller._end(ChannelLostError("a test"))
            with pytest.raises(ChannelLostError, match="a test"):
                await waiting
            with pytest.raises(ChannelLostError, match="a test"):
                await ours.delivered()
            callee.abort()

    run(scenario())


def test_a_close_that_is_cancelled_still_says_goodbye() -> None:
    async def scenario() -> None:
        peers = Peers("sink")
        peers.options = SessionOptions(resume_timeout=60)
        async with sessions(peers) as (caller, callee):
            ours, _theirs = await peers.stream(caller, "sink")
            closing = asyncio.create_task(callee.close())
            await asyncio.sleep(0)
            closing.cancel()
            with pytest.raises(ChannelClosedError, match="closed by the peer"):
                await ours.read()
            assert caller.closed.is_set()

    run(scenario())
