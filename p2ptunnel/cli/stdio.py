"""Carries a stream over stdin and stdout, whatever they are: pipes, files, a terminal, /dev/null.

Two threads copy with blocking calls, since a loop cannot wait for files, and since making a terminal non-blocking would do so
for every program that shares it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import Final

from p2ptunnel.abc import Stream
from p2ptunnel.cli.output import ReaderGoneError, hush_stdout
from p2ptunnel.errors import TunnelError
from p2ptunnel.net.pump import pump
from p2ptunnel.net.threads import in_thread

__all__ = ["carry_stdio"]

_STDIN, _STDOUT = 0, 1
_CHUNK_BYTES: Final = 256 * 1024


async def carry_stdio(stream: Stream) -> None:
    """Carry bytes until both directions have ended and the peer has all of ours; the stream is spent then.

    End of input goes to the peer; the peer's end closes our stdout, and input may still follow, unless a person types it.

    Raises:
        ReaderGoneError: Nobody reads our stdout any more.
        P2PTunnelError: The stream broke; what had arrived by then has been written.
    """
    near, far = socket.socketpair()
    out = asyncio.create_task(in_thread(_copy_out, near))
    into = asyncio.create_task(in_thread(_copy_in, near))
    carrying = asyncio.create_task(pump(stream, far))
    try:
        await _until_done(carrying, out, into)
        await stream.delivered()
    finally:
        for task in (carrying, out, into):
            task.cancel()
        await asyncio.gather(carrying, out, into, return_exceptions=True)
        with contextlib.suppress(OSError):
            near.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits on it
        near.close()


async def _until_done(carrying: asyncio.Task[None], out: asyncio.Task[None], into: asyncio.Task[None]) -> None:
    """Wait for the stream and stdout to end, or for the first of the three to fail; a person's input may go on."""
    waiting = {carrying, out, into}
    while not (carrying.done() and out.done()):
        ended, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if carrying in ended and carrying.exception() is not None:
            await asyncio.wait([out])
        for task in ended:
            task.result()


def _copy_in(sock: socket.socket) -> None:
    """Copy stdin to the socket up to its end."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the stream is over; `pump` says why
        while data := _read_stdin():
            sock.sendall(data)
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)


def _copy_out(sock: socket.socket) -> None:
    """Copy the socket to stdout up to its end, then close stdout."""
    while data := _receive(sock):
        _write_stdout(memoryview(data))
    hush_stdout()
    if os.isatty(_STDIN):  # a person would have to type on to see that it is over
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)


def _receive(sock: socket.socket) -> bytes:
    try:
        return sock.recv(_CHUNK_BYTES)
    except ConnectionResetError:  # the stream broke; `pump` says why
        return b""


def _read_stdin() -> bytes:
    try:
        return os.read(_STDIN, _CHUNK_BYTES)
    except OSError as error:
        raise TunnelError(f"cannot read stdin: {error.strerror}") from error


def _write_stdout(data: memoryview) -> None:
    try:
        while data:
            data = data[os.write(_STDOUT, data) :]
    except BrokenPipeError as error:
        raise ReaderGoneError from error
    except OSError as error:
        raise TunnelError(f"cannot write to stdout: {error.strerror}") from error
