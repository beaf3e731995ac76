"""Every way in which a session ends in order: closed, aborted, cancelled; and that nothing is left of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random

import pytest

from p2ptunnel.errors import ChannelClosedError, ChannelError, ChannelLostError
from p2ptunnel.net.threads import in_thread
from p2ptunnel.session.session import OpenRequest, Session
from p2ptunnel.session.stream import SessionStream
from tests.helpers import run
from tests.helpers.peers import Peers, sessions, tcp_pair
from tests.unit.session.serving import echoing

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

    async def gathered(stream: SessionStream) -> bytes:
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
    found = list[str]()
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
