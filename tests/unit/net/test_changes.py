"""What counts as a change of the network, and that it is told: the decisions by values, the driver with clocks of ours."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Callable

import pytest

from p2ptunnel.errors import LocalProtocolError
from p2ptunnel.net import changes
from p2ptunnel.net.changes import (
    ClockReading,
    NetworkChange,
    NetworkWatch,
    Surroundings,
    address_change,
    look_around,
    seconds_late,
    sleep_change,
)
from p2ptunnel.net.interfaces import local_addresses
from p2ptunnel.trace import TraceEvent, Tracer
from tests.helpers import run

HOME = Surroundings(frozenset({"192.0.2.7", "2001:db8::7"}), frozenset({"192.0.2.1 on eth0"}))
CAFE = Surroundings(frozenset({"198.51.100.9"}), frozenset({"198.51.100.1 on wlan0"}))
NEW_ADDRESS, NEW_ROUTE = 20, 24
TICK = 0.01  # a hundred times as fast as it is


# --- decisions --------------------------------------------------------------------------------------------------------


def test_another_network_is_told_in_full() -> None:
    change = address_change(HOME, CAFE)
    assert change == NetworkChange(
        "addresses",
        "lost 192.0.2.7, 2001:db8::7; new 198.51.100.9; no route by 192.0.2.1 on eth0; route by 198.51.100.1 on wlan0",
    )
    assert str(change) == change.text


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (Surroundings(frozenset()), Surroundings(frozenset({"192.0.2.7"})), "new 192.0.2.7"),
        (Surroundings(frozenset({"192.0.2.7"})), Surroundings(frozenset()), "lost 192.0.2.7"),
        (HOME, Surroundings(HOME.addresses), "no route by 192.0.2.1 on eth0"),
        (Surroundings(HOME.addresses), HOME, "route by 192.0.2.1 on eth0"),
    ],
)
def test_one_difference_is_a_change(before: Surroundings, after: Surroundings, text: str) -> None:
    assert address_change(before, after) == NetworkChange("addresses", text)


def test_the_same_addresses_and_routes_are_no_change() -> None:
    assert address_change(HOME, Surroundings(frozenset({"2001:db8::7", "192.0.2.7"}), HOME.routes)) is None


@pytest.mark.parametrize(("slept", "text"), [(2.01, "slept 2 s"), (3600.0, "slept 3600 s")])
def test_clock_that_ran_alone_means_sleep(slept: float, text: str) -> None:
    assert sleep_change(ClockReading(10.0, 500.0), ClockReading(11.0, 501.0 + slept)) == NetworkChange("woke", text)


@pytest.mark.parametrize(
    "after", [ClockReading(11.0, 501.0), ClockReading(11.0, 502.9), ClockReading(70.0, 560.0), ClockReading(11.0, 100.0)]
)
def test_time_awake_a_small_difference_and_a_clock_set_back_are_no_sleep(after: ClockReading) -> None:
    assert sleep_change(ClockReading(10.0, 500.0), after) is None


def test_wall_clock_must_jump_further() -> None:
    before = ClockReading(10.0, 500.0)
    assert sleep_change(before, ClockReading(11.0, 505.9), shortest=5.0) is None
    assert sleep_change(before, ClockReading(11.0, 506.1), shortest=5.0) is not None


@pytest.mark.parametrize(("late", "expected"), [(0.0, 0.0), (-0.005, 0.0), (1.5, 1.5)])
def test_lateness_is_what_exceeds_a_tick_awake(late: float, expected: float) -> None:
    after = ClockReading(10.0 + TICK + late, 9000.0)
    assert seconds_late(ClockReading(10.0, 500.0), after) == pytest.approx(expected)


def test_look_around_sees_the_addresses_of_this_machine() -> None:
    assert look_around().addresses == frozenset(local_addresses())


def test_look_around_without_rtnetlink_sees_the_addresses_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> None:
        raise PermissionError

    monkeypatch.setattr(changes, "find_route", refuse)
    assert look_around() == Surroundings(frozenset(local_addresses()))


# --- the driver -------------------------------------------------------------------------------------------------------


class World:
    """Clocks, surroundings and news that a test sets, and the watch over them."""

    def __init__(self, *, has_news: bool = False) -> None:
        self.awake, self.always = 100.0, 5000.0
        self.around = HOME
        self.looks = 0
        self.ticks = asyncio.Queue[None]()
        self.told = asyncio.Queue[NetworkChange]()
        self.traced: list[TraceEvent] = []
        self.teller, self._news = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._news.setblocking(False)
        self._has_news = has_news
        self.watch = NetworkWatch(
            self.told.put_nowait,
            tracer=Tracer(self.traced.append),
            awake=self._read_awake,
            always=lambda: self.always,
            look=self._look,
            listen=self._listen,
        )

    def __enter__(self) -> World:
        self.watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.watch.close()
        self.watch.close()
        self._news.close()
        self.teller.close()

    @property
    def names(self) -> list[str]:
        return [event.name for event in self.traced]

    def say(self, kind: int, body: bytes = bytes(12)) -> None:
        """Send one message of rtnetlink."""
        self.teller.send(struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body)

    async def tick(self, times: int = 1) -> None:
        """Wait for so many ticks that begin after now."""
        while not self.ticks.empty():
            self.ticks.get_nowait()
        for _ in range(times):
            await self.ticks.get()
        await asyncio.sleep(0)

    def _read_awake(self) -> float:
        self.ticks.put_nowait(None)
        self.awake += TICK
        self.always += TICK
        return self.awake

    def _look(self) -> Surroundings:
        self.looks += 1
        return self.around

    def _listen(self) -> socket.socket:
        if not self._has_news:
            raise PermissionError(errno.EACCES, "forbidden")
        return self._news


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "NETWORK_TICK", TICK)
    monkeypatch.setattr(changes, "NETWORK_SETTLE", 0.002)


def test_news_are_told_as_what_has_changed() -> None:
    async def main() -> None:
        with World(has_news=True) as world:
            world.around = CAFE
            world.say(NEW_ADDRESS)
            assert (await world.told.get()).text.startswith("lost 192.0.2.7")
            assert world.names == ["network_changed"]

    run(main())


def test_a_burst_of_news_is_one_look_and_one_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "NETWORK_SETTLE", 0.05)

    async def main() -> None:
        with World(has_news=True) as world:
            for number in range(200):
                world.around = Surroundings(frozenset({f"192.0.2.{number}"}))
                world.say(NEW_ADDRESS)
                if number % 50 == 0:
                    await asyncio.sleep(0)
            change = await world.told.get()
            assert "new 192.0.2.199" in change.text
            assert world.looks == 2  # at the start, and after the burst
            world.around = HOME
            world.say(NEW_ADDRESS)
            assert "lost 192.0.2.199" in (await world.told.get()).text

    run(main())


def test_news_that_change_nothing_are_not_told() -> None:
    async def main() -> None:
        with World(has_news=True) as world:
            world.say(NEW_ADDRESS)
            while world.looks < 2:
                await world.tick()
            assert world.told.empty()

    run(main())


def test_where_there_are_news_nobody_polls() -> None:
    async def main() -> None:
        with World(has_news=True) as world:
            world.say(NEW_ROUTE, bytes([socket.AF_INET, 24]) + bytes(10))  # of a network, not of the whole internet
            await world.tick(6)
            assert world.looks == 1

    run(main())


def test_without_news_every_second_tick_looks() -> None:
    async def main() -> None:
        with World() as world:
            await world.tick(6)
            assert 3 <= world.looks <= 5
            world.around = CAFE
            assert (await world.told.get()).kind == "addresses"
            assert world.names == ["news_unavailable", "network_changed"]

    run(main())


def test_news_that_end_are_replaced_by_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: socket.socket) -> bool:
        raise OSError(errno.EBADF, "gone")

    monkeypatch.setattr(changes, "take_news", fail)

    async def main() -> None:
        with World(has_news=True) as world:
            world.say(NEW_ADDRESS)
            world.around = CAFE
            assert (await world.told.get()).kind == "addresses"
            assert world.names == ["news_unavailable", "network_changed"]

    run(main())


def test_sleep_is_told_at_the_next_tick() -> None:
    async def main() -> None:
        with World(has_news=True) as world:
            world.always += 60
            assert await world.told.get() == NetworkChange("woke", "slept 60 s")
            await world.tick(3)
            assert world.told.empty()  # once

    run(main())


def test_starved_loop_is_traced_and_no_change() -> None:
    async def main() -> None:
        with World(has_news=True) as world:
            world.awake += 1.5
            world.always += 1.5
            await world.tick(3)
            assert world.told.empty()
            assert [(event.layer, event.name, event.facts) for event in world.traced] == [
                ("net", "loop_starved", {"seconds": 1.5})
            ]

    run(main())


def test_a_tick_that_is_a_little_late_is_not_traced() -> None:
    async def main() -> None:
        with World(has_news=True) as world:
            world.awake += 0.9
            world.always += 0.9
            await world.tick(3)
            assert world.traced == []

    run(main())


@pytest.mark.parametrize("has_news", [True, False])
def test_closed_watch_calls_no_more(has_news: bool) -> None:
    async def main() -> None:
        with World(has_news=has_news) as world:
            await world.tick()
            world.say(NEW_ADDRESS)
            await asyncio.sleep(0)
            world.watch.close()
            world.around = CAFE
            world.always += 60
            done = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_later(5 * TICK, done.set_result, None)
            await done
            assert world.told.empty()

    run(main())


def test_closed_watch_leaves_nothing_in_the_selector() -> None:
    """Else the next socket of that number is never watched."""

    async def main() -> None:
        with World(has_news=True) as world:
            number = world._news.fileno()
            world.watch.close()
            assert world._news.fileno() < 0
            assert not asyncio.get_running_loop().remove_reader(number)

    run(main())


def test_callback_may_close_the_watch_and_hears_nothing_more() -> None:
    async def main() -> None:
        told: list[NetworkChange] = []

        def on_change(change: NetworkChange) -> None:
            told.append(change)
            world.watch.close()

        with World() as world:
            world.watch._on_change = on_change
            await world.tick()
            world.around = CAFE
            world.always += 60  # both at one tick, at the latest at the next
            world.watch._ticks = 1
            await world.tick()
            assert len(told) == 1

    run(main())


def test_watch_starts_once() -> None:
    async def main() -> None:
        with World() as world, pytest.raises(LocalProtocolError, match="started once"):
            world.watch.start()

    run(main())


def test_closed_watch_does_not_start() -> None:
    async def main() -> None:
        watch = NetworkWatch(lambda _: None)
        watch.close()
        with pytest.raises(LocalProtocolError, match="started once"):
            watch.start()

    run(main())


def test_real_watch_idles_at_one_timer_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    scheduled: list[float] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        real: Callable[..., asyncio.TimerHandle] = loop.call_later

        def call_later(delay: float, *arguments: object) -> asyncio.TimerHandle:
            scheduled.append(delay)
            return real(delay, *arguments)

        monkeypatch.setattr(loop, "call_later", call_later)
        watch = NetworkWatch(lambda _: None)
        watch.start()
        watch.close()
        assert scheduled == [1.0]

    run(main())
