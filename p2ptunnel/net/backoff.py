"""Pauses between tries: longer each time, with full jitter, short ones for the first half minute."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final

from p2ptunnel.defaults import RECONNECT_CAP, RECONNECT_FACTOR, RECONNECT_FIRST, RECONNECT_QUICK, RECONNECT_QUICK_CAP

__all__ = ["Backoff"]

_dice: Final = random.SystemRandom()


class Backoff:
    """The pauses of one trouble; the next trouble begins anew."""

    def __init__(self) -> None:
        self._hurried: Final = asyncio.Event()
        self._begin()

    def _begin(self) -> None:
        self._began = time.monotonic()
        self._next = RECONNECT_FIRST

    def hurry(self) -> None:
        """End the pause under way, and begin anew with short ones: something has changed."""
        self._begin()
        self._hurried.set()

    async def pause(self) -> None:
        """Pause."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._seconds()):
                await self._hurried.wait()
        self._hurried.clear()

    async def until_done(self, attempt: Callable[[], Awaitable[bool]]) -> None:
        """Pause and try, until a try has worked."""
        is_done = False
        while not is_done:
            await self.pause()
            is_done = await attempt()

    def _seconds(self) -> float:
        cap = RECONNECT_QUICK_CAP if time.monotonic() - self._began < RECONNECT_QUICK else RECONNECT_CAP
        seconds, self._next = min(self._next, cap), min(self._next * RECONNECT_FACTOR, RECONNECT_CAP)
        return seconds * _dice.random()
