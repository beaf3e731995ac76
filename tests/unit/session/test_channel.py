"""One TLS connection driven by hand: what is read when, how it ends, and that an end never takes bytes with it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import socket
import ssl
import time
from collections.abc import AsyncGenerator

import pytest

from p2ptunnel.defaults import BATCH_MIN_BYTES, BATCH_SLOW
from p2ptunnel.errors import ChannelClosedError, ChannelError, ChannelLostError
from p2ptunnel.identity.tls import callee_context, caller_context
from p2ptunnel.net.sockets import TELLS_UNSENT
from p2ptunnel.session.channel import Channel
from p2ptunnel.wire.frames import Data, Ping, encode
from tests.helpers import run
from tests.helpers.peers import CALLEE, CALLER, new_pipe, tcp_pair


class Recorder:
    """A consumer that keeps what it is given."""

    def __init__(self) -> None:
        self.came = bytearray()
        self.writable_again = 0
        self.end: asyncio.Future[ChannelError] = asyncio.get_running_loop().create_future()

    def data_received(self, data: memoryview) -> None:
        self.came += data

    def writable(self) -> None:
        self.writable_again += 1

    def channel_ended(self, error: ChannelError) -> None:
        self.end.set_result(error)  # raises when told twice


@contextlib.asynccontextmanager
async def channels(buffer_bytes: int | None = None) -> AsyncGenerator[tuple[Channel, Channel]]:
    """Two ends whose handshake is done."""
    client, server = tcp_pair(buffer_bytes)
    caller = Channel(caller_context(CALLER, CALLEE.public), callee=False)
    callee = Channel(callee_context(CALLEE, (CALLER.public,)), callee=True)
    await new_pipe(client).attach(lambda: caller)
    await new_pipe(server).attach(lambda: callee)
    await asyncio.gather(caller.handshake(), callee.handshake())
    try:
        yield caller, callee
    finally:
        for channel in (caller, callee):
            channel.abort()
            await channel.gone.wait()


def transport_of(channel: Channel) -> asyncio.Transport:
    assert channel._transport is not None
    return channel._transport


def test_a_frame_is_read_without_a_byte_behind_it() -> None:
    async def scenario() -> None:
        async with channels() as (caller, callee):
            caller.write(encode(Ping(b"12345678")) + encode(Data(1, memoryview(b"later"))))
            assert await callee.read_frame() == Ping(b"12345678")
            consumer = Recorder()
            callee.start(consumer)
            assert consumer.came == encode(Data(1, memoryview(b"later")))

    run(scenario())


def test_nothing_is_read_from_the_socket_before_somebody_asks() -> None:
    async def scenario() -> None:
        async with channels(16384) as (caller, callee):
            block = random.Random(1).randbytes(500_000)
            caller.write(block)
            for _ in range(200):
                await asyncio.sleep(0)
            assert not caller.is_writable  # the other side takes no more
            consumer = Recorder()
            callee.start(consumer)
            while len(consumer.came) < len(block):
                await asyncio.sleep(0)
            assert consumer.came == block

    run(scenario())


def test_a_writer_is_told_when_the_transport_takes_more() -> None:
    async def scenario() -> None:
        async with channels(16384) as (caller, callee):
            writer, reader = Recorder(), Recorder()
            caller.start(writer)
            caller.write(bytes(300_000))
            assert not caller.is_writable
            callee.start(reader)
            while not writer.writable_again:
                await asyncio.sleep(0)
            assert caller.is_writable

    run(scenario())


def test_a_goodbye_is_told_behind_the_last_bytes() -> None:
    async def scenario() -> None:
        async with channels() as (caller, callee):
            consumer = Recorder()
            callee.start(consumer)
            caller.write(b"x" * 100_000)
            caller.close()
            caller.close()
            assert str(await consumer.end) == "the channel was closed by the peer"
            assert consumer.came == b"x" * 100_000
            await asyncio.gather(caller.gone.wait(), callee.gone.wait())

    run(scenario())


@pytest.mark.parametrize("ending", ["end of file", "reset"])
def test_an_end_without_a_goodbye_is_a_loss(ending: str) -> None:
    async def scenario() -> None:
        async with channels() as (caller, callee):
            consumer = Recorder()
            callee.start(consumer)
            caller.write(b"before")
            if ending == "end of file":
                transport_of(caller).write_eof()
            else:
                callee.write(b"never read")
                caller.abort()
            assert isinstance(await consumer.end, ChannelLostError)
            assert bytes(consumer.came) in (b"before", b"")

    run(scenario())


def test_a_consumer_that_comes_too_late_is_told_of_the_end() -> None:
    async def scenario() -> None:
        async with channels() as (caller, callee):
            transport_of(callee).abort()
            await callee.gone.wait()
            consumer = Recorder()
            callee.start(consumer)
            assert isinstance(await consumer.end, ChannelLostError)
            with pytest.raises((ChannelLostError, ssl.SSLError)):
                await caller.read_frame()

    run(scenario())


def test_what_is_written_after_the_end_goes_nowhere() -> None:
    async def scenario() -> None:
        async with channels() as (caller, callee):
            consumer = Recorder()
            callee.start(consumer)
            caller.close()
            caller.write(b"too late")
            assert isinstance(await consumer.end, ChannelClosedError)
            assert consumer.came == b""
            assert not caller.is_writable

    run(scenario())


def test_bytes_that_nobody_has_read_do_not_destroy_what_was_sent() -> None:
    """A socket that is closed with bytes unread answers with a reset, and what its kernel has not delivered is gone."""

    async def scenario() -> None:
        async with channels(16384) as (caller, callee):
            callee.write(bytes(5000))  # nobody reads these
            block = random.Random(2).randbytes(400_000)
            caller.write(block)
            caller.close()
            assert await callee.read_exactly(len(block)) == block
            with pytest.raises(ChannelLostError, match="it was closed during the greeting"):  # a goodbye, and no loss
                await callee.read_frame()

    run(scenario())


def test_aborting_what_is_gone_already_does_nothing() -> None:
    """asyncio's transports fail when they have closed behind bytes that had to wait."""

    async def scenario() -> None:
        async with channels(16384) as (caller, callee):
            caller.start(Recorder())
            caller.write(bytes(2_000_000))
            transport_of(caller).close()
            assert transport_of(caller).get_write_buffer_size()
            callee.start(Recorder())
            await caller.gone.wait()
            caller.abort()

    run(scenario())


@pytest.mark.skipif(not TELLS_UNSENT, reason="nobody tells what is unsent here")
def test_behind_a_whole_batch_the_kernel_is_asked_for_room() -> None:
    async def scenario() -> None:
        async with channels() as (caller, callee):
            consumer = Recorder()
            caller.start(consumer)
            caller.batch_bytes = 4096
            caller.is_shared = True
            writable: list[bool] = []
            for size in (4095, 1):
                caller.write(bytes(size))
                writable.append(caller.is_writable)
            assert writable == [True, False]
            assert transport_of(caller).get_write_buffer_size() == 0
            callee.start(Recorder())
            while not consumer.writable_again:
                await asyncio.sleep(0)
            assert caller.is_writable

    run(scenario())


def test_a_stream_alone_waits_for_no_room() -> None:
    """Nothing could be behind its bytes but more of them."""

    async def scenario() -> None:
        async with channels() as (caller, _):
            caller.start(Recorder())
            caller.batch_bytes = 4096
            caller.write(bytes(4096))
            assert caller.is_writable

    run(scenario())


@pytest.mark.skipif(not TELLS_UNSENT, reason="nobody tells what is unsent here")
def test_where_batches_leave_slowly_they_shrink_and_so_does_what_the_kernel_queues() -> None:
    async def scenario() -> None:
        async with channels() as (caller, _):
            caller.start(Recorder())
            first = caller.batch_bytes
            seen: list[tuple[int, int]] = []
            for took in (0.0, 10 * BATCH_SLOW, 1000 * BATCH_SLOW):
                caller._adapt(took)
                sock = transport_of(caller).get_extra_info("socket")
                seen.append((caller.batch_bytes, sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)))
            assert seen == [(2 * first, first), (first // 5, first // 10), (BATCH_MIN_BYTES, BATCH_MIN_BYTES // 2)]

    run(scenario())


def test_bytes_that_cost_much_are_taken_in_small_portions_and_others_have_their_turn() -> None:
    async def scenario() -> None:
        async with channels() as (caller, callee):
            portions: list[int] = []
            turns: list[int] = []

            class Slow(Recorder):
                def data_received(self, data: memoryview) -> None:
                    portions.append(len(data))
                    time.sleep(0.01)  # as many small frames would

            caller.start(Recorder())
            callee.start(Slow())
            callee._turn_bytes = 65536
            caller.write(bytes(200_000))
            while sum(portions) < 200_000:
                await asyncio.sleep(0)
                turns.append(len(portions))
            assert portions[0] > 40_000
            assert portions[-2] <= 8192
            assert max(later - earlier for earlier, later in itertools.pairwise(turns)) == 1

    run(scenario())


def test_a_peer_that_does_not_close_in_turn_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2ptunnel.session.channel.CLOSE_GRACE", 0.05)

    async def scenario() -> None:
        async with channels() as (caller, _):
            caller.close()
            await caller.gone.wait()

    run(scenario())
