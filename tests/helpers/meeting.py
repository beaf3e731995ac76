"""A rendezvous server and two peers on loopback, all of it real: `home-nas` serves, `laptop` calls."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

from p2ptunnel.abc import Stream
from p2ptunnel.peer import Peer
from p2ptunnel.server import Rendezvous
from p2ptunnel.trace import TraceEvent, Tracer
from p2ptunnel.types import format_address

__all__ = [
    "HELLO",
    "HOME",
    "LAPTOP",
    "Events",
    "Meeting",
    "conversation",
    "echo",
    "fresh_spare",
    "introduce",
    "meeting",
]

HOME, LAPTOP = "home-nas", "laptop"
HELLO = b"hello through the hole"


async def echo(stream: Stream) -> None:
    """Send back what comes, and then the end."""
    async for part in stream:
        await stream.write(part)
    await stream.write_eof()


async def conversation(stream: Stream) -> bytes:
    """Say hello and half-close; return what comes back until the other end closes, too."""
    await stream.write(HELLO)
    await stream.write_eof()
    return b"".join([part async for part in stream])


async def fresh_spare(peer: Peer) -> None:
    """Have a peer take another spare port, and wait for it."""
    assert peer._up.spare is not None
    peer._up.spare.renew()
    await peer.ready()


class Events:
    """The events of one peer, and waiting for them."""

    def __init__(self) -> None:
        self.all: list[TraceEvent] = []
        self.tracer = Tracer(self._note)
        self._changed = asyncio.Event()

    def named(self, name: str, layer: str = "") -> list[TraceEvent]:
        return [event for event in self.all if event.name == name and layer in {"", event.layer}]

    async def told(self, name: str, times: int = 1, *, layer: str = "") -> TraceEvent:
        """Wait until an event has happened so many times; return the last of them."""
        while len(self.named(name, layer)) < times:
            self._changed.clear()
            await self._changed.wait()
        return self.named(name, layer)[times - 1]

    def _note(self, event: TraceEvent) -> None:
        self.all.append(event)
        self._changed.set()


class Meeting:
    """The three, started; each peer has pinned the other, and nobody may open anything."""

    def __init__(self, directory: Path, server: Rendezvous, **options: Any) -> None:
        self.directory = directory
        self.server = server
        self.address = format_address(server.address)
        self.home_events, self.laptop_events = Events(), Events()
        self.home = self.peer(HOME, tracer=self.home_events.tracer, **options)
        self.laptop = self.peer(LAPTOP, tracer=self.laptop_events.tracer, **options)

    def peer(self, tag: str | None, profile: str | None = None, **options: Any) -> Peer:
        """One more peer of the same server, with a profile of its own; not started."""
        return Peer(tag, rendezvous=self.address, profile=self.directory / (profile or tag or "nameless"), **options)

    @property
    def dials(self) -> int:
        """How often the laptop has called."""
        return len(self.laptop_events.named("PunchStarted"))


def introduce(home: Peer, caller: Peer, *services: str) -> None:
    """Have two started peers pin each other's keys."""
    assert caller.tag is not None
    assert home.tag is not None
    home.peers.add(caller.tag, caller.key, services)
    caller.peers.add(home.tag, home.key)


@contextlib.asynccontextmanager
async def meeting(
    directory: Path, *services: str, make: Callable[[], Rendezvous] | None = None, **options: Any
) -> AsyncGenerator[Meeting]:
    """Yield the three; the laptop is granted `services`, which the test has served.  The options are both peers'."""
    async with Rendezvous(("127.0.0.1", 0)) if make is None else make() as server:
        there = Meeting(directory, server, **options)
        async with there.home, there.laptop:
            introduce(there.home, there.laptop, *services)
            for peer in (there.home, there.laptop):
                await peer.ready()
            yield there
