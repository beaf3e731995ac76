"""How an async test runs."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["run"]

T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T], timeout: float = 20) -> T:
    """Run one coroutine on a loop of its own, for at most `timeout` seconds, and return what it returns.

    Raises:
        TimeoutError: It took longer; it has been cancelled.
    """
    return asyncio.run(_bounded(coroutine, timeout))


async def _bounded(coroutine: Coroutine[Any, Any, T], timeout: float) -> T:
    async with asyncio.timeout(timeout):
        return await coroutine
