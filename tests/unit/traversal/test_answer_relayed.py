"""The answering side at the relay of a real server: who comes is admitted when it speaks, and not waited for for ever."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import pytest

from p2ptunnel.errors import ChannelLostError
from p2ptunnel.server import Rendezvous
from p2ptunnel.transports.relay import RelayPipe, join_relay
from p2ptunnel.traversal import answer as module
from p2ptunnel.traversal.answer import AnsweringPort
from p2ptunnel.traversal.port import OpenerTtl, PunchPort
from p2ptunnel.wire.messages import PunchResult
from tests.helpers import run
from tests.helpers.turns import settle
from tests.unit.traversal.test_answer import TAG, Hall
from tests.unit.traversal.wires import CALLEE, CALLER, LOOPBACK, Caller, credentials, judge


@contextlib.asynccontextmanager
async def lobby(*, is_punching: bool = True) -> AsyncGenerator[tuple[Rendezvous, AnsweringPort, Hall]]:
    """A server, a registered port that joins its relay for each call, and what is admitted there."""
    hall = Hall()
    async with Rendezvous(LOOPBACK) as server:
        port = await PunchPort.open(server.address, OpenerTtl(), tracer=hall.tracer)
        callee = AnsweringPort(
            port,
            TAG,
            credentials(TAG),
            judge(),
            hall.admit,
            join=lambda token, _: join_relay(server.address, token, "callee", CALLEE),
            is_punching=is_punching,
            tracer=hall.tracer,
        )
        try:
            await callee.start()
            yield server, callee, hall
        finally:
            await callee.close()
            hall.close()


async def called(server: Rendezvous) -> PunchResult:
    """Call, and punch nothing."""
    async with Caller(server.address) as caller:
        return await caller.ask(TAG)


async def joined(server: Rendezvous, token: str) -> RelayPipe:
    return await join_relay(server.address, token, "caller", CALLER)


def circuits(server: Rendezvous) -> int:
    assert server.stats.relay is not None
    return server.stats.relay.circuits


@pytest.mark.parametrize("is_punching", [True, False])
def test_who_speaks_at_the_relay_is_admitted_with_every_byte_and_the_key_that_has_called(is_punching: bool) -> None:
    async def main() -> None:
        async with lobby(is_punching=is_punching) as (server, callee, hall):
            pipe = await joined(server, (await called(server)).token)
            transport = await pipe.attach(asyncio.Protocol)
            transport.write(b"the first words")
            came = await hall.admitted.get()
            assert hall.keys == [CALLER.public]
            assert came.path.kind == "relay"
            assert not hall.named("connection_up")
            transport.abort()
            await callee.close()

    run(main())


def test_who_joins_and_says_nothing_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RELAY_JOIN_TIMEOUT", 0.05)

    async def main() -> None:
        async with lobby() as (server, _, hall):
            pipe = await joined(server, (await called(server)).token)
            [told] = await hall.told("relay_unused")
            assert told.facts["reason"] == "nobody spoke there"
            with pytest.raises((ChannelLostError, OSError)):
                await pipe.wait_heard()
            pipe.abort()
            assert hall.keys == []

    run(main())


def test_a_caller_that_leaves_the_relay_is_forgotten_at_once() -> None:
    async def main() -> None:
        async with lobby() as (server, _, hall):
            pipe = await joined(server, (await called(server)).token)
            pipe.abort()
            await hall.told("relay_unused")
            while circuits(server):
                await asyncio.sleep(0.001)
            assert hall.keys == []

    run(main())


def test_who_is_turned_away_is_turned_away_there_as_well() -> None:
    async def main() -> None:
        async with lobby() as (server, _, hall):
            hall.refusal = ChannelLostError("not you")
            pipe = await joined(server, (await called(server)).token)
            transport = await pipe.attach(asyncio.Protocol)
            transport.write(b"the first words")
            [told] = await hall.told("relay_unused")
            assert "not you" in str(told.facts["reason"])
            transport.abort()

    run(main())


def test_closing_leaves_nobody_at_the_relay() -> None:
    async def main() -> None:
        async with lobby() as (server, callee, _):
            await called(server)
            while not circuits(server):
                await asyncio.sleep(0.001)
            tasks = len(asyncio.all_tasks())
            await callee.close()
            while circuits(server):
                await asyncio.sleep(0.001)
            assert len(asyncio.all_tasks()) < tasks
            await settle(10**6)

    run(main())


def test_so_many_are_expected_at_the_relay_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CALLS_MAX", 1)

    async def main() -> None:
        async with lobby() as (server, callee, _):
            await called(server)
            await called(server)
            assert len(callee._relayed) == 1

    run(main())
