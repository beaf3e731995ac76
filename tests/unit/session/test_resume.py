"""A session that outlives its channels: nothing is lost, nothing comes twice, and what cannot go on ends with an error."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from p2ptunnel.errors import ChannelLostError, ResumeExpiredError
from p2ptunnel.events import ChannelLost, ChannelOpened, PathChanged, PeerEvent, SessionExpired, SessionResumed
from p2ptunnel.session.session import OpenRequest, Session, SessionOptions
from tests.helpers import run
from tests.helpers.peers import Peers, Wire, sessions, tcp_pair

SIZE = 12_000_000


class Resuming(Peers):
    """Peers whose sessions wait, and whose caller dials again; `cut` breaks the connection that is in use."""

    def __init__(self, *services: str, timeout: float = 60.0) -> None:
        super().__init__(*services)
        self.told: list[PeerEvent] = []
        self.options = SessionOptions(resume_timeout=timeout, on_event=self.told.append)
        self.ends = tcp_pair()
        self.dials = 0

    async def redial(self, caller: Session) -> None:
        self.dials += 1
        self.ends = tcp_pair()
        await self.rejoin(caller, self.ends)

    def kinds(self) -> list[type[PeerEvent]]:
        return [type(event) for event in self.told]


@asynccontextmanager
async def resuming(peers: Resuming) -> AsyncGenerator[tuple[Session, Session]]:
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


def test_a_stream_goes_on_over_the_next_channel_where_it_was() -> None:
    async def scenario() -> None:
        peers = Resuming("digest")
        peers.on_open = digest
        async with resuming(peers) as (caller, callee):
            block = os.urandom(SIZE)
            stream = await caller.open_confirmed("digest")
            for number in range(0, SIZE, SIZE // 12):
                await stream.write(block[number : number + SIZE // 12])
                cut(caller if number % 2 else callee)
            await stream.write_eof()
            assert await stream.readexactly(32) == hashlib.sha256(block).digest()
            assert await stream.read() == b""
            assert caller.resumes == callee.resumes == peers.dials >= 10
            assert caller.error is None

    run(scenario(), timeout=20)
