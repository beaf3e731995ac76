"""A transfer that begins over the relay, moves to the direct path when it opens, and back when it is cut."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Final

from p2ptunnel.abc import Stream
from p2ptunnel.errors import P2PTunnelError
from p2ptunnel.events import Events, PathChanged
from p2ptunnel.peer import Peer
from p2ptunnel.testing.natlab.faults import part
from p2ptunnel.testing.natlab.lab import Lab
from p2ptunnel.testing.natlab.peers import SERVICE, Acquaintances, rendezvous, serving
from p2ptunnel.testing.natlab.scenarios.report import Switch, Transfer
from p2ptunnel.testing.natlab.site import Site

__all__ = ["run_transfer"]

_DELAY: Final = 0.01
_RATE: Final = 160e6  # bits per second of each line, so that there is something to send for as long as the paths change
_CHUNK_BYTES: Final = 64 * 1024
_TRICKLE: Final = 0.02  # seconds between chunks, while the network is waited for
_CONNECT_TIMEOUT: Final = 30.0
_SWITCH_TIMEOUT: Final = 60.0
_END_TIMEOUT: Final = 120.0
_AFTERWARDS: Final = 1.0  # seconds after a change of path that belong to its pause


class _Sink:
    """Where the bytes end: their hash, and when they came.

    Attributes:
        arrivals: Monotonic seconds of each piece.
    """

    def __init__(self) -> None:
        self.arrivals: list[float] = []

    async def __call__(self, stream: Stream) -> None:
        """Take a stream to its end, and answer with its SHA-256."""
        digest = hashlib.sha256()
        async for piece in stream:
            self.arrivals.append(time.monotonic())
            digest.update(piece)
        await stream.write(digest.digest())
        await stream.write_eof()

    def pause(self, since: float, until: float) -> float:
        """Return the longest time without an arrival that touches this span."""
        return max((b - a for a, b in pairwise(self.arrivals) if b > since and a < until), default=0.0)


class _Source:
    """Sends random bytes: as fast as they go up to `limit`, beyond it slowly, so that there are always some under way."""

    def __init__(self, stream: Stream, size_bytes: int) -> None:
        self.limit = 0.0
        self._stream = stream
        self._size = size_bytes
        self._mark = 0.0
        self._has_come_so_far = asyncio.Event()

    async def until(self, count: float) -> None:
        """Wait until so many bytes have been sent."""
        self._mark = count
        self._has_come_so_far.clear()
        await self._has_come_so_far.wait()

    async def run(self) -> bool:
        """Send all; return whether the other side has seen the same."""
        sent, digest = 0, hashlib.sha256()
        while sent < self._size:
            piece = os.urandom(min(_CHUNK_BYTES, self._size - sent))
            digest.update(piece)
            await self._stream.write(piece)
            sent += len(piece)
            if sent >= self._mark:
                self._has_come_so_far.set()
            if sent > self.limit:
                await asyncio.sleep(_TRICKLE)
        await self._stream.write_eof()
        async with asyncio.timeout(_END_TIMEOUT):
            return await self._stream.readexactly(digest.digest_size) == digest.digest()


class _Obstacle(contextlib.ExitStack):
    """Something between two sites that lets them reach everybody but each other."""

    def __init__(self, one: Site, other: Site) -> None:
        super().__init__()
        self._sites = (one, other)

    def put(self) -> None:
        """Put it there until `close`."""
        self.enter_context(part(*self._sites))


class _Disturber:
    """Changes the network under a transfer, and waits for the path to follow."""

    def __init__(self, source: _Source, sink: _Sink, changes: Events, obstacle: _Obstacle) -> None:
        self._source = source
        self._sink = sink
        self._changes = changes
        self._obstacle = obstacle
        self._began = time.monotonic()

    async def run(self, size_bytes: int) -> list[Switch]:
        """Open the direct path, and later cut it; at each change a third of the bytes is under way or still to come."""
        self._source.limit = size_bytes / 3
        await self._source.until(size_bytes / 10)
        opened = await self._change("the direct path opens", self._obstacle.close, "direct")
        self._source.limit = size_bytes * 2 / 3
        await self._source.until(size_bytes / 2)
        cut = await self._change("the direct path is cut", self._obstacle.put, "relay")
        self._source.limit = size_bytes
        return [opened, cut]

    async def _change(self, cause: str, change: Callable[[], None], kind: str) -> Switch:
        caused = time.monotonic()
        await asyncio.to_thread(change)
        async with asyncio.timeout(_SWITCH_TIMEOUT):
            event = await self._moved(kind)
        await asyncio.sleep(_AFTERWARDS)
        pause = self._sink.pause(caused, event.at + _AFTERWARDS)
        path = f"{event.new.kind} {event.new.transport}"
        return Switch(cause, path, event.at - self._began, event.at - caused, pause)

    async def _moved(self, kind: str) -> PathChanged:
        while True:
            event = await anext(self._changes)
            if isinstance(event, PathChanged) and event.new.kind == kind:
                return event


def run_transfer(size_bytes: int) -> Transfer:
    """Send so many bytes from one port-restricted home to another while the direct path between them opens and is cut.

    Raises:
        LaboratoryError: No laboratory can be built here.
    """
    sink = _Sink()
    with tempfile.TemporaryDirectory() as directory, Lab(server_delay=_DELAY) as lab, contextlib.ExitStack() as stack:
        cafe, home = (lab.site("pr", delay=_DELAY, rate=_RATE, name=name) for name in ("cafe", "home"))
        known = Acquaintances(Path(directory), ["laptop"], ["nas"])
        server = stack.enter_context(rendezvous(lab))
        stack.enter_context(serving(home.host, "nas", known.profile("nas"), server, sink))
        obstacle = stack.enter_context(_Obstacle(cafe, home))
        obstacle.put()

        async def transfer() -> Transfer:
            async with Peer("laptop", rendezvous=server, profile=known.profile("laptop")) as peer:
                return await _transfer(peer, sink, obstacle, size_bytes)

        return cafe.host.thread(asyncio.run, transfer()).result()


async def _transfer(peer: Peer, sink: _Sink, obstacle: _Obstacle, size_bytes: int) -> Transfer:
    try:
        async with peer.events(PathChanged) as changes:
            stream = await peer.connect("nas", SERVICE, timeout=_CONNECT_TIMEOUT)
            began_on, began = f"{stream.path.kind} {stream.path.transport}", time.monotonic()
            source = _Source(stream, size_bytes)
            async with asyncio.TaskGroup() as group:
                sending = group.create_task(source.run())
                disturbing = group.create_task(_Disturber(source, sink, changes, obstacle).run(size_bytes))
            seconds, switches = time.monotonic() - began, tuple(disturbing.result())
            return Transfer(size_bytes, began_on, seconds, sending.result(), switches)
    except* (P2PTunnelError, OSError, EOFError, TimeoutError) as errors:
        problem = "; ".join(f"{type(error).__name__}: {error}" for error in errors.exceptions)
    return Transfer(size_bytes, error=problem)
