"""An attempt over every way at once: a call of the real thing, and a relay that the test opens when it likes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from p2ptunnel.abc import Pipe
from p2ptunnel.errors import (
    ChannelLostError,
    NoPathError,
    PeerKeyChangedError,
    PeerOfflineError,
    RendezvousError,
)
from p2ptunnel.identity.keys import PublicKey
from p2ptunnel.protocol import caller as agents
from p2ptunnel.trace import TraceEvent, Tracer
from p2ptunnel.traversal.call import Call, Establish
from p2ptunnel.traversal.port import OpenerTtl, PunchPort
from p2ptunnel.traversal.race import Race
from p2ptunnel.traversal.relayed import RelayedCall
from p2ptunnel.types import Address
from p2ptunnel.wire.messages import ConnectAnswer, ConnectRequest, Message
from tests.helpers import run
from tests.helpers.peers import new_pipe, tcp_pair
from tests.helpers.turns import cancel_at_each_turn, descriptors
from tests.unit.traversal.test_call import CONKEY, KEY_CHANGED, TAG, TOKEN, Channel, there, undo
from tests.unit.traversal.wires import CALLEE, judge, scripted_server, signer

REFUSED = RendezvousError("198.51.100.1:7000", "no relay here", 503)


class Contest:
    """One race to one callee; what comes of each way is the test's to say.

    Attributes:
        direct: What the direct connection becomes; a channel as soon as it is set to one, or an error.
        joined: How joining the relay ends.
        relayed: What the relay's connection becomes.
        kept: What was handed on, should the relay win.
        on_kept: Called then.
        asked: The tokens that the relay was joined for, and the selectors and keys that were shown there.
    """

    def __init__(self, server: Address) -> None:
        loop = asyncio.get_running_loop()
        self.direct: asyncio.Future[None] = loop.create_future()
        self.joined: asyncio.Future[None] = loop.create_future()
        self.relayed: asyncio.Future[None] = loop.create_future()
        self.kept: list[tuple[Channel, asyncio.Task[Any]]] = []
        self.asked: list[object] = []
        self.events: list[TraceEvent] = []
        self.on_kept: Callable[[], object] = lambda: None
        self._far: list[socket.socket] = []
        self._server = server

    async def run(self, *, is_keeping: bool = True, is_punching: bool = True) -> Channel:
        tracer = Tracer(self.events.append)
        port = await PunchPort.open(self._server, OpenerTtl())
        relayed = RelayedCall(self._join, self._establish(self.relayed, self.asked), tracer=tracer)
        call = Call(
            port,
            "laptop",
            TAG,
            self._establish(self.direct, []),
            signer=signer(),
            companion=relayed,
            is_punching=is_punching,
            tracer=tracer,
        )
        return await Race(call, relayed, self._keep if is_keeping else None).run()

    def close(self) -> None:
        for _, task in self.kept:
            task.cancel()
        for sock in self._far:
            sock.close()

    def _keep(self, channel: Channel, calling: asyncio.Task[Any]) -> None:
        self.kept.append((channel, calling))
        self.on_kept()

    async def _join(self, token: str, _: object = None) -> Pipe:
        self.asked.append(token)
        await asyncio.shield(self.joined)
        near, far = tcp_pair()
        self._far.append(far)
        return new_pipe(near)

    def _establish(self, outcome: asyncio.Future[None], asked: list[object]) -> Establish[Channel]:
        async def establish(pipe: Pipe, conkey: str, key: PublicKey | None) -> Channel:
            asked.extend((conkey, key))
            await asyncio.shield(outcome)
            channel = Channel(pipe)
            sock = getattr(pipe, "_sock")  # noqa: B009 - taken over, as a transport would
            setattr(pipe, "_sock", None)  # noqa: B010
            channel.pipe = new_pipe(sock)
            return channel

        return establish


@asynccontextmanager
async def contest() -> AsyncGenerator[Contest]:
    async with there() as (server, _):
        made = Contest(server)
        try:
            yield made
        finally:
            made.close()


async def until_asked(made: Contest, count: int) -> None:
    while len(made.asked) < count:
        await asyncio.sleep(0)


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "PUNCH_TIMEOUT", 0.5)


# --- who is first -------------------------------------------------------------------------------------------------------


def test_the_direct_connection_wins_and_the_relay_is_left() -> None:
    async def main() -> None:
        async with contest() as made:
            made.direct.set_result(None)
            before = descriptors()
            channel = await made.run()
            assert channel.pipe.path.kind == "direct"  # `new_pipe` calls all so; the socket is the one to the callee's door
            assert made.asked == [TOKEN]
            assert made.kept == []
            assert descriptors() == before + 1
            channel.abort("")

    run(main())


def test_the_relay_wins_and_the_direct_call_goes_on_for_who_keeps_it() -> None:
    async def main() -> None:
        async with contest() as made:
            made.joined.set_result(None)
            made.relayed.set_result(None)
            channel = await made.run()
            token, selector, key = made.asked
            assert (token, key) == (TOKEN, CALLEE.public)
            assert isinstance(selector, str)
            assert len(bytes.fromhex(selector)) == 16
            assert selector != CONKEY
            [(first, calling)] = made.kept
            assert first is channel
            assert not calling.done()
            made.direct.set_result(None)
            second = await calling
            for each in (channel, second):
                each.abort("")

    run(main())


@pytest.mark.parametrize("is_punching", [True, False])
def test_the_relay_wins_and_the_direct_call_ends_where_nobody_keeps_it(is_punching: bool) -> None:
    async def main() -> None:
        async with contest() as made:
            made.joined.set_result(None)
            made.relayed.set_result(None)
            tasks = len(asyncio.all_tasks())
            channel = await made.run(is_keeping=not is_punching, is_punching=is_punching)
            assert made.kept == []
            assert len(asyncio.all_tasks()) == tasks
            channel.abort("")

    run(main())


# --- who is not ---------------------------------------------------------------------------------------------------------


def test_a_relay_that_refuses_costs_nothing() -> None:
    async def main() -> None:
        async with contest() as made:
            made.joined.set_exception(REFUSED)
            running = asyncio.create_task(made.run())
            await until_asked(made, 1)
            made.direct.set_result(None)
            (await running).abort("")
            assert [event.name for event in made.events if event.name == "relay_failed"] == ["relay_failed"]

    run(main())


@pytest.mark.usefixtures("brief")
def test_where_neither_comes_up_both_are_named() -> None:
    async def main() -> None:
        async with contest() as made:
            made.joined.set_exception(REFUSED)
            made.direct.set_exception(ChannelLostError("no TLS there"))
            with pytest.raises(NoPathError) as caught:
                await made.run()
            *direct, relay = caught.value.attempts
            assert relay == "relay: 198.51.100.1:7000 refused: no relay here (503)"
            assert any("no TLS there" in attempt for attempt in direct)

    run(main())


@pytest.mark.usefixtures("brief")
def test_a_relay_that_is_slower_than_every_direct_attempt_is_waited_for() -> None:
    async def main() -> None:
        async with contest() as made:
            made.joined.set_result(None)
            made.direct.set_exception(ChannelLostError("no TLS there"))
            running = asyncio.create_task(made.run())
            while not any(event.name == "CallFailed" for event in made.events):
                await asyncio.sleep(0.01)
            made.relayed.set_result(None)
            (await running).abort("")
            assert made.kept == []

    run(main())


@pytest.mark.usefixtures("brief")
def test_an_impostor_at_the_relay_is_named_where_there_is_nobody_else() -> None:
    async def main() -> None:
        async with contest() as made:
            made.joined.set_result(None)
            made.relayed.set_exception(KEY_CHANGED)
            made.direct.set_exception(ChannelLostError("no TLS there"))
            with pytest.raises(PeerKeyChangedError):
                await made.run()

    run(main())


def test_without_punching_the_relays_word_is_final() -> None:
    async def main() -> None:
        async with contest() as made:
            made.joined.set_exception(REFUSED)
            with pytest.raises(NoPathError) as caught:
                await made.run(is_punching=False)
            assert caught.value.attempts == ("relay: 198.51.100.1:7000 refused: no relay here (503)",)

    run(main())


def test_what_ends_a_call_ends_the_race() -> None:
    def refuse(message: Message, source: Address) -> Message | None:
        return ConnectAnswer(mid=message.mid, code=404, em="") if isinstance(message, ConnectRequest) else None

    async def main() -> None:
        async with scripted_server(refuse) as server:
            made = Contest(server.address)
            with pytest.raises(PeerOfflineError):
                await made.run()
            assert made.asked == []

    run(main())


def test_a_fault_of_ours_is_handed_to_who_waits() -> None:
    async def main() -> None:
        async with contest() as made:
            made.joined.set_result(None)
            made.relayed.set_exception(ZeroDivisionError())
            with pytest.raises(ZeroDivisionError):
                await made.run()

    run(main())


# --- renewed, cancelled -------------------------------------------------------------------------------------------------


def test_a_renewed_call_joins_for_its_own_token_only() -> None:
    async def main() -> None:
        made = Contest(("127.0.0.1", 1))
        relayed = RelayedCall(made._join, made._establish(made.relayed, made.asked))
        relayed.offered("one")
        relayed.offered("two")
        await until_asked(made, 1)
        made.joined.set_result(None)
        made.relayed.set_result(None)
        relayed.proved(CONKEY, CALLEE.public)
        channel = await relayed.outcome
        assert made.asked == ["two", CONKEY, CALLEE.public]
        channel.abort("")
        await relayed.close()
        relayed.offered("three")
        await asyncio.sleep(0)
        assert made.asked[0] == "two"
        made.close()

    run(main())


def test_a_renewed_call_has_the_relay_though_its_first_join_was_refused() -> None:
    async def main() -> None:
        made = Contest(("127.0.0.1", 1))
        relayed = RelayedCall(made._join, made._establish(made.relayed, made.asked))
        made.joined.set_exception(REFUSED)
        relayed.offered("one")
        while relayed.failure is None:
            await asyncio.sleep(0)
        assert (str(relayed.failure), relayed.outcome.done()) == (str(REFUSED), False)
        made.joined = asyncio.get_running_loop().create_future()
        made.joined.set_result(None)
        made.relayed.set_result(None)
        relayed.offered("two")
        relayed.proved(CONKEY, CALLEE.public)
        (await relayed.outcome).abort("")
        await relayed.close()
        made.close()

    run(main())


def test_where_the_callee_is_known_the_handshake_waits_for_the_token_only() -> None:
    async def main() -> None:
        made = Contest(("127.0.0.1", 1))
        made.joined.set_result(None)
        relayed = RelayedCall(made._join, made._establish(made.relayed, made.asked), callee=CALLEE.public)
        relayed.offered("one")
        await until_asked(made, 3)
        token, conkey, key = made.asked
        assert (token, key) == ("one", CALLEE.public)
        assert isinstance(conkey, asyncio.Future)
        assert not conkey.done()
        relayed.proved(CONKEY, CALLEE.public)
        assert await conkey == CONKEY
        made.relayed.set_result(None)
        (await relayed.outcome).abort("")
        await relayed.close()
        made.close()

    run(main())


@pytest.mark.parametrize("way", ["direct", "relay"])
def test_a_race_can_be_cancelled_at_any_turn_and_leaves_nothing(way: str) -> None:
    async def main() -> int:
        async with there() as (server, callee):

            async def once() -> Channel:
                callee._judge = judge()  # one that has not counted the calls before
                made = Contest(server)
                if way == "relay":
                    made.joined.set_result(None)
                    made.relayed.set_result(None)
                else:
                    made.direct.set_result(None)
                try:
                    return await made.run(is_keeping=False)
                finally:
                    made.close()

            return await cancel_at_each_turn(once, undo)

    assert run(main()) > 10


def test_cancelled_in_the_very_turn_in_which_the_relay_is_up_it_is_aborted() -> None:
    async def main() -> None:
        async with contest() as made:
            made.joined.set_result(None)
            made.relayed.set_result(None)
            running = asyncio.create_task(made.run())
            made.on_kept = running.cancel
            with pytest.raises(asyncio.CancelledError):
                await running
            [(channel, calling)] = made.kept
            assert channel.aborted == "cancelled"
            calling.cancel()
            await asyncio.gather(calling, return_exceptions=True)

    run(main())
