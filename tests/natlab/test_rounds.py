"""Real peers in a second round: a callee's router that ends all between a port and a host whose SYN has crossed."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path

import pytest

from p2ptunnel.errors import NoPathError
from p2ptunnel.events import PathChanged
from p2ptunnel.peer import Peer
from p2ptunnel.protocol import approach
from p2ptunnel.protocol import callee as protocol_callee
from p2ptunnel.protocol import caller as protocol_caller
from p2ptunnel.server import Rendezvous
from p2ptunnel.testing.natlab import Lab
from p2ptunnel.testing.natlab.living import living
from p2ptunnel.trace import TraceEvent, Tracer
from p2ptunnel.traversal import port as traversal_port
from p2ptunnel.types import RelayUse
from tests.helpers.meeting import HOME, LAPTOP, echo

pytestmark = pytest.mark.natlab
PORT = 7000
DELAY = 0.025
SECONDS = 5.0  # that two rounds take at most; measured are 1.6 to 2.2


@pytest.fixture(autouse=True)
def no_quic(monkeypatch: pytest.MonkeyPatch) -> None:
    """QUIC needs no second round, and gets through by the first."""
    monkeypatch.setattr(traversal_port, "can_quic", bool)


def rounds_of_an_attempt(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give an attempt that many rounds; with one it fails in two seconds."""
    monkeypatch.setattr(approach, "ROUNDS", count)
    for agents in (protocol_caller, protocol_callee) if count == 1 else ():
        monkeypatch.setattr(agents, "PUNCH_TIMEOUT", 2.0)


@pytest.mark.parametrize("kind", ["pr", "prR"])
def test_what_the_callees_opening_has_spoilt_opens_from_fresh_ports_with_swapped_roles(
    natlab: Lab, tmp_path: Path, kind: str
) -> None:
    async def calls(peer: Peer) -> None:
        began = time.monotonic()
        stream = await peer.connect(HOME, "echo")
        assert time.monotonic() - began < SECONDS
        assert stream.path.kind == "direct"
        await stream.close()

    answered = meet(natlab, tmp_path, kind, calls, relay="never")
    assert [event.name for event in answered].count("second_round") == 1


@pytest.mark.parametrize("kind", ["pr", "prR"])
def test_with_one_round_an_attempt_the_next_attempt_leads_through(
    natlab: Lab, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds_of_an_attempt(1, monkeypatch)

    async def calls(peer: Peer) -> None:
        with pytest.raises(NoPathError):
            await peer.connect(HOME, "echo")
        stream = await peer.connect(HOME, "echo")
        assert stream.path.kind == "direct"
        await stream.close()

    answered = meet(natlab, tmp_path, kind, calls, relay="never")
    assert [event.name for event in answered].count("answered_apart") == 1


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_stream_over_the_relay_gets_a_direct_path_by_the_second_round(
    natlab: Lab, tmp_path: Path, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds_of_an_attempt(rounds, monkeypatch)

    async def calls(peer: Peer) -> None:
        moved = peer.events(PathChanged)
        async with await peer.connect(HOME, "echo") as stream:
            assert stream.path.kind == "relay"
            async with asyncio.timeout(2 + SECONDS):
                await anext(event async for event in moved if isinstance(event, PathChanged) and event.new.kind == "direct")
            assert stream.path.kind == "direct"
            await stream.write(b"hello")
            assert await stream.readexactly(5) == b"hello"

    meet(natlab, tmp_path, "pr", calls, relay="auto")


def meet(
    lab: Lab, directory: Path, kind: str, calls: Callable[[Peer], Awaitable[None]], *, relay: RelayUse
) -> list[TraceEvent]:
    """Let a peer at a site of `kind` call one whose router is guarded; return what happened at the one that is called."""
    calling = lab.site(kind, delay=DELAY, name="cafe")
    called = lab.site("noSO", delay=DELAY, name="home", is_guarded=True)
    server, events = f"{lab.server.ip}:{PORT}", list[TraceEvent]()

    async def introduce() -> None:
        async with Peer(HOME, profile=directory / HOME) as home, Peer(LAPTOP, profile=directory / LAPTOP) as laptop:
            home.peers.add(LAPTOP, laptop.key)
            laptop.peers.add(HOME, home.key)

    @contextlib.asynccontextmanager
    async def serving() -> AsyncGenerator[None]:
        tracer = Tracer(events.append)
        async with (
            Peer(HOME, rendezvous=server, profile=directory / HOME, tracer=tracer) as peer,
            peer.serve({"echo": echo}, allow=LAPTOP),
        ):
            yield

    async def main() -> None:
        async with Peer(LAPTOP, rendezvous=server, profile=directory / LAPTOP, relay=relay) as peer:
            await calls(peer)

    asyncio.run(introduce())
    with living(lab.server, lambda: Rendezvous((lab.server.ip, PORT))), living(called.host, serving):
        calling.host.thread(lambda: asyncio.run(main())).result(30)
    return events
