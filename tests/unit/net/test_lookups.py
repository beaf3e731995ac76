"""Look-ups of names for peers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from p2ptunnel.errors import LookupsBusyError
from p2ptunnel.net.lookups import Lookups
from tests.helpers import run


class Resolver:
    """Answers nobody before it is told to, and counts the threads that ask."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answers = threading.Event()

    def __call__(self, name: str) -> str:
        self.asked.append(name)
        self.answers.wait()
        if name == "gone":
            raise OSError("no such host")
        return name.upper()


@pytest.fixture
def resolver() -> Iterator[Resolver]:
    resolver = Resolver()
    yield resolver
    resolver.answers.set()
    for thread in threading.enumerate():
        if thread.name == "p2ptunnel-look-up":
            thread.join()


async def begun(*looking: asyncio.Task[str]) -> tuple[asyncio.Task[str], ...]:
    await asyncio.sleep(0)
    return looking


def test_a_name_that_is_being_looked_up_is_looked_up_once(resolver: Resolver) -> None:
    async def main() -> None:
        lookups = Lookups(resolver)
        looking = await begun(*(asyncio.create_task(lookups.find("nas", asker)) for asker in "ab"))
        resolver.answers.set()
        assert await asyncio.gather(*looking) == ["NAS", "NAS"]
        assert resolver.asked == ["nas"]
        assert await lookups.find("nas", "a") == "NAS"
        assert resolver.asked == ["nas", "nas"]

    run(main())


def test_a_failure_comes_back_to_all_who_asked_and_leaves_room(resolver: Resolver) -> None:
    async def main() -> None:
        lookups = Lookups(resolver, most=1)
        looking = await begun(*(asyncio.create_task(lookups.find("gone", asker)) for asker in "ab"))
        resolver.answers.set()
        for task in looking:
            with pytest.raises(OSError, match="no such host"):
                await task
        assert await lookups.find("nas", "a") == "NAS"

    run(main())


def test_who_gives_up_takes_the_answer_from_nobody(resolver: Resolver) -> None:
    async def main() -> None:
        lookups = Lookups(resolver)
        gone, stays = await begun(*(asyncio.create_task(lookups.find("nas", "a")) for _ in range(2)))
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        resolver.answers.set()
        assert await stays == "NAS"

    run(main())


def test_beyond_so_many_of_one_asker_and_in_all_is_an_error_also_when_nobody_waits_any_more(resolver: Resolver) -> None:
    async def main() -> None:
        lookups = Lookups(resolver, most=3, most_of_one=2)
        given_up = await begun(*(asyncio.create_task(lookups.find(name, "a")) for name in ("one", "two")))
        for task in given_up:
            task.cancel()
        with pytest.raises(LookupsBusyError):
            await lookups.find("three", "a")
        [other] = await begun(asyncio.create_task(lookups.find("three", "b")))
        with pytest.raises(LookupsBusyError):
            await lookups.find("four", "c")
        assert len(resolver.asked) == 3
        resolver.answers.set()
        assert await other == "THREE"

    run(main())


def test_who_has_had_an_answer_may_ask_again(resolver: Resolver) -> None:
    async def main() -> None:
        resolver.answers.set()
        lookups = Lookups(resolver, most=1, most_of_one=1)
        assert [await lookups.find(str(number), "a") for number in range(5)] == list("01234")

    run(main())
