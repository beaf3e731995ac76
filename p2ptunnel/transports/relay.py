"""The way to a peer over the rendezvous server's relay: a connection of its own, t=6 and -6, and then the peer's bytes.

Rule: behind -6 not one byte is read here, for it is the peer's; and none of ours leaves in the clear but the one line of t=6.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from typing import Final

from p2ptunnel.defaults import DATAGRAM_MAX_BYTES, RELAY_JOIN_TIMEOUT
from p2ptunnel.errors import (
    ChannelLostError,
    DialError,
    RateLimitedError,
    RemoteProtocolError,
    RendezvousError,
    RendezvousTimeoutError,
)
from p2ptunnel.identity.keys import Identity
from p2ptunnel.identity.relay import relay_extra
from p2ptunnel.net.dial import dial
from p2ptunnel.net.sockets import ANY_IPV4, reset_close
from p2ptunnel.net.watch import Watch
from p2ptunnel.protocol.machine import new_mid
from p2ptunnel.transports.tcp import TcpPipe
from p2ptunnel.types import Address, Path, Role, clean, format_address
from p2ptunnel.wire.messages import MalformedMessageError, RelayJoin, RelayJoinAnswer, decode, encode

__all__ = ["RelayPipe", "join_relay"]

_dice: Final = random.SystemRandom()


class RelayPipe(TcpPipe):
    """A connection to the relay on which the server has answered that we are in."""

    def __init__(self, sock: socket.socket, server: Address) -> None:
        local: Address = sock.getsockname()[:2]
        super().__init__(sock, Path(kind="relay", transport="tcp", local=local, remote=server, why="the server relays it"))

    async def wait_heard(self) -> None:
        """Wait until the other end has sent something; not one byte of it is read.

        Raises:
            ChannelLostError: The circuit ended before.
            OSError: It broke.
            LocalProtocolError: The pipe was attached or aborted already.
        """
        if not await _peeked(self._held, 1):
            raise ChannelLostError("nobody came to the relay")


async def join_relay(
    server: Address,
    token: str,
    role: Role,
    identity: Identity,
    *,
    server_key: str = "",
    timeout: float | None = None,
) -> RelayPipe:
    """Join the relay for a token that the server has given; cancelling it leaves no connection.

    The other end may come later, or never; the server holds 16 KiB for it until then.

    Args:
        server: Numeric.
        token: Of the attempt.
        role: What we are in it.
        identity: That of t=4, or of the registration: the server knows the two ends by their keys.
        server_key: The server's key as text, empty if it has none.
        timeout: Seconds for all of it; None: `RELAY_JOIN_TIMEOUT`.

    Raises:
        RateLimitedError: We have too many circuits, or have had too many bytes.
        RendezvousTimeoutError: No answer, perhaps from a server that knows no relay.
        RendezvousError: It was refused; `answer_code` 503 where there is no relay.
        RemoteProtocolError: Something else was answered; or what the server has told us cannot be signed.
        OSError: The connection broke.
    """
    request = _signed(identity, token, role, server_key)
    timeout = RELAY_JOIN_TIMEOUT if timeout is None else timeout
    limit = asyncio.timeout(timeout)
    try:
        async with limit:
            sock = await _connected(server, timeout)
            with contextlib.ExitStack() as undo:
                undo.callback(reset_close, sock)
                await asyncio.get_running_loop().sock_sendall(sock, encode(request) + b"\n")
                _check(_understood(await _line(sock), request.mid), format_address(server))
                undo.pop_all()
            return RelayPipe(sock, server)
    except TimeoutError as error:
        if limit.expired():
            raise RendezvousTimeoutError(format_address(server), timeout, "TCP") from error
        raise


def _signed(identity: Identity, token: str, role: Role, server_key: str) -> RelayJoin:
    try:
        return RelayJoin(mid=new_mid(_dice), extra=relay_extra(identity, token, role, server_key=server_key))
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


async def _line(sock: socket.socket) -> bytes:
    """Read up to the first newline, and nothing behind it."""
    line = b""
    while not line.endswith(b"\n"):
        seen = await _peeked(sock, DATAGRAM_MAX_BYTES)
        line += sock.recv(seen.find(b"\n") + 1 or len(seen))
        if not seen or len(line) > DATAGRAM_MAX_BYTES:
            raise RemoteProtocolError("no answer to t=6 in one line", "the server")
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
