"""What a session tells of itself: each thing once, and the end of it as well."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from p2ptunnel.events import ChannelLost, PeerEvent, SessionExpired, SessionResumed, SessionStalled
from p2ptunnel.identity.store import PinnedPeer
from p2ptunnel.session.session import Session, SessionOptions
from p2ptunnel.snapshot import status_of
from tests.helpers import run
from tests.helpers.paces import hasten
from tests.helpers.peers import Peers, Wire, sessions


class Telling(Peers):
    """Peers whose sessions wait, and tell `told`."""

    def __init__(self, timeout: float = 60.0) -> None:
        super().__init__("web")
        self.told: list[PeerEvent] = []
        self.options = SessionOptions(resume_timeout=timeout, on_event=self.told.append)

    def of(self, session: int, *kinds: type[PeerEvent]) -> list[PeerEvent]:
        """What the session of that number has told of these kinds."""
        return [event for event in self.told if event.session == session and isinstance(event, kinds)]


@asynccontextmanager
async def tapped(peers: Peers) -> AsyncGenerator[tuple[Wire, Session, Session]]:
    wire = Wire()
    try:
        async with sessions(peers, (wire.client, wire.server)) as (caller, callee):
            yield wire, caller, callee
    finally:
        await wire.close()


async def until(peers: Telling, session: int, kind: type[PeerEvent]) -> None:
    while not peers.of(session, kind):
        await asyncio.sleep(0.01)


def test_sessions_are_told_apart_by_their_numbers() -> None:
    async def scenario() -> None:
        peers = Telling()
        async with sessions(peers) as (caller, callee):
            assert sorted(event.session for event in peers.told) == sorted({caller._number, callee._number})
            assert caller._number != callee._number

    run(scenario())


@pytest.mark.parametrize("witness", [(0.0,), (0.0, 0.0001)], ids=["nothing under way", "bytes are acknowledged now and then"])
def test_a_program_that_stands_still_is_told_once_and_its_return_once(
    witness: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    hasten(monkeypatch, dead=1.0)

    async def scenario() -> None:
        peers = Telling()
        async with tapped(peers) as (wire, caller, _):
            ours, _theirs = await peers.stream(caller, "web")
            said = itertools.cycle(witness)
            judged = asyncio.Semaphore(0)

            def seconds_without_ack(_: int) -> float:
                judged.release()
                return next(said)

            monkeypatch.setattr(caller, "_seconds_without_ack", seconds_without_ack)
            wire.is_open.clear()
            await until(peers, caller._number, SessionStalled)
            for _ in range(4):
                await judged.acquire()
            during = caller.state
            wire.is_open.set()
            await ours.write(b"patience")
            await until(peers, caller._number, SessionResumed)
            assert (during, caller.state) == ("stalled", "open")
            stalled, resumed = peers.of(caller._number, SessionStalled, SessionResumed, ChannelLost)
            assert isinstance(stalled, SessionStalled)
            assert isinstance(resumed, SessionResumed)
            assert resumed.gap == pytest.approx(resumed.at - stalled.at, abs=0.05)
            assert resumed.replayed_bytes == 0

    run(scenario())


def test_a_loss_tells_how_long_is_waited_and_its_end_tells_why() -> None:
    async def scenario() -> None:
        peers = Telling(timeout=0.2)
        async with tapped(peers) as (wire, caller, callee):
            await peers.stream(caller, "web")
            wire.cut()
            await asyncio.gather(caller.closed.wait(), callee.closed.wait())
            for session in (caller, callee):
                lost, expired = peers.of(session._number, ChannelLost, SessionExpired)
                assert isinstance(lost, ChannelLost)
                assert isinstance(expired, SessionExpired)
                assert (lost.patience, expired.cause) == (0.2, lost.cause)
                assert "lost" not in lost.cause  # the event says so already

    run(scenario())


def test_a_connection_that_nobody_uses_is_waited_for_less_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2ptunnel.session.live.RESUME_LINGER", 0.1)

    async def scenario() -> None:
        peers = Telling(timeout=60.0)
        async with tapped(peers) as (wire, caller, callee):
            wire.cut()
            await asyncio.gather(caller.closed.wait(), callee.closed.wait())
            [lost] = peers.of(callee._number, ChannelLost)
            assert isinstance(lost, ChannelLost)
            assert lost.patience == 0.1
            [gone] = peers.of(caller._number, ChannelLost)
            assert isinstance(gone, ChannelLost)
            assert gone.patience == 0  # who calls has nothing to wait for

    run(scenario())


def test_the_status_of_a_peer_tells_a_loss_and_how_often_there_was_one() -> None:
    async def scenario() -> None:
        peers = Telling()
        async with tapped(peers) as (wire, caller, _):
            pinned = PinnedPeer("home-nas", caller.peer_key)
            assert (status_of(pinned, None).state, status_of(pinned, None).path) == (None, None)
            await peers.stream(caller, "web")
            before = status_of(pinned, caller)
            assert (before.state, before.streams, before.resumes, before.suspended_for) == ("open", 1, 0, None)
            wire.cut()
            await until(peers, caller._number, ChannelLost)
            during = status_of(pinned, caller)
            assert (during.state, during.streams, during.resumes) == ("suspended", 1, 0)
            assert during.suspended_for is not None
            assert during.path is not None  # where it ran last
            await peers.rejoin(caller)
            await until(peers, caller._number, SessionResumed)
            after = status_of(pinned, caller)
            assert (after.state, after.streams, after.resumes, after.suspended_for) == ("open", 1, 1, None)
            assert after.path != during.path

    run(scenario())
