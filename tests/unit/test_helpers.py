"""The guard that every test runs under."""

from __future__ import annotations

import asyncio
import os

import pytest

from tests.helpers import run, watch_for_leaks


async def forever() -> None:
    await asyncio.Event().wait()


def test_a_task_that_outlives_its_loop_is_a_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    async def leave_a_task() -> None:
        task = asyncio.create_task(forever(), name="left")
        await asyncio.wait([task], timeout=0)

    with watch_for_leaks(monkeypatch) as leaks:
        run(leave_a_task())
    assert str(leaks) == "left behind: task left (forever)"


def test_a_descriptor_that_stays_open_is_a_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    with watch_for_leaks(monkeypatch) as leaks:
        reading, writing = os.pipe()
    os.close(reading)
    os.close(writing)
    assert [line.split(" (")[0] for line in leaks.lines] == [f"descriptor {reading}", f"descriptor {writing}"]


def test_what_was_cancelled_and_closed_is_no_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    async def tidy() -> None:
        task = asyncio.create_task(forever())
        task.cancel()
        await asyncio.wait([task])

    with watch_for_leaks(monkeypatch) as leaks:
        run(tidy())
    assert not leaks


def test_a_coroutine_that_takes_too_long_is_cancelled() -> None:
    with pytest.raises(TimeoutError):
        run(forever(), timeout=0.01)
