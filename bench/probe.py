"""The work that every contestant does, and how its time is taken; the same code whoever carries the bytes.

A contestant gives sessions, and streams on them (`Session`, `Duplex`).  The far side serves each stream by `serve`; the
near side obeys the orders of the rig, one JSON object a line on stdin, one in reply on stdout.  By itself this module is
both sides over TCP, which is what stands at the two ends of a forward:

    python -m bench.probe far PORT
    python -m bench.probe near HOST PORT
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import socket
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol, TypeAlias, TypeVar

__all__ = ["Duplex", "Session", "TcpDuplex", "listen", "obey", "percentile", "serve", "tcp_session", "tell"]

T = TypeVar("T")

WRITE_BYTES: Final = 256 * 1024  # smaller writes measure Python
_READ_BYTES: Final = 256 * 1024
_LARGE_BYTES: Final = 64 * 1024
_MESSAGE: Final = b"x" * 64
_ECHO, _SINK = b"e", b"s"
_COUNT_BYTES: Final = 8


class Duplex(Protocol):
    """One stream of a contestant, as the work sees it."""

    def read(self, n: int, /) -> Awaitable[bytes]:
        """Return 1 to `n` bytes, or `b""` at the end."""
        ...

    def write(self, data: bytes, /) -> Awaitable[None]:
        """Send; returns when there is room for more."""
        ...

    def write_eof(self) -> Awaitable[None]:
        """End our direction; the other one stays."""
        ...

    def close(self) -> Awaitable[None]:
        """Close both directions."""
        ...


Session: TypeAlias = Callable[[], AbstractAsyncContextManager[Callable[[], Awaitable[Duplex]]]]
"""Makes a session from nothing and yields what opens a stream on it."""

Beside: TypeAlias = Callable[[Callable[[], Awaitable[None]], Callable[[], Awaitable[T]]], Awaitable[T]]
"""Runs the first function until the second has returned, then cancels it."""


# --- the far side -----------------------------------------------------------------------------------------------------


async def serve(stream: Duplex) -> None:
    """Serve one stream: its first byte asks for an echo, or for a sink that answers with the count of bytes."""
    kind = await stream.read(1)
    if kind == _ECHO:
        while data := await stream.read(_READ_BYTES):
            await stream.write(data)
    elif kind == _SINK:
        count = 0
        while data := await stream.read(_READ_BYTES):
            count += len(data)
        await stream.write(count.to_bytes(_COUNT_BYTES))
    await stream.write_eof()
    await stream.close()


# --- the near side ----------------------------------------------------------------------------------------------------


async def obey(session: Session, beside: Beside[Any] | None = None) -> None:
    """Do what the rig asks for, on one session, until it asks no more; an error ends the program and is the rig's to read.

    Between two orders this blocks its loop, so that reading the orders costs the contestant nothing.

    Args:
        session: The contestant's.
        beside: For loops other than asyncio's.
    """
    async with session() as open_stream:
        near = Near(session, open_stream, beside or _beside)
        for line in sys.stdin:
            order = json.loads(line)
            work: Callable[..., Awaitable[dict[str, float]]] = getattr(near, order.pop("work"))
            tell(await work(**order))


def tell(fact: object) -> None:
    """Say one line to the rig."""
    print(json.dumps(fact), flush=True)


class Near:
    """The works, each a method with what it found as its result: milliseconds, bytes, seconds."""

    def __init__(self, session: Session, open_stream: Callable[[], Awaitable[Duplex]], beside: Beside[Any]) -> None:
        self._session = session
        self._open_stream = open_stream
        self._beside = beside
        self._held: list[Duplex] = []

    async def echo(self, count: int, seconds: float) -> dict[str, float]:
        """Send 64 bytes and wait for them, `count` times or for so many seconds."""
        stream = await self._opened(_ECHO)
        await _echo_once(stream)  # the path is warm, and the stream known to the far side
        times = await _timed(lambda: _echo_once(stream), count, seconds)
        await stream.close()
        return {"echo_p50": percentile(times, 50), "echo_p99": percentile(times, 99)}

    async def open(self, count: int, seconds: float) -> dict[str, float]:
        """Open one more stream and have 64 bytes echoed, again and again."""
        opened: list[Duplex] = []

        async def once() -> None:
            stream = await self._opened(_ECHO)
            await _echo_once(stream)
            opened.append(stream)

        times = await _timed(once, count, seconds)
        for stream in opened:
            await stream.close()
        return {"open": percentile(times, 50)}

    async def connect(self, count: int, seconds: float) -> dict[str, float]:
        """Make one more session from nothing, up to the first bytes echoed; its end is not timed."""
        times: list[float] = []
        deadline = time.perf_counter() + seconds
        while len(times) < count and time.perf_counter() < deadline:
            begun = time.perf_counter()
            async with self._session() as open_stream:
                stream = await open_stream()
                await stream.write(_ECHO + _MESSAGE)
                await _read_exactly(stream, len(_MESSAGE))
                times.append((time.perf_counter() - begun) * 1000)
                await stream.close()
        return {"connect": percentile(times, 50)}

    async def bulk(self, seconds: float) -> dict[str, float]:
        """Upload for so many seconds in 256 KiB writes; the clock stops when the far side has said how much came.

        Raises:
            EOFError: Another count came back.
        """
        block = bytes(WRITE_BYTES)
        stream = await self._opened(_SINK)
        sent = 0
        begun = time.perf_counter()
        while time.perf_counter() - begun < seconds:
            await stream.write(block)
            sent += len(block)
        await stream.write_eof()
        received = int.from_bytes(await _read_exactly(stream, _COUNT_BYTES))
        elapsed = time.perf_counter() - begun
        await stream.close()
        if received != sent:
            raise EOFError(f"{sent} bytes sent, {received} received")
        return {"bytes": sent, "seconds": elapsed}

    async def fairness(self, count: int, seconds: float) -> dict[str, float]:
        """Echo as in `echo` while another stream of the session uploads as fast as it can."""
        bulk, echo = await self._opened(_SINK), await self._opened(_ECHO)
        block = bytes(WRITE_BYTES)

        async def upload() -> None:
            while True:
                await bulk.write(block)

        async def measure() -> list[float]:
            await _echo_once(echo)
            return await _timed(lambda: _echo_once(echo), count, seconds)

        times: list[float] = await self._beside(upload, measure)
        return {"fair_p99": percentile(times, 99)}

    async def hold(self, count: int) -> dict[str, float]:
        """Open streams, have 64 bytes echoed on each, and keep them."""
        for _ in range(count):
            stream = await self._opened(_ECHO)
            await _echo_once(stream)
            self._held.append(stream)
        return {}

    async def _opened(self, kind: bytes) -> Duplex:
        stream = await self._open_stream()
        await stream.write(kind)
        return stream


async def _beside(background: Callable[[], Awaitable[None]], foreground: Callable[[], Awaitable[T]]) -> T:
    task = asyncio.ensure_future(background())
    try:
        return await foreground()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _timed(work: Callable[[], Awaitable[None]], count: int, seconds: float) -> list[float]:
    """Do it `count` times, or for so many seconds; return how long each took, in milliseconds."""
    times: list[float] = []
    begun = now = time.perf_counter()
    while len(times) < count and (not times or now - begun < seconds):
        await work()
        before, now = now, time.perf_counter()
        times.append((now - before) * 1000)
    return times


async def _echo_once(stream: Duplex) -> None:
    await stream.write(_MESSAGE)
    await _read_exactly(stream, len(_MESSAGE))


async def _read_exactly(stream: Duplex, n: int) -> bytes:
    data = b""
    while len(data) < n:
        part = await stream.read(n - len(data))
        if not part:
            raise EOFError(f"the stream ended after {len(data)} of {n} bytes: its answer after our end was lost")
        data += part
    return data


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest of `values` that `percent` of them do not exceed (nearest rank)."""
    return sorted(values)[max(math.ceil(len(values) * percent / 100), 1) - 1]


# --- both sides over TCP ----------------------------------------------------------------------------------------------


class TcpDuplex:
    """A TCP connection, without delay."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = connection
        self._loop = asyncio.get_running_loop()

    async def read(self, n: int) -> bytes:
        """Return 1 to `n` bytes, or `b""` at the end."""
        data = await self._loop.sock_recv(self._connection, n)
        await _give_way(data)
        return data

    async def write(self, data: bytes) -> None:
        """Send all of it."""
        await self._loop.sock_sendall(self._connection, data)
        await _give_way(data)

    async def write_eof(self) -> None:
        """Send FIN."""
        self._connection.shutdown(socket.SHUT_WR)

    async def close(self) -> None:
        """Close."""
        self._connection.close()


async def _give_way(data: bytes) -> None:
    """Let others run after a large piece: asyncio's calls do not, as long as the socket is ready, and an echo would starve."""
    if len(data) >= _LARGE_BYTES:
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def tcp_session(host: str, port: int) -> AsyncGenerator[Callable[[], Awaitable[TcpDuplex]]]:
    """Yield what connects to an address; TCP has no sessions."""

    async def open_stream() -> TcpDuplex:
        connection = socket.socket()
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, (host, port))
        return TcpDuplex(connection)

    yield open_stream


async def listen(port: int) -> None:
    """Serve every TCP connection to a port, for ever."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()
    with socket.create_server(("", port), backlog=1024) as listener:
        listener.setblocking(False)
        while True:
            connection, _ = await loop.sock_accept(listener)
            task = asyncio.create_task(_serve_tcp(TcpDuplex(connection)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)


async def _serve_tcp(stream: TcpDuplex) -> None:
    with contextlib.suppress(OSError):  # whoever uploads beside an echo just goes
        await serve(stream)
    await stream.close()


def main(role: str, *where: str) -> None:
    """Be one side until killed, or until the rig asks no more."""
    if role == "far":
        asyncio.run(listen(int(where[0])))
    else:
        host, port = where
        asyncio.run(obey(lambda: tcp_session(host, int(port))))


if __name__ == "__main__":
    main(*sys.argv[1:])
