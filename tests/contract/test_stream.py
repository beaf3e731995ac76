"""What every Stream promises (abc.Stream), whoever carries it: one suite, run over each kind."""

from __future__ import annotations

import array
import asyncio
import contextlib
import hashlib
import random
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeAlias

import pytest

from p2ptunnel.abc import Stream
from p2ptunnel.errors import ChannelError, LocalProtocolError, P2PTunnelError, StreamResetError
from p2ptunnel.net.threads import in_thread
from p2ptunnel.session.session import Session, SessionOptions
from tests.helpers import run
from tests.helpers.peers import Peers, Wire, sessions

Pair: TypeAlias = AbstractAsyncContextManager[tuple[Stream, Stream]]

MEGABYTE = 1024 * 1024


@contextlib.asynccontextmanager
async def opener_first() -> AsyncGenerator[tuple[Stream, Stream]]:
    """A session's stream, seen from the side that opened it."""
    peers = Peers("web")
    async with sessions(peers) as (caller, _):
        yield await peers.stream(caller, "web")


@contextlib.asynccontextmanager
async def acceptor_first() -> AsyncGenerator[tuple[Stream, Stream]]:
    """A session's stream, seen from the side that accepted it."""
    async with opener_first() as (ours, theirs):
        yield theirs, ours


@contextlib.asynccontextmanager
async def through_a_wire() -> AsyncGenerator[tuple[Stream, Stream]]:
    """A session's stream over a connection that is carried piece by piece."""
    wire, peers = Wire(), Peers("web")
    try:
        async with sessions(peers, (wire.client, wire.server)) as (caller, _):
            yield await peers.stream(caller, "web")
    finally:
        await wire.close()


class Cutter:
    """Breaks the channel under two sessions, now on this side, now on that, whenever some more KiB have moved."""

    EVERY = 48 * 1024

    def __init__(self, caller: Session, callee: Session) -> None:
        self.cuts = 0
        self._sides = (caller, callee)
        self._next = self._moved() + self.EVERY
        self._timer = asyncio.get_running_loop().call_soon(self._look)

    def _moved(self) -> int:
        return sum(side.bytes_sent + side.bytes_received for side in self._sides)

    def _look(self) -> None:
        side = self._sides[self.cuts % 2]
        if self._moved() >= self._next and side.state == "open" and (leg := side._active):
            assert leg.channel._transport is not None
            leg.channel._transport.abort()
            self.cuts += 1
            self._next = self._moved() + self.EVERY
        self._timer = asyncio.get_running_loop().call_later(0.001, self._look)

    def stop(self) -> None:
        """Leave the channels alone from now on."""
        self._timer.cancel()


@contextlib.asynccontextmanager
async def over_cuts() -> AsyncGenerator[tuple[Stream, Stream]]:
    """A session's stream whose channel breaks all the time, and is replaced each time."""
    peers = Peers("web")
    peers.options = SessionOptions(resume_timeout=60)
    async with sessions(peers) as (caller, callee):
        caller.keep_up(lambda: peers.rejoin(caller))
        streams = await peers.stream(caller, "web")
        cutter = Cutter(caller, callee)
        try:
            yield streams
        finally:
            cutter.stop()


@pytest.fixture(params=[opener_first, acceptor_first, through_a_wire, over_cuts], ids=lambda kind: kind.__name__)
def pair(request: pytest.FixtureRequest) -> Callable[[], Pair]:
    """Makes two ends of one stream."""
    return request.param


async def everything(stream: Stream) -> bytes:
    return b"".join([part async for part in stream])


async def finish(stream: Stream, block: bytes) -> None:
    await stream.write(block)
    await stream.write_eof()


# --- bytes ------------------------------------------------------------------------------------------------------------


def test_bytes_arrive_in_order_whatever_the_sizes(pair: Callable[[], Pair]) -> None:
    async def scenario() -> None:
        dice = random.Random(7)
        sizes = [1, 2, 65536, 65537, 300_000, *(dice.randrange(1, 5000) for _ in range(200))]
        blocks = [dice.randbytes(size) for size in sizes]
        async with pair() as (one, other):

            async def write() -> None:
                for block in blocks:
                    await one.write(block)
                await one.write_eof()

            async def read() -> bytes:
                came = bytearray()
                while part := await other.read(dice.randrange(1, 100_000)):
                    came += part
                return bytes(came)

            _, came = await asyncio.gather(write(), read())
            assert came == b"".join(blocks)

    run(scenario())


def test_both_directions_flow_at_once(pair: Callable[[], Pair]) -> None:
    async def scenario() -> None:
        async with pair() as (one, other):

            async def talk(stream: Stream, seed: int) -> bytes:
                block = random.Random(seed).randbytes(3 * MEGABYTE)
                _, came = await asyncio.gather(finish(stream, block), everything(stream))
                return hashlib.sha256(block).digest() + hashlib.sha256(came).digest()

            first, second = await asyncio.gather(talk(one, 1), talk(other, 2))
            assert first[:32] == second[32:]
            assert second[:32] == first[32:]

    run(scenario())


def test_a_read_gives_what_there_is_and_no_more_than_was_asked(pair: Callable[[], Pair]) -> None:
    async def scenario() -> None:
        async with pair() as (one, other):
            await one.write(b"abcdef")
            assert [await other.read(2), await other.read(1), await other.read()] == [b"ab", b"c", b"def"]

    run(scenario())


def test_a_read_of_no_bytes_is_refused_since_its_answer_would_mean_the_end(pair: Callable[[], Pair]) -> None:
    async def scenario() -> None:
        async with pair() as (one, other):
            await one.write(b"x")
            for n in (0, -1):
                with pytest.raises(LocalProtocolError):
                    await other.read(n)
            assert await other.readexactly(0) == b""
            assert await other.read(1) == b"x"

    run(scenario())


def test_readexactly_waits_for_all_and_tells_what_an_end_cut_off(pair: Callable[[], Pair]) -> None:
    async def scenario() -> None:
        async with pair() as (one, other):
            reading = asyncio.ensure_future(other.readexactly(6))
            await one.write(b"abc")
            await one.write(b"defgh")
            assert await reading == b"abcdef"
            await one.write_eof()
            with pytest.raises(asyncio.IncompleteReadError) as error:
                await other.readexactly(3)
            assert (error.value.partial, error.value.expected) == (b"gh", 3)

    run(scenario())


def test_a_buffer_is_free_again_when_the_write_returns(pair: Callable[[], Pair]) -> None:
    async def scenario() -> None:
        async with pair() as (one, other):
            buffer = bytearray(b"first")
            await one.write(buffer)
            buffer[:] = b"later"
            buffer.extend(b"!")  # nobody holds it
            assert await other.readexactly(5) == b"first"

    run(scenario())


def test_any_buffer_of_bytes_is_written_and_an_empty_one_is_nothing(pair: Callable[[], Pair]) -> None:
    async def scenario() -> None:
        async with pair() as (one, other):
            numbers = array.array("I", range(1000))
            for data in (b"", bytearray(), b"bytes", bytearray(b"array"), memoryview(numbers), memoryview(b"part")[1:3]):
                await one.write(data)
            await one.write_eof()
            assert await everything(other) == b"bytesarray" + numbers.tobytes() + b"ar"

    run(scenario())


# --- back-pressure ------------------------------------------------------------------------------------------------------


def test_a_writer_waits_for_a_reader_that_does_not_read(pair: Callable[[], Pair]) -> None:
    async def scenario() -> None:
        async with pair() as (one, other):
            written = 0

            async def write() -> None:
                nonlocal written
                while True:
                    await one.write(bytes(65536))
                    written += 65536

            writing = asyncio.ensure_future(write())
            stalled = await settled(lambda: written)
            assert 0 < stalled <= 8 * MEGABYTE
            for _ in range(64):
                await other.read(65536)
            while written == stalled:
                await asyncio.sleep(0)
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    run(scenario())


async def settled(value: Callable[[], int]) -> int:
    """The value when it has stopped changing over many turns of the loop."""
    still, before = 0, value()
    while still < 300:
        await asyncio.sleep(0)
        still = still + 1 if value() == before else 0
        before = value()
    return before


# --- ends -------------------------------------------------------------------------------------------------------------


def test_an_end_is_read_behind_the_bytes_and_stays(pair: Callable[[], Pair]) -> None:
    async def scenario() -> None:
        async with pair() as (one, other):
            await one.write(b"last words")
            await one.write_eof()
            assert await everything(other) == b"last words"
            assert [await other.read(), await other.read(1)] == [b"", b""]

    run(scenario())


def test_each_direction_ends_by_itself(pair: Callable[[], Pair]) -> None:
    async def scenario() -> None:
        async with pair() as (one, other):
            await one.write_eof()
            assert await other.read() == b""
            _, answer = await asyncio.gather(finish(other, b"answer" * 100_000), everything(one))
            assert answer == b"answer" * 100_000
            await one.write_eof()

    run(scenario())


def test_nothing_is_written_behind_the_end(pair: Callable[[], Pair]) -> None:
    async def scenario() -> None:
        async with pair() as (one, _):
            await one.write_eof()
            with pytest.raises(P2PTunnelError):
                await one.write(b"more")

    run(scenario())


def test_a_reset_is_an_error_with_a_reason_on_the_other_side(pair: Callable[[], Pair]) -> None:
    async def scenario() -> None:
        async with pair() as (one, other):
            await one.write(b"before")
            assert await other.read() == b"before"
            one.abort("changed my mind")
            for _ in range(2):
                with pytest.raises(StreamResetError, match="changed my mind"):
                    await other.read()
            with pytest.raises(StreamResetError, match="changed my mind"):
                await other.write(b"x")
            with pytest.raises(ChannelError):
                await one.read()
            with pytest.raises(ChannelError):
                await one.write(b"x")
            one.abort("twice")

    run(scenario())


def test_a_closed_stream_has_sent_everything_and_a_clean_end(pair: Callable[[], Pair]) -> None:
    async def scenario() -> None:
        async with pair() as (one, other):
            block = random.Random(3).randbytes(200_000)
            await one.write(block)
            await one.close()
            await one.close()
            assert await everything(other) == block
            with pytest.raises(ChannelError):
                await one.read()
            with pytest.raises(ChannelError):
                await one.write(b"x")

    run(scenario())


def test_who_writes_to_a_closed_stream_learns_it_and_still_reads_what_was_sent(pair: Callable[[], Pair]) -> None:
    async def scenario() -> None:
        async with pair() as (one, other):
            await one.write(b"answer")
            await one.close()
            with pytest.raises(StreamResetError, match="the peer reads no more"):
                await other.write(bytes(8 * MEGABYTE))
            assert await everything(other) == b"answer"

    run(scenario())


def test_a_block_that_fails_resets_and_one_that_does_not_closes(pair: Callable[[], Pair]) -> None:
    async def scenario() -> None:
        async with pair() as (one, other):
            with pytest.raises(ZeroDivisionError):
                async with one:
                    raise ZeroDivisionError
            with pytest.raises(StreamResetError):
                await other.read()
        async with pair() as (one, other):
            async with one:
                await one.write(b"done")
            assert await everything(other) == b"done"

    run(scenario())


# --- cancelling -------------------------------------------------------------------------------------------------------


def test_a_cancelled_read_loses_nothing(pair: Callable[[], Pair]) -> None:
    async def scenario() -> None:
        async with pair() as (one, other):
            for number in range(20):
                reading = asyncio.ensure_future(other.read())
                for _ in range(number % 5):
                    await asyncio.sleep(0)
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
            await one.write(b"all of it")
            assert await other.readexactly(9) == b"all of it"

    run(scenario())


def test_a_cancelled_write_leaves_a_stream_that_can_be_reset(pair: Callable[[], Pair]) -> None:
    async def scenario() -> None:
        async with pair() as (one, other):
            writing = asyncio.ensure_future(one.write(bytes(20 * MEGABYTE)))
            await settled(lambda: 0)
            assert not writing.done()
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            one.abort("a write was cancelled")
            with pytest.raises(StreamResetError, match="a write was cancelled"):
                await everything(other)

    run(scenario())


def test_a_cancelled_write_holds_no_buffer_and_later_ones_go_on_behind_it(pair: Callable[[], Pair]) -> None:
    async def scenario() -> None:
        async with pair() as (one, other):
            buffer = bytearray(b"a" * (20 * MEGABYTE))
            writing = asyncio.ensure_future(one.write(buffer))
            await settled(lambda: 0)
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            buffer.extend(b"!")  # nobody holds it
            reading = asyncio.ensure_future(everything(other))
            await finish(one, b"b" * MEGABYTE)
            came = await reading
            assert came.endswith(b"b" * MEGABYTE)
            assert set(came[:-MEGABYTE]) == {ord("a")}
            assert len(came) < 10 * MEGABYTE

    run(scenario())


# --- a descriptor -----------------------------------------------------------------------------------------------------


def test_a_socket_carries_the_stream_for_blocking_code(pair: Callable[[], Pair]) -> None:
    def converse(sock: socket.socket) -> bytes:
        with sock:
            sock.sendall(b"question")
            sock.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: sock.recv(65536), b""))

    async def scenario() -> None:
        async with pair() as (one, other):
            talking = asyncio.ensure_future(in_thread(converse, one.socket()))
            assert await everything(other) == b"question"
            answer = random.Random(4).randbytes(2 * MEGABYTE)
            await other.write(answer)
            await other.close()
            assert await talking == answer

    run(scenario())


def test_who_it_is_and_where_it_runs_is_told(pair: Callable[[], Pair]) -> None:
    async def scenario() -> None:
        async with pair() as (one, other):
            assert (one.service, other.service) == ("web", "web")
            assert {one.tag, other.tag} > {"home-nas"}
            assert one.path.kind == "direct"

    run(scenario())


def test_the_stream_over_cuts_is_cut_every_few_kib() -> None:
    async def scenario() -> None:
        peers = Peers("web")
        peers.options = SessionOptions(resume_timeout=60)
        async with sessions(peers) as (caller, callee):
            caller.keep_up(lambda: peers.rejoin(caller))
            one, other = await peers.stream(caller, "web")
            cutter = Cutter(caller, callee)
            block = random.Random(5).randbytes(2 * MEGABYTE)
            writing = asyncio.ensure_future(in_pieces(one, block))
            assert await everything(other) == block
            await writing
            cutter.stop()
            assert caller.resumes >= 20
            assert cutter.cuts >= caller.resumes

    run(scenario())


async def in_pieces(stream: Stream, block: bytes) -> None:
    for at in range(0, len(block), 16 * 1024):
        await stream.write(block[at : at + 16 * 1024])
        await asyncio.sleep(0.0002)
    await stream.write_eof()
