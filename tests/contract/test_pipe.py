"""What every Pipe promises (abc.Pipe): bytes both ways for whoever attaches, and no descriptor left whoever ends it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager

import pytest

from p2ptunnel.abc import Pipe
from p2ptunnel.defaults import QUIC_WINDOW_BYTES
from p2ptunnel.errors import LocalProtocolError
from tests.helpers import run
from tests.helpers.peers import new_pipe, tcp_pair
from tests.helpers.quic import quic_pipes
from tests.helpers.recorder import Portions, Recorder, write_all

MIB = 1 << 20


@contextlib.asynccontextmanager
async def tcp_pipes() -> AsyncGenerator[tuple[Pipe, Pipe]]:
    near, far = tcp_pair()
    yield new_pipe(near), new_pipe(far)


Pair = Callable[[], AbstractAsyncContextManager[tuple[Pipe, Pipe]]]
both_kinds = pytest.mark.parametrize("pair", [tcp_pipes, quic_pipes], ids=["tcp", "quic"])


# --- of every kind ------------------------------------------------------------------------------------------------------


@both_kinds
def test_bytes_go_both_ways_whole_and_in_order_until_both_sides_have_ended(pair: Pair) -> None:
    async def scenario() -> None:
        async with pair() as (near, far):
            ours, theirs = Recorder(stays=True), Recorder(stays=True)
            near_end, far_end = await near.attach(lambda: ours), await far.attach(lambda: theirs)
            request, answer = random.randbytes(3 * MIB), random.randbytes(2 * MIB)
            await asyncio.gather(write_all(far_end, theirs, answer), write_all(near_end, ours, request))
            near_end.write_eof()
            await theirs.ended.wait()
            assert theirs.came == request
            far_end.write(b"and this")  # behind the other side's end
            far_end.close()
            await ours.ended.wait()
            assert ours.came == answer + b"and this"
            near_end.close()
            assert [await ours.gone, await theirs.gone] == [None, None]

    run(scenario())


@both_kinds
def test_the_side_that_was_called_may_write_first(pair: Pair) -> None:
    async def scenario() -> None:
        async with pair() as (near, far):
            ours = Recorder()
            near_end = await near.attach(lambda: ours)
            far_end = await far.attach(Recorder)
            far_end.write(b"welcome")
            far_end.close()
            assert await ours.gone is None
            assert ours.came == b"welcome"
            assert near_end.is_closing()

    run(scenario())


@both_kinds
def test_a_buffered_protocol_gets_all_bytes_before_the_end(pair: Pair) -> None:
    async def scenario() -> None:
        async with pair() as (near, far):
            portions, ours = Portions(), Recorder()
            await far.attach(lambda: portions)
            near_end = await near.attach(lambda: ours)
            data = random.randbytes(300_001)
            near_end.write(data)
            near_end.close()
            assert await portions.gone is None
            assert portions.came == data
            assert await ours.gone is None

    run(scenario())


@both_kinds
def test_who_does_not_read_stops_the_writer_and_gets_everything_when_it_reads_again(pair: Pair) -> None:
    async def scenario() -> None:
        async with pair() as (near, far):
            ours, theirs = Recorder(), Recorder()
            near_end, far_end = await near.attach(lambda: ours), await far.attach(lambda: theirs)
            far_end.pause_reading()
            data, written = random.randbytes(65536), 0
            with contextlib.suppress(TimeoutError):
                while written < 6 * QUIC_WINDOW_BYTES:
                    near_end.write(data)
                    written += len(data)
                    await asyncio.wait_for(ours.room.wait(), 1)
            assert written < 3 * QUIC_WINDOW_BYTES  # TCP has its own limits, of the same order
            assert near_end.get_write_buffer_size() > 0
            assert not theirs.came
            far_end.resume_reading()
            near_end.close()
            assert await theirs.gone is None
            assert len(theirs.came) == written

    run(scenario())


@both_kinds
def test_an_abort_ends_both_sides_at_once(pair: Pair) -> None:
    async def scenario() -> None:
        async with pair() as (near, far):
            ours, theirs = Recorder(), Recorder()
            near_end = await near.attach(lambda: ours)
            await far.attach(lambda: theirs)
            near_end.write(b"a beginning")
            near_end.abort()
            near_end.abort()
            assert await ours.gone is None
            await theirs.gone  # in order or not: asyncio's own transports do not say

    run(scenario())


@both_kinds
def test_a_pipe_that_is_aborted_unattached_is_a_reset_to_the_other_side(pair: Pair) -> None:
    async def scenario() -> None:
        async with pair() as (near, far):
            theirs = Recorder()
            await far.attach(lambda: theirs)
            near.abort()
            near.abort()
            assert isinstance(await theirs.gone, ConnectionResetError)
            with pytest.raises(LocalProtocolError, match="a pipe is attached once"):
                await near.attach(Recorder)

    run(scenario())


@both_kinds
def test_what_came_before_anybody_attached_is_not_lost(pair: Pair) -> None:
    async def scenario() -> None:
        async with pair() as (near, far):
            near_end = await near.attach(Recorder)
            near_end.write(b"early")
            near_end.close()
            theirs = Recorder()
            await far.attach(lambda: theirs)
            assert await theirs.gone is None
            assert theirs.came == b"early"

    run(scenario())


@both_kinds
def test_limits_of_what_waits_are_the_protocols(pair: Pair) -> None:
    async def scenario() -> None:
        async with pair() as (near, far):
            ours = Recorder()
            near_end = await near.attach(lambda: ours)
            near_end.set_write_buffer_limits(high=0)
            assert near_end.get_write_buffer_limits() == (0, 0)
            with pytest.raises(ValueError, match="must be >="):
                near_end.set_write_buffer_limits(high=1, low=2)
            far_end = await far.attach(Recorder)
            far_end.pause_reading()
            while ours.room.is_set():
                near_end.write(bytes(MIB))
            far_end.resume_reading()
            await ours.room.wait()
            assert near_end.get_write_buffer_size() == 0
            near_end.abort()
            far_end.abort()
            await ours.gone

    run(scenario())


# --- of TCP -------------------------------------------------------------------------------------------------------------


def test_an_attached_pipe_waits_for_no_ack_and_notices_a_dead_path() -> None:
    async def scenario() -> None:
        near, far = tcp_pair()
        transport = await new_pipe(near).attach(Recorder)
        assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert near.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 45_000
        assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 128 * 1024
        transport.abort()
        far.close()
        await asyncio.sleep(0)

    run(scenario())


def test_an_aborted_pipe_is_a_reset_to_the_other_end() -> None:
    async def scenario() -> None:
        near, far = tcp_pair()
        pipe = new_pipe(near)
        pipe.abort()
        pipe.abort()
        with pytest.raises(ConnectionResetError):
            await asyncio.get_running_loop().sock_recv(far, 1)
        far.close()

    run(scenario())


def test_a_pipe_is_attached_once_and_its_transport_owns_it_then() -> None:
    async def scenario() -> None:
        near, far = tcp_pair()
        pipe = new_pipe(near)
        transport = await pipe.attach(Recorder)
        with pytest.raises(LocalProtocolError, match="a pipe is attached once"):
            await pipe.attach(Recorder)
        pipe.abort()
        transport.write(b"still here")
        assert await asyncio.get_running_loop().sock_recv(far, 100) == b"still here"
        transport.abort()
        far.close()
        await asyncio.sleep(0)

    run(scenario())


def test_an_aborted_pipe_is_not_attached() -> None:
    async def scenario() -> None:
        near, far = tcp_pair()
        pipe = new_pipe(near)
        pipe.abort()
        with pytest.raises(LocalProtocolError, match="a pipe is attached once"):
            await pipe.attach(Recorder)
        far.close()

    run(scenario())


@pytest.mark.parametrize("turns", range(4))
def test_a_cancelled_attach_leaves_nothing(turns: int) -> None:
    async def scenario() -> None:
        near, far = tcp_pair()
        attaching = asyncio.ensure_future(new_pipe(near).attach(Recorder))
        for _ in range(turns):
            await asyncio.sleep(0)
        attaching.cancel()
        [outcome] = await asyncio.gather(attaching, return_exceptions=True)
        if isinstance(outcome, asyncio.Transport):  # it was done before it could be cancelled
            outcome.abort()
        elif turns == 0:
            near.close()  # it has not begun: the pipe was never asked
        assert await asyncio.get_running_loop().sock_recv(far, 1) == b""
        far.close()

    run(scenario())
