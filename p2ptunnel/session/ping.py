"""Round trips that somebody asks for, inside a session: how long, and over which path each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec

from p2ptunnel.defaults import PING_PATIENCE, PING_PAUSE
from p2ptunnel.errors import ChannelError
from p2ptunnel.events import Events, EventsDropped, PathChanged, PeerEvent
from p2ptunnel.session.live import Session
from p2ptunnel.types import Path, Tag

__all__ = ["PingReport", "Pinger", "Pong"]


class Pong(msgspec.Struct, frozen=True):
    """One question, and what came of it.

    Attributes:
        number: From 1.
        rtt: Seconds until the answer; None: nobody answered in time.
        path: Over which; None without an answer.
        moved_from: The path of the answer before, where that was another one.
    """

    number: int
    rtt: float | None
    path: Path | None = None
    moved_from: Path | None = None


class PingReport(msgspec.Struct, frozen=True):
    """All questions, and what came of them.

    Attributes:
        tag: The peer's, here.
        pongs: In the order in which they were asked.
        error: Why the session ended before all were asked, in words; empty where it did not.
    """

    tag: Tag
    pongs: tuple[Pong, ...]
    error: str = ""

    @property
    def rtts(self) -> tuple[float, ...]:
        """Seconds of those that were answered."""
        return tuple(pong.rtt for pong in self.pongs if pong.rtt is not None)

    @property
    def is_direct(self) -> bool:
        """Whether the last answer came over a path that needs no relay."""
        path = next((pong.path for pong in reversed(self.pongs) if pong.path is not None), None)
        return path is not None and path.kind != "relay"


class Pinger:
    """Asks over one session.

    Args:
        session: Over which.
        changes: Tells when a session moves, of which the pause to the next question is then the end; closed by `run`.
        tell: Told of each answer, or that there is none.
    """

    def __init__(self, session: Session, changes: Events, tell: Callable[[Pong], None]) -> None:
        self._session: Final = session
        self._changes: Final = changes
        self._tell: Final = tell
        self._pongs: list[Pong] = []
        self._path: Path | None = None
        self._ended = ""

    async def run(self, count: int | None, *, until_direct: bool, seconds: float | None) -> PingReport:
        """Ask until it is enough: `count` times, until the path is direct, until so many seconds have passed.

        An answer that is lost ends nothing.  Where the session ends it ends early, and says why.
        """
        limit = asyncio.timeout(seconds)
        try:
            async with self._changes, limit:
                await self._ask_on(None if until_direct and seconds is not None else count, until_direct=until_direct)
        except TimeoutError:
            if not limit.expired():
                raise
        return PingReport(self._session.tag, tuple(self._pongs), self._ended)

    async def _ask_on(self, count: int | None, *, until_direct: bool) -> None:
        while True:
            pong = await self._ask(len(self._pongs) + 1)
            self._pongs.append(pong)
            self._tell(pong)
            is_there = until_direct and pong.path is not None and pong.path.kind != "relay"
            if is_there:
                return
            if pong.path is None and self._session.error is not None:
                self._ended = str(self._session.error)
                return
            if len(self._pongs) == count:
                return
            await self._pause()

    async def _ask(self, number: int) -> Pong:
        patience = asyncio.timeout(PING_PATIENCE)
        try:
            async with patience:
                rtt, path = await self._session.ping()
        except ChannelError:
            return Pong(number, None)
        except TimeoutError:
            if not patience.expired():
                raise
            return Pong(number, None)
        before, self._path = self._path, path
        is_moved = before is not None and (before.kind, before.remote) != (path.kind, path.remote)
        return Pong(number, rtt, path, before if is_moved else None)

    def _is_ours(self, event: PeerEvent | EventsDropped) -> bool:
        return isinstance(event, PathChanged) and event.tag == self._session.tag

    async def _pause(self) -> None:
        """Wait a second, or until the session has moved."""
        limit = asyncio.timeout(PING_PAUSE)
        try:
            async with limit:
                await self._changes.wait_for(self._is_ours)
        except TimeoutError:
            if not limit.expired():
                raise
