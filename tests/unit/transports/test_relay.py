"""Joining the relay of a server that the test plays: what each answer means, and that not one byte too many is read."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable

import pytest

from p2ptunnel.defaults import DATAGRAM_MAX_BYTES
from p2ptunnel.errors import (
    ChannelLostError,
    LocalProtocolError,
    P2PTunnelError,
    RateLimitedError,
    RemoteProtocolError,
    RendezvousError,
    RendezvousTimeoutError,
)
from p2ptunnel.identity.judge import Judge
from p2ptunnel.identity.keys import Identity
from p2ptunnel.transports.relay import RelayPipe, ask_relay, join_relay
from p2ptunnel.types import Address
from p2ptunnel.wire.messages import Observed, RelayJoin, RelayJoinAnswer, decode, encode
from tests.helpers import run
from tests.helpers.peers import CALLEE, CALLER
from tests.helpers.turns import cancel_at_each_turn, descriptors

TOKEN = "0123456789abcdef" * 2
PEER = b"\x16\x03\x01 what\nthe peer says"
SERVER_KEY = str(Identity.from_seed(b"server".ljust(32)).public)
Answering = Callable[[RelayJoin, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def relaying(answering: Answering) -> AsyncGenerator[Address]:
    """A server that reads one line of each connection and then does what `answering` says."""
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            message = decode((await reader.readuntil(b"\n"))[:-1])
            assert isinstance(message, RelayJoin)
            await answering(message, reader, writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0.01)


def answer(message: RelayJoin, code: int = 200, *, em: str = "", retry_after: float = 0) -> bytes:
    return encode(RelayJoinAnswer(mid=message.mid, code=code, em=em, extra=Observed(retry_after=retry_after))) + b"\n"


def saying(make: Callable[[RelayJoin], bytes]) -> Answering:
    async def say(message: RelayJoin, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(make(message))

    return say


async def join(server: Address, timeout: float = 5.0) -> RelayPipe:
    return await join_relay(server, TOKEN, "caller", CALLER, server_key=SERVER_KEY, timeout=timeout)


# --- it works -----------------------------------------------------------------------------------------------------------


def test_who_joins_has_signed_for_this_server_this_call_and_this_end_of_it() -> None:
    async def main() -> None:
        asked: list[RelayJoin] = []

        async def note(message: RelayJoin, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.append(message)
            writer.write(answer(message))

        async with relaying(note) as server:
            (await join(server)).abort()
            (await join_relay(server, TOKEN, "callee", CALLEE)).abort()
        caller, callee = (message.extra for message in asked)
        assert (caller.token, caller.role, caller.key) == (TOKEN, "caller", str(CALLER.public))
        assert (callee.role, callee.key) == ("callee", str(CALLEE.public))
        assert Judge(Identity.from_seed(b"server".ljust(32))).is_end(caller)
        assert not Judge(None).is_end(caller)
        assert Judge(None).is_end(callee)

    run(main())


@pytest.mark.parametrize("cut", [1, 10, 10_000])
def test_what_stands_behind_the_answer_is_the_peers_and_is_not_read(cut: int) -> None:
    async def main() -> None:
        async def say(message: RelayJoin, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            line = answer(message) + PEER
            for start in range(0, len(line), cut):
                writer.write(line[start : start + cut])
                await asyncio.sleep(0)

        async with relaying(say) as server:
            pipe = await join(server)
            await pipe.wait_heard()
            came: asyncio.Queue[bytes] = asyncio.Queue()
            transport = await pipe.attach(lambda: Reader(came))
            said = b""
            while len(said) < len(PEER):
                said += await came.get()
            assert said == PEER
            transport.abort()

    run(main())


class Behind(asyncio.BufferedProtocol):
    """What is attached: says hello at once, and keeps what comes."""

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(16))
        self.said = b""
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"hello")

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.buffer if sizehint < 0 else memoryview(bytearray(sizehint)) if sizehint > 16 else self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.said += self.buffer[:nbytes]

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


@pytest.mark.parametrize("cut", [1, 10, 10_000])
def test_who_does_not_wait_speaks_first_and_gets_what_stands_behind_the_answer(cut: int) -> None:
    async def main() -> None:
        heard: list[bytes] = []

        async def say(message: RelayJoin, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heard.append(await reader.readexactly(5))
            line = answer(message) + b"peer" * 3
            for start in range(0, len(line), cut):
                writer.write(line[start : start + cut])
                await asyncio.sleep(0)
            await reader.read()

        async with relaying(say) as server:
            pipe = await ask_relay(server, TOKEN, "caller", CALLER, server_key=SERVER_KEY)
            behind = Behind()
            transport = await pipe.attach(lambda: behind)
            while len(behind.said) < 12:
                await asyncio.sleep(0)
            assert (heard, behind.said) == ([b"hello"], b"peer" * 3)
            transport.abort()
            assert await behind.lost is None

    run(main())


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (lambda message: answer(message, 503, em="no relay here"), RendezvousError),
        (lambda message: answer(message, 429, retry_after=9), RateLimitedError),
        (lambda _: b"HTTP/1.1 400 Bad Request\r\n", RemoteProtocolError),
        (lambda _: b"x" * (DATAGRAM_MAX_BYTES + 1), RemoteProtocolError),
    ],
)
def test_who_does_not_wait_is_told_why_it_is_not_let_in(line: Callable[[RelayJoin], bytes], kind: type[P2PTunnelError]) -> None:
    async def main() -> None:
        async with relaying(saying(line)) as server:
            pipe = await ask_relay(server, TOKEN, "caller", CALLER, server_key=SERVER_KEY)
            behind = Behind()
            await pipe.attach(lambda: behind)
            assert type(await behind.lost) is kind
            assert behind.said == b""

    run(main())


class Reader(asyncio.Protocol):
    def __init__(self, came: asyncio.Queue[bytes]) -> None:
        self.data_received = came.put_nowait  # type: ignore[method-assign]


def test_its_path_says_what_it_is() -> None:
    async def main() -> None:
        async with relaying(saying(answer)) as server:
            pipe = await join(server)
            assert (pipe.path.kind, pipe.path.transport, pipe.path.remote) == ("relay", "tcp", server)
            assert pipe.path.why == "the server relays it"
            pipe.abort()
            with pytest.raises(LocalProtocolError):
                await pipe.wait_heard()

    run(main())


def test_who_waits_for_the_other_end_learns_that_it_does_not_come() -> None:
    async def main() -> None:
        async def part(message: RelayJoin, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(answer(message))
            writer.close()

        async with relaying(part) as server:
            pipe = await join(server)
            with pytest.raises(ChannelLostError, match="nobody came to the relay"):
                await pipe.wait_heard()
            pipe.abort()

    run(main())


# --- the server says no -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (403, "{server} refused: not yours (403)"),
        (404, "{server} refused: not yours (404)"),
        (409, "{server} refused: not yours (409)"),
        (503, "{server} refused: not yours (503)"),
        (201, "{server} refused: not yours (201)"),
    ],
)
def test_a_refusal_is_typed(code: int, text: str) -> None:
    async def main() -> None:
        async with relaying(saying(lambda message: answer(message, code, em="not yours"))) as server:
            before = descriptors()
            with pytest.raises(RendezvousError) as caught:
                await join(server)
            assert type(caught.value) is RendezvousError
            assert str(caught.value) == text.format(server=f"{server[0]}:{server[1]}")
            assert caught.value.answer_code == code
            assert descriptors() <= before + 1  # the server's own end

    run(main())


def test_a_quota_tells_when_to_come_again() -> None:
    async def main() -> None:
        async with relaying(saying(lambda message: answer(message, 429, retry_after=90))) as server:
            with pytest.raises(RateLimitedError) as caught:
                await join(server)
            assert caught.value.retry_after == 90

    run(main())


def other(message: RelayJoin) -> bytes:
    return encode(RelayJoinAnswer(mid=message.mid + 1, code=200, em="")) + b"\n"


@pytest.mark.parametrize(
    "make",
    [
        other,
        lambda message: encode(message) + b"\n",
        lambda _: b"HTTP/1.1 400 Bad Request\r\n",
        lambda _: b"x" * (DATAGRAM_MAX_BYTES + 1),
        lambda _: b"\n",
    ],
)
def test_what_is_no_answer_is_a_breach(make: Callable[[RelayJoin], bytes]) -> None:
    async def main() -> None:
        async with relaying(saying(make)) as server:
            with pytest.raises(RemoteProtocolError):
                await join(server)

    run(main())


def test_a_server_that_hangs_up_has_not_answered() -> None:
    async def main() -> None:
        async def hang_up(_: RelayJoin, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        async with relaying(hang_up) as server:
            with pytest.raises(RemoteProtocolError, match="no answer in one line"):
                await join(server)

    run(main())


def test_a_server_that_knows_no_relay_and_says_nothing_is_not_waited_for_for_ever() -> None:
    async def main() -> None:
        async with relaying(saying(lambda _: b"")) as server:
            with pytest.raises(RendezvousTimeoutError) as caught:
                await join(server, timeout=0.05)
            assert str(caught.value) == f"{server[0]}:{server[1]} did not answer over TCP in 0.05 s"

    run(main())


def test_where_nobody_listens_it_is_refused() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            server = listener.getsockname()
        with pytest.raises(RendezvousError) as caught:
            await join(server)
        assert caught.value.answer_code == 503

    run(main())


@pytest.mark.parametrize(("token", "key"), [("t" * 65, ""), ("é", ""), (TOKEN, "p2p:none")])
def test_what_a_server_says_that_cannot_be_signed_is_its_breach(token: str, key: str) -> None:
    async def main() -> None:
        with pytest.raises(P2PTunnelError) as caught:
            await join_relay(("127.0.0.1", 1), token, "caller", CALLER, server_key=key)
        assert isinstance(caught.value, RemoteProtocolError)

    run(main())


# --- cancelling ---------------------------------------------------------------------------------------------------------


def test_joining_can_be_cancelled_at_any_turn_and_leaves_nothing() -> None:
    async def main() -> int:
        async def say(message: RelayJoin, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(answer(message))
            await reader.read()
            writer.transport.abort()

        async def undo(pipe: RelayPipe) -> None:
            pipe.abort()

        async with relaying(say) as server:
            return await cancel_at_each_turn(lambda: join(server), undo)

    assert run(main()) > 3
