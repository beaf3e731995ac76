"""Carries a stream over stdin and stdout, whatever they are: pipes, files, a terminal, /dev/null.

Two threads copy with blocking calls, since a loop cannot wait for files, and since making a terminal non-blocking would do so
for every program that shares it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import stat
from typing import Final

from p2ptunnel.abc import Stream
from p2ptunnel.cli.output import ReaderGoneError, hush_stdout
from p2ptunnel.errors import TunnelError
from p2ptunnel.net.pump import pump
from p2ptunnel.net.threads import in_thread

__all__ = ["carry_stdio"]

_STDIN, _STDOUT = 0, 1
_CHUNK_BYTES: Final = 256 * 1024
_LAST_DELIVERY: Final = 60.0  # seconds


async def carry_stdio(stream: Stream) -> None:
    """Carry bytes until both directions have ended; the stream is spent then.

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
    """Copy stdin to the socket up to its end; then do not wait for ever on behalf of a program that has died.

    When ssh is killed while the path is down, both ends of this program go, and the session would still be kept for hours.

    Raises:
        TunnelError: Nobody reads stdout, and what was read from stdin cannot be delivered.
    """
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the stream is over; `pump` says why
        while data := _read_stdin():
            sock.sendall(data)
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
    if _is_stdout_watchable() and _hangs_up(_STDOUT, sock) and not _hangs_up(sock, timeout=_LAST_DELIVERY):
        raise TunnelError(f"nobody reads stdout, and the peer has not confirmed the end of stdin for {_LAST_DELIVERY:g} s")


def _is_stdout_watchable() -> bool:
    """Tell whether stdout is a pipe or a socket, and the system tells when its other end is closed."""
    mode = os.fstat(_STDOUT).st_mode
    return hasattr(select, "poll") and (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode))


def _hangs_up(awaited: int | socket.socket, *others: socket.socket, timeout: float | None = None) -> bool:
    """Wait until one of these descriptors is hung up, at most `timeout` seconds; tell whether `awaited` is."""
    poller = select.poll()
    for file in (awaited, *others):
        poller.register(file, 0)  # errors and hang-ups are reported unasked
    number = awaited if isinstance(awaited, int) else awaited.fileno()
    return number in {descriptor for descriptor, _ in poller.poll(None if timeout is None else timeout * 1000)}


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
