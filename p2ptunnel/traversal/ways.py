"""The ways to a server, raced: its own TCP port, and its TLS port where only the web is let through.

Rule: a way counts when the server has answered over it; what has worked last begins the next time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from p2ptunnel.defaults import WEB_HEAD_START, WEB_MEMORY, WEB_STAGGER
from p2ptunnel.errors import P2PTunnelError
from p2ptunnel.net.reflexive import TcpControl
from p2ptunnel.net.web import WebLinks, WebRoute
from p2ptunnel.types import Address, ServerSpec

__all__ = ["Open", "Ways"]

Open: TypeAlias = Callable[[WebRoute | None], Awaitable[TcpControl]]
"""Opens the standing connection by a way; None: from the port itself to the server's own."""


class Ways:
    """Knows by which way each server was reached last.

    Args:
        links: Makes the connections through the web.

    Attributes:
        links: As they were given.
    """

    def __init__(self, links: WebLinks) -> None:
        self.links: Final = links
        self._web: Final[dict[Address, tuple[float, WebRoute]]] = {}

    def known(self, server: Address) -> WebRoute | None:
        """Return the way through the web by which the server was reached a short while ago, None if by its own port."""
        known_at, route = self._web.get(server, (0.0, None))
        return route if asyncio.get_running_loop().time() - known_at < WEB_MEMORY else None

    async def first(self, server: ServerSpec, open_: Open) -> tuple[TcpControl, WebRoute | None]:
        """Return the connection that is up first, and by which way; the others are given up.

        Each has a head start before the next, unless it fails sooner.

        Raises:
            RendezvousError: None is up; what the server's own port said.
            OSError: The same.
        """
        race = _Race(open_)
        try:
            control, route = await race.run(self._order(server))
        except BaseException:
            race.drop()
            raise
        try:
            await race.close()
        except BaseException:
            control.abort()
            raise
        if route is None:
            self._web.pop(server.address, None)
        elif self.known(server.address) != route:  # else the server's own port would never have its turn again
            self._web[server.address] = (asyncio.get_running_loop().time(), route)
        return control, route

    def forget(self) -> None:
        """Begin with the servers' own ports again: the network is another."""
        self._web.clear()

    def _order(self, server: ServerSpec) -> list[tuple[WebRoute | None, float]]:
        """Return the ways, and for how long each goes alone before the next."""
        tls, websocket = WebRoute(server, "tls"), WebRoute(server, "websocket")
        plain: list[tuple[WebRoute | None, float]] = [(None, WEB_HEAD_START), (tls, WEB_STAGGER), (websocket, 0.0)]
        known = self.known(server.address)
        return plain if known is None else [(known, WEB_HEAD_START), *((way, 0.0) for way, _ in plain if way != known)]


class _Race:
    """The attempts of one race."""

    def __init__(self, open_: Open) -> None:
        self._open: Final = open_
        self._running: Final[dict[asyncio.Task[TcpControl], WebRoute | None]] = {}
        self._error: P2PTunnelError | OSError | None = None

    async def run(self, order: list[tuple[WebRoute | None, float]]) -> tuple[TcpControl, WebRoute | None]:
        for route, head_start in order:
            self._running[asyncio.create_task(self._attempt(route))] = route
            if (won := await self._won(head_start)) is not None:
                return won
        while self._running:
            if (won := await self._won(None)) is not None:
                return won
        assert self._error is not None
        raise self._error

    async def _attempt(self, route: WebRoute | None) -> TcpControl:
        return await self._open(route)

    async def _won(self, seconds: float | None) -> tuple[TcpControl, WebRoute | None] | None:
        """Wait so long for one that is up, or has failed; None waits for either."""
        done, _ = await asyncio.wait(self._running, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            route = self._running[task]
            error = task.exception()
            if error is None:
                del self._running[task]
                return task.result(), route
            del self._running[task]
            if not isinstance(error, (P2PTunnelError, OSError)):
                raise error
            if self._error is None or route is None:
                self._error = error
        return None

    def drop(self) -> None:
        """Give up what is under way."""
        for task in self._running:
            task.cancel()
            task.add_done_callback(_abort)

    async def close(self) -> None:
        """Give up what is under way, and wait for the end of that."""
        self.drop()
        await asyncio.gather(*self._running, return_exceptions=True)


def _abort(task: asyncio.Task[TcpControl]) -> None:
    """Close a connection that was up in the very turn in which nobody wanted it any more."""
    if not task.cancelled() and task.exception() is None:
        task.result().abort()
