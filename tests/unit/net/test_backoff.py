"""Pauses between tries: their lengths, their jitter, and how they are cut short."""

from __future__ import annotations

import asyncio

import pytest

from p2ptunnel.defaults import RECONNECT_CAP, RECONNECT_FACTOR, RECONNECT_FIRST, RECONNECT_QUICK, RECONNECT_QUICK_CAP
from p2ptunnel.net import backoff as backoff_module
from p2ptunnel.net.backoff import Backoff
from tests.helpers import run


class Dice:
    """Always the same."""

    def __init__(self, value: float) -> None:
        self.value = value

    def random(self) -> float:
        return self.value


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the pauses see."""
    now = [50.0]
    monkeypatch.setattr(backoff_module.time, "monotonic", lambda: now[0])
    return now


def test_pauses_grow_up_to_a_low_cap_and_to_a_high_one_after_half_a_minute(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backoff_module, "_dice", Dice(1.0))
    pauses = Backoff()
    seconds = [pauses._seconds() for _ in range(12)]
    expected = [min(RECONNECT_FIRST * RECONNECT_FACTOR**number, RECONNECT_QUICK_CAP) for number in range(12)]
    assert seconds == pytest.approx(expected)
    clock[0] += RECONNECT_QUICK
    assert pauses._seconds() == RECONNECT_CAP


def test_every_pause_is_random_between_nothing_and_its_length(clock: list[float]) -> None:
    seconds = [Backoff()._seconds() for _ in range(1000)]
    assert max(seconds) <= RECONNECT_FIRST
    assert min(seconds) >= 0
    assert sum(seconds) / 1000 == pytest.approx(RECONNECT_FIRST / 2, rel=0.15)


def test_who_hurries_ends_the_pause_and_begins_anew_with_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff_module, "_dice", Dice(1.0))

    async def scenario() -> None:
        pauses = Backoff()
        pauses._next, pauses._began = RECONNECT_CAP, pauses._began - RECONNECT_QUICK
        pausing = asyncio.ensure_future(pauses.pause())
        await asyncio.sleep(0)
        assert not pausing.done()
        pauses.hurry()
        await asyncio.wait_for(pausing, 1)
        assert pauses._seconds() == RECONNECT_FIRST

    run(scenario())


def test_hurrying_before_the_pause_spares_it_and_only_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff_module, "_dice", Dice(1.0))

    async def scenario() -> None:
        pauses = Backoff()
        pauses.hurry()
        pauses._next = RECONNECT_CAP
        await asyncio.wait_for(pauses.pause(), 0.5)
        pausing = asyncio.ensure_future(pauses.pause())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not pausing.done()
        pausing.cancel()
        await asyncio.gather(pausing, return_exceptions=True)
        assert pausing.cancelled()

    run(scenario())


def test_a_thing_is_tried_until_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff_module, "_dice", Dice(0.0))
    answers = [False, False, True, False]

    async def attempt() -> bool:
        return answers.pop(0)

    run(Backoff().until_done(attempt))
    assert answers == [False]
