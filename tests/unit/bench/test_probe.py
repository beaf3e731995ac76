"""The works do what they say over real connections, and notice a far side that loses bytes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest

from bench.probe import Duplex, Near, TcpDuplex, percentile, serve, tcp_session
from tests.helpers import run

ROOT = Path(__file__).parents[3]
Far = Callable[[Duplex], Awaitable[None]]


@contextlib.asynccontextmanager
async def listening(far: Far) -> AsyncGenerator[int]:
    """Give every connection to a port of 127.0.0.1 to `far` while the block lasts."""
    loop = asyncio.get_running_loop()

    async def accept() -> None:
        async with asyncio.TaskGroup() as tasks:
            while True:
                connection, _ = await loop.sock_accept(listener)
                tasks.create_task(one(TcpDuplex(connection)))

    async def one(stream: TcpDuplex) -> None:
        try:
            with contextlib.suppress(OSError):
                await far(stream)
        finally:
            await stream.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        accepting = asyncio.create_task(accept())
        try:
            yield listener.getsockname()[1]
        finally:
            accepting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await accepting


async def beside(background: Callable[[], Awaitable[None]], foreground: Callable[[], Awaitable[object]]) -> object:
    task = asyncio.ensure_future(background())
    try:
        return await foreground()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def found_by(work: str, *, far: Far = serve, **order: float) -> dict[str, float]:
    """What one work finds at a far side, by `far`."""

    async def scenario() -> dict[str, float]:
        async with listening(far) as port:
            session = partial(tcp_session, "127.0.0.1", port)
            async with session() as open_stream:
                opened: list[Duplex] = []

                async def remembered() -> Duplex:
                    opened.append(await open_stream())
                    return opened[-1]

                try:
                    found: dict[str, float] = await getattr(Near(session, remembered, beside), work)(**order)
                finally:
                    for stream in opened:
                        await stream.close()
                return found

    return run(scenario())


def test_bulk_counts_what_arrived_and_takes_its_time() -> None:
    found = found_by("bulk", seconds=0.05)
    assert found["bytes"] >= 256 * 1024
    assert found["bytes"] % (256 * 1024) == 0
    assert found["seconds"] >= 0.05


async def loses_one_byte(stream: Duplex) -> None:
    count = -2  # the byte that asks for the sink is none of them, and one more is lost
    while data := await stream.read(65536):
        count += len(data)
    await stream.write(count.to_bytes(8))


async def loses_the_answer(stream: Duplex) -> None:
    while await stream.read(65536):
        pass


@pytest.mark.parametrize(("far", "text"), [(loses_one_byte, "bytes sent"), (loses_the_answer, "its answer after our end")])
def test_bulk_refuses_a_far_side_that_loses(far: Far, text: str) -> None:
    with pytest.raises(EOFError, match=text):
        found_by("bulk", far=far, seconds=0.01)


def test_echo_gives_both_percentiles_in_milliseconds() -> None:
    found = found_by("echo", count=50, seconds=5)
    assert 0 < found["echo_p50"] <= found["echo_p99"] < 1000


def test_one_more_and_connect_and_echo_beside_bulk_each_give_a_time() -> None:
    assert found_by("open", count=3, seconds=5)["open"] > 0
    assert found_by("connect", count=3, seconds=5)["connect"] > 0
    assert found_by("fairness", count=3, seconds=5)["fair_p99"] > 0


def test_hold_keeps_every_stream_open() -> None:
    served = 0

    async def far(stream: Duplex) -> None:
        nonlocal served
        served += 1
        await serve(stream)

    assert found_by("hold", far=far, count=7) == {}
    assert served == 7


def test_a_work_ends_with_its_time_whatever_its_count() -> None:
    assert found_by("echo", count=10**9, seconds=0.01)["echo_p50"] > 0


def test_percentiles_are_values_by_nearest_rank() -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert [percentile(values, percent) for percent in (0, 1, 50, 99, 100)] == [1, 1, 50, 99, 100]
    assert percentile([7.0], 99) == 7


def test_the_probe_needs_nothing_but_the_standard_library() -> None:
    code = (
        f"import sys; sys.path.append({str(ROOT)!r}); import bench.probe, bench.contest, bench.contestants\n"
        "print(*{name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names)"
    )
    # -S: no site-packages, so that an import of anything else fails as well
    said = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert set(said.stdout.split()) == {"bench", "__main__"}
