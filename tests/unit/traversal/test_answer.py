"""The answering side on loopback: registered, called step by step, and called wrongly."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable

import pytest

from p2ptunnel.abc import Pipe
from p2ptunnel.errors import (
    AuthenticationError,
    P2PTunnelError,
    RateLimitedError,
    RendezvousError,
    RendezvousTimeoutError,
    TagInUseError,
)
from p2ptunnel.identity.keys import Identity
from p2ptunnel.protocol import registration as registering
from p2ptunnel.protocol import transaction
from p2ptunnel.server import Rendezvous
from p2ptunnel.trace import TraceEvent, Tracer
from p2ptunnel.transports.raw import RawStreams
from p2ptunnel.traversal import answer as module
from p2ptunnel.traversal.answer import AnsweringPort
from p2ptunnel.traversal.port import OpenerTtl, PunchPort
from p2ptunnel.types import Address
from p2ptunnel.wire.messages import (
    HeartbeatAnswer,
    Heartbeat,
    Message,
    Observed,
    Register,
    RegisterAnswer,
)
from tests.helpers import run
from tests.helpers.turns import cancel_at_each_turn
from tests.unit.traversal.wires import LOOPBACK, Caller, Script, credentials, scripted_server, silent_server

TAG = "home-nas"
OTHER = Identity.from_seed(bytes([99]) * 32)
Admit = Callable[[Pipe, str], Awaitable[None]]


class Hall:
    """Where admitted connections are kept, or turned away with an error."""

    def __init__(self) -> None:
        self.events: list[TraceEvent] = []
        self.refusal: P2PTunnelError | None = None
        self.admitted: asyncio.Queue[Pipe] = asyncio.Queue()
        self._changed = asyncio.Event()
        self.tracer = Tracer(self._note)

    async def admit(self, pipe: Pipe, conkey: str) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.admitted.put_nowait(pipe)

    def named(self, name: str) -> list[TraceEvent]:
        return [event for event in self.events if event.name == name]

    async def told(self, name: str, times: int = 1) -> list[TraceEvent]:
        """Wait until an event has happened so many times."""
        while len(self.named(name)) < times:
            self._changed.clear()
            await self._changed.wait()
        return self.named(name)

    def close(self) -> None:
        while not self.admitted.empty():
            self.admitted.get_nowait().abort()

    def _note(self, event: TraceEvent) -> None:
        self.events.append(event)
        self._changed.set()


async def answering_port(server: Address, hall: Hall) -> AnsweringPort:
    port = await PunchPort.open(server, OpenerTtl(), tracer=hall.tracer)
    return AnsweringPort(port, TAG, credentials(TAG), hall.admit, tracer=hall.tracer)


@contextlib.asynccontextmanager
async def answering(server: Address) -> AsyncGenerator[tuple[AnsweringPort, Hall]]:
    """A registered port, and what it admits."""
    hall = Hall()
    callee = await answering_port(server, hall)
    try:
        await callee.start()
        yield callee, hall
    finally:
        await callee.close()
        hall.close()


@contextlib.asynccontextmanager
async def lobby(*, compat_seed: bool = False) -> AsyncGenerator[tuple[Rendezvous, AnsweringPort, Hall]]:
    async with Rendezvous(LOOPBACK, compat_seed=compat_seed) as server, answering(server.address) as (callee, hall):
        yield server, callee, hall


async def ended(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Wait for the other side to end a connection on which it has said nothing."""
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    writer.transport.abort()


# --- registration -----------------------------------------------------------------------------------------------------


def test_it_is_registered_until_it_is_closed() -> None:
    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server:
            callee = await answering_port(server.address, Hall())
            assert callee.observed is None
            observed = await callee.start()
            assert server.registered == (TAG,)
            assert callee.observed == observed
            assert observed[0] == "127.0.0.1"
            assert callee.rtt is not None
            await callee.close()
            assert server.registered == ()
            await callee.close()

    run(main(), timeout=1)


def test_what_was_never_started_closes() -> None:
    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server:
            await (await answering_port(server.address, Hall())).close()

    run(main(), timeout=1)


def test_a_tag_of_another_key_is_named() -> None:
    async def main() -> None:
        async with lobby() as (server, _, _):
            port = await PunchPort.open(server.address, OpenerTtl())
            second = AnsweringPort(port, TAG, credentials(TAG, OTHER), Hall().admit)
            with pytest.raises(TagInUseError) as caught:
                await second.start()
            await second.close()
            assert str(caught.value) == "the tag 'home-nas' belongs to another key"
            assert caught.value.code == 409
            assert server.registered == (TAG,)

    run(main())


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        (429, RateLimitedError, "127.0.0.1:{port} refused: too many requests (429)"),
        (403, RendezvousError, "127.0.0.1:{port} refused: no\\x0a (403)"),
        (401, RendezvousError, "127.0.0.1:{port} refused: no\\x0a (401)"),
    ],
)
def test_a_refusal_of_the_server_is_typed(code: int, kind: type[RendezvousError], text: str) -> None:
    def refuse(message: Message, source: Address) -> Message | None:
        refusal = Observed(retry_after=30)
        return RegisterAnswer(mid=message.mid, code=code, em="no\n", extra=refusal) if isinstance(message, Register) else None

    async def main() -> None:
        async with scripted_server(refuse) as server:
            callee = await answering_port(server.address, Hall())
            with pytest.raises(kind) as caught:
                await callee.start()
            await callee.close()
            assert type(caught.value) is kind
            assert str(caught.value) == text.format(port=server.address[1])
            if isinstance(caught.value, RateLimitedError):
                assert caught.value.retry_after == 30

    run(main())


def test_cancelling_the_start_leaves_nothing() -> None:
    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server:

            async def start() -> AnsweringPort:
                callee = await answering_port(server.address, Hall())
                try:
                    await callee.start()
                except BaseException:
                    await callee.close()
                    raise
                return callee

            await cancel_at_each_turn(start, AnsweringPort.close)

    run(main())


@pytest.mark.parametrize("turns", range(6))
def test_cancelling_the_close_leaves_nothing_open(turns: int) -> None:
    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server:
            before = descriptors()
            callee = await answering_port(server.address, Hall())
            await callee.start()
            closing = asyncio.create_task(callee.close())
            for _ in range(turns):
                await asyncio.sleep(0)
            closing.cancel()
            await asyncio.gather(closing, return_exceptions=True)
            callee.abort()  # for a task that was cancelled before it began
            await settle(before)

    run(main())


def test_a_server_that_does_not_answer_is_left_all_the_same() -> None:
    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server:
            callee = await answering_port(server.address, Hall())
            await callee.start()
        began = asyncio.get_running_loop().time()
        await callee.close()
        assert asyncio.get_running_loop().time() - began < 1.5

    run(main())


# --- the server comes back, our address changes -----------------------------------------------------------------------


def test_after_a_restart_of_the_server_it_is_registered_again_within_three_seconds() -> None:
    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server, answering(server.address) as (_, hall):
            address = server.address
            await server.close()
            await hall.told("control_lost")
            async with Rendezvous(address) as successor:
                began = asyncio.get_running_loop().time()
                await hall.told("Registered", 2)
                assert asyncio.get_running_loop().time() - began < 3
                assert successor.registered == (TAG,)

    run(main())


def test_a_changed_address_is_looked_at_anew_over_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registering, "HEARTBEAT_MIN", 0.02)
    monkeypatch.setattr(registering, "HEARTBEAT_MAX", 0.02)

    def rebinding(message: Message, source: Address) -> Message | None:
        if isinstance(message, Register):
            return RegisterAnswer(mid=message.mid, code=200, em="", extra=Observed(host="198.51.100.7", port=1024, epoch=1))
        if isinstance(message, Heartbeat):
            return HeartbeatAnswer(mid=message.mid, code=200, em="", extra=Observed(host="198.51.100.7", port=1025))
        return None

    async def main() -> None:
        async with scripted_server(rebinding, tcp="observes") as server, answering(server.address) as (callee, hall):
            await hall.told("AddressChanged")
            assert callee.observed == ("198.51.100.7", 1025)
            await hall.told("tcp_observed", 2)

    run(main())


def test_a_server_that_hangs_up_again_and_again_is_not_hammered(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        if seconds:
            pauses.append(seconds)
        await real(0)

    monkeypatch.setattr("p2ptunnel.traversal.answer.asyncio.sleep", sleep)
    monkeypatch.setattr(module, "_dice", Middle())

    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server, answering(server.address) as (callee, hall):
            for times in range(2, 8):
                callee.network_lost()
                await hall.told("tcp_observed", times)

    run(main())
    assert pauses == pytest.approx([0.1, 0.16, 0.256, 0.4096, 0.5, 0.5])  # half of 0.2 x 1.6 each time, of 1 s at most
