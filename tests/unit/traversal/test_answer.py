"""The answering side on loopback: registered, called step by step, and called wrongly."""

from __future__ import annotations

import asyncio
import contextlib
import time
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
from p2ptunnel.identity.keys import Identity, PublicKey
from p2ptunnel.net import backoff as backoff_module
from p2ptunnel.net.backoff import Backoff
from p2ptunnel.protocol import callee as callee_module
from p2ptunnel.protocol import registration as registering
from p2ptunnel.protocol.rounds import Rounds
from p2ptunnel.server import Rendezvous
from p2ptunnel.trace import TraceEvent, Tracer
from p2ptunnel.transports.raw import RawStreams
from p2ptunnel.traversal import answer as module
from p2ptunnel.traversal import port as port_module
from p2ptunnel.traversal.answer import AnsweringPort
from p2ptunnel.traversal.port import OpenerTtl, PunchPort
from p2ptunnel.types import Address
from p2ptunnel.wire.messages import (
    Heartbeat,
    HeartbeatAnswer,
    Leave,
    LeaveAnswer,
    Message,
    Observed,
    PunchAnswer,
    PunchNotice,
    PunchNoticeExtra,
    Register,
    RegisterAnswer,
)
from tests.helpers import run
from tests.helpers.turns import cancel_at_each_turn, descriptors, settle
from tests.unit.traversal.test_port import observing as seen
from tests.unit.traversal.wires import CALLER, LOOPBACK, Caller, credentials, judge, scripted_server

TAG = "home-nas"
OTHER = Identity.from_seed(bytes([99]) * 32)
Admit = Callable[[Pipe, str, PublicKey], Awaitable[None]]


class Hall:
    """Where admitted connections are kept, or turned away with an error."""

    def __init__(self) -> None:
        self.events: list[TraceEvent] = []
        self.refusal: P2PTunnelError | None = None
        self.admitted: asyncio.Queue[Pipe] = asyncio.Queue()
        self.keys: list[PublicKey] = []
        self._changed = asyncio.Event()
        self.tracer = Tracer(self._note)

    async def admit(self, pipe: Pipe, conkey: str, key: PublicKey) -> None:
        self.keys.append(key)
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
    return AnsweringPort(port, TAG, credentials(TAG), judge(), hall.admit, tracer=hall.tracer)


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


async def cut_off(connecting: Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]) -> None:
    """Connect, and wait for the other side to end that; it may be so fast that the connection fails."""
    with contextlib.suppress(ConnectionResetError):
        await ended(*await connecting)


def welcome(source: Address, mid: int) -> RegisterAnswer:
    return RegisterAnswer(mid=mid, code=200, em="", extra=Observed(host=source[0], port=source[1], epoch=1))


# --- registration -----------------------------------------------------------------------------------------------------


def test_it_is_registered_until_it_is_closed() -> None:
    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server:
            callee = await answering_port(server.address, Hall())
            seen = await callee.start()
            assert list(server.registered) == [TAG]
            assert callee.observed == seen
            assert callee.rtt is not None
            await callee.close()
            assert list(server.registered) == []
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
            second = AnsweringPort(port, TAG, credentials(TAG, OTHER), judge(), Hall().admit)
            with pytest.raises(TagInUseError) as caught:
                await second.start()
            await second.close()
            assert str(caught.value) == "the tag 'home-nas' belongs to another key"
            assert caught.value.code == 409
            assert list(server.registered) == [TAG]

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
        server = Rendezvous(LOOPBACK)
        await server.start()
        successor = Rendezvous(server.address)
        try:
            async with answering(server.address) as (_, hall):
                await server.close()
                await hall.told("control_lost")
                await successor.start()
                began = asyncio.get_running_loop().time()
                await hall.told("Registered", 2)
                assert asyncio.get_running_loop().time() - began < 3
                assert list(successor.registered) == [TAG]
        finally:
            await successor.close()

    run(main())


@pytest.mark.parametrize(
    ("is_mapping", "is_punching", "times"), [(True, True, 1), (True, False, 0), (False, True, 0), (False, False, 0)]
)
def test_the_router_is_asked_by_who_is_to_and_punches_once_it_is_registered(
    is_mapping: bool, is_punching: bool, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Address | None] = []
    monkeypatch.setattr(PunchPort, "ask_router", lambda *_: asked.append(callee.observed))

    async def main() -> None:
        nonlocal callee
        async with Rendezvous(LOOPBACK) as server:
            port = await PunchPort.open(server.address, OpenerTtl())
            flags = {"is_mapping": is_mapping, "is_punching": is_punching}
            callee = AnsweringPort(port, TAG, credentials(TAG), judge(), Hall().admit, **flags)
            seen = await callee.start()
            assert asked == [seen] * times
            await callee.close()

    callee: AnsweringPort
    run(main())


def test_a_changed_address_is_looked_at_anew_over_tcp_and_at_the_router(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registering, "HEARTBEAT_MIN", 0.02)
    monkeypatch.setattr(registering, "HEARTBEAT_MAX", 0.02)

    def rebinding(message: Message, source: Address) -> Message | None:
        match message:
            case Register():
                return welcome(source, message.mid)
            case Heartbeat():
                return HeartbeatAnswer(mid=message.mid, code=200, em="", extra=Observed(host="198.51.100.7", port=1025))
            case Leave():
                return LeaveAnswer(mid=message.mid, code=200, em="")
            case _:
                return None

    async def main() -> None:
        asked = asyncio.Event()
        monkeypatch.setattr(PunchPort, "ask_router_anew", lambda _: asked.set())
        async with scripted_server(rebinding, tcp="observes") as server, answering(server.address) as (callee, hall):
            await hall.told("AddressChanged")
            assert callee.observed == ("198.51.100.7", 1025)
            await hall.told("tcp_observed", 2)
            await asked.wait()

    run(main())


class Middle:
    """Dice that always show the middle."""

    def random(self) -> float:
        return 0.5


def test_a_server_that_hangs_up_again_and_again_is_asked_ever_more_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    seconds = Backoff._seconds

    def noted(backoff: Backoff) -> float:
        pauses.append(seconds(backoff))
        return 0

    def welcoming(message: Message, source: Address) -> Message | None:
        match message:
            case Register():
                return welcome(source, message.mid)
            case Leave():
                return LeaveAnswer(mid=message.mid, code=200, em="")
            case _:
                return seen(message, source)

    async def main() -> None:
        async with scripted_server(welcoming, tcp="hangs up") as server, answering(server.address) as (_, hall):
            monkeypatch.setattr(Backoff, "_seconds", noted)
            monkeypatch.setattr(backoff_module, "_dice", Middle())
            await hall.told("tcp_observed", 8)
            monkeypatch.undo()

    run(main())
    assert pauses[:6] == pytest.approx([0.1, 0.16, 0.256, 0.4096, 0.5, 0.5])  # half of 0.2 x 1.6 each time, of 1 s at most


# --- calls ------------------------------------------------------------------------------------------------------------


def test_a_call_is_answered_and_its_connection_admitted() -> None:
    async def main() -> None:
        async with lobby() as (server, callee, hall), Caller(server.address) as caller:
            await caller.call(TAG)
            assert caller.callee == callee.observed
            _, writer = await caller.connect()
            writer.write(caller.preamble + b"behind it")
            pipe = await hall.admitted.get()
            assert pipe.path.remote == writer.get_extra_info("sockname")
            assert pipe.path.why == "its SYN reached our listener"
            assert hall.keys == [CALLER.public]
            await hall.told("ConnectionChosen")
            pipe.abort()
            writer.transport.abort()

    run(main())


def test_nobody_may_connect_who_does_not_call() -> None:
    async def main() -> None:
        async with lobby() as (_, callee, hall):
            assert callee.observed is not None
            await cut_off(asyncio.open_connection(*callee.observed))
            assert len(hall.named("stranger_cut_off")) == 1

    run(main())


def test_nobody_may_connect_from_another_host_than_the_callers() -> None:
    async def main() -> None:
        async with lobby() as (server, _, hall), Caller(server.address) as caller:
            await caller.call(TAG)
            await cut_off(caller.connect(host="127.0.0.2"))
            assert len(hall.named("stranger_cut_off")) == 1

    run(main())


def test_a_selector_is_good_from_the_host_that_it_was_given_to() -> None:
    """Two calls are under way, and one of the two hosts has seen the other's conkey."""

    async def main() -> None:
        async with (
            lobby() as (server, _, hall),
            Caller(server.address) as caller,
            Caller(server.address, host="127.0.0.2") as thief,
        ):
            await caller.call(TAG)
            await thief.call(TAG)
            reader, writer = await thief.connect(host="127.0.0.2")
            writer.write(caller.preamble)
            await ended(reader, writer)
            [refused] = await hall.told("connection_refused")
            assert refused.facts["reason"] == "the channel was closed by us: a preamble of no call of ours"
            assert hall.keys == []
            _, writer = await caller.connect()
            writer.write(caller.preamble)
            (await hall.admitted.get()).abort()
            writer.transport.abort()

    run(main())


def test_selectors_are_compared_in_a_time_that_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def note(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return False

    async def main() -> None:
        async with lobby() as (server, _, _), Caller(server.address) as caller:
            await caller.call(TAG)
            monkeypatch.setattr(module.hmac, "compare_digest", note)
            reader, writer = await caller.connect()
            writer.write(caller.preamble)
            await ended(reader, writer)
            conkey = bytes.fromhex(caller.conkey)
            assert compared == [(conkey, conkey)]

    run(main())


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: nas\r\n\r\n", "the peer broke the protocol: the connection does not begin with a preamble"),
        (b"", "not admitted in 0.1 s"),
    ],
)
def test_a_connection_without_a_preamble_does_not_stay(said: bytes, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PREAMBLE_TIMEOUT", 0.1)

    async def main() -> None:
        async with lobby() as (server, _, hall), Caller(server.address) as caller:
            await caller.call(TAG)
            reader, writer = await caller.connect()
            writer.write(said)
            await ended(reader, writer)
            [refused] = await hall.told("connection_refused")
            assert refused.facts["reason"] == reason

    run(main())


def test_a_preamble_of_no_call_is_refused_and_the_right_one_still_good() -> None:
    async def main() -> None:
        async with lobby() as (server, _, hall), Caller(server.address) as caller:
            await caller.call(TAG)
            conkey, caller.conkey = caller.conkey, "00" * 16
            reader, writer = await caller.connect()
            writer.write(caller.preamble)
            await ended(reader, writer)
            [refused] = hall.named("connection_refused")
            assert refused.facts["reason"] == "the channel was closed by us: a preamble of no call of ours"
            caller.conkey = conkey
            _, writer = await caller.connect()
            writer.write(caller.preamble)
            (await hall.admitted.get()).abort()
            writer.transport.abort()

    run(main())


def test_who_is_not_admitted_may_try_again_on_another_connection() -> None:
    """The conkey is spent by the first connection that is admitted, not by the first that shows it."""

    async def main() -> None:
        async with lobby() as (server, _, hall), Caller(server.address) as caller:
            await caller.call(TAG)
            hall.refusal = AuthenticationError("no such key here")
            reader, writer = await caller.connect()
            writer.write(caller.preamble)
            await ended(reader, writer)
            [refused] = hall.named("connection_refused")
            assert refused.facts["reason"] == "authentication failed: no such key here"
            hall.refusal = None
            _, writer = await caller.connect()
            writer.write(caller.preamble)
            (await hall.admitted.get()).abort()
            writer.transport.abort()
            await hall.told("ConnectionChosen")
            await cut_off(caller.connect())  # from now on nobody is expected
            assert len(hall.named("stranger_cut_off")) == 1

    run(main())


def test_so_many_connections_may_wait_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PENDING_CONNECTIONS", 2)

    async def main() -> None:
        async with lobby() as (server, _, hall), Caller(server.address) as caller:
            await caller.call(TAG)
            waiting = [await caller.connect() for _ in range(2)]
            await hall.told("connection_up", 2)
            await cut_off(caller.connect())
            assert len(hall.named("stranger_cut_off")) == 1
            waiting[0][1].transport.abort()
            await hall.told("connection_refused")
            _, writer = await caller.connect()
            writer.write(caller.preamble)
            (await hall.admitted.get()).abort()
            for _, left in (*waiting, (None, writer)):
                left.transport.abort()

    run(main())


def test_closing_resets_who_waits() -> None:
    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server:
            async with answering(server.address) as (_, hall), Caller(server.address) as caller:
                await caller.call(TAG)
                reader, writer = await caller.connect()
                await hall.told("connection_up")
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.transport.abort()

    run(main())


def test_a_connection_that_comes_in_the_turn_of_the_end_is_closed() -> None:
    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server:
            before = descriptors()
            hall = Hall()
            callee = await answering_port(server.address, hall)
            await callee.start()
            async with Caller(server.address) as caller:
                await caller.call(TAG)
                reader, writer = await caller.connect()
                while not hall.named("connection_up"):  # its task has been made in this very turn, and has not begun
                    await asyncio.sleep(0)
                callee.abort()
                await asyncio.sleep(0)
                await ended(reader, writer)
                await callee.close()
            await settle(before)

    run(main())


def test_who_calls_while_it_leaves_hears_that_it_is_gone() -> None:
    answers: list[Leave | PunchAnswer] = []

    def last_call(message: Message, source: Address) -> Message | None:
        """Send a call instead of the good-bye."""
        match message:
            case Register():
                return welcome(source, message.mid)
            case Leave():
                answers.append(message)
                return PunchNotice(mid=7, extra=PunchNoticeExtra(token="token", host="192.0.2.7", port=7, v=1))
            case PunchAnswer():
                answers.append(message)
                return LeaveAnswer(mid=answers[0].mid, code=200, em="")
            case _:
                return None

    async def main() -> None:
        async with scripted_server(last_call) as server, answering(server.address) as (callee, hall):
            await callee.close()
            assert hall.named("PunchStarted") == []

    run(main())
    [_, answer] = answers
    assert isinstance(answer, PunchAnswer)
    assert (answer.token, answer.code, answer.em) == ("token", 404, "it has just left")


# --- programs without a key -------------------------------------------------------------------------------------------


def test_a_program_without_a_key_is_refused() -> None:
    async def main() -> None:
        async with lobby() as (server, _, _), Caller(server.address, v=0) as caller:
            result = await caller.ask(TAG)
            assert (result.code, result.em, result.extra) == (403, "authentication needed", None)

    run(main())


def test_it_is_let_in_where_that_is_wanted() -> None:
    async def main() -> None:
        async with lobby() as (server, callee, hall), Caller(server.address, v=0) as caller:
            streams = RawStreams()
            callee.admit_raw = streams.admit
            await caller.call(TAG)
            reader, writer = await caller.connect()
            stream = await anext(streams)
            writer.write(b"hello")
            assert await stream.readexactly(5) == b"hello"
            await stream.write(b"good bye")
            await stream.close()
            assert await reader.read() == b"good bye"
            writer.transport.abort()
            assert hall.admitted.empty()

    run(main())


def test_one_of_ours_behind_the_same_nat_is_not_taken_for_it() -> None:
    async def main() -> None:
        async with lobby() as (server, callee, hall), Caller(server.address, v=0) as raw, Caller(server.address) as ours:
            streams = RawStreams()
            callee.admit_raw = streams.admit
            await raw.call(TAG)
            await ours.call(TAG)
            _, writer = await ours.connect()
            writer.write(ours.preamble)
            (await hall.admitted.get()).abort()
            writer.transport.abort()

    run(main())


# --- calls with a port of their own -----------------------------------------------------------------------------------


class Others:
    """Where the other ports come from."""

    def __init__(self, server: Address) -> None:
        self.server = server
        self.opened: list[PunchPort] = []
        self.error: Exception | None = None
        self.may_go = asyncio.Event()
        self.may_go.set()

    async def open(self) -> PunchPort:
        await self.may_go.wait()
        if self.error is not None:
            raise self.error
        self.opened.append(await PunchPort.open(self.server, OpenerTtl()))
        return self.opened[-1]


@contextlib.asynccontextmanager
async def burnt(hall: Hall, *, host: str = "127.0.0.1") -> AsyncGenerator[tuple[Rendezvous, AnsweringPort, Others]]:
    """A registered port that is burnt for callers from `host`."""
    rounds = Rounds()
    async with Rendezvous(LOOPBACK) as server:
        others = Others(server.address)
        port = await PunchPort.open(server.address, OpenerTtl(), tracer=hall.tracer)
        rounds.burn(port.address[1], host, time.monotonic())
        callee = AnsweringPort(
            port, TAG, credentials(TAG), judge(), hall.admit, rounds=rounds, open_other=others.open, tracer=hall.tracer
        )
        try:
            await callee.start()
            yield server, callee, others
        finally:
            await callee.close()
            hall.close()


def test_a_caller_for_whom_the_port_is_burnt_is_answered_from_another_one() -> None:
    async def main() -> None:
        hall = Hall()
        async with burnt(hall) as (server, callee, others), Caller(server.address) as caller:
            before = descriptors()
            await caller.call(TAG)
            [other] = others.opened
            assert caller.callee == other.address != callee.observed
            _, writer = await caller.connect()
            writer.write(caller.preamble)
            pipe = await hall.admitted.get()
            assert pipe.path.local == other.address
            await hall.told("ConnectionChosen")
            pipe.abort()
            writer.transport.abort()
            await settle(before)
            assert other.udp.is_closed

    run(main())


def test_others_are_answered_from_the_registered_port_meanwhile() -> None:
    async def main() -> None:
        hall = Hall()
        async with burnt(hall) as (server, callee, others), Caller(server.address, host="127.0.0.2") as caller:
            await caller.call(TAG)
            assert caller.callee == callee.observed
            assert not others.opened

    run(main())


@pytest.mark.parametrize("trouble", [RendezvousTimeoutError("127.0.0.1:1", 5), OSError(24, "Too many open files"), None])
def test_where_no_other_port_is_to_be_had_the_burnt_one_answers(
    trouble: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port_module, "APART_PATIENCE", 0.05)

    async def main() -> None:
        hall = Hall()
        async with burnt(hall) as (server, callee, others), Caller(server.address) as caller:
            others.error = trouble
            if trouble is None:
                others.may_go.clear()  # it takes for ever
            await caller.call(TAG)
            assert caller.callee == callee.observed
            assert len(hall.named("no_other_port")) == 1

    run(main())


@pytest.mark.parametrize("is_opening", [True, False])
def test_closing_in_the_middle_leaves_nothing(is_opening: bool) -> None:
    async def main() -> None:
        hall = Hall()
        before = descriptors()
        async with burnt(hall) as (server, callee, others), Caller(server.address) as caller:
            if is_opening:
                others.may_go.clear()
                asking = asyncio.create_task(caller.ask(TAG))
                await hall.told("AnswerApart")
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
            else:
                await caller.call(TAG)
            await callee.close()
            assert all(port.udp.is_closed for port in others.opened)
        await settle(before)

    run(main())


def test_an_attempt_that_comes_to_nothing_there_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callee_module, "PUNCH_TIMEOUT", 0.2)

    async def main() -> None:
        hall = Hall()
        async with burnt(hall) as (server, _, others), Caller(server.address) as caller:
            before = descriptors()
            await caller.call(TAG)
            [other] = others.opened
            await hall.told("StopDialing")
            await settle(before)
            assert other.udp.is_closed

    run(main())


@pytest.mark.parametrize("most", [1, 0])
def test_a_second_round_has_a_port_of_its_own_while_there_are_not_too_many(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "APART_CALLS_MAX", most)

    async def main() -> None:
        hall = Hall()
        async with burnt(hall, host="127.0.0.9") as (server, callee, others), Caller(server.address) as caller:
            await caller.call(TAG)
            [agent] = callee._machine.agents
            callee._on_burnt(agent.token)
            await hall.told("TakePort")
            if most:
                await hall.told("second_round")
            [sockets] = callee._sockets.values()
            await asyncio.gather(*(task for task in [sockets._taking] if task is not None))
            assert len(others.opened) == most
            await callee.close()
            assert all(port.udp.is_closed for port in others.opened)

    run(main())


def test_calls_that_get_no_port_for_a_second_round_take_none_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "APART_CALLS_MAX", 2)

    async def main() -> None:
        hall = Hall()
        async with burnt(hall) as (_, callee, others):
            others.may_go.clear()
            asking = [asyncio.create_task(callee._other_port()) for _ in range(4)]  # in one turn
            await asyncio.sleep(0)
            others.may_go.set()
            got = await asyncio.gather(*asking)
            assert [port is not None for port in got] == [True, True, False, False]
            late = await callee._other_port()  # none of the two is anybody's here, and those that were denied hold nothing
            assert late is not None
            for port in others.opened:
                port.close()

    run(main())
