"""The event loop of a command, and the signals that end it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

__all__ = ["run", "run_until_stopped"]

T = TypeVar("T")

_STOPPING: Final = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


def run(work: Coroutine[Any, Any, T]) -> T | int:
    """Run a command to its end; SIGTERM and SIGHUP cancel it and become 128 plus their number, as a shell would say it."""
    return asyncio.run(_until_stopped(work))


def run_until_stopped(work: Coroutine[Any, Any, None]) -> int:
    """Run a command that goes on until it is told to end: SIGTERM and SIGHUP close everything and are a success."""
    asyncio.run(_until_stopped(work))
    return 0


async def _until_stopped(work: Coroutine[Any, Any, T]) -> T | int:
    task = asyncio.current_task()
    received: list[int] = []

    def stop(number: int) -> None:
        received.append(number)
        assert task is not None
        task.cancel()

    loop = asyncio.get_running_loop()
    for number in _STOPPING:
        with contextlib.suppress(NotImplementedError):  # Windows
            loop.add_signal_handler(number, stop, number)
    try:
        return await work
    except asyncio.CancelledError:
        if not received:
            raise
        return 128 + received[0]
