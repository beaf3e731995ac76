"""Work that several wait for: done once, cancelled with the last, ended from outside."""

from __future__ import annotations

import asyncio

import pytest

from p2ptunnel.errors import ChannelClosedError
from p2ptunnel.traversal.shared import Shared
from tests.helpers import run


class Work:
    """Counts its beginnings and ends, and ends when it is told to."""

    def __init__(self) -> None:
        self.begun = self.cancelled = 0
        self.may_end = asyncio.Event()

    async def do(self) -> int:
        self.begun += 1
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self.begun


def test_it_is_done_once_for_all_who_wait() -> None:
    async def main() -> None:
        shared: Shared[str, int] = Shared()
        work = Work()
        waiting = [asyncio.create_task(shared.join("nas", work.do)) for _ in range(5)]
        await asyncio.sleep(0)
        work.may_end.set()
        assert await asyncio.gather(*waiting) == [1] * 5
        assert await shared.join("nas", work.do) == 2  # it is over: another time is another piece of work

    run(main())


def test_another_key_is_other_work() -> None:
    async def main() -> None:
        shared: Shared[str, int] = Shared()
        work = Work()
        work.may_end.set()
        await asyncio.gather(shared.join("nas", work.do), shared.join("laptop", work.do))
        assert work.begun == 2

    run(main())


def test_who_gives_up_takes_it_from_nobody_else_and_the_last_one_ends_it() -> None:
    async def main() -> None:
        shared: Shared[str, int] = Shared()
        work = Work()
        first, second = (asyncio.create_task(shared.join("nas", work.do)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert work.cancelled == 0
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        assert (work.begun, work.cancelled) == (1, 1)
        assert first.cancelled()
        assert second.cancelled()

    run(main())


def test_an_error_is_everybodys() -> None:
    async def fail() -> int:
        await asyncio.sleep(0)
        raise ZeroDivisionError

    async def main() -> None:
        shared: Shared[str, int] = Shared()
        waiting = [asyncio.create_task(shared.join("nas", fail)) for _ in range(3)]
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(result) for result in results] == [ZeroDivisionError] * 3

    run(main())


@pytest.mark.parametrize("waiters", [1, 3])
def test_closing_it_is_an_error_for_who_waits_and_no_cancellation(waiters: int) -> None:
    async def main() -> None:
        shared: Shared[str, int] = Shared()
        work = Work()
        waiting = [asyncio.create_task(shared.join("nas", work.do)) for _ in range(waiters)]
        while not work.begun:
            await asyncio.sleep(0)
        await shared.close()
        assert work.cancelled == 1
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [str(result) for result in results] == ["the channel was closed by us"] * waiters
        assert all(isinstance(result, ChannelClosedError) for result in results)
        await shared.close()

    run(main())


def test_cancelled_in_the_turn_of_its_end_it_is_cancelled() -> None:
    async def main() -> None:
        shared: Shared[str, int] = Shared()
        work = Work()
        waiting = asyncio.create_task(shared.join("nas", work.do))
        await asyncio.sleep(0)
        waiting.cancel()
        shared.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert waiting.cancelled()

    run(main())
