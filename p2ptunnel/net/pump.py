"""Carries bytes both ways between a local socket and a stream.  Rule: it knows abc.Stream, and nothing of what is behind it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import Final

from p2ptunnel.abc import Spliceable, Stream
from p2ptunnel.defaults import CLOSE_GRACE
from p2ptunnel.errors import StreamResetError
from p2ptunnel.net.splice import SocketSplice

__all__ = ["pump"]

_READ_BYTES: Final = 256 * 1024  # at a time; allocated when there is something to read, so an idle pump holds no buffer


async def pump(stream: Stream, sock: socket.socket) -> None:
    """Carry bytes between `stream` and `sock` until both directions have ended; both are closed then, whatever happens.

    An end of file on one side is one on the other, and the opposite direction goes on.  A slow reader on either side slows
    the writer on the other; at most one read waits here.  Any error ends both sides: the stream is reset, and so is the
    socket where its kind knows a reset.  Cancelling does the same.

    Args:
        stream: Nobody else reads or writes it.
        sock: Connected; it is made non-blocking.

    Raises:
        P2PTunnelError: The stream was refused, was reset or lost its channel.
        OSError: The socket broke.
    """
    sock.setblocking(False)
    reason = "the local connection was reset"
    try:
        await (_spliced(stream, sock) if isinstance(stream, Spliceable) else _copied(stream, sock))
        await stream.close()
        reason = ""
        await _discard(sock)
    finally:
        if reason:
            stream.abort(reason)
            _reset(sock)
        sock.close()


async def _discard(sock: socket.socket) -> None:
    """Wait for the socket's end, if the stream took no more before it; at most so long as is usual.

    Closed with something unread, the socket would be reset, and that destroys what its other end has not read yet.
    """
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):  # the end of the time is one, too
        async with asyncio.timeout(CLOSE_GRACE):
            while await loop.sock_recv(sock, _READ_BYTES):
                pass


async def _spliced(stream: Spliceable, sock: socket.socket) -> None:
    splice = SocketSplice(stream, sock)
    try:
        splice.start()
        await asyncio.gather(splice.sent_all, splice.read_all)
    finally:
        splice.stop()


async def _copied(stream: Stream, sock: socket.socket) -> None:
    try:
        async with asyncio.TaskGroup() as directions:
            directions.create_task(_to_stream(sock, stream))
            directions.create_task(_to_socket(stream, sock))
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


async def _to_stream(sock: socket.socket, stream: Stream) -> None:
    loop = asyncio.get_running_loop()
    try:
        while data := await loop.sock_recv(sock, _READ_BYTES):
            await stream.write(data)
        await stream.write_eof()
    except StreamResetError:
        return  # the peer takes no more; whether what it gave is complete is for the other direction to find out


async def _to_socket(stream: Stream, sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while data := await stream.read(_READ_BYTES):
        await loop.sock_sendall(sock, data)
    sock.shutdown(socket.SHUT_WR)


def _reset(sock: socket.socket) -> None:
    """Let the other end of a TCP connection see an error, since an end of file would hide what is missing."""
    if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
