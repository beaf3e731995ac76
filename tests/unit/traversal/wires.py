"""Ends of the wire that the tests of traversal play themselves: a silent server, a scripted one, a caller step by step."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Literal, TypeVar

from p2ptunnel.identity.keys import Identity
from p2ptunnel.identity.registration import KeyCredentials
from p2ptunnel.protocol.intent import Answered, CallSigner, IntentJudge
from p2ptunnel.protocol.observer import Observer
from p2ptunnel.testing.simnet.peers import SimCounter
from p2ptunnel.trace import Tracer
from p2ptunnel.traversal.port import take_number
from p2ptunnel.types import Address, Candidate
from p2ptunnel.wire.frames import preamble
from p2ptunnel.wire.keyed import KeyedSender
from p2ptunnel.wire.messages import (
    ConnectAnswer,
    ConnectRequest,
    ConnectRequestExtra,
    HoleAnswer,
    HoleProbe,
    Message,
    OpenTcp,
    OpenTcpAnswer,
    OpenTcpExtra,
    PunchResult,
    PunchResultAck,
    decode,
    encode,
)

__all__ = [
    "CALLEE",
    "CALLER",
    "LOOPBACK",
    "Caller",
    "ScriptedServer",
    "credentials",
    "judge",
    "scripted_server",
    "signer",
    "silent_server",
]

LOOPBACK: Address = ("127.0.0.1", 0)
CALLER = Identity.from_seed(bytes([11]) * 32)
CALLEE = Identity.from_seed(bytes([22]) * 32)
counter = SimCounter()
Tcp = Literal["observes", "hangs up", "refuses", "is silent"]
Script = Callable[[Message, Address], Message | tuple[Message, ...] | None]
M = TypeVar("M", bound=Message)


def signer() -> CallSigner:
    """What signs a call of CALLER to CALLEE."""
    return CallSigner(CALLER, counter, random.SystemRandom(), callee=CALLEE.public)


def judge(identity: Identity = CALLEE) -> IntentJudge:
    """A judge that admits CALLER."""
    return IntentJudge(identity, random.SystemRandom(), is_admitted=CALLER.public.__eq__)


def credentials(tag: str = "home-nas", identity: Identity = CALLEE) -> KeyCredentials:
    return KeyCredentials(identity, tag)


@contextlib.contextmanager
def both_on_one_port() -> Generator[tuple[socket.socket, socket.socket]]:
    """A UDP socket and a listening TCP socket on one port of loopback, both non-blocking."""
    udp, tcp = take_number("127.0.0.1", Tracer())
    with tcp, contextlib.closing(udp):
        tcp.listen()
        yield udp.socket, tcp


@contextlib.contextmanager
def silent_server() -> Generator[Address]:
    """A server that takes everything and answers nothing, over UDP and TCP."""
    with both_on_one_port() as (udp, _):
        address: Address = udp.getsockname()
        yield address


class ScriptedServer:
    """A server that answers datagrams by a script; over TCP it observes, hangs up when it has, refuses, or is silent.

    With a `voice` it is a callee, who keys what it says.
    """

    def __init__(self, udp: socket.socket, script: Script) -> None:
        self.address: Address = udp.getsockname()
        self.voice: KeyedSender | None = None
        self._udp = udp
        self._script = script
        asyncio.get_running_loop().add_reader(udp, self._answer)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._udp)

    def _answer(self) -> None:
        data, source = self._udp.recvfrom(2048)
        answers = self._script(decode(data), source) or ()
        for answer in answers if isinstance(answers, tuple) else (answers,):
            body = encode(answer)
            self._udp.sendto(self.voice.seal(body) if self.voice else body, source)


@contextlib.asynccontextmanager
async def scripted_server(script: Script, *, tcp: Tcp = "refuses") -> AsyncGenerator[ScriptedServer]:
    with both_on_one_port() as (udp, listener):
        if tcp == "refuses":
            listener.close()
        async with contextlib.nullcontext() if tcp in {"refuses", "is silent"} else observing(listener, tcp):
            server = ScriptedServer(udp, script)
            try:
                yield server
            finally:
                server.close()


class _Observing(asyncio.Protocol):
    """A TCP connection on which t=5 is answered, once only if the server `hangs up`."""

    def __init__(self, transports: set[asyncio.BaseTransport], tcp: Tcp) -> None:
        self._transports = transports
        self._hangs_up = tcp == "hangs up"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._transports.add(transport)

    def data_received(self, data: bytes) -> None:
        _, answer = Observer().receive_line(data.rstrip(b"\n"), self._transport.get_extra_info("peername"))
        assert answer is not None
        self._transport.write(answer + b"\n")
        if self._hangs_up:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transports.discard(self._transport)


@contextlib.asynccontextmanager
async def observing(listener: socket.socket, tcp: Tcp) -> AsyncGenerator[None]:
    transports: set[asyncio.BaseTransport] = set()
    server = await asyncio.get_running_loop().create_server(lambda: _Observing(transports, tcp), sock=listener)
    try:
        yield
    finally:
        server.close()
        for transport in transports:
            transport.close()
        await server.wait_closed()


class Caller:
    """A caller that does one step at a time, so that a test can do the next one wrong."""

    def __init__(self, server: Address, *, v: int = 1, host: str = "127.0.0.1") -> None:
        self.conkey = ""
        self.callee: Address = ("", 0)
        self._server = server
        self._v = v
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind((host, 0))
        self._mid = 0
        self._voice: KeyedSender | None = None

    async def __aenter__(self) -> Caller:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._socket.close()

    async def ask(self, tag: str) -> PunchResult:
        """Steps t=4 to t=11: return what the server says of the callee."""
        cookie, signs = "", signer()
        cands = (Candidate("srflx", "udp", *self._socket.getsockname()),) if self._v else ()
        while True:
            intent = signs.sign(cands) if self._v else ""
            extra = ConnectRequestExtra(rtag=tag, v=self._v, cookie=cookie, intent=intent, cands=cands, pad=" " * 200)
            answer = await self._request(
                ConnectRequest(mid=self._next(), ltag="caller", extra=extra), self._server, ConnectAnswer
            )
            assert answer.extra is not None
            if answer.code != 401:
                break
            cookie = answer.extra.cookie
        assert answer.code == 200
        result = await self._receive(PunchResult)
        await self._send(PunchResultAck(mid=result.mid, token=result.token), self._server)
        if result.extra is not None:
            self.callee = (result.extra.host, result.extra.port)
            answered = signs.judge(result.extra.intent, result.extra.cands, result.extra.nat)
            self._voice = KeyedSender(answered.keys.caller_mac) if isinstance(answered, Answered) else None
        return result

    async def call(self, tag: str) -> Caller:
        """All steps up to the conkey."""
        result = await self.ask(tag)
        assert result.code == 200, result
        await self._request(HoleProbe(mid=self._next(), token=result.token), self.callee, HoleAnswer)
        open_tcp = OpenTcp(mid=self._next(), token=result.token, extra=OpenTcpExtra(op=1))
        answer = await self._request(open_tcp, self.callee, OpenTcpAnswer)
        assert answer.extra is not None
        self.conkey = answer.extra.conkey
        return self

    async def connect(self, *, host: str = "127.0.0.1") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A TCP connection to the callee's port."""
        return await asyncio.open_connection(*self.callee, local_addr=(host, 0))

    @property
    def preamble(self) -> bytes:
        return preamble(bytes.fromhex(self.conkey))

    def _next(self) -> int:
        self._mid += 1
        return self._mid

    async def _request(self, message: Message, to: Address, kind: type[M]) -> M:
        await self._send(message, to)
        return await self._receive(kind)

    async def _send(self, message: Message, to: Address) -> None:
        body = encode(message)
        if self._voice is not None and to == self.callee:
            body = self._voice.seal(body)
        await asyncio.get_running_loop().sock_sendto(self._socket, body, to)

    async def _receive(self, kind: type[M]) -> M:
        while True:
            message = decode(await asyncio.get_running_loop().sock_recv(self._socket, 2048))
            if isinstance(message, kind):
                return message
