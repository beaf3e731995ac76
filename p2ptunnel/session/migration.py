"""Brings a session to another channel whenever its own is in doubt.  Rule: it ends, and its attempts, as soon as there is none.

A lost path may come back at any moment, and an attempt that began before knows nothing of that: it waits out its time.  So a
fresh one begins beside it every two seconds, on ports of its own; the first channel that comes up wins.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from p2ptunnel.defaults import DEAD_ACTIVE, REDIAL_STAGGER, REDIALS_AT_ONCE
from p2ptunnel.errors import P2PTunnelError
from p2ptunnel.net.backoff import Backoff

__all__ = ["Migration", "Wanting"]


class Wanting(Protocol):
    """What is known here of a session."""

    @property
    def in_doubt(self) -> asyncio.Event:
        """Set while another channel is wanted."""
        ...

    @property
    def settled(self) -> asyncio.Event:
        """Set while none is."""
        ...


class Migration:
    """Looks for channels for one session.

    Args:
        session: Whose `in_doubt` says that a channel is wanted, and `settled` that none is.
        redial: One attempt: brings a channel up and gives it to the session, or raises.
        on_failure: Told why an attempt failed.
    """

    def __init__(
        self, session: Wanting, redial: Callable[[], Awaitable[None]], on_failure: Callable[[Exception], None]
    ) -> None:
        self._session: Final = session
        self._redial: Final = redial
        self._on_failure: Final = on_failure
        self._backoff = Backoff()
        self._attempts: Final[list[asyncio.Task[None]]] = []
        self._displaced: Final[set[asyncio.Task[None]]] = set()  # cancelled for a fresh one, and not ended yet

    def hurry(self) -> None:
        """Try again now: the network has changed."""
        self._backoff.hurry()

    async def run(self) -> None:
        """Keep the session on a channel until cancelled."""
        while True:
            await self._session.in_doubt.wait()
            self._backoff = Backoff()
            search = asyncio.ensure_future(self._search())
            settled = asyncio.ensure_future(self._session.settled.wait())
            try:
                done, _ = await asyncio.wait((search, settled), return_when=asyncio.FIRST_COMPLETED)
                if search in done:
                    search.result()  # it does not end by itself: this is a fault of ours, and to try for ever would hide it
            finally:
                ending = (search, settled, *self._attempts, *self._displaced)
                for task in ending:
                    task.cancel()
                await asyncio.gather(*ending, return_exceptions=True)
                self._attempts.clear()

    async def _search(self) -> None:
        """Begin attempt after attempt; the end of doubt ends this from outside."""
        while True:
            self._begin_attempt()
            done, _ = await asyncio.wait(self._attempts, timeout=REDIAL_STAGGER, return_when=asyncio.FIRST_COMPLETED)
            for attempt in done:
                self._attempts.remove(attempt)
                await self._judge(attempt)

    def _begin_attempt(self) -> None:
        while len(self._attempts) >= REDIALS_AT_ONCE:
            displaced = self._attempts.pop(0)  # not looked at any more: its end is no reason to begin another one
            self._displaced.add(displaced)
            displaced.add_done_callback(self._displaced.discard)
            displaced.cancel()
        self._attempts.append(asyncio.ensure_future(self._redial()))

    async def _judge(self, attempt: asyncio.Task[None]) -> None:
        """Wait for the answer where a channel came up, and pause where none did."""
        if attempt.cancelled():
            return
        try:
            attempt.result()
        except (P2PTunnelError, OSError) as error:
            self._on_failure(error)
            await self._backoff.pause()
        else:
            await asyncio.sleep(DEAD_ACTIVE)
