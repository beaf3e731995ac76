"""Where TCP leads to no peer and one side's ports have to be guessed: a birthday over UDP, and QUIC through what it has found."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import pytest

from p2ptunnel.peer import Peer
from p2ptunnel.server import Rendezvous
from p2ptunnel.testing.natlab import Lab, Site
from p2ptunnel.testing.natlab.kinds import find_kind
from p2ptunnel.testing.natlab.living import living
from p2ptunnel.trace import TraceEvent, Tracer
from tests.helpers.meeting import HOME, LAPTOP, echo

PORT = 7000
DELAY = 0.025
TRIES = 3
"""Rounds miss once in sixty times, and a call has one."""


@contextlib.contextmanager
def homes(lab: Lab, directory: Path, hard: str, easy: str, *, is_hard_calling: bool) -> Generator[tuple[Site, Site, str]]:
    """A caller's site, a callee's where echo is served, and their server; the hard side's TCP reaches nobody but that."""
    one, other = lab.server.ips
    blocked = find_kind(hard).but(only_host=one)
    kinds = (blocked, find_kind(easy)) if is_hard_calling else (find_kind(easy), blocked)
    caller, callee = (lab.site(kind, delay=DELAY, name=name) for kind, name in zip(kinds, ("cafe", "home"), strict=True))
    server = f"{one}:{PORT}"

    async def introduce() -> None:
        async with Peer(HOME, profile=directory / HOME) as home, Peer(LAPTOP, profile=directory / LAPTOP) as laptop:
            home.peers.add(LAPTOP, laptop.key)
            laptop.peers.add(HOME, home.key)

    @contextlib.asynccontextmanager
    async def serving() -> AsyncGenerator[None]:
        async with Peer(HOME, rendezvous=server, profile=directory / HOME) as peer, peer.serve({"echo": echo}, allow=LAPTOP):
            yield

    asyncio.run(introduce())
    observers = [(one, PORT + 1), (other, PORT)]
    with living(lab.server, lambda: Rendezvous((one, PORT), alt_listen=observers)), living(callee.host, serving):
        yield caller, callee, server


def call(site: Site, directory: Path, server: str, events: list[TraceEvent]) -> str:
    """Call once, without the relay; return over what it went."""

    async def main() -> str:
        tracer = Tracer(events.append)
        async with Peer(LAPTOP, rendezvous=server, profile=directory / LAPTOP, relay="never", tracer=tracer) as peer:
            async with await peer.connect(HOME, "echo", timeout=15) as stream:
                await stream.write(b"hello")
                assert await stream.readexactly(5) == b"hello"
                return stream.path.transport

    return site.host.thread(lambda: asyncio.run(main())).result(30)


@pytest.mark.parametrize("is_hard_calling", [True, False])
@pytest.mark.parametrize("easy", ["pr", "prR"])
def test_a_birthday_over_udp_ends_in_quic(natlab: Lab, tmp_path: Path, easy: str, is_hard_calling: bool) -> None:
    with homes(natlab, tmp_path, "symR", easy, is_hard_calling=is_hard_calling) as (caller, _, server):
        events: list[TraceEvent] = []
        import time
        began = time.monotonic()
        try:
            assert call(caller, tmp_path, server, events) == "quic"
        finally:
            print("TOOK", time.monotonic() - began)
            t0 = events[0].at if hasattr(events[0], "at") else 0
            for event in events:
                if event.layer in ("punch","traversal") and event.name not in ("SendProbes","OpenHoles") : print(event)
