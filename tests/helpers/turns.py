"""Cancelling a piece of work after each turn of the loop that it takes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["cancel_at_each_turn", "descriptors", "settle"]

T = TypeVar("T")
_SETTLING = 200


def descriptors() -> int:
    """Return how many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


async def settle(before: int) -> None:
    """Let the loop turn a little, until no more descriptors are open than `before`; fail if there still are."""
    for _ in range(_SETTLING):
        if descriptors() <= before:
            return
        await asyncio.sleep(0.001)
    raise AssertionError(f"{descriptors() - before} descriptors more than before")


async def cancel_at_each_turn(
    work: Callable[[], Coroutine[Any, Any, T]],
    undo: Callable[[T], Awaitable[None]],
    *,
    most: int = 2000,
) -> int:
    """Do `work`, cancelled after 0 turns of the loop, after 1, and so on, until it is done before; return how many that were.

    Each time, all tasks and descriptors that it brought must be gone afterwards; `undo` ends what was done after all.
    """
    before, tasks = descriptors(), len(asyncio.all_tasks())
    for turns in range(most):
        task = asyncio.create_task(work())
        for _ in range(turns):
            if task.done():
                break
            await asyncio.sleep(0)
        is_done = task.done()
        if not is_done:
            task.cancel()
        [result] = await asyncio.gather(task, return_exceptions=True)
        if not isinstance(result, BaseException):
            await undo(result)
        elif not isinstance(result, asyncio.CancelledError):
            raise result
        await settle(before)
        assert len(asyncio.all_tasks()) == tasks, f"after {turns} turns: {asyncio.all_tasks()}"
        if is_done:
            return turns
    raise AssertionError(f"not done in {most} turns")
