"""Sessions that outlive their channels: peers that dial again, a cut, a service that tells whether every byte came."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from p2ptunnel.events import PeerEvent
from p2ptunnel.session.session import OpenRequest, Session, SessionOptions
from p2ptunnel.testing.natlab import Lab, Site
from tests.helpers.peers import Peers, sessions, tcp_pair

__all__ = ["Resuming", "cut", "digest", "resuming", "through", "until"]


class Resuming(Peers):
    """Peers whose sessions wait, and whose caller dials again; `cut` breaks the connection that is in use."""

    def __init__(self, *services: str, timeout: float = 60.0) -> None:
        super().__init__(*services)
        self.told: list[PeerEvent] = []
        self.options = SessionOptions(resume_timeout=timeout, on_event=self.told.append)
        self.ends = tcp_pair()
        self.dials = 0

    async def redial(self, caller: Session) -> None:
        """Dial once more."""
        self.dials += 1
        self.ends = tcp_pair()
        await self.rejoin(caller, self.ends)

    def kinds(self) -> list[type[PeerEvent]]:
        """What has been told."""
        return [type(event) for event in self.told]


@asynccontextmanager
async def resuming(peers: Resuming) -> AsyncGenerator[tuple[Session, Session]]:
    """The two ends of a session of such peers."""
    async with sessions(peers, peers.ends) as (caller, callee):
        caller.keep_up(lambda: peers.redial(caller))
        yield caller, callee


def cut(session: Session) -> None:
    """Break the connection under a session, as a reset from the network does."""
    leg = session._active
    assert leg is not None
    assert leg.channel._transport is not None
    leg.channel._transport.abort()


async def digest(request: OpenRequest) -> None:
    """Serve by answering with the hash of all that came."""
    async with request.accept() as stream:
        seen = hashlib.sha256()
        async for part in stream:
            seen.update(part)
        await stream.write(seen.digest())


async def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until something is so."""
    while not condition():
        await asyncio.sleep(0.001)


@asynccontextmanager
async def through(lab: Lab, site: Site, peers: Peers) -> AsyncGenerator[tuple[Session, Session]]:
    """A session from a host behind the site's NAT to the server outside."""
    loop = asyncio.get_running_loop()
    with lab.server.socket() as listener:
        client = site.host.socket()
        listener.bind((lab.server.ip, 0))
        listener.listen()
        for sock in (listener, client):
            sock.setblocking(False)
        await loop.sock_connect(client, listener.getsockname())
        server, _ = await loop.sock_accept(listener)
    async with sessions(peers, (client, server)) as both:
        yield both
