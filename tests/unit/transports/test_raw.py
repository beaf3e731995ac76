"""Streams without any security: bytes both ways, ends, and the queue of those who come."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator

import pytest

from p2ptunnel.abc import Stream
from p2ptunnel.defaults import RAW_STREAMS_WAITING
from p2ptunnel.errors import ChannelBusyError
from p2ptunnel.transports.raw import RawStream, RawStreams
from tests.helpers import run
from tests.helpers.peers import new_pipe, tcp_pair
from tests.helpers.turns import cancel_at_each_turn


@contextlib.asynccontextmanager
async def raw() -> AsyncGenerator[tuple[RawStream, socket.socket]]:
    """A stream, and the socket at its other end."""
    ours, theirs = tcp_pair()
    with theirs:
        stream = await RawStream.over(new_pipe(ours))
        try:
            yield stream, theirs
        finally:
            stream.abort()
            await asyncio.sleep(0)


async def received(sock: socket.socket) -> bytes:
    return await asyncio.get_running_loop().sock_recv(sock, 65536)


def test_it_is_no_stream() -> None:
    """So that nothing that takes streams can take it by mistake."""
    assert not issubclass(RawStream, Stream)
    assert not {"tag", "service", "socket", "__aiter__"} & set(dir(RawStream))


def test_bytes_go_both_ways_and_each_way_ends_by_itself() -> None:
    async def main() -> None:
        async with raw() as (stream, theirs):
            assert stream.path.remote == theirs.getsockname()
            await stream.write(b"hello")
            await stream.write_eof()
            assert await received(theirs) == b"hello"
            assert await received(theirs) == b""
            theirs.send(b"good bye")
            theirs.shutdown(socket.SHUT_WR)
            assert await stream.readexactly(4) == b"good"
            assert await stream.read() == b" bye"
            assert await stream.read() == b""
            with pytest.raises(asyncio.IncompleteReadError):
                await stream.readexactly(1)

    run(main())


def test_closing_sends_what_was_written() -> None:
    async def main() -> None:
        async with raw() as (stream, theirs):
            async with stream:
                await stream.write(b"all of it")
            await stream.close()
            assert await received(theirs) == b"all of it"
            assert await received(theirs) == b""

    run(main())


def test_what_fails_inside_aborts_it() -> None:
    async def main() -> None:
        async with raw() as (stream, theirs):
            with pytest.raises(ZeroDivisionError):
                async with stream:
                    raise ZeroDivisionError
            assert await received(theirs) == b""

    run(main())


def test_what_broke_before_closes_all_the_same() -> None:
    async def main() -> None:
        async with raw() as (stream, theirs):
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            theirs.close()
            with pytest.raises(ConnectionResetError):
                await stream.read()
            await stream.close()

    run(main())


def test_writing_waits_for_a_slow_reader() -> None:
    async def main() -> None:
        async with raw() as (stream, theirs):
            writing = asyncio.create_task(stream.write(bytes(20_000_000)))
            for _ in range(100):
                await asyncio.sleep(0)
            assert not writing.done()
            count = 0
            while count < 20_000_000:
                count += len(await received(theirs))
            await writing

    run(main())


# --- those who come ---------------------------------------------------------------------------------------------------


def test_they_are_taken_in_order_and_the_end_ends_the_iteration() -> None:
    async def main() -> None:
        streams = RawStreams()
        pairs = [tcp_pair() for _ in range(3)]
        for ours, _ in pairs:
            await streams.admit(new_pipe(ours))
        taken = [await anext(streams), await anext(streams)]
        assert [stream.path.remote for stream in taken] == [theirs.getsockname() for _, theirs in pairs[:2]]
        streams.close()
        streams.close()
        assert [stream async for stream in streams] == []
        assert [stream async for stream in streams] == []
        for stream in taken:
            stream.abort()
        theirs = pairs[2][1]
        assert await received(theirs) == b""  # whom nobody took
        for _, theirs in pairs:
            theirs.close()

    run(main())


def test_everybody_who_waits_hears_of_the_end() -> None:
    async def main() -> None:
        streams = RawStreams()
        waiting = [asyncio.create_task(anext(streams, None)) for _ in range(3)]
        await asyncio.sleep(0)
        streams.close()
        assert await asyncio.gather(*waiting) == [None] * 3

    run(main())


def test_only_so_many_may_wait() -> None:
    async def main() -> None:
        streams = RawStreams()
        with contextlib.ExitStack() as stack:
            for _ in range(RAW_STREAMS_WAITING):
                ours, theirs = tcp_pair()
                stack.enter_context(theirs)
                await streams.admit(new_pipe(ours))
            ours, theirs = tcp_pair()
            stack.enter_context(theirs)
            pipe = new_pipe(ours)
            with pytest.raises(ChannelBusyError):
                await streams.admit(pipe)
            (await anext(streams)).abort()
            await streams.admit(pipe)
            streams.close()
            await asyncio.sleep(0)

    run(main())


def test_after_the_end_nobody_is_let_in() -> None:
    async def main() -> None:
        streams = RawStreams()
        ours, theirs = tcp_pair()
        pipe = new_pipe(ours)
        with theirs:
            streams.close()
            with pytest.raises(ChannelBusyError):
                await streams.admit(pipe)
            pipe.abort()

    run(main())


def test_who_comes_in_while_it_ends_is_aborted() -> None:
    async def main() -> None:
        streams = RawStreams()
        ours, theirs = tcp_pair()
        with theirs:
            admitting = asyncio.create_task(streams.admit(new_pipe(ours)))
            await asyncio.sleep(0)
            streams.close()
            await admitting
            assert await received(theirs) == b""

    run(main())


def test_cancelling_leaves_nothing() -> None:
    async def take_over() -> tuple[RawStream, socket.socket]:
        ours, theirs = tcp_pair()
        try:
            return await RawStream.over(new_pipe(ours)), theirs
        except BaseException:
            theirs.close()
            raise

    async def undo(ends: tuple[RawStream, socket.socket]) -> None:
        ends[0].abort()
        ends[1].close()

    async def main() -> None:
        assert await cancel_at_each_turn(take_over, undo) > 1

    run(main())
