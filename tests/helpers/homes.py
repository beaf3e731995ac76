"""Two sites of a kind and a server between them, all real: at one of them `home-nas` serves, from the other `laptop` calls."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from pathlib import Path
from typing import Any, Self

from p2ptunnel.abc import Stream
from p2ptunnel.peer import Peer
from p2ptunnel.server import Rendezvous
from p2ptunnel.testing.natlab import Lab
from p2ptunnel.testing.natlab.living import living
from p2ptunnel.types import RelayUse
from tests.helpers.meeting import HOME, LAPTOP

__all__ = ["PORT", "Homes"]

PORT = 7000
Service = Callable[[Stream], Awaitable[None]]


class Homes:
    """Two sites and a server between them.

    Attributes:
        home: Where `home-nas` serves.
        cafe: The caller's.
        server: Its address.
        relay: Whether the two use it.
    """

    relay: RelayUse = "auto"

    def __init__(self, lab: Lab, directory: Path, kind: str, services: Mapping[str, Service], **line: Any) -> None:
        self.home, self.cafe = (lab.site(kind, name=name, **line) for name in ("home", "cafe"))
        self.server = f"{lab.server.ip}:{PORT}"
        self._lab = lab
        self._directory = directory
        self._services = services

    def rendezvous(self) -> Rendezvous:
        """The server, to be started on its machine."""
        return Rendezvous((self._lab.server.ip, PORT))

    def peer(self, tag: str) -> Peer:
        """A peer of the server's."""
        return Peer(tag, rendezvous=self.server, profile=self._directory / tag, relay=self.relay)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncGenerator[None]:
        """Serve at home."""
        async with self.peer(HOME) as peer, peer.serve(dict(self._services), allow=LAPTOP):
            yield

    def call(self, work: Callable[[Peer], Awaitable[None]], *, timeout: float = 60) -> None:
        """Do something as the caller, on the caller's machine."""

        async def main() -> None:
            async with asyncio.timeout(timeout), self.peer(LAPTOP) as peer:
                await work(peer)

        self.cafe.host.thread(lambda: asyncio.run(main())).result(timeout + 10)

    @contextlib.contextmanager
    def up(self) -> Generator[Self]:
        """Have the two know each other, and the server and `home-nas` up while the block lasts."""
        asyncio.run(self._introduce())
        with living(self._lab.server, self.rendezvous), living(self.home.host, self.serving):
            yield self

    async def _introduce(self) -> None:
        async with self.peer(HOME) as home, self.peer(LAPTOP) as laptop:
            home.peers.add(LAPTOP, laptop.key)
            laptop.peers.add(HOME, home.key)
