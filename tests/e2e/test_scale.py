"""Many streams, many openings, long waits: what one session bears, and what that costs.

Rates, times and costs are compared within one run, since the machine is shared; figures are printed (pytest -s).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import resource
import socket
import statistics
import time
import tracemalloc
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Final

import pytest

from p2ptunnel.defaults import RESUME_BUFFER_BYTES, STREAM_WINDOW_BYTES
from p2ptunnel.errors import ResumeExpiredError, TargetRefusedError
from p2ptunnel.net.pump import pump
from p2ptunnel.session.session import OpenRequest, Session, SessionOptions
from p2ptunnel.session.stream import SessionStream
from p2ptunnel.testing.natlab import Lab
from tests.helpers import run
from tests.helpers.peers import Peers, sessions, tcp_pair

KIB: Final = 1024
MIB: Final = 1024 * KIB
SERVICES: Final = ("sink", "stall", "echo", "refused", "undecided", "idle", "pumped-sink", "pumped-echo")


class Serving(Peers):
    """Peers whose callee serves all that is measured here.

    Attributes:
        sunk: Bytes that were read of each `sink` stream, by its id.
        stalled: The callee's ends of the streams that nobody reads.
    """

    def __init__(self, options: SessionOptions | None = None) -> None:
        super().__init__(*SERVICES)
        self.on_open = self.serve
        self.options = options or SessionOptions()
        self.sunk: dict[int, int] = {}
        self.stalled: list[SessionStream] = []

    async def serve(self, request: OpenRequest) -> None:
        match request.service:
            case "refused":
                raise TargetRefusedError("callee", request.service, "nobody is at home")
            case "undecided":
                await request.session.closed.wait()
            case "pumped-sink" | "pumped-echo":
                await self.pumped(request)
            case _:
                async with request.accept() as stream:
                    await self.serve_stream(stream)

    async def serve_stream(self, stream: SessionStream) -> None:
        match stream.service:
            case "sink":
                async for part in stream:
                    self.sunk[stream.stream_id] = self.sunk.get(stream.stream_id, 0) + len(part)
            case "stall":
                self.stalled.append(stream)
                await asyncio.get_running_loop().create_future()
            case _:
                async for part in stream:
                    await stream.write(part)

    async def pumped(self, request: OpenRequest) -> None:
        """Serve through a socket, as a forward's target is."""
        near, far = tcp_pair()
        with near, far:
            serving = asyncio.ensure_future((sink if request.service == "pumped-sink" else echo)(far))
            try:
                await pump(request.accept(), near)
            finally:
                serving.cancel()
                await asyncio.gather(serving, return_exceptions=True)


async def sink(sock: socket.socket) -> None:
    while await asyncio.get_running_loop().sock_recv(sock, MIB):
        pass


async def echo(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(sock, MIB):
        await loop.sock_sendall(sock, data)


async def pour(write: Callable[[bytes], Awaitable[None]], block: bytes) -> None:
    """Write without end."""
    while True:
        await write(block)


@contextlib.asynccontextmanager
async def working(*work: Awaitable[None]) -> AsyncGenerator[list[asyncio.Future[None]]]:
    """Do all of `work` meanwhile."""
    tasks = [asyncio.ensure_future(part) for part in work]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def resident_bytes() -> int:
    """Physical memory of this process, behind a collection."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


# --- one thousand streams -------------------------------------------------------------------------------------------------


async def rate_of_readers(*, stalls: bool) -> tuple[float, list[int], int]:
    """Fill 1000 streams; return bytes/s that 900 of them move together, those of each, and what the stalled ones hold at most."""
    peers = Serving()
    async with sessions(peers) as (caller, _):
        streams = [caller.open("stall" if stalls and n % 10 == 0 else "sink") for n in range(1000)]
        readers = [stream.stream_id for n, stream in enumerate(streams) if n % 10]
        async with working(*(pour(stream.write, bytes(64 * KIB)) for stream in streams)):
            while any(reader not in peers.sunk for reader in readers):
                await asyncio.sleep(0.01)
            before, began = dict(peers.sunk), time.monotonic()
            await asyncio.sleep(1.2)
            moved = [peers.sunk[reader] - before[reader] for reader in readers]
            took = time.monotonic() - began
        held = max((sum(map(len, stream._chunks)) for stream in peers.stalled), default=0)
        return sum(moved) / took, moved, held


def test_streams_that_nobody_reads_take_nothing_from_the_others() -> None:
    async def scenario() -> None:
        ratios: list[float] = []
        for _ in range(3):
            alone, _, _ = await rate_of_readers(stalls=False)
            beside, moved, held = await rate_of_readers(stalls=True)
            ratios.append(beside / alone)
            fairness = max(moved) / min(moved)
            print(
                f"\n900 readers: {alone / 1e6:.0f} MB/s when all read, {beside / 1e6:.0f} MB/s beside 100 that do not;"
                f" fairness {fairness:.2f}; a stalled stream holds {held / KIB:.0f} KiB"
            )
            assert fairness <= 3
            assert 0 < held <= STREAM_WINDOW_BYTES
        assert statistics.median(ratios) >= 0.8

    run(scenario())
