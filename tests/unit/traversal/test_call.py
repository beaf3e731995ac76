"""A call on loopback: what becomes of it when the server, the callee or the channel does this or that."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable

import pytest

from p2ptunnel.abc import Pipe
from p2ptunnel.defaults import PENDING_CONNECTIONS
from p2ptunnel.errors import (
    AuthenticationError,
    ChannelLostError,
    NoPathError,
    P2PTunnelError,
    PeerKeyChangedError,
    PeerOfflineError,
    PeerRefusedError,
    RateLimitedError,
    RemoteProtocolError,
    RendezvousError,
)
from p2ptunnel.identity.keys import Identity, PublicKey
from p2ptunnel.protocol import caller as agents
from p2ptunnel.protocol.intent import Call as SignedCall
from p2ptunnel.trace import TraceEvent, Tracer
from p2ptunnel.traversal import call as module
from p2ptunnel.traversal.call import Call
from p2ptunnel.traversal.port import OpenerTtl, PunchPort
from p2ptunnel.types import Address, Candidate
from p2ptunnel.wire.keyed import KeyedSender
from p2ptunnel.wire.messages import (
    ConkeyExtra,
    ConnectAnswer,
    ConnectAnswerExtra,
    ConnectRequest,
    HoleAnswer,
    HoleProbe,
    Message,
    NatHints,
    OpenTcp,
    OpenTcpAnswer,
    PunchResult,
    PunchResultExtra,
)
from tests.helpers import run
from tests.helpers.turns import cancel_at_each_turn, descriptors, settle
from tests.unit.traversal.test_port import observing
from tests.unit.traversal.wires import CALLEE, Script, ScriptedServer, judge, scripted_server, signer

TAG, TOKEN, CONKEY = "home-nas", "token", "0123456789abcdef" * 2
KEY_CHANGED = PeerKeyChangedError(TAG, "p2p:" + "a" * 52)
Answers = Message | tuple[Message, ...] | None


class Channel:
    """What a call establishes in these tests: the pipe itself."""

    def __init__(self, pipe: Pipe) -> None:
        self.pipe = pipe
        self.aborted = ""

    def abort(self, reason: str) -> None:
        self.aborted = reason
        self.pipe.abort()


Establish = Callable[[Pipe, str, PublicKey | None], Awaitable[Channel]]


async def at_once(pipe: Pipe, conkey: str, key: PublicKey | None) -> Channel:
    assert (conkey == CONKEY) is (key is None)  # a signed call has its own
    return Channel(pipe)


async def never(pipe: Pipe, conkey: str, key: PublicKey | None) -> Channel:
    raise AssertionError("no connection should come up")


async def never_done(pipe: Pipe, conkey: str, key: PublicKey | None) -> Channel:
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


class Callee:
    """A callee with so many TCP doors, each of which lets a connection in and says nothing, and the server that knows it."""

    def __init__(self, called: ScriptedServer, doors: list[socket.socket], identity: Identity = CALLEE) -> None:
        self.ports = [door.getsockname()[1] for door in doors]
        self._called = called
        self._judge = judge(identity)

    def introduce(self, message: Message, source: Address) -> Answers:
        """The script of the server."""
        if not isinstance(message, ConnectRequest):
            return None
        host, port = self._called.address
        doors = tuple(Candidate("srflx", "tcp", host, number) for number in self.ports)
        answer = ConnectAnswer(mid=message.mid, code=200, em="", extra=ConnectAnswerExtra(token=TOKEN))
        asked, hints = message.extra, NatHints(low=True)
        call = self._judge.judge(asked.intent, asked.cands, source[0], 0.0, hints=asked.nat)
        assert isinstance(call, SignedCall)
        answered = self._judge.answer(call, doors, hints)
        assert answered is not None
        intent, keys = answered
        self._called.voice = KeyedSender(keys.callee_mac)
        extra = PunchResultExtra(host=host, port=port, v=1, intent=intent, cands=doors, nat=hints)
        return (answer, PunchResult(mid=1, token=TOKEN, code=200, em="", extra=extra))


def callee_script(message: Message, source: Address) -> Answers:
    """What the callee itself answers."""
    match message:
        case HoleProbe():
            return HoleAnswer(mid=message.mid, token=TOKEN)
        case OpenTcp():
            return OpenTcpAnswer(mid=message.mid, token=TOKEN, code=200, em="", extra=ConkeyExtra(conkey=CONKEY))
        case _:
            return None


@contextlib.asynccontextmanager
async def there(doors: int = 1, *, callee: Script = callee_script) -> AsyncGenerator[tuple[Address, Callee]]:
    """A callee and its server; yields the server's address and the callee."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(doors)]
        async with scripted_server(callee) as called:
            known = Callee(called, listeners)
            async with scripted_server(known.introduce) as server:
                yield server.address, known


async def reach(server: Address, establish: Establish = at_once, *, raw: bool = False, tracer: Tracer | None = None) -> Channel:
    port = await PunchPort.open(server, OpenerTtl(), tracer=tracer)
    return await Call(port, "laptop", TAG, establish, signer=None if raw else signer(), tracer=tracer).run()


async def undo(channel: Channel) -> None:
    channel.abort("done with it")


# --- it works ---------------------------------------------------------------------------------------------------------


def test_a_call_ends_with_what_was_established_and_one_open_socket() -> None:
    async def main() -> None:
        async with there(2) as (server, callee):
            before, opened = descriptors(), asyncio.Event()

            async def once_open(pipe: Pipe, conkey: str, key: PublicKey | None) -> Channel:
                await opened.wait()
                return await at_once(pipe, conkey, key)

            tracer = Tracer(lambda event: opened.set() if event.name == "HoleOpened" else None)
            channel = await reach(server, once_open, tracer=tracer)
            path = channel.pipe.path
            assert path.remote in [("127.0.0.1", port) for port in callee.ports]
            assert (path.kind, path.transport, path.why) == ("lan", "tcp", "our SYN reached it")
            assert path.rtt is not None
            assert descriptors() == before + 1
            channel.abort("")
            assert descriptors() == before

    run(main())


def test_cancelling_leaves_nothing() -> None:
    async def main() -> None:
        async with there(2) as (server, _):
            turns = await cancel_at_each_turn(lambda: reach(server), undo)
            assert turns > 10

    run(main())


def test_cancelled_while_it_establishes_it_waits_for_the_end_of_that() -> None:
    async def main() -> None:
        began, ended = asyncio.Event(), asyncio.Event()

        async def slowly(pipe: Pipe, conkey: str, key: PublicKey | None) -> Channel:
            began.set()
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                ended.set()
            raise AssertionError("unreachable")

        async with there() as (server, _):
            before = descriptors()
            calling = asyncio.create_task(reach(server, slowly))
            await began.wait()
            calling.cancel()
            await asyncio.gather(calling, return_exceptions=True)
            assert calling.cancelled()
            assert ended.is_set()
            await settle(before)

    run(main())


def test_what_comes_up_in_the_turn_of_the_cancellation_is_aborted() -> None:
    async def main() -> None:
        made: list[Channel] = []

        async def and_cancel(pipe: Pipe, conkey: str, key: PublicKey | None) -> Channel:
            made.append(Channel(pipe))
            asyncio.get_running_loop().call_soon(calling.cancel)
            return made[0]

        async with there() as (server, _):
            calling = asyncio.create_task(reach(server, and_cancel))
            await asyncio.gather(calling, return_exceptions=True)
            assert calling.cancelled()
            assert made[0].aborted == "cancelled"

    run(main())


# --- the server says no -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        (404, PeerOfflineError, "no peer is registered as 'home-nas'"),
        (429, RateLimitedError, "127.0.0.1:{port} refused: too many requests (429)"),
        (403, PeerRefusedError, "home-nas does not know this machine's key"),
        (413, RendezvousError, "127.0.0.1:{port} refused: a\\x0ab (413)"),
    ],
)
def test_a_refusal_of_the_server_is_typed(code: int, kind: type[P2PTunnelError], text: str) -> None:
    def refuse(message: Message, source: Address) -> Answers:
        extra = ConnectAnswerExtra(retry_after=7)
        return (
            ConnectAnswer(mid=message.mid, code=code, em="a\nb", extra=extra) if isinstance(message, ConnectRequest) else None
        )

    async def main() -> None:
        async with scripted_server(refuse) as server:
            with pytest.raises(kind) as caught:
                await reach(server.address, never)
            assert type(caught.value) is kind
            assert str(caught.value) == text.format(port=server.address[1])
            if isinstance(caught.value, RateLimitedError):
                assert caught.value.hint == "Try again in 7 s."

    run(main())


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        (403, PeerRefusedError, "home-nas does not know this machine's key"),
        (404, PeerOfflineError, "no peer is registered as 'home-nas'"),
        (408, NoPathError, "no path to home-nas: 1 tried (why not)"),
        (429, RendezvousError, "127.0.0.1:{port} refused: why not (429)"),
    ],
)
def test_a_refusal_of_the_callee_is_typed(code: int, kind: type[P2PTunnelError], text: str) -> None:
    def refuse(message: Message, source: Address) -> Answers:
        if not isinstance(message, ConnectRequest):
            return None
        answer = ConnectAnswer(mid=message.mid, code=200, em="", extra=ConnectAnswerExtra(token=TOKEN))
        return (answer, PunchResult(mid=1, token=TOKEN, code=code, em="why not"))

    async def main() -> None:
        async with scripted_server(refuse) as server:
            with pytest.raises(kind) as caught:
                await reach(server.address, never)
            assert str(caught.value) == text.format(port=server.address[1])
            if code == 403:  # a raw call has no key that could be unknown
                with pytest.raises(AuthenticationError) as raw:
                    await reach(server.address, never, raw=True)
                assert str(raw.value) == "authentication failed: home-nas lets in nobody without a key"

    run(main())


# --- no connection ----------------------------------------------------------------------------------------------------


def test_where_nothing_answers_each_target_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "PUNCH_TIMEOUT", 0.4)

    async def main() -> None:
        async with there(2) as (server, callee):
            with socket.socket() as closed:
                closed.bind(("127.0.0.1", 0))
                callee.ports = [closed.getsockname()[1]]
                with pytest.raises(NoPathError) as caught:
                    await reach(server, never)
            assert len(caught.value.attempts) >= 2  # one each phase
            assert all(line.startswith(f"127.0.0.1:{callee.ports[0]} SYN") for line in caught.value.attempts)

    run(main())


def test_connections_on_which_no_channel_comes_up_are_named_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "PUNCH_TIMEOUT", 0.4)

    async def in_vain(pipe: Pipe, conkey: str, key: PublicKey | None) -> Channel:
        raise ChannelLostError("the TLS handshake failed: wrong version number")

    async def main() -> None:
        async with there() as (server, callee):
            with pytest.raises(NoPathError) as caught:
                await reach(server, in_vain)
            line = (
                f"127.0.0.1:{callee.ports[0]} connected: the channel was lost: the TLS handshake failed: wrong version number"
            )
            assert line in caught.value.attempts

    run(main())


# --- the channel ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", [ChannelLostError("a reset"), ConnectionResetError("a reset"), KEY_CHANGED])
def test_where_one_connection_breaks_the_next_one_is_tried(broken: Exception) -> None:
    async def main() -> None:
        tried: list[Pipe] = []

        async def second_time_lucky(pipe: Pipe, conkey: str, key: PublicKey | None) -> Channel:
            tried.append(pipe)
            if len(tried) == 1:
                raise broken
            return Channel(pipe)

        async with there(2) as (server, _):
            channel = await reach(server, second_time_lucky)
            assert tried[0].path.remote != tried[1].path.remote
            assert channel.pipe is tried[1]
            channel.abort("")

    run(main())


@pytest.mark.parametrize("error", [PeerRefusedError(TAG), RemoteProtocolError("no ACCEPT of our version")])
def test_a_peer_that_says_no_is_not_asked_again(error: P2PTunnelError) -> None:
    async def main() -> None:
        tried: list[Pipe] = []

        async def refused(pipe: Pipe, conkey: str, key: PublicKey | None) -> Channel:
            tried.append(pipe)
            raise error

        async with there(2) as (server, _):
            with pytest.raises(type(error)) as caught:
                await reach(server, refused)
            assert caught.value is error
            assert len(tried) == 1

    run(main(), timeout=2)


def test_another_key_ends_the_call_when_the_right_one_has_not_come_up_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEY_CHANGED_PATIENCE", 0.1)

    async def impostor(pipe: Pipe, conkey: str, key: PublicKey | None) -> Channel:
        raise KEY_CHANGED

    async def main() -> None:
        async with there(2) as (server, _):
            began = asyncio.get_running_loop().time()
            with pytest.raises(PeerKeyChangedError):
                await reach(server, impostor)
            assert asyncio.get_running_loop().time() - began >= 0.1

    run(main(), timeout=2)


def test_a_bug_in_what_establishes_is_raised_where_the_call_is_awaited() -> None:
    async def buggy(pipe: Pipe, conkey: str, key: PublicKey | None) -> Channel:
        raise ZeroDivisionError

    async def main() -> None:
        async with there() as (server, _):
            before = descriptors()
            with pytest.raises(ZeroDivisionError):
                await reach(server, buggy)
            await settle(before)

    run(main(), timeout=2)


def test_a_channel_that_is_up_when_the_time_is_over_is_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent has failed by then: it must not be told that the channel is up."""
    monkeypatch.setattr(agents, "PUNCH_TIMEOUT", 0.05)

    async def main() -> None:
        made: list[Channel] = []

        async def just_too_late(pipe: Pipe, conkey: str, key: PublicKey | None) -> Channel:
            with contextlib.suppress(asyncio.CancelledError):  # as if it had come up in that turn
                await asyncio.Event().wait()
            made.append(Channel(pipe))
            return made[0]

        async with there() as (server, _):
            with pytest.raises(NoPathError):
                await reach(server, just_too_late)
            assert made[0].aborted == "too late"

    run(main())


# --- strangers --------------------------------------------------------------------------------------------------------


def test_a_connection_from_elsewhere_is_not_taken_for_the_callees() -> None:
    """It would be sent the conkey, and over a raw call everything."""

    async def main() -> None:
        events: asyncio.Queue[TraceEvent] = asyncio.Queue()
        port_known: asyncio.Future[Address] = asyncio.get_running_loop().create_future()

        def listen_for_the_caller(message: Message, source: Address) -> Answers:
            if not port_known.done():
                port_known.set_result(source)
            return None  # no conkey yet: the call goes on

        async with there(callee=listen_for_the_caller) as (server, _):
            calling = asyncio.create_task(reach(server, never, tracer=Tracer(events.put_nowait)))
            with socket.create_connection(await port_known, source_address=("127.0.0.2", 0)) as stranger:
                while (await events.get()).name != "stranger_cut_off":
                    pass
                stranger.settimeout(5)
                with contextlib.suppress(ConnectionResetError):
                    assert stranger.recv(1) == b""
            calling.cancel()
            await asyncio.gather(calling, return_exceptions=True)

    run(main())


def test_so_many_connections_wait_and_no_more() -> None:
    async def main() -> None:
        events: list[TraceEvent] = []
        port_known: asyncio.Future[Address] = asyncio.get_running_loop().create_future()

        def listen_for_the_caller(message: Message, source: Address) -> Answers:
            if not port_known.done():
                port_known.set_result(source)
            return None

        async with there(callee=listen_for_the_caller) as (server, _):
            calling = asyncio.create_task(reach(server, never_done, tracer=Tracer(events.append)))
            address = await port_known
            with contextlib.ExitStack() as stack:
                for _ in range(PENDING_CONNECTIONS + 2):
                    stack.enter_context(socket.create_connection(address))
                while not any(event.name == "stranger_cut_off" for event in events):
                    await asyncio.sleep(0)
            assert sum(event.name == "connection_up" for event in events) == PENDING_CONNECTIONS + 1  # that is tried
            calling.cancel()
            await asyncio.gather(calling, return_exceptions=True)

    run(main())


# --- a second round ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_other", [True, False])
def test_a_call_whose_port_is_lost_takes_another_one_and_leaves_nothing_of_it(has_other: bool) -> None:
    async def main() -> None:
        async with there() as (_, callee):

            def introduce_or_observe(message: Message, source: Address) -> Answers:
                return callee.introduce(message, source) or observing(message, source)

            async with scripted_server(introduce_or_observe) as server:
                before, events, opened = descriptors(), asyncio.Queue[str](), list[PunchPort]()

                async def another() -> PunchPort:
                    opened.append(await PunchPort.open(server.address, OpenerTtl()))
                    return opened[-1]

                tracer = Tracer(lambda event: events.put_nowait(event.name))
                port = await PunchPort.open(server.address, OpenerTtl())
                open_other = another if has_other else None
                call = Call(port, "laptop", TAG, never_done, signer=signer(), open_other=open_other, tracer=tracer)
                calling = asyncio.create_task(call.run())
                await until(events, "PunchStarted")
                call._on_burnt()
                await until(events, "second_round" if has_other else "TakePort")
                calling.cancel()
                await asyncio.gather(calling, return_exceptions=True)
                await settle(before)
                assert [other.udp.is_closed for other in opened] == [True] * has_other

    run(main())


async def until(events: asyncio.Queue[str], name: str) -> None:
    """Wait until an event has happened."""
    while await events.get() != name:
        pass
