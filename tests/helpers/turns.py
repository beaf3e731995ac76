"""Cancelling a piece of work after each turn of the loop that it takes, and seeing that nothing is left of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, TypeVar

__all__ = ["cancel_at_each_turn", "cancelled_after", "descriptors", "settle"]

T = TypeVar("T")
_SETTLING = 500


def descriptors() -> int:
    """Return how many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


async def settle(before: int, tasks: int | None = None) -> None:
    """Let the loop turn a little, until no more descriptors are open than `before` and no more tasks run; fail if there are."""
    for _ in range(_SETTLING):
        if descriptors() <= before and (tasks is None or len(asyncio.all_tasks()) <= tasks):
            return
        await asyncio.sleep(0.001)
    raise AssertionError(f"{descriptors() - before} descriptors more than before; tasks: {asyncio.all_tasks()}")


@contextlib.contextmanager
def cancelled_after(turns: int, task: asyncio.Task[Any]) -> Generator[None]:
    """Have the task cancelled when the loop has turned so many times, that is has slept and done all that was due."""
    loop: Any = asyncio.get_running_loop()
    turn, left = loop._run_once, turns

    def counted() -> None:
        nonlocal left
        if left == 0:
            task.cancel()
        left -= 1
        turn()

    loop._run_once = counted  # the one place that every turn passes
    try:
        yield
    finally:
        loop._run_once = turn


async def cancel_at_each_turn(
    work: Callable[[], Coroutine[Any, Any, T]],
    undo: Callable[[T], Awaitable[None]],
    *,
    most: int = 1000,
) -> int:
    """Do `work`, cancelled after 0 turns of the loop, after 1, and so on, until it is done before; return how many that were.

    Each time, all tasks and descriptors that it brought must be gone afterwards; `undo` ends what was done after all.
    """
    before, tasks = descriptors(), len(asyncio.all_tasks())
    for turns in range(most):
        task = asyncio.create_task(work())
        with cancelled_after(turns, task):
            await asyncio.wait([task])
        if not task.cancelled():
            await undo(task.result())
        await settle(before, tasks)
        if not task.cancelled() and not task.cancelling():
            return turns
    raise AssertionError(f"not done in {most} turns")
