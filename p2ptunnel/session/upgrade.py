"""Looks for a path that needs no relay, as long as a session runs over one.  Rule: it is the session that moves, or does not.

What did not open may open later: a laptop comes home, a NAT forgets.  So it is tried again, ever more rarely.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from p2ptunnel.defaults import UPGRADE_CAP, UPGRADE_FACTOR, UPGRADE_FIRST
from p2ptunnel.errors import P2PTunnelError

__all__ = ["Relayed", "Upgrade"]

_dice: Final = random.SystemRandom()


class Relayed(Protocol):
    """What is known here of a session."""

    @property
    def relayed(self) -> asyncio.Event:
        """Set while it runs over the relay."""
        ...

    @property
    def settled(self) -> asyncio.Event:
        """Set while no other channel is looked for."""
        ...

    async def attempted(self) -> None:
        """Wait until no attempt is under way that others began."""
        ...


class Upgrade:
    """Tries for one session, again and again.

    Args:
        session: Which says whether there is anything to improve.
        attempt: Brings up a channel that needs no relay and gives it to the session, or raises.
        on_failure: Told why an attempt failed.
    """

    def __init__(
        self, session: Relayed, attempt: Callable[[], Awaitable[None]], on_failure: Callable[[Exception], None]
    ) -> None:
        self._session: Final = session
        self._attempt: Final = attempt
        self._on_failure: Final = on_failure
        self._hurried: Final = asyncio.Event()
        self._pause = UPGRADE_FIRST

    def hurry(self) -> None:
        """Try now: the network has changed."""
        self._hurried.set()

    async def run(self) -> None:
        """Look for better paths until cancelled."""
        while True:
            if not self._session.relayed.is_set():
                self._pause = UPGRADE_FIRST
                await self._session.relayed.wait()
            await self._session.attempted()
            await self._wait()
            await self._session.settled.wait()
            if self._session.relayed.is_set():
                await self._try()

    async def _wait(self) -> None:
        seconds, self._pause = self._pause * _dice.uniform(0.8, 1.2), min(self._pause * UPGRADE_FACTOR, UPGRADE_CAP)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hurried.wait()
                self._pause = UPGRADE_FIRST
        self._hurried.clear()

    async def _try(self) -> None:
        try:
            await self._attempt()
        except (P2PTunnelError, OSError) as error:
            self._on_failure(error)
