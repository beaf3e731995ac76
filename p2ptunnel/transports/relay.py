"""The way to a peer over a relay: a connection of its own, t=6 and -6, and then the peer's bytes.

Rule: what stands behind -6 is the peer's, and is handed on as it is; and none of ours leaves in the clear but the line of t=6.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import Callable
from typing import Final, cast

from p2ptunnel.defaults import DATAGRAM_MAX_BYTES, RELAY_JOIN_TIMEOUT, WEB_PORT
from p2ptunnel.errors import (
    ChannelLostError,
    DialError,
    P2PTunnelError,
    RateLimitedError,
    RemoteProtocolError,
    RendezvousError,
    RendezvousTimeoutError,
)
from p2ptunnel.identity.keys import Identity
from p2ptunnel.identity.relay import relay_extra
from p2ptunnel.net.dial import dial
from p2ptunnel.net.sockets import ANY_IPV4, is_tcp, local_address, reset_close
from p2ptunnel.net.watch import Watch
from p2ptunnel.protocol.machine import new_mid
from p2ptunnel.transports.tcp import TcpPipe
from p2ptunnel.types import Address, Path, Role, clean, format_address
from p2ptunnel.wire.messages import MalformedMessageError, RelayJoin, RelayJoinAnswer, decode, encode

__all__ = ["RelayPipe", "ask_relay", "join_relay", "read_line"]

_dice: Final = random.SystemRandom()


class RelayPipe(TcpPipe):
    """A connection to the relay on which t=6 has been sent; what is attached may speak before that is answered.

    Args:
        sock: Non-blocking; the pipe owns it from now on.
        server: The relay.
        mid: Of the t=6.
    """

    def __init__(self, sock: socket.socket, server: Address, mid: int) -> None:
        local = local_address(sock)
        why = "the server relays it" if is_tcp(sock) else f"the server relays it, through TLS on port {WEB_PORT}"
        super().__init__(sock, Path(kind="relay", transport="tcp", local=local, remote=server, why=why))
        self._mid: int | None = mid  # until it is answered

    async def attach(self, factory: Callable[[], asyncio.BaseProtocol]) -> asyncio.Transport:
        """Hand the socket to a protocol, as `TcpPipe.attach`; that we are not let in is an error for its `connection_lost`."""
        mid, server = self._mid, format_address(self.path.remote)
        if mid is None:
            return await super().attach(factory)
        return await super().attach(lambda: _Answer(factory(), lambda line: _check(_understood(line, mid), server)))

    async def wait_joined(self) -> None:
        """Wait for the answer, unless it has come; not one byte behind it is read.

        Raises:
            P2PTunnelError: As `join_relay`.
            OSError: The connection broke.
        """
        if self._mid is not None:
            _check(_understood(await read_line(self._held), self._mid), format_address(self.path.remote))
            self._mid = None

    async def wait_heard(self) -> None:
        """Wait until the other end has sent something; not one byte of it is read.

        Raises:
            ChannelLostError: The circuit ended before.
            OSError: It broke.
            LocalProtocolError: The pipe was attached or aborted already.
        """
        if not await _peeked(self._held, 1):
            raise ChannelLostError("nobody came to the relay")


class _Answer(asyncio.BufferedProtocol):
    """Reads the answer to t=6 ahead of another protocol, which writes already and gets all that follows."""

    def __init__(self, behind: asyncio.BaseProtocol, check: Callable[[bytes], None]) -> None:
        self._behind: Final = cast("asyncio.BufferedProtocol", behind)
        self._check: Final = check
        self._buffer: Final = memoryview(bytearray(DATAGRAM_MAX_BYTES))
        self._filled = 0
        self._transport: asyncio.Transport | None = None
        self._refusal: Exception | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._behind.connection_made(transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        assert self._transport is not None
        self._filled += nbytes
        line, end, rest = bytes(self._buffer[: self._filled]).partition(b"\n")
        if not end and self._filled < len(self._buffer):
            return
        try:
            self._check(line)
        except P2PTunnelError as error:
            self._refusal = error
            self._transport.abort()
            return
        self._transport.set_protocol(self._behind)
        if rest:  # less than a handshake may be
            memoryview(self._behind.get_buffer(len(rest)))[: len(rest)] = rest
            self._behind.buffer_updated(len(rest))

    def eof_received(self) -> bool | None:
        return self._behind.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._behind.connection_lost(self._refusal or exc)

    def pause_writing(self) -> None:
        self._behind.pause_writing()

    def resume_writing(self) -> None:
        self._behind.resume_writing()


async def join_relay(
    server: Address,
    token: str,
    role: Role,
    identity: Identity,
    *,
    server_key: str = "",
    grant: str = "",
    timeout: float | None = None,
    spare: socket.socket | None = None,
) -> RelayPipe:
    """Join the relay for a token that the server has given; cancelling it leaves no connection.

    The other end may come later, or never; the relay holds 16 KiB for it until then.

    Args:
        server: The relay; numeric.
        token: Of the attempt.
        role: What we are in it.
        identity: That of t=4, or of the registration: the server knows the two ends by their keys.
        server_key: The relay's key as text, empty if it has none.
        grant: What the server has given us for it, where it is not the relay itself.
        timeout: Seconds for all of it; None: `RELAY_JOIN_TIMEOUT`.
        spare: A connection to the relay, which is spent; None makes one.

    Raises:
        RateLimitedError: We have too many circuits, or have had too many bytes.
        RendezvousTimeoutError: No answer, perhaps from a server that knows no relay.
        RendezvousError: It was refused; `answer_code` 503 where there is no relay.
        RemoteProtocolError: Something else was answered; or what the server has told us cannot be signed.
        OSError: The connection broke.
    """
    timeout = RELAY_JOIN_TIMEOUT if timeout is None else timeout
    limit = asyncio.timeout(timeout)
    try:
        async with limit:
            pipe = await ask_relay(
                server, token, role, identity, server_key=server_key, grant=grant, timeout=timeout, spare=spare
            )
            with contextlib.ExitStack() as undo:
                undo.callback(pipe.abort)
                await pipe.wait_joined()
                undo.pop_all()
            return pipe
    except TimeoutError as error:
        if limit.expired():
            raise RendezvousTimeoutError(format_address(server), timeout, "TCP") from error
        raise


async def ask_relay(
    server: Address,
    token: str,
    role: Role,
    identity: Identity,
    *,
    server_key: str = "",
    grant: str = "",
    timeout: float = RELAY_JOIN_TIMEOUT,
    spare: socket.socket | None = None,
) -> RelayPipe:
    """Send t=6 and wait for no answer: a handshake may follow it at once.

    Args and errors are those of `join_relay`; `timeout` is that of the connection.
    """
    with contextlib.ExitStack() as undo:
        if spare is not None:
            undo.callback(reset_close, spare)
        request = _signed(identity, token, role, server_key, grant)
        sock = await _connected(server, timeout) if spare is None else spare
        undo.callback(reset_close, sock)
        await asyncio.get_running_loop().sock_sendall(sock, encode(request) + b"\n")
        undo.pop_all()
    return RelayPipe(sock, server, request.mid)


def _signed(identity: Identity, token: str, role: Role, server_key: str, grant: str) -> RelayJoin:
    try:
        extra = relay_extra(identity, token, role, server_key=server_key, grant=grant)
        return RelayJoin(mid=new_mid(_dice), extra=extra)
    except ValueError as error:
        raise RemoteProtocolError("a key or a token that is none", "the server") from error


async def _connected(server: Address, timeout: float) -> socket.socket:
    local = ("::" if ":" in server[0] else ANY_IPV4, 0)
    try:
        return await dial(local, server, rng=_dice, patience=timeout, redials=0)
    except DialError as error:
        if error.outcome == "silent":
            raise RendezvousTimeoutError(format_address(server), timeout, "TCP") from error
        raise RendezvousError(format_address(server), error.reason, 503) from error


async def read_line(sock: socket.socket) -> bytes:
    """Read up to the first newline, and nothing behind it.

    Raises:
        RemoteProtocolError: The end, or more than a message.
        OSError: The connection broke.
    """
    line = b""
    while not line.endswith(b"\n"):
        seen = await _peeked(sock, DATAGRAM_MAX_BYTES)
        line += sock.recv(seen.find(b"\n") + 1 or len(seen))
        if not seen or len(line) > DATAGRAM_MAX_BYTES:
            raise RemoteProtocolError("no answer in one line", "the server")
    return line


async def _peeked(sock: socket.socket, most: int) -> bytes:
    """Wait for bytes, and return them unread; empty at the end."""
    while True:
        with contextlib.suppress(BlockingIOError):
            return sock.recv(most, socket.MSG_PEEK)
        ready = asyncio.Event()
        watch = Watch(sock, ready.set)
        try:
            await ready.wait()
        finally:
            watch.stop()


def _understood(line: bytes, mid: int) -> RelayJoinAnswer:
    with contextlib.suppress(MalformedMessageError):
        answer = decode(line)
        if isinstance(answer, RelayJoinAnswer) and answer.mid == mid:
            return answer
    raise RemoteProtocolError("something else than the answer to t=6", "the server")


def _check(answer: RelayJoinAnswer, server: str) -> None:
    """Raise what the server's answer stands for, unless we are in."""
    if answer.code == 429:
        raise RateLimitedError(server, answer.extra.retry_after if answer.extra else 0.0)
    if answer.code != 200:
        raise RendezvousError(server, clean(answer.em or "no relay"), answer.code)
