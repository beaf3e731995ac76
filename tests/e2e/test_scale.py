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
SERVICES: Final = ("sink", "stall", "echo", "refused", "late", "idle", "pumped-sink", "pumped-echo")


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
            case "late":  # its target answers when the caller has given up
                await asyncio.sleep(0.02)
                await request.accept().close()
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
            while any(peers.sunk.get(reader, 0) < 64 * KIB for reader in readers):
                await asyncio.sleep(0.01)
            before, began = dict(peers.sunk), time.monotonic()
            await asyncio.sleep(1.5)
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


# --- ten thousand openings ------------------------------------------------------------------------------------------------


async def use_once(session: Session, number: int) -> None:
    """Open a stream and end it, in one of five ways."""
    match number % 5:
        case 0:
            async with await session.open_confirmed("echo") as stream:
                await stream.write(b"hello")
                assert await stream.readexactly(5) == b"hello"
        case 1:
            stream = await session.open_confirmed("echo")
            await stream.write(b"hello")
            assert await stream.readexactly(5) == b"hello"
            stream.abort()
        case 2:
            with pytest.raises(TargetRefusedError):
                await session.open_confirmed("refused")
        case 3:
            opening = asyncio.ensure_future(session.open_confirmed("late"))
            await asyncio.sleep(0)  # it has begun
            opening.cancel()
            await asyncio.wait([opening])
            assert opening.cancelled()
        case _:
            with session.open("echo").socket() as sock:
                sock.setblocking(False)
                await asyncio.get_running_loop().sock_sendall(sock, b"hello")
                assert await asyncio.get_running_loop().sock_recv(sock, 5) == b"hello"


async def use_often(session: Session, numbers: range) -> None:
    for batch in range(numbers.start, numbers.stop, 50):
        await asyncio.gather(*(use_once(session, batch + n) for n in range(50)))


async def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_ten_thousand_openings_leave_nothing_behind() -> None:
    async def scenario() -> None:
        async with sessions(Serving()) as (caller, callee):

            async def left_behind() -> tuple[int, int]:
                await until(lambda: caller.streams == callee.streams == 0)
                await until(lambda: not caller._streams and not callee._streams and not caller._tasks and not callee._tasks)
                return len(asyncio.all_tasks()), descriptors()

            before = await left_behind()
            await use_often(caller, range(2000))
            early, at_2000 = await left_behind(), resident_bytes()
            began = time.monotonic()
            await use_often(caller, range(2000, 10_000))
            took = time.monotonic() - began
            late, at_10000 = await left_behind(), resident_bytes()
            print(
                f"\n{8000 / took:.0f} openings/s; resident {at_2000 / MIB:.1f} MiB after 2000, {at_10000 / MIB:.1f} MiB after"
                f" 10 000; tasks and descriptors {before}, {early}, {late}"
            )
            assert late == early == before
            assert at_10000 - at_2000 < MIB

    run(scenario(), timeout=60)


# --- idle streams ---------------------------------------------------------------------------------------------------------


async def cost_of_idle_streams(measure: Callable[[], int]) -> float:
    """Return bytes of one stream, both ends together."""
    async with sessions(Serving()) as (caller, callee):
        for stream in [await caller.open_confirmed("idle") for _ in range(100)]:  # what is allocated once
            await stream.close()
        await until(lambda: caller.streams == callee.streams == 0)
        gc.collect()
        before = measure()
        streams = [await caller.open_confirmed("idle") for _ in range(1000)]
        gc.collect()
        return (measure() - before) / len(streams)


def test_an_idle_stream_costs_less_than_20_kib() -> None:
    resident = run(cost_of_idle_streams(resident_bytes))
    tracemalloc.start()
    try:
        allocated = run(cost_of_idle_streams(lambda: tracemalloc.get_traced_memory()[0]))
    finally:
        tracemalloc.stop()
    print(f"\nan idle stream, both ends: {resident / KIB:.1f} KiB resident, {allocated / KIB:.1f} KiB allocated")
    assert resident < 20 * KIB
    assert allocated < 20 * KIB


# --- without a channel ----------------------------------------------------------------------------------------------------


def cut(session: Session) -> None:
    """Break the connection under a session, as a reset from the network does."""
    leg = session._active
    assert leg is not None
    assert leg.channel._transport is not None
    leg.channel._transport.abort()


def test_a_hundred_writers_without_a_channel_wait_in_bounded_memory_and_learn_of_the_end() -> None:
    async def scenario() -> None:
        async with sessions(Serving(SessionOptions(resume_timeout=1.5))) as (caller, callee):
            streams = [await caller.open_confirmed("sink") for _ in range(100)]
            block = bytes(64 * KIB)
            before = resident_bytes()
            async with working(*(pour(stream.write, block) for stream in streams)) as writers:
                cut(caller)
                await until(lambda: caller.state == "suspended")
                await asyncio.sleep(0.5)
                kept, grown = caller._endpoint.unacknowledged, resident_bytes() - before
                assert not any(writer.done() for writer in writers)
                endings = await asyncio.gather(*writers, return_exceptions=True)
            print(f"\nwithout a channel: {kept / MIB:.1f} MiB kept for replay, memory grew by {grown / MIB:.1f} MiB")
            assert kept <= RESUME_BUFFER_BYTES
            assert grown < RESUME_BUFFER_BYTES + 8 * MIB
            assert {type(ending) for ending in endings} == {ResumeExpiredError}
            for stream in streams:
                with pytest.raises(ResumeExpiredError):
                    await stream.read()
            assert not caller._streams
            await callee.closed.wait()
            assert isinstance(callee.error, ResumeExpiredError)

    run(scenario())


def test_a_peer_that_never_acknowledges_costs_no_more_than_the_resume_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 2 * MIB

    async def scenario() -> None:
        peers = Serving(SessionOptions(resume_timeout=60, resume_buffer=limit))
        async with sessions(peers) as (caller, callee):
            monkeypatch.setattr(callee._endpoint, "_acknowledge", lambda: None)
            streams = [await caller.open_confirmed("sink") for _ in range(100)]
            before = resident_bytes()
            async with working(*(pour(stream.write, bytes(64 * KIB)) for stream in streams)):
                await until(lambda: caller._endpoint.unacknowledged > limit - 64 * KIB)
                await asyncio.sleep(0.5)
                kept, grown = caller._endpoint.unacknowledged, resident_bytes() - before
                read = sum(peers.sunk.values())
            print(f"\nnever acknowledged: {kept / MIB:.2f} MiB kept, {read / MIB:.2f} MiB read; memory grew by {grown / MIB:.1f} MiB")
            assert read <= kept <= limit
            assert grown < limit + 8 * MIB

    run(scenario())
