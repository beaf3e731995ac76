"""Idle connections to relays, one each: t=6 goes out on it at once, and another one takes its place.

Rule: an idle connection says t=5 now and then, as every TCP connection of a peer does, and has nothing under way otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from typing import Final

from p2ptunnel.defaults import CONTROL_KEEPALIVE, RELAY_SPARE_FAILURES, RELAY_SPARES_MAX, TRANSACTION_TIMEOUT
from p2ptunnel.errors import P2PTunnelError, RemoteProtocolError
from p2ptunnel.net.backoff import Backoff
from p2ptunnel.net.dial import dial
from p2ptunnel.net.sockets import ANY_IPV4, keep_alive, reset_close
from p2ptunnel.net.watch import Watch
from p2ptunnel.net.web import WebLinks, WebRoute
from p2ptunnel.protocol.machine import new_mid
from p2ptunnel.trace import Tracer
from p2ptunnel.transports.relay import read_line
from p2ptunnel.types import Address, format_address
from p2ptunnel.wire.messages import MalformedMessageError, ReflexiveAnswer, ReflexiveProbe, decode, encode

__all__ = ["Spares"]

_dice: Final = random.SystemRandom()


class Spares:
    """The idle connections of one peer, by relay.

    Args:
        links: Makes those that go through the web.
        tracer: Told of those that were lost.
    """

    def __init__(self, links: WebLinks, tracer: Tracer | None = None) -> None:
        self._links: Final = links
        self._trace: Final = tracer or Tracer()
        self._spares: Final[dict[Address, _Spare]] = {}
        self._dropped: Final[set[asyncio.Task[None]]] = set()
        self._is_closed = False

    def keep(self, relay: Address, web: WebRoute | None = None) -> None:
        """Have one to this relay from now on, as soon as it can be had.

        Args:
            relay: Numeric.
            web: How it is reached where only the web is let through; another than before replaces what there was.
        """
        if self._is_closed:
            return
        if (known := self._spares.get(relay)) is not None:
            if known.web == web and not known.task.done():
                return
            self.drop(relay)
        if len(self._spares) >= RELAY_SPARES_MAX:
            self.drop(next(iter(self._spares)))
        self._spares[relay] = _Spare(relay, web, self._links, self._trace)

    def drop(self, relay: Address) -> None:
        """Have none to this relay any more."""
        spare = self._spares.pop(relay, None)
        if spare is not None:
            spare.task.cancel()
            self._dropped.add(spare.task)
            spare.task.add_done_callback(self._dropped.discard)

    def take(self, relay: Address) -> socket.socket | None:
        """Return the one to this relay, which is the caller's from now on; None if there is none just now."""
        spare = self._spares.get(relay)
        return None if spare is None else spare.take()

    async def stand(self, relay: Address) -> str:
        """Wait until the one to this relay, if one is kept, can be taken; return why it never will, else nothing."""
        while (spare := self._spares.get(relay)) is not None:
            await spare.settled.wait()
            if spare is self._spares.get(relay):
                return "" if spare.is_idle else spare.trouble
        return ""

    def abort(self) -> None:
        """Keep none any more; aborting twice is fine."""
        self._is_closed = True
        for relay in tuple(self._spares):
            self.drop(relay)

    async def close(self) -> None:
        """Abort, and wait until nothing of it runs; closing twice is fine."""
        self.abort()
        await asyncio.gather(*self._dropped, return_exceptions=True)


class _Spare:
    """The connection to one relay, made anew when it was taken or lost.

    Attributes:
        web: How the relay is reached where only the web is let through.
        task: Keeps it.
        settled: Set while the connection is idle, and when no other one will be made.
        trouble: Why the last one could not be had.
    """

    def __init__(self, relay: Address, web: WebRoute | None, links: WebLinks, trace: Tracer) -> None:
        self.web: Final = web
        self.task: Final = asyncio.create_task(self._run())
        self.settled: Final = asyncio.Event()
        self.trouble = ""
        self._relay: Final = relay
        self._links: Final = links
        self._trace: Final = trace
        self._sock: socket.socket | None = None  # until it is taken
        self._watch: Watch | None = None  # while it is idle
        self._changed: Final = asyncio.Event()

    def take(self) -> socket.socket | None:
        """Give the connection away, if it is idle."""
        if self._watch is None or self._changed.is_set():  # then it has ended
            return None
        self._stop_watching()
        self._changed.set()
        sock, self._sock = self._sock, None
        return sock

    @property
    def is_idle(self) -> bool:
        """Whether it can be taken."""
        return self._watch is not None

    @property
    def _is_taken(self) -> bool:
        return self._sock is None

    async def _run(self) -> None:
        """Keep one, until it has failed a few times in a row: where there is no relay nobody needs us, whoever named it."""
        backoff, failures = Backoff(), 0
        try:
            while failures < RELAY_SPARE_FAILURES:
                try:
                    await self._keep()
                    backoff, failures = Backoff(), 0
                except (P2PTunnelError, OSError) as error:
                    failures += 1
                    self.trouble = str(error)
                    self._trace("net", "no_spare", relay=format_address(self._relay), reason=self.trouble)
                    await backoff.pause()
        finally:
            self.settled.set()

    async def _keep(self) -> None:
        """Make a connection and hold it until it is taken.

        Raises:
            P2PTunnelError: There is none to be had, or the server does not speak our language.
            OSError: It was lost.
        """
        sock = self._sock = await self._connected()
        try:
            keep_alive(sock)
            while not self._is_taken:
                await self._ask(sock)
                await self._rest(sock)
        finally:
            self._stop_watching()
            if not self._is_taken:
                reset_close(sock)
            self._sock = None

    async def _connected(self) -> socket.socket:
        if self.web is not None:
            return await self._links.connect(self.web)
        local = ("::" if ":" in self._relay[0] else ANY_IPV4, 0)
        return await dial(local, self._relay, rng=_dice, patience=TRANSACTION_TIMEOUT, redials=0)

    async def _ask(self, sock: socket.socket) -> None:
        """Find out whether the server is there; who says nothing on its connection is cut off."""
        async with asyncio.timeout(TRANSACTION_TIMEOUT):
            await asyncio.get_running_loop().sock_sendall(sock, encode(ReflexiveProbe(mid=new_mid(_dice))) + b"\n")
            line = await read_line(sock)
        try:
            answer = decode(line)
        except MalformedMessageError:
            answer = None
        if not isinstance(answer, ReflexiveAnswer):
            raise RemoteProtocolError("something else than -5", "the relay")

    async def _rest(self, sock: socket.socket) -> None:
        """Wait until the connection is taken, or it is time to ask again."""
        self._changed.clear()
        self._watch = Watch(sock, self._changed.set)
        self.settled.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CONTROL_KEEPALIVE):
                await self._changed.wait()
                if not self._is_taken:
                    raise ConnectionResetError("the server ended an idle connection")
        self._stop_watching()

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.stop()
            self._watch = None
            self.settled.clear()
