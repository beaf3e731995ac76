"""Blocking calls off the loop, in daemon threads.

The loop's default executor is no place for them: the interpreter joins its threads at exit, so one hanging name look-up
keeps a finished program from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

__all__ = ["in_thread"]

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what `function` returns, or raise what it raises, without blocking the loop.

    Each call has a thread of its own.  Cancelled, the call is forgotten; its thread goes on until the function returns.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def settle(setter: Callable[[Any], None], value: object) -> None:
        if not outcome.done():
            setter(value)

    def hand_over(setter: Callable[[Any], None], value: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle, setter, value)

    def work() -> None:
        try:
            result = function(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - it is raised where it belongs, in the task that waits
            hand_over(outcome.set_exception, error)
        else:
            hand_over(outcome.set_result, result)

    name = getattr(function, "__name__", "call")
    threading.Thread(target=work, name=f"p2ptunnel-{name}", daemon=True).start()
    return await outcome
