"""A TCP connection to a peer as a pipe, and the preamble that tells an acceptor what the connection is for."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from p2ptunnel.abc import Pipe
from p2ptunnel.defaults import PREAMBLE_TIMEOUT, UNSENT_MAX_BYTES, USER_TIMEOUT
from p2ptunnel.errors import LocalProtocolError, RemoteProtocolError
from p2ptunnel.net.sockets import is_tcp, keep_alive, limit_unsent, reset_close
from p2ptunnel.types import Path
from p2ptunnel.wire.frames import PREAMBLE_BYTES, parse_preamble

__all__ = ["TcpPipe", "read_preamble"]

_USER_TIMEOUT: Final[int | None] = getattr(socket, "TCP_USER_TIMEOUT", None)


class TcpPipe(Pipe):
    """A connected TCP socket.

    Args:
        sock: Connected; the pipe owns it from now on.
        path: How the connection came to be.
    """

    def __init__(self, sock: socket.socket, path: Path) -> None:
        self.path = path
        self._sock: socket.socket | None = sock

    async def attach(self, factory: Callable[[], asyncio.BaseProtocol]) -> asyncio.Transport:
        """Hand the socket to a protocol and return its transport, which owns the descriptor; also when cancelled.

        Raises:
            OSError: The connection broke before.
            LocalProtocolError: The pipe was attached or aborted already.
        """
        sock, self._sock = self._held, None
        try:
            _prepare(sock)
        except OSError:
            sock.close()
            raise
        transport, _ = await asyncio.get_running_loop().create_connection(factory, sock=sock)
        return transport

    @property
    def _held(self) -> socket.socket:
        if self._sock is None:
            raise LocalProtocolError("a pipe is attached once")
        return self._sock

    def abort(self) -> None:
        """Close the socket by RST, unless a transport has it; closing twice is fine."""
        if self._sock is not None:
            reset_close(self._sock)
            self._sock = None


def _prepare(sock: socket.socket) -> None:
    sock.setblocking(False)
    if not is_tcp(sock):  # what carries it has done so
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else Nagle and delayed acks cost an echo 40 to 90 ms
    keep_alive(sock)
    if _USER_TIMEOUT is not None:  # it also runs while a stopped peer's window is closed, so it must not be the first judge
        sock.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, round(USER_TIMEOUT * 1000))
    limit_unsent(sock, UNSENT_MAX_BYTES)  # a small frame does not wait behind megabytes of a big one


async def read_preamble(sock: socket.socket, timeout: float = PREAMBLE_TIMEOUT) -> bytes:
    """Read exactly the preamble of a connection that was accepted, and return its selector (16 bytes).

    Not one byte behind it is read, so the socket can be handed on; it stays open also when this raises.

    Args:
        sock: Connected and non-blocking.
        timeout: Seconds for the whole preamble.

    Raises:
        RemoteProtocolError: Something else came, or nothing in time, or the end.
        OSError: The connection broke.
    """
    loop = asyncio.get_running_loop()
    data = b""
    deadline = asyncio.timeout(timeout)
    try:
        async with deadline:
            while (selector := parse_preamble(data)) is None:
                part = await loop.sock_recv(sock, PREAMBLE_BYTES - len(data))
                if not part:
                    raise RemoteProtocolError("the connection ended before its preamble")
                data += part
            return selector
    except TimeoutError:
        if deadline.expired():
            raise RemoteProtocolError(f"no preamble in {timeout:g} s") from None
        raise
