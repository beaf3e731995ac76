"""A cable that is pulled, at our machine or at the peer's: told as a silence, never as a program that stands still."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Generator
from pathlib import Path

import pytest

from p2ptunnel.abc import Stream
from p2ptunnel.events import ChannelLost, PathSuspected, PeerEvent, SessionResumed, SessionStalled
from p2ptunnel.peer import Peer
from p2ptunnel.session.session import SessionOptions
from p2ptunnel.testing.natlab import Host, Lab
from p2ptunnel.testing.natlab.peers import SERVICE, Acquaintances, rendezvous, serving
from tests.helpers import run
from tests.helpers.lasting import through
from tests.helpers.peers import Peers

pytestmark = pytest.mark.natlab
CALLER, CALLEE = "laptop", "home-nas"


@contextlib.contextmanager
def pulled(host: Host) -> Generator[None]:
    """The machine's cable is out while the block lasts; with it go the routes."""
    route = host.run(["ip", "route", "show", "default"]).stdout.split()
    host.run(["ip", "link", "set", "eth0", "down"])
    try:
        yield
    finally:
        host.run(["ip", "link", "set", "eth0", "up"])
        host.run(["ip", "route", "replace", *route])


def kinds(told: list[PeerEvent]) -> set[type[PeerEvent]]:
    return {type(event) for event in told}


@pytest.mark.parametrize("writes", [True, False], ids=["while bytes move", "in a pause"])
def test_on_a_direct_path_both_ends_see_a_silence(natlab: Lab, writes: bool) -> None:
    """One end has no cable any more, the other one a peer without; the server's machine is the peer here."""

    async def scenario() -> None:
        told: dict[str, list[PeerEvent]] = {"caller": [], "callee": []}
        peers, site = Peers("web"), natlab.site("pr")
        peers.options = SessionOptions(resume_timeout=60.0)
        async with through(natlab, site, peers) as (caller, callee):
            caller._on_event, callee._on_event = told["caller"].append, told["callee"].append
            ours, theirs = await peers.stream(caller, "web")
            await ours.write(b"before")
            assert await theirs.read() == b"before"
            with pulled(site.host):
                if writes:
                    await ours.write(b"into the hole")
                    await theirs.write(b"and back")
                async with asyncio.timeout(20):
                    while not all(ChannelLost in kinds(events) for events in told.values()):
                        assert "stalled" not in {caller.state, callee.state}
                        await asyncio.sleep(0.01)
        for events in told.values():
            assert PathSuspected in kinds(events)
            assert SessionStalled not in kinds(events)

    run(scenario(), timeout=60)


@pytest.mark.parametrize("who", ["caller", "callee"])
def test_over_the_relay_nobody_says_that_a_machine_answers(natlab: Lab, tmp_path: Path, who: str) -> None:
    hosts = {name: natlab.site("pr", delay=0.005).host for name in ("caller", "callee")}
    known = Acquaintances(tmp_path, [CALLER], [CALLEE])

    async def call(server: str) -> list[PeerEvent]:
        async with (
            Peer(CALLER, rendezvous=server, profile=known.profile(CALLER), relay="always", lan=False) as peer,
            peer.events() as events,
            await peer.connect(CALLEE, SERVICE) as stream,
        ):
            assert stream.path.kind == "relay"
            return await asyncio.wait_for(pull(peer, stream, aiter(events)), 45)

    async def pull(peer: Peer, stream: Stream, events: AsyncIterator[PeerEvent]) -> list[PeerEvent]:
        told: list[PeerEvent] = []
        with pulled(hosts[who]):
            await stream.write(b"into the hole")
            await until(ChannelLost, events, told)
            [status] = peer.snapshot().peers
            assert status.state == "suspended"
        await until(SessionResumed, events, told)
        return told

    async def until(kind: type[PeerEvent], events: AsyncIterator[PeerEvent], told: list[PeerEvent]) -> None:
        async for event in events:
            told.append(event)
            if isinstance(event, kind):
                return

    with rendezvous(natlab) as server, serving(hosts["callee"], CALLEE, known.profile(CALLEE), server, lan=False):
        told = hosts["caller"].thread(lambda: asyncio.run(call(server))).result(60)
    assert SessionStalled not in kinds(told)
