"""The tasks of a session.  Rule: none outlives it, and none fails unseen."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Final

from p2ptunnel.errors import P2PTunnelError
from p2ptunnel.trace import Tracer
from p2ptunnel.types import Tag

__all__ = ["Work"]

_log: Final = logging.getLogger("p2ptunnel.session")


class Work:
    """What runs for one session.

    Args:
        tag: The peer's name here.
        tracer: Told what came to nothing.
    """

    def __init__(self, tag: Tag, tracer: Tracer) -> None:
        self._tag: Final = tag
        self._trace: Final = tracer
        self._tasks: Final[set[asyncio.Task[Any]]] = set()
        self._attempts: Final[set[asyncio.Task[Any]]] = set()  # of these, those that bring up another channel
        self._is_ended = False

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` until `end`; its errors are traced."""
        task = asyncio.get_running_loop().create_task(work)
        self._own(task)
        return task

    def attend(self, attempt: asyncio.Task[Any]) -> None:
        """Take over an attempt to bring up another channel, which is under way."""
        self._attempts.add(attempt)
        attempt.add_done_callback(self._attempts.discard)
        self._own(attempt)

    async def attempted(self) -> None:
        """Wait until no attempt is under way that we have been given."""
        while self._attempts:
            await asyncio.wait(self._attempts)

    def end(self) -> None:
        """Cancel everything, and what comes later at once; but not the task that does so, which may be one of ours."""
        self._is_ended = True
        for task in self._tasks - {asyncio.current_task()}:
            task.cancel()

    async def ended(self) -> None:
        """Wait for the end of everything else."""
        await asyncio.gather(*(self._tasks - {asyncio.current_task()}), return_exceptions=True)

    def _own(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._worked)
        if self._is_ended:  # before anybody could begin
            task.cancel()

    def _worked(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, (P2PTunnelError, OSError)):
            self._trace("session", "work_failed", tag=self._tag, reason=str(error))
        elif error is not None:
            _log.error("a task of the session with %s failed", self._tag, exc_info=error)
