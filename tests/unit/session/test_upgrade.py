"""Looking for a path that needs no relay: when, how often, and what ends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from p2ptunnel.errors import ChannelLostError
from p2ptunnel.session import upgrade as module
from p2ptunnel.session.upgrade import Upgrade
from tests.helpers import run
from tests.helpers.lasting import until


class Relayed:
    """A session that runs over the relay or not, and attempts that the test ends one by one."""

    def __init__(self) -> None:
        self.relayed, self.settled = asyncio.Event(), asyncio.Event()
        self.settled.set()
        self.others = asyncio.Event()
        self.others.set()
        self.attempts: list[asyncio.Future[None]] = []
        self.failures: list[Exception] = []
        self.upgrade = Upgrade(self, self._attempt, self.failures.append)

    async def attempted(self) -> None:
        await self.others.wait()

    async def _attempt(self) -> None:
        attempt: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.attempts.append(attempt)
        await attempt

    async def fails(self, number: int) -> None:
        """Wait for the attempt of this number, and let it fail."""
        await until(lambda: len(self.attempts) == number)
        self.attempts[-1].set_exception(ChannelLostError("no route"))
        await until(lambda: len(self.failures) == number)


@asynccontextmanager
async def improving() -> AsyncGenerator[Relayed]:
    session = Relayed()
    running = asyncio.create_task(session.upgrade.run())
    try:
        yield session
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UPGRADE_FIRST", 0.01)


def test_a_session_that_needs_no_relay_is_left_alone() -> None:
    async def main() -> None:
        async with improving() as session:
            session.upgrade.hurry()
            await turns()
            assert session.attempts == []

    run(main())


def test_it_is_tried_ever_more_rarely_and_anew_when_the_relay_is_needed_anew() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with improving() as session:
            session.relayed.set()
            pauses: list[float] = []
            for number in (1, 2, 3, 4):
                began = loop.time()
                await session.fails(number)
                pauses.append(loop.time() - began)
            assert pauses[3] > 0.8 * 0.01 * 3**3
            session.relayed.clear()
            await until(lambda: not session.attempts[-1].cancelled())
            session.relayed.set()
            session.upgrade.hurry()
            await until(lambda: len(session.attempts) == 5)

    run(main())


def test_the_pauses_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UPGRADE_CAP", 0.02)

    async def main() -> None:
        async with improving() as session:
            session.relayed.set()
            for number in range(1, 8):
                await session.fails(number)

    run(main(), timeout=5)


def test_a_change_of_the_network_is_a_reason_to_try_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UPGRADE_FIRST", 1000.0)

    async def main() -> None:
        async with improving() as session:
            session.relayed.set()
            await turns()
            assert session.attempts == []
            session.upgrade.hurry()
            await until(lambda: len(session.attempts) == 1)

    run(main())


def test_nothing_is_tried_beside_attempts_of_others() -> None:
    async def main() -> None:
        async with improving() as session:
            session.others.clear()
            session.relayed.set()
            await asyncio.sleep(0.03)
            assert session.attempts == []
            session.others.set()
            await until(lambda: len(session.attempts) == 1)

    run(main())


def test_nothing_is_tried_while_the_session_looks_for_any_path_at_all() -> None:
    async def main() -> None:
        async with improving() as session:
            session.settled.clear()
            session.relayed.set()
            await asyncio.sleep(0.03)
            assert session.attempts == []
            session.settled.set()
            await until(lambda: len(session.attempts) == 1)

    run(main())


def test_a_fault_of_ours_is_not_hidden() -> None:
    async def main() -> None:
        session = Relayed()
        running = asyncio.create_task(session.upgrade.run())
        session.relayed.set()
        await until(lambda: len(session.attempts) == 1)
        session.attempts[0].set_exception(ZeroDivisionError())
        with pytest.raises(ZeroDivisionError):
            await running

    run(main())
