"""A session that is up: what may be opened, what one stream does to another, and every way in which a session ends."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import os
import random
import time
from collections.abc import AsyncGenerator

import pytest

from p2ptunnel.errors import (
    AccessDeniedError,
    ChannelBusyError,
    ChannelClosedError,
    ChannelError,
    ChannelLostError,
    LocalProtocolError,
    RemoteProtocolError,
    StreamResetError,
    TargetRefusedError,
)
from p2ptunnel.identity.acl import AccessList
from p2ptunnel.identity.store import PeerStore
from p2ptunnel.net.threads import in_thread
from p2ptunnel.protocol import mux as mux_module
from p2ptunnel.session import live
from p2ptunnel.session.session import OpenRequest, Session
from p2ptunnel.session.stream import SessionStream
from p2ptunnel.wire.frames import Hello, ResetCode, Window, encode
from tests.helpers import run
from tests.helpers.peers import CALLEE, CALLER, Peers, Wire, sessions, tcp_pair


async def echo(request: OpenRequest) -> None:
    """Serve by sending back what comes."""
    async with request.accept() as stream:
        async for part in stream:
            await stream.write(part)
        await stream.write_eof()


def echoing(*services: str) -> Peers:
    peers = Peers(*services)
    peers.on_open = echo
    return peers


# --- opening ----------------------------------------------------------------------------------------------------------


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
            assert peers.requests.qsize() == len(callee._tasks) == 5

    run(scenario())


def test_what_is_no_service_name_is_our_own_error() -> None:
    async def scenario() -> None:
        async with sessions(Peers("web")) as (caller, _):
            with pytest.raises(LocalProtocolError):
                caller.open("line\nbreak")
            assert caller.streams == 0

    run(scenario())


# --- streams beside each other ------------------------------------------------------------------------------------------


def test_a_thousand_streams_at_once_all_finish_and_leave_nothing() -> None:
    async def scenario() -> None:
        async with sessions(echoing("web")) as (caller, callee):

            async def converse(number: int) -> None:
                stream = await caller.open_confirmed("web")
                block = random.Random(number).randbytes(2000)
                await stream.write(block)
                await stream.write_eof()
                assert b"".join([part async for part in stream]) == block
                await stream.close()

            await asyncio.gather(*map(converse, range(1000)))
            while callee.streams:
                await asyncio.sleep(0)
            assert (caller.streams, len(caller._streams), len(callee._streams)) == (0, 0, 0)
            while callee._tasks:
                await asyncio.sleep(0)

    run(scenario())


def test_a_reader_that_stops_stalls_its_own_stream_and_no_other() -> None:
    async def scenario() -> None:
        peers = Peers("web")
        async with sessions(peers) as (caller, _):
            stuck, unread = await peers.stream(caller, "web")
            writing = asyncio.ensure_future(stuck.write(bytes(30_000_000)))
            free, read = await peers.stream(caller, "web")
            block = random.Random(1).randbytes(1_000_000)
            for _ in range(5):
                sending = asyncio.ensure_future(free.write(block))
                assert await read.readexactly(len(block)) == block
                await sending
            assert not writing.done()
            assert len(b"".join(unread._chunks)) <= 256 * 1024
            unread.abort("enough")
            with pytest.raises(StreamResetError, match="enough"):
                await writing

    run(scenario())


def test_a_small_message_does_not_wait_for_a_big_transfer() -> None:
    async def scenario() -> None:
        peers = Peers("bulk", "keys")
        async with sessions(peers) as (caller, _):
            bulk, sink = await peers.stream(caller, "bulk")
            keys, shell = await peers.stream(caller, "keys")
            arrived = 0

            async def swallow() -> None:
                nonlocal arrived
                async for part in sink:
                    arrived += len(part)

            async def flood() -> None:
                while True:
                    await bulk.write(bytes(1_000_000))

            tasks = [asyncio.ensure_future(swallow()), asyncio.ensure_future(flood())]
            behind = []
            for _ in range(50):
                before = arrived
                await keys.write(b"k")
                await shell.readexactly(1)
                behind.append(arrived - before)
            assert sorted(behind)[25] < 4_000_000  # bytes of the other stream that went first: some kernel buffers
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    run(scenario())


def test_single_bytes_from_a_peer_do_not_cost_an_object_each() -> None:
    async def scenario() -> None:
        peers = Peers("web")
        async with sessions(peers) as (caller, _):
            ours, theirs = await peers.stream(caller, "web")
            for _ in range(5000):
                await ours.write(b"x")
            while caller.bytes_sent != 5000 or sum(map(len, theirs._chunks)) != 5000:
                await asyncio.sleep(0)
            assert len(theirs._chunks) < 10
            assert await theirs.readexactly(5000) == b"x" * 5000

    run(scenario())


@pytest.mark.parametrize("action", ["read", "write"])
def test_two_tasks_do_not_use_one_direction_of_a_stream(action: str) -> None:
    async def scenario() -> None:
        peers = Peers("web")
        async with sessions(peers) as (caller, _):
            ours, _theirs = await peers.stream(caller, "web")

            def use() -> asyncio.Future[object]:
                return asyncio.ensure_future(ours.read() if action == "read" else ours.write(bytes(10_000_000)))

            first, second = use(), use()
            with pytest.raises(LocalProtocolError):
                await second
            assert not first.done()
            ours.abort()
            with pytest.raises(ChannelError):
                await first

    run(scenario())


def test_closing_lets_a_write_of_another_task_finish() -> None:
    async def scenario() -> None:
        peers = Peers("web")
        async with sessions(peers) as (caller, callee):
            ours, theirs = await peers.stream(caller, "web")
            block = random.Random(2).randbytes(3_000_000)
            writing = asyncio.ensure_future(ours.write(block))
            while not ours._mux.bytes_sent:
                await asyncio.sleep(0)
            await ours.close()
            assert b"".join([part async for part in theirs]) == block
            await writing
            while callee.streams:  # it is told that nobody reads, although nothing else is sent
                await asyncio.sleep(0)
            assert caller.streams == 0

    run(scenario())


# --- secrecy and damage -------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def tapped(peers: Peers) -> AsyncGenerator[tuple[Wire, Session, Session]]:
    """Sessions with a man in the middle."""
    wire = Wire()
    try:
        async with sessions(peers, (wire.client, wire.server)) as (caller, callee):
            yield wire, caller, callee
    finally:
        await wire.close()


def test_nothing_of_what_is_sent_can_be_read_on_the_wire() -> None:
    async def scenario() -> None:
        marker = b"MARKER-" + os.urandom(16).hex().encode()
        peers = echoing("service-" + marker.decode())
        async with tapped(peers) as (wire, caller, _):
            stream = caller.open("service-" + marker.decode())
            for _ in range(100):
                await stream.write(marker * 300)
                await stream.readexactly(len(marker) * 300)
            for seen in map(bytes, wire.seen):
                assert len(seen) > 100 * 300 * len(marker)
                for spelling in (marker, base64.b64encode(marker)[:-4], CALLER.public.raw, CALLEE.public.raw):
                    assert spelling not in seen
                for key in (CALLER, CALLEE):
                    assert key.public.raw.hex().encode() not in seen
                    assert str(key.public).encode() not in seen

    run(scenario())


def test_a_flipped_bit_is_a_lost_channel_and_no_wrong_byte() -> None:
    async def scenario() -> None:
        dice = random.Random(5)
        for trial in range(10):
            peers = Peers("web")
            async with tapped(peers) as (wire, caller, callee):
                ours, theirs = await peers.stream(caller, "web")
                block = dice.randbytes(100_000)
                wire.flip = (0, len(wire.seen[0]) + dice.randrange(90_000))
                came = bytearray()
                reading = asyncio.ensure_future(read_into(came, theirs))
                await ours.write(block)
                await ours.write_eof()
                with pytest.raises(ChannelLostError) as error:
                    await reading
                assert "tls failed" in str(error.value), trial
                assert block.startswith(came)
                await caller.closed.wait()
                assert isinstance(callee.error, ChannelLostError)
                assert isinstance(caller.error, ChannelLostError)

    run(scenario())


async def read_into(came: bytearray, stream: SessionStream) -> None:
    async for part in stream:
        came += part


def test_an_end_of_the_connection_is_never_the_end_of_a_stream() -> None:
    async def scenario() -> None:
        peers = Peers("web")
        async with tapped(peers) as (wire, caller, callee):
            ours, theirs = await peers.stream(caller, "web")
            await ours.write(b"some of it")
            assert await theirs.read() == b"some of it"
            wire.cut()
            for stream in (ours, theirs):
                with pytest.raises(ChannelLostError, match="ended without a goodbye"):
                    await stream.read()
                with pytest.raises(ChannelLostError):
                    await stream.write(b"x")
            for session in (caller, callee):
                assert session.closed.is_set()
                with pytest.raises(ChannelLostError):
                    session.open("web")
            caller.abort()  # fine when it is over, and changes nothing
            assert isinstance(caller.error, ChannelLostError)

    run(scenario())


def test_a_process_that_dies_is_a_lost_channel() -> None:
    async def scenario() -> None:
        peers = Peers("web")
        async with sessions(peers) as (caller, callee):
            ours, _ = await peers.stream(caller, "web")
            callee._channel._transport.abort()
            with pytest.raises(ChannelLostError):
                await ours.read()

    run(scenario())


def test_what_came_before_the_loss_is_read_before_the_error() -> None:
    async def scenario() -> None:
        peers = Peers("web")
        async with tapped(peers) as (wire, caller, callee):
            ours, theirs = await peers.stream(caller, "web")
            await ours.write(b"arrived")
            while callee.bytes_received < 7:
                await asyncio.sleep(0)
            wire.cut()
            await callee.closed.wait()
            assert await theirs.read() == b"arrived"
            with pytest.raises(ChannelLostError):
                await theirs.read()

    run(scenario())


def test_a_stream_that_was_whole_when_the_channel_broke_ends_clean() -> None:
    async def scenario() -> None:
        peers = Peers("web")
        async with tapped(peers) as (wire, caller, callee):
            ours, theirs = await peers.stream(caller, "web")
            await ours.write(b"whole")
            await ours.write_eof()
            while not theirs._is_ended:
                await asyncio.sleep(0)
            wire.cut()
            await callee.closed.wait()
            assert [part async for part in theirs] == [b"whole"]

    run(scenario())


def test_a_silent_peer_is_pinged_and_then_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mux_module, "KEEPALIVE_IDLE", 0.05)
    monkeypatch.setattr(mux_module, "KEEPALIVE_DEAD", 0.2)
    monkeypatch.setattr(live, "SESSION_TICK", 0.01)

    async def scenario() -> None:
        peers = Peers("web")
        async with tapped(peers) as (wire, caller, callee):
            ours, _ = await peers.stream(caller, "web")
            began = time.monotonic()
            while time.monotonic() - began < 0.5:  # pings keep it alive
                await asyncio.sleep(0.02)
            assert (caller.error, callee.error) == (None, None)
            wire.is_open.clear()
            with pytest.raises(ChannelLostError, match="the peer has fallen silent"):
                await ours.read()
            await callee.closed.wait()

    run(scenario())


# --- a peer that breaks the rules ---------------------------------------------------------------------------------------


def test_a_violation_ends_the_session_and_says_why_on_both_sides() -> None:
    async def scenario() -> None:
        peers = Peers("web")
        async with sessions(peers) as (caller, callee):
            ours, theirs = await peers.stream(caller, "web")
            caller._channel.write(encode(Hello(bytes(16), bytes(16), bytes(64))))
            with pytest.raises(ChannelLostError, match="the peer broke the protocol: a second greeting"):
                await theirs.read()
            assert isinstance(callee.error, ChannelError)
            assert isinstance(callee.error.__cause__, RemoteProtocolError)
            with pytest.raises(ChannelClosedError, match="the channel was closed by the peer: a second greeting"):
                await ours.read()

    run(scenario())


def test_what_came_before_a_violation_is_delivered() -> None:
    async def scenario() -> None:
        peers = Peers("web")
        async with sessions(peers) as (caller, callee):
            ours, theirs = await peers.stream(caller, "web")
            ours._mux.write(1, memoryview(b"true"))
            batch = bytes(ours._mux.data_to_send())
            caller._channel.write(batch + encode(Window(1, 0)))
            await callee.closed.wait()
            assert await theirs.read() == b"true"

    run(scenario())


# --- ending -----------------------------------------------------------------------------------------------------------


def test_a_closed_session_lets_open_streams_finish() -> None:
    async def scenario() -> None:
        peers = Peers("web")
        async with sessions(peers) as (caller, callee):
            ours, theirs = await peers.stream(caller, "web")
            closing = asyncio.ensure_future(caller.close(grace=10))
            with contextlib.suppress(ChannelClosedError):
                while True:  # until the callee has heard of it
                    callee.open("web").abort()
                    await asyncio.sleep(0)
            with pytest.raises(ChannelClosedError, match="closed by us"):
                caller.open("web")
            block = random.Random(9).randbytes(2_000_000)
            sending = asyncio.ensure_future(theirs.write(block))
            assert await ours.readexactly(len(block)) == block
            await sending
            assert not closing.done()
            await theirs.close()
            assert await ours.read() == b""
            await ours.close()
            await closing
            await callee.closed.wait()
            assert str(caller.error) == "the channel was closed by us"
            assert str(callee.error) == "the channel was closed by the peer"

    run(scenario())


def test_what_is_open_when_the_grace_is_over_ends_with_an_error() -> None:
    async def scenario() -> None:
        peers = Peers("web")
        async with sessions(peers) as (caller, _callee):
            ours, theirs = await peers.stream(caller, "web")
            await caller.close(grace=0.01)
            with pytest.raises(ChannelClosedError, match="closed by us"):
                await ours.read()
            with pytest.raises(ChannelClosedError, match="closed by the peer"):
                await theirs.read()

    run(scenario())


def test_the_last_bytes_before_a_close_arrive() -> None:
    async def scenario() -> None:
        for _ in range(20):
            peers = Peers("web")
            async with sessions(peers) as (caller, callee):
                ours, theirs = await peers.stream(caller, "web")
                reading = asyncio.ensure_future(gathered(theirs))
                block = random.Random(6).randbytes(400_000)
                await ours.write(block)
                await ours.close()
                await caller.close()
                assert await reading == block
                await callee.closed.wait()

    async def gathered(stream: object) -> bytes:
        return b"".join([part async for part in stream])

    run(scenario())


def test_a_session_without_open_streams_closes_at_once() -> None:
    async def scenario() -> None:
        peers = Peers("web")
        async with sessions(peers) as (caller, callee):
            ours, theirs = await peers.stream(caller, "web")
            for one, other in ((ours, theirs), (theirs, ours)):
                await one.write_eof()
                assert await other.read() == b""
            await caller.close(grace=60)
            await callee.closed.wait()

    run(scenario())


def test_both_sides_may_close_at_once_and_twice() -> None:
    async def scenario() -> None:
        async with sessions(Peers("web")) as (caller, callee):
            await asyncio.gather(caller.close(), callee.close(), caller.close())
            await asyncio.gather(caller.close(), callee.close())

    run(scenario())


def test_an_aborted_session_ends_at_once_and_its_peer_sees_a_loss() -> None:
    async def scenario() -> None:
        peers = Peers("web")
        async with sessions(peers) as (caller, callee):
            ours, theirs = await peers.stream(caller, "web")
            caller.abort("a better path")
            with pytest.raises(ChannelClosedError, match="the channel was closed by us: a better path"):
                await ours.read()
            with pytest.raises(ChannelLostError):
                await theirs.read()
            assert callee.closed.is_set()

    run(scenario())


def test_a_service_may_close_the_session_that_it_serves() -> None:
    async def scenario() -> None:
        finished = asyncio.Event()

        async def close(request: OpenRequest) -> None:
            await request.session.close(grace=0)
            finished.set()

        peers = Peers("web")
        peers.on_open = close
        async with sessions(peers) as (caller, _):
            stream = caller.open("web")
            with pytest.raises(ChannelError):
                await stream.read()
            await finished.wait()

    run(scenario())


@pytest.mark.parametrize("turns", [0, 1, 2, 5, 20])
def test_a_close_that_is_cancelled_ends_the_session_all_the_same(turns: int) -> None:
    async def scenario() -> None:
        peers = Peers("web")
        async with sessions(peers) as (caller, callee):
            await peers.stream(caller, "web")
            closing = asyncio.ensure_future(caller.close(grace=10))
            for _ in range(turns):
                await asyncio.sleep(0)
            closing.cancel()
            await asyncio.gather(closing, return_exceptions=True)
            if turns:
                assert caller.closed.is_set()
                await callee.closed.wait()

    run(scenario())


# --- what is taken back -------------------------------------------------------------------------------------------------


def test_a_peer_that_is_removed_loses_its_session_within_a_second(tmp_path) -> None:
    async def scenario() -> None:
        path = tmp_path / "peers.toml"
        PeerStore(path).add("laptop", CALLER.public, ("web",))
        peers = Peers()
        peers.access = AccessList(PeerStore(path))
        async with sessions(peers) as (caller, callee):
            ours, _ = await peers.stream(caller, "web")
            PeerStore(path).remove("laptop")
            began = time.monotonic()
            with pytest.raises(ChannelClosedError, match="access was revoked"):
                await ours.read()
            assert time.monotonic() - began < 1.5
            await caller.closed.wait()
            assert str(caller.error) == "the channel was closed by the peer: access was revoked"
            assert str(callee.error) == "the channel was closed by us: access was revoked"
            again, _refusal = await peers.meet()
            assert not isinstance(again, Session)

    run(scenario())


def test_a_list_that_becomes_unreadable_denies_new_streams_and_ends_none(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(live, "SESSION_TICK", 0.01)

    async def scenario() -> None:
        path = tmp_path / "peers.toml"
        PeerStore(path).add("laptop", CALLER.public, ("web",))
        peers = Peers()
        peers.access = AccessList(PeerStore(path))
        async with sessions(peers) as (caller, _):
            ours, theirs = await peers.stream(caller, "web")
            path.write_text("nonsense")
            with pytest.raises(AccessDeniedError):
                await caller.open_confirmed("web")
            while not any(event.name == "access_unreadable" for event in peers.events[4:]):
                await asyncio.sleep(0.01)
            await ours.write(b"goes on")
            assert await theirs.read() == b"goes on"

    run(scenario())


# --- cancelling -------------------------------------------------------------------------------------------------------


async def everything_once(peers: Peers) -> None:
    """Connect, converse in each way there is, and close."""
    client, server = tcp_pair()
    accepting = asyncio.ensure_future(peers.accept(server))
    try:
        caller = await peers.connect(client)
        try:
            stream = await caller.open_confirmed("web")
            await stream.write(bytes(600_000))
            await stream.readexactly(600_000)
            await stream.write_eof()
            await stream.read()
            await stream.close()
        finally:
            await caller.close(grace=0)
    finally:
        client.close()
        accepting.cancel()
        for accepted in await asyncio.gather(accepting, return_exceptions=True):
            if isinstance(accepted, Session):
                accepted.abort()
                await accepted.close()


async def cancelled_after(turns: int) -> bool:
    """Run it all and cancel after so many turns of the loop; tell whether it had finished before."""
    doing = asyncio.ensure_future(everything_once(echoing("web")))
    for _ in range(turns):
        if doing.done():
            return True
        await asyncio.sleep(0)
    doing.cancel()
    await asyncio.gather(doing, return_exceptions=True)
    for _ in range(3):  # closed transports let go of their descriptors in the next turn
        await asyncio.sleep(0)
    return False


def test_cancelling_at_any_turn_of_the_loop_leaves_nothing_behind() -> None:
    turns = 0
    while not run(cancelled_after(turns)):  # the guard of every test here counts descriptors and tasks
        assert not descriptors_of_sockets(), turns
        turns += 1
    assert turns > 40


def descriptors_of_sockets() -> list[str]:
    """The sockets that this process has open, but for pytest's own."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            if target.startswith("socket:"):
                found.append(target)
    return [target for target in found if target not in BEFORE]


BEFORE: set[str] = set()


@pytest.fixture(autouse=True)
def sockets_before() -> None:
    BEFORE.clear()
    BEFORE.update(descriptors_of_sockets())


def test_a_socket_of_a_session_that_ends_at_once_is_closed() -> None:
    async def scenario() -> None:
        peers = Peers("web")
        async with sessions(peers) as (caller, _):
            ours, _theirs = await peers.stream(caller, "web")
            with ours.socket() as sock:
                caller.abort()  # before the pump has had its first turn
                assert await in_thread(sock.recv, 1) == b""

    run(scenario())


# --- words ------------------------------------------------------------------------------------------------------------


def test_a_session_and_its_events_show_no_secret() -> None:
    async def scenario() -> None:
        peers = echoing("web")
        async with sessions(peers) as (caller, callee):
            stream = await caller.open_confirmed("web")
            await stream.write(b"payload-payload")
            await stream.readexactly(15)
            shown = f"{caller!r} {callee!r} {stream!r} {peers.events!r} {caller.path!r}"
            assert f"<Session with home-nas ({CALLEE.public.short}): 1 streams, open>" in shown
            for secret in (peers.selector.hex(), "payload", repr(peers.selector), bytes([21] * 32).hex()):
                assert secret not in shown

    run(scenario())


def test_life_events_are_traced() -> None:
    async def scenario() -> None:
        peers = Peers("web")
        async with sessions(peers) as (caller, _):
            with pytest.raises(AccessDeniedError):
                await caller.open_confirmed("no\u00e9")
        names = [(event.layer, event.name) for event in peers.events]
        assert names.count(("session", "up")) == names.count(("session", "down")) == 2
        assert ("session", "stream_denied") in names

    run(scenario())
