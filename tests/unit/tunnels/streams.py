"""A connector whose streams are TCP connections to this very process: everything real but the peer."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, TypeVar

from p2ptunnel.abc import Stream, StreamStats
from p2ptunnel.errors import StreamResetError
from p2ptunnel.net.sockets import reset_close
from p2ptunnel.types import Address, Path

__all__ = ["Loopback", "SocketStream", "connected_pair"]

P = TypeVar("P", bound=asyncio.Protocol)


def connected_pair() -> tuple[socket.socket, socket.socket]:
    """Return two ends of one TCP connection, where a reset is a reset; both non-blocking."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    near.setblocking(False)
    far.setblocking(False)
    return near, far


class SocketStream(Stream):
    """A stream over a socket."""

    def __init__(self, sock: socket.socket, tag: str = "nas", service: str = "web") -> None:
        self.sock = sock
        self.tag = tag
        self.service = service
        self.aborted: str | None = None

    @property
    def path(self) -> Path:
        return Path(kind="lan", transport="tcp", local=("127.0.0.1", 1), remote=("127.0.0.1", 2))

    @property
    def stats(self) -> StreamStats:
        return StreamStats(0, 0, 0)

    async def read(self, n: int = 65536) -> bytes:
        try:
            return await asyncio.get_running_loop().sock_recv(self.sock, n)
        except OSError as error:
            raise StreamResetError(str(error)) from error

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        try:
            await asyncio.get_running_loop().sock_sendall(self.sock, data)
        except OSError as error:
            raise StreamResetError(str(error)) from error

    async def delivered(self) -> None:
        pass

    async def write_eof(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    async def close(self) -> None:
        self.sock.close()

    def abort(self, reason: str = "cancelled") -> None:
        self.aborted = reason
        reset_close(self.sock)

    def socket(self) -> socket.socket:
        return self.sock

    def asyncssh_tunnel(self) -> SocketTunnel:
        return SocketTunnel(self.sock)


class SocketTunnel:
    """A socket as asyncssh's `tunnel=`."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    async def create_connection(self, session_factory: Callable[[], P], remote_host: str, remote_port: int) -> tuple[Any, P]:
        return await asyncio.get_running_loop().create_connection(session_factory, sock=self._sock)

    def close(self) -> None:
        self._sock.close()

    async def wait_closed(self) -> None:
        """A socket is closed at once."""


class Loopback:
    """A connector; whatever it opens arrives at the peer's end in `arrived`, or `error` is raised instead."""

    def __init__(self) -> None:
        self.arrived: asyncio.Queue[SocketStream] = asyncio.Queue()
        self.asked: list[tuple[str, str]] = []
        self.opened: list[SocketStream] = []
        self.error: Exception | None = None
        self.gate: asyncio.Event | None = None

    @property
    def local_address(self) -> Address | None:
        return None

    async def connect(
        self, tag: str, service: str = "default", *, timeout: float | None = None, confirm: bool = True
    ) -> Stream:
        self.asked.append((tag, service))
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        near, far = connected_pair()
        self.arrived.put_nowait(SocketStream(far, tag, service))
        self.opened.append(SocketStream(near, tag, service))
        return self.opened[-1]

    async def __aenter__(self) -> Loopback:
        return self

    async def __aexit__(self, *_: Any) -> None:
        while not self.arrived.empty():
            self.arrived.get_nowait().sock.close()
