"""A spare port that is ready before anybody calls: taken, observed, its NATs known; so a call begins with t=4.

Its mapping over TCP is kept by its connection to the server, that over UDP by a question as often as a peer registers anew:
taken after a quiet hour it is what a call tells of it.

Rule: there is at most one, whoever takes it owns it, and what nobody has taken is closed by `close`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final

from p2ptunnel.defaults import HEARTBEAT_MAX, HEARTBEAT_MIN, RECONNECT_CAP, SPARE_PAUSE
from p2ptunnel.errors import P2PTunnelError
from p2ptunnel.net.backoff import Backoff
from p2ptunnel.trace import Tracer
from p2ptunnel.traversal.port import PunchPort
from p2ptunnel.types import ServerSpec

__all__ = ["WarmPort"]

_dice: Final = random.SystemRandom()


class WarmPort:
    """Keeps one spare port from `start` to `close`: another one when it is taken, loses its server, or is out of date.

    Args:
        open_port: Opens one.
        tracer: Told why there is none.
    """

    def __init__(self, open_port: Callable[[], Awaitable[PunchPort]], *, tracer: Tracer | None = None) -> None:
        self._open_port: Final = open_port
        self._trace: Final = tracer or Tracer()
        self._spare: PunchPort | None = None
        self._opening: asyncio.Future[None] | None = None
        self._gone: Final = asyncio.Event()
        self._settled: Final = asyncio.Event()  # there is one, or there will be none any more
        self._is_taken_in_turn = False
        self._backoff = Backoff()
        self._keeping: asyncio.Task[None] | None = None
        self.trouble = ""
        """Why the last one could not be opened; empty if it was."""

    def start(self) -> None:
        """Begin to keep one; starting twice is fine."""
        if self._keeping is None:
            self._opening = asyncio.get_running_loop().create_future()
            self._keeping = asyncio.create_task(self._keep())

    async def take(self, server: ServerSpec) -> PunchPort | None:
        """Return the spare port, waiting while it is being opened; None: there is none for that server.

        Raises:
            P2PTunnelError: It could not be opened, just now.
            OSError: So.
        """
        opening = self._opening
        if opening is not None and not opening.done():
            await asyncio.shield(opening)
        port = self._spare
        if port is None or port.spec != server:
            return None
        self._spare = None
        self._settled.clear()
        self._is_taken_in_turn = port.view.nat.tcp.row is not None
        self._gone.set()
        return port

    async def stand(self) -> ServerSpec | None:
        """Wait until there is one to be taken, which stays here; return at which server, None: this has been closed."""
        await self._settled.wait()
        return None if self._spare is None else self._spare.spec

    def renew(self) -> None:
        """Take a fresh one instead: the network, or what a NAT remembers, is another."""
        self._drop()
        self._gone.set()
        self._backoff.hurry()

    def abort(self) -> None:
        """Keep none any more; aborting twice is fine."""
        if self._keeping is not None:
            self._keeping.cancel()
        if self._opening is not None and not self._opening.done():
            self._opening.set_result(None)
        self._drop()
        self._settled.set()

    async def close(self) -> None:
        """Abort, and wait until nothing of it runs; closing twice is fine."""
        self.abort()
        if self._keeping is not None:
            await asyncio.gather(self._keeping, return_exceptions=True)

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began, self._is_taken_in_turn = loop.time(), False
            self._gone.clear()
            if await self._open() and await self._is_wanted_anew():
                if self._is_taken_in_turn:
                    await asyncio.sleep(SPARE_PAUSE)
                continue
            if loop.time() - began > RECONNECT_CAP:  # it stood: this is new trouble
                self._backoff = Backoff()
            await self._backoff.pause()

    async def _open(self) -> bool:
        """Open one, for whoever waits for it; return whether there is one now."""
        opening = self._opening
        if opening is None or opening.done():
            opening = self._opening = asyncio.get_running_loop().create_future()
        try:
            self._spare = await self._open_port()
        except Exception as error:  # who waits must not wait for ever, whatever it is
            opening.set_exception(error)
            opening.exception()  # most often nobody waits for it
            if not isinstance(error, (P2PTunnelError, OSError)):
                raise
            self.trouble = str(error)
            self._trace("traversal", "no_spare_port", reason=self.trouble)
            return False
        opening.set_result(None)
        self.trouble = ""
        self._settled.set()
        return True

    async def _is_wanted_anew(self) -> bool:
        """Wait until the spare port is of no use any more; return whether that is not its server's doing."""
        port = self._spare
        assert port is not None
        waits: list[asyncio.Task[object]] = [asyncio.create_task(self._gone.wait())]
        if port.control is not None:
            waits.append(asyncio.create_task(port.wait_control_lost()))
        waits.append(asyncio.create_task(self._keep_udp(port)))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        if self._spare is port:
            self._drop()
        return self._gone.is_set()

    async def _keep_udp(self, port: PunchPort) -> None:
        """Keep the port's UDP mapping; return when that has become another one, or is gone."""
        while True:
            await asyncio.sleep(_dice.uniform(HEARTBEAT_MIN, HEARTBEAT_MAX))
            if not await port.keep_udp():
                self._trace("traversal", "spare_port_changed")
                self._gone.set()  # not the server's doing
                return

    def _drop(self) -> None:
        spare, self._spare = self._spare, None
        self._settled.clear()
        if spare is not None:
            spare.close()
