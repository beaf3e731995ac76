"""Sees what a piece of code leaves behind: tasks that outlive their loop, descriptors that nobody closed.

`asyncio.run` cancels leftover tasks without a word and the garbage collector closes forgotten sockets; both hide the
mistake that a long-lived process would pay for.
"""

from __future__ import annotations

import asyncio
import asyncio.runners
import contextlib
import gc
import os
from collections.abc import Generator
from pathlib import Path

import pytest

__all__ = ["Leaks", "watch_for_leaks"]

_DESCRIPTORS = Path("/proc/self/fd")
_cancel_all_tasks = asyncio.runners._cancel_all_tasks  # type: ignore[attr-defined]  # the one place that sees every run end


class Leaks:
    """What was left: one line each; falsy when there is nothing."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __bool__(self) -> bool:
        return bool(self.lines)

    def __str__(self) -> str:
        return "left behind: " + "; ".join(self.lines)

    def note_tasks(self, loop: asyncio.AbstractEventLoop) -> None:
        """Note the tasks of a loop whose main coroutine has ended, then do what asyncio does with them."""
        self.lines += [f"task {task.get_name()} ({_where(task)})" for task in asyncio.all_tasks(loop)]
        _cancel_all_tasks(loop)

    def note_descriptors(self, before: dict[int, str]) -> None:
        """Note the descriptors that are open now and were not `before`."""
        if _descriptors().keys() - before.keys():
            gc.collect()  # what only a cycle holds is no leak
            after = _descriptors()
            self.lines += [f"descriptor {fd} ({after[fd]})" for fd in sorted(after.keys() - before.keys())]


@contextlib.contextmanager
def watch_for_leaks(monkeypatch: pytest.MonkeyPatch) -> Generator[Leaks]:
    """Watch the code inside; afterwards the value tells what it left behind."""
    leaks, before = Leaks(), _descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(asyncio.runners, "_cancel_all_tasks", leaks.note_tasks)
        yield leaks
    leaks.note_descriptors(before)


def _descriptors() -> dict[int, str]:
    found: dict[int, str] = {}
    if _DESCRIPTORS.is_dir():
        for name in os.listdir(_DESCRIPTORS):
            with contextlib.suppress(OSError):  # the descriptor of this very listing is gone again
                found[int(name)] = os.readlink(_DESCRIPTORS / name)
    return found


def _where(task: asyncio.Task[object]) -> str:
    coroutine = task.get_coro()
    return getattr(coroutine, "__qualname__", repr(coroutine))
