"""How the tests of the server speak with it: a plain UDP socket, and a TCP connection of lines."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator
from typing import TypeVar

from p2ptunnel.defaults import COOKIELESS_PAD_BYTES
from p2ptunnel.identity.keys import Identity
from p2ptunnel.identity.registration import KeyCredentials
from p2ptunnel.types import Address
from p2ptunnel.wire.messages import Message, Register, RegisterAnswer, decode, encode, encode_padded

__all__ = ["Line", "Udp", "line", "register", "udp"]

M = TypeVar("M", bound=Message)


class Udp:
    """A UDP socket that talks to the server."""

    def __init__(self, sock: socket.socket, server: Address) -> None:
        self._sock = sock
        self._server = server
        self.address: Address = sock.getsockname()

    async def send(self, data: bytes | Message) -> None:
        await asyncio.get_running_loop().sock_sendto(
            self._sock, data if isinstance(data, bytes) else encode(data), self._server
        )

    async def receive_bytes(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self._sock, 2048)

    async def receive(self, kind: type[M]) -> M:
        message = decode(await self.receive_bytes())
        assert isinstance(message, kind), message
        return message

    def is_silent(self) -> bool:
        """Whether nothing waits to be received."""
        with contextlib.suppress(BlockingIOError):
            self._sock.recv(2048)
            return False
        return True


@contextlib.asynccontextmanager
async def udp(server: Address) -> AsyncGenerator[Udp]:
    is_ipv6 = ":" in server[0]
    with socket.socket(socket.AF_INET6 if is_ipv6 else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.bind(("::1" if is_ipv6 else "127.0.0.1", 0))
        yield Udp(sock, server)


class Line:
    """A TCP connection to the server: one message a line."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.address: Address = writer.get_extra_info("sockname")
        assert isinstance(writer.transport, asyncio.Transport)
        self.transport = writer.transport

    async def send(self, data: bytes | Message) -> None:
        self.writer.write((data if isinstance(data, bytes) else encode(data)) + b"\n")
        await self.writer.drain()

    async def receive(self, kind: type[M]) -> M:
        message = decode((await self.reader.readline()).rstrip(b"\n"))
        assert isinstance(message, kind), message
        return message

    async def ended(self) -> None:
        """Wait for the server to end the connection."""
        with contextlib.suppress(ConnectionError):
            assert await self.reader.read() == b""


@contextlib.asynccontextmanager
async def line(server: Address) -> AsyncGenerator[Line]:
    reader, writer = await asyncio.open_connection(*server)
    try:
        yield Line(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def register(wire: Line | Udp, tag: str, identity: Identity) -> RegisterAnswer:
    """Register, with the 401 first where there is one; return the last answer."""
    credentials = KeyCredentials(identity, tag)
    answer = await _register(wire, tag, credentials, cookie="", server_key="")
    if answer.code == 401 and answer.extra is not None:
        answer = await _register(wire, tag, credentials, cookie=answer.extra.cookie, server_key=answer.extra.key)
    return answer


async def _register(wire: Line | Udp, tag: str, credentials: KeyCredentials, *, cookie: str, server_key: str) -> RegisterAnswer:
    extra = credentials.register_extra(cookie=cookie, server_key=server_key, at_least_ts=0)
    await wire.send(encode_padded(Register(mid=1, ltag=tag, extra=extra), COOKIELESS_PAD_BYTES))
    return await wire.receive(RegisterAnswer)
