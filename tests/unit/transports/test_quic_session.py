"""A whole session over QUIC: pinned TLS, streams, back-pressure, a path that dies, and one that comes beside."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator

import pytest

from p2ptunnel.errors import ChannelLostError, PeerKeyChangedError
from p2ptunnel.identity.keys import Identity
from p2ptunnel.session.session import Session, accept_session, connect_session
from p2ptunnel.transports.quic import QuicPipe
from tests.helpers import run
from tests.helpers.paces import hasten
from tests.helpers.peers import Peers
from tests.helpers.quic import Port, meet, quic_ports

MIB = 1 << 20


async def caller_session(peers: Peers, pipe: QuicPipe) -> Session:
    return await connect_session(
        pipe,
        identity=peers.caller,
        tag="home-nas",
        peer_key=peers.expected,
        selector=peers.selector,
        options=peers.options,
        tracer=peers.tracer,
    )


async def callee_session(peers: Peers, pipe: QuicPipe) -> Session:
    return await accept_session(
        pipe,
        identity=peers.callee,
        access=peers.access,
        selector=await pipe.read_preamble(),
        on_open=peers.on_open,
        find=peers.find,
        options=peers.options,
        tracer=peers.tracer,
    )


@contextlib.asynccontextmanager
async def over_quic(peers: Peers) -> AsyncGenerator[tuple[Port, Port, Session, Session]]:
    async with quic_ports() as (near, far):
        ours, theirs = await meet(near, far)
        async with asyncio.TaskGroup() as group:
            calling = group.create_task(caller_session(peers, ours))
            called = group.create_task(callee_session(peers, theirs))
        caller, callee = calling.result(), called.result()
        try:
            yield near, far, caller, callee
        finally:
            await asyncio.gather(caller.close(grace=0), callee.close(grace=0))


def test_streams_go_both_ways_beside_each_other() -> None:
    async def scenario() -> None:
        peers = Peers("web")
        async with over_quic(peers) as (_near, _far, caller, _callee):
            assert caller.path.transport == "quic"
            pairs = [await peers.stream(caller, "web") for _ in range(3)]
            data = random.randbytes(MIB)

            async def both(number: int) -> None:
                ours, theirs = pairs[number]
                writing = asyncio.gather(ours.write(data), theirs.write(data))
                assert await theirs.readexactly(MIB) == data
                assert await ours.readexactly(MIB) == data
                await writing

            await asyncio.gather(*(both(number) for number in range(3)))

    run(scenario())


def test_nobody_but_the_pinned_key_is_let_in_by_whom_it_was_called() -> None:
    async def scenario() -> None:
        peers = Peers("web")
        peers.expected = Identity.from_seed(bytes(32)).public
        async with quic_ports() as (near, far):
            ours, theirs = await meet(near, far)
            called = asyncio.ensure_future(callee_session(peers, theirs))
            with pytest.raises(PeerKeyChangedError):
                await caller_session(peers, ours)
            [outcome] = await asyncio.gather(called, return_exceptions=True)
            assert isinstance(outcome, Exception)

    run(scenario())


def test_a_path_on_which_datagrams_vanish_is_dead_when_the_session_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    hasten(monkeypatch, dead=0.5)

    async def scenario() -> None:
        peers = Peers("web")
        async with over_quic(peers) as (near, far, caller, _):
            ours, _theirs = await peers.stream(caller, "web")
            near.udp.loses = far.udp.loses = lambda _: True
            await ours.write(b"into the hole")
            with pytest.raises(ChannelLostError, match="the path has been dead for"):
                await ours.read()

    run(scenario())


def test_a_goodbye_is_an_end_in_order() -> None:
    async def scenario() -> None:
        peers = Peers("web")
        async with over_quic(peers) as (near, far, caller, callee):
            ours, theirs = await peers.stream(caller, "web")
            await ours.write(b"the last")
            await ours.write_eof()
            assert await theirs.read() == b"the last"
            assert await theirs.read() == b""
            await theirs.write_eof()
            assert await ours.read() == b""
            await caller.close()
            await callee.closed.wait()
            while near.quic._links or far.quic._links:
                await asyncio.sleep(0)

    run(scenario())
