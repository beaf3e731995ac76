"""Streams beside each other in one session: none waits for another, none costs another anything."""

from __future__ import annotations

import asyncio
import random

import pytest

from p2ptunnel.errors import ChannelError, LocalProtocolError, StreamResetError
from tests.helpers import run
from tests.helpers.peers import Peers, sessions
from tests.unit.session.serving import echoing


@pytest.mark.bulk
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
            while callee._work:
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
            behind = list[int]()
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


@pytest.mark.bulk
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

            def use() -> asyncio.Future[bytes | None]:
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
