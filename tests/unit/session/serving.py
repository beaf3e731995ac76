"""What the tests of sessions share: a service that echoes, a tap on the wire, and the channel that carries a session."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from p2ptunnel.session.channel import Channel
from p2ptunnel.session.session import OpenRequest, Session
from tests.helpers.peers import Peers, Wire, sessions

__all__ = ["channel_of", "echo", "echoing", "tapped"]


async def echo(request: OpenRequest) -> None:
    """Serve by sending back what comes."""
    async with request.accept() as stream:
        async for part in stream:
            await stream.write(part)
        await stream.write_eof()


def echoing(*services: str) -> Peers:
    peers = Peers(*services)
    peers.on_open = echo
    return peers


@contextlib.asynccontextmanager
async def tapped(peers: Peers) -> AsyncGenerator[tuple[Wire, Session, Session]]:
    """Sessions with a man in the middle."""
    wire = Wire()
    try:
        async with sessions(peers, (wire.client, wire.server)) as (caller, callee):
            yield wire, caller, callee
    finally:
        await wire.close()


def channel_of(session: Session) -> Channel:
    """The channel that carries what the session sends, for those who would break a rule on it."""
    leg = session._active
    assert leg is not None
    return leg.channel
