"""Work that several callers wait for together: begun by the first, cancelled when the last gives up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from p2ptunnel.errors import ChannelClosedError

__all__ = ["Shared"]

K = TypeVar("K")
V = TypeVar("V")


class Shared(Generic[K, V]):
    """The work under way, by key."""

    def __init__(self) -> None:
        self._running: dict[K, _Work[V]] = {}

    async def join(self, key: K, begin: Callable[[], Coroutine[Any, Any, V]]) -> V:
        """Wait for the work of `key`, which `begin` starts if nobody has; return what it returns, raise what it raises.

        Raises:
            ChannelClosedError: `close` ended it.
        """
        work = self._running.get(key)
        if work is None:
            work = self._running[key] = _Work(asyncio.create_task(begin()))
        work.waiting += 1
        try:
            return await work.outcome()
        finally:
            work.waiting -= 1
            if not work.waiting:
                if self._running.get(key) is work:
                    del self._running[key]
                await work.end()

    def cancel(self) -> None:
        """End all work; whoever waits for it gets an error."""
        for work in self._running.values():
            work.cancel()

    async def close(self) -> None:
        """End all work, and wait for its end."""
        self.cancel()
        for work in tuple(self._running.values()):
            await work.end()


class _Work(Generic[V]):
    """One piece of work, and how many wait for it."""

    def __init__(self, task: asyncio.Task[V]) -> None:
        self.waiting = 0
        self._task = task

    async def outcome(self) -> V:
        """Wait for the result; to be cancelled while waiting leaves the work alone."""
        try:
            return await asyncio.shield(self._task)
        except asyncio.CancelledError:
            if self._task.cancelled() and not _is_cancelled():
                raise ChannelClosedError from None
            raise

    def cancel(self) -> None:
        """Cancel the work."""
        self._task.cancel()

    async def end(self) -> None:
        """Cancel the work and wait for its end; what it raises then is nobody's any more."""
        if not self._task.done():
            self.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


def _is_cancelled() -> bool:
    """Tell whether the running task itself is to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
