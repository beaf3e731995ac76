"""How the tests of the relay get there: a call that a server has introduced, and its ends at the relay over plain sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Final

from p2ptunnel.identity.keys import Identity
from p2ptunnel.identity.relay import relay_extra
from p2ptunnel.server import Rendezvous
from p2ptunnel.types import Address, Role
from p2ptunnel.wire.messages import (
    ConnectAnswer,
    ConnectRequest,
    ConnectRequestExtra,
    RelayJoin,
    RelayJoinAnswer,
    decode,
    encode,
)
from tests.unit.protocol.actors import signer
from tests.unit.server.wires import line, register

__all__ = ["ALICE", "BOB", "ENDS", "LOOPBACK", "End", "circuit", "introduced", "join", "join_line", "pair", "until"]

LOOPBACK: Final[Address] = ("127.0.0.1", 0)
ALICE, BOB = (Identity.from_seed(bytes([number]) * 32) for number in (1, 2))
ENDS: Final[tuple[tuple[Identity, Role], ...]] = ((ALICE, "caller"), (BOB, "callee"))


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until the condition holds; `run` limits how long."""
    while not condition():
        await asyncio.sleep(0)


async def introduced(server: Address, caller: Identity = ALICE, callee: Identity = BOB) -> str:
    """Register `callee` with a server, call it, and return the token of the call."""
    async with line(server) as there, line(server) as here:
        await register(there, "nas", callee)
        extra = ConnectRequestExtra(rtag="nas", v=1, intent=signer(caller, callee).sign(()))
        await here.send(ConnectRequest(mid=4, ltag="laptop", extra=extra))
        answer = await here.receive(ConnectAnswer)
        assert answer.extra is not None
        return answer.extra.token


@contextlib.contextmanager
def pair(*, receive_bytes: int | None = None) -> Generator[tuple[socket.socket, socket.socket]]:
    """Two ends of one TCP connection, non-blocking; `receive_bytes`: what the kernel of the first takes unread."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as near:
        if receive_bytes is not None:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        near.connect(listener.getsockname())
        with listener.accept()[0] as far:
            near.setblocking(False)
            far.setblocking(False)
            yield near, far


class End:
    """One end of a call at the relay: a plain socket, and the answer to its t=6."""

    def __init__(self, sock: socket.socket, answer: RelayJoinAnswer) -> None:
        self.sock = sock
        self.answer = answer

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def read(self, count: int) -> bytes:
        """Return so many bytes, or those that there are up to the end."""
        data = bytearray()
        while len(data) < count and (more := await self.read_some(count - len(data))):
            data += more
        return bytes(data)

    async def read_some(self, count: int = 2**16) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.sock, count)

    def finish(self) -> None:
        """Send no more."""
        self.sock.shutdown(socket.SHUT_WR)


def join_line(who: Identity, token: str, role: Role, *, server_key: str = "") -> bytes:
    """Return a t=6 as it is sent."""
    return encode(RelayJoin(mid=6, extra=relay_extra(who, token, role, server_key=server_key))) + b"\n"


@contextlib.asynccontextmanager
async def join(
    server: Rendezvous, data: bytes, *, receive_bytes: int | None = None, before: bytes = b""
) -> AsyncGenerator[End]:
    """Connect, send `data`, which begins with a t=6, and give the end with its answer.

    Args:
        server: Where.
        data: All that is sent at once.
        receive_bytes: How much our kernel takes before we read.
        before: A line that is sent first, and answered.
    """
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setblocking(False)
        if receive_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        await loop.sock_connect(sock, server.address)
        if before:
            await loop.sock_sendall(sock, before)
            await _line(sock)
        await loop.sock_sendall(sock, data)
        answer = decode(await _line(sock))
        assert isinstance(answer, RelayJoinAnswer)
        yield End(sock, answer)


async def _line(sock: socket.socket) -> bytes:
    """Receive one line and not a byte more."""
    data = b""
    while not data.endswith(b"\n"):
        data += await asyncio.get_running_loop().sock_recv(sock, 1)
    return data[:-1]


@contextlib.asynccontextmanager
async def circuit(
    server: Rendezvous, *, early: tuple[bytes, bytes] = (b"", b""), receive_bytes: int | None = None
) -> AsyncGenerator[tuple[End, End]]:
    """Give the two ends, caller and callee, of a circuit that is open; `early`: what each sends right behind its t=6."""
    token = await introduced(server.address)
    async with (
        join(server, join_line(ALICE, token, "caller") + early[0]) as caller,
        join(server, join_line(BOB, token, "callee") + early[1], receive_bytes=receive_bytes) as callee,
    ):
        assert (caller.answer.code, callee.answer.code) == (200, 200)
        yield caller, callee
