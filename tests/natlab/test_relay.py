"""The relay where the kernel's NATs leave no other way, and the direct path that takes over as soon as there is one."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import time
from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from p2ptunnel.abc import Stream
from p2ptunnel.defaults import WEB_HEAD_START, WEB_PORT
from p2ptunnel.errors import NoPathError
from p2ptunnel.events import Events, PathChanged
from p2ptunnel.identity.keys import Identity
from p2ptunnel.peer import Peer
from p2ptunnel.protocol import callee, caller
from p2ptunnel.server import Rendezvous
from p2ptunnel.server.web import Web
from p2ptunnel.testing.natlab import Lab, Site
from p2ptunnel.testing.natlab.faults import only_web, part
from p2ptunnel.testing.natlab.matrix import run_matrix
from tests.helpers.homes import PORT, Homes
from tests.helpers.meeting import HOME, echo

SERVER = Identity.from_seed(b"server".ljust(32))
CHUNK = 16 * 1024
CALL = 2.0
"""Seconds within which a call ends in a stream over the relay; measured are 0.1 without delay, 1.2 with 25 ms on each line."""


@pytest.mark.parametrize("delay", [0.0, 0.025])
def test_nats_that_no_punching_opens_are_no_obstacle(delay: float) -> None:
    for cell in run_matrix(("symR", "pr"), attempts=1, delay=delay, relay="auto"):
        [attempt] = cell.attempts
        expected = {"relay tcp"} if (cell.caller, cell.callee) == ("symR", "symR") else {"direct tcp", "relay tcp"}
        assert attempt.path in expected, (cell.caller, cell.callee, attempt.error)
        assert attempt.seconds < CALL


def test_who_is_behind_a_router_that_lets_no_udp_through_calls_and_is_called() -> None:
    for cell in run_matrix(("noU", "symR"), attempts=1, delay=0.005, relay="auto"):
        [attempt] = cell.attempts
        assert attempt.path in {"direct tcp", "relay tcp"}, (cell.caller, cell.callee, attempt.error)
        assert attempt.seconds < 2 * CALL  # UDP is given its time first; measured are 0.6 to 1.3


CUT = 3.0
"""Seconds without a byte, when a path dies; measured 0.9."""

AGAIN = 20.0
"""Seconds until a path that is back is used; measured 9, of which it is not trusted for most."""


def homes(lab: Lab, directory: Path, kind: str = "pr", delay: float = 0.005) -> AbstractContextManager[Homes]:
    """Two sites, one of which serves echo."""
    return Homes(lab, directory, kind, {"echo": echo}, delay=delay).up()


class Flow:
    """Random bytes that go through an echo, one piece after the other, until `end`.

    Attributes:
        gap: The longest pause between two pieces that came back, in seconds, since it was set to 0.
    """

    def __init__(self, stream: Stream) -> None:
        self.gap = 0.0
        self._stream = stream
        self._sent, self._came = hashlib.sha256(), hashlib.sha256()
        self._is_ending = False
        self._last = time.monotonic()
        self._tasks = [asyncio.create_task(self._send()), asyncio.create_task(self._receive())]

    async def _send(self) -> None:
        while not self._is_ending:
            piece = os.urandom(CHUNK)
            self._sent.update(piece)
            await self._stream.write(piece)
            await asyncio.sleep(0.005)  # so that there is something to send for as long as it takes
        await self._stream.write_eof()

    async def _receive(self) -> None:
        async for part_ in self._stream:
            now = time.monotonic()
            self.gap, self._last = max(self.gap, now - self._last), now
            self._came.update(part_)

    async def end(self) -> bool:
        """End it, and tell whether all that was sent came back as it was."""
        self._is_ending = True
        await asyncio.gather(*self._tasks)
        return self._sent.digest() == self._came.digest()


async def moved(events: Events, kind: str) -> PathChanged:
    """Wait until the session has moved to a path of a kind."""
    return await anext(event async for event in events if isinstance(event, PathChanged) and event.new.kind == kind)


@contextlib.contextmanager
def parted(home: Site, cafe: Site) -> Generator[contextlib.ExitStack]:
    """Nothing goes between the two directly until the stack is closed."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(part(home, cafe))
        yield stack


def test_a_transfer_moves_to_the_direct_path_when_there_is_one(natlab: Lab, tmp_path: Path) -> None:
    with homes(natlab, tmp_path) as there, parted(there.home, there.cafe) as obstacle:

        async def work(peer: Peer) -> None:
            events = peer.events(PathChanged)
            stream = await peer.connect(HOME, "echo")
            assert stream.path.kind == "relay"
            flow = Flow(stream)
            await asyncio.to_thread(obstacle.close)
            event = await moved(events, "direct")
            assert (event.old.kind, stream.path.kind) == ("relay", "direct")
            assert await flow.end()
            assert flow.gap < 1.0

        there.call(work)


def test_the_relay_carries_on_when_the_direct_path_dies_and_is_left_when_it_is_back(natlab: Lab, tmp_path: Path) -> None:
    with homes(natlab, tmp_path) as there:

        async def work(peer: Peer) -> None:
            events = peer.events(PathChanged)
            stream = await peer.connect(HOME, "echo")
            if stream.path.kind == "relay":
                await moved(events, "direct")
            flow = Flow(stream)
            with parted(there.home, there.cafe) as obstacle:
                await moved(events, "relay")
                lost = time.monotonic()
                await asyncio.to_thread(obstacle.close)
            await moved(events, "direct")
            assert time.monotonic() - lost < AGAIN
            assert await flow.end()
            assert flow.gap < CUT

        there.call(work)


def test_what_did_not_open_at_first_is_tried_again(natlab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for agents in (caller, callee):
        monkeypatch.setattr(agents, "PUNCH_TIMEOUT", 0.5)
    with homes(natlab, tmp_path) as there, parted(there.home, there.cafe) as obstacle:

        async def work(peer: Peer) -> None:
            events = peer.events(PathChanged)
            stream = await peer.connect(HOME, "echo")
            [session] = peer._up._sessions
            await session.attempted()
            assert stream.path.kind == "relay"
            await asyncio.to_thread(obstacle.close)
            await moved(events, "direct")
            assert len([attempt for attempt in session._work._attempts if not attempt.done()]) == 0

        there.call(work)


# --- what an attacker gains -----------------------------------------------------------------------------------------------


def pieces(secret: bytes) -> Iterable[bytes]:
    """Every piece of 12 bytes, and every spelling in base64, whatever stands before it."""
    yield from (secret[start : start + 12] for start in range(0, len(secret) - 12, 12))
    yield from (base64.b64encode(bytes(shift) + secret)[4:24] for shift in range(3))


def test_of_a_mebibyte_and_of_its_service_nothing_can_be_read_at_the_relay(natlab: Lab, tmp_path: Path) -> None:
    marker = os.urandom(1 << 10)
    file = tmp_path / "relay.pcap"

    async def work(peer: Peer) -> None:
        stream = await peer.connect(HOME, "echo")
        for _ in range(64):  # one after the other: the kernel keeps few packets of this size for a recording
            await stream.write(marker * 16)
            assert await stream.readexactly(len(marker) * 16) == marker * 16
        assert stream.path.kind == "relay"

    recording = natlab.capture(natlab.server, f"tcp port {PORT} and greater 100", file, snapshot_bytes=65_600)
    with homes(natlab, tmp_path, kind="symR") as there, recording:
        there.call(work)
    seen = file.read_bytes()
    assert len(seen) > 4 << 20  # in and out of the relay, both ways
    assert b'"t":6' in seen
    assert not [piece for piece in (*pieces(marker), b'"echo"', b"\x04echo") if piece in seen]


def test_who_withholds_the_direct_path_is_seen_and_is_not_followed_by_who_insists(
    natlab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caller, "PUNCH_TIMEOUT", 2.0)

    async def work(peer: Peer) -> None:
        stream = await peer.connect(HOME, "echo")
        [status] = peer.snapshot().peers
        assert status.path is not None
        assert (stream.path.kind, status.path.kind, status.path.why) == ("relay", "relay", "the server relays it")
        with pytest.raises(NoPathError) as caught:
            await peer.connect(HOME, "echo", require_direct=True)
        assert caught.value.attempts

    with homes(natlab, tmp_path) as there, parted(there.home, there.cafe):
        there.call(work)


# --- where only the web is let through ------------------------------------------------------------------------------------


class Offices(Homes):
    """Sites that let out nothing but TCP to port 443, where the server serves as well; its key is known."""

    def __init__(self, lab: Lab, directory: Path, *closed: str) -> None:
        super().__init__(lab, directory, "pr", {"echo": echo}, delay=0.005)
        self.server = f"{lab.server.ip}:{PORT}#{SERVER.public}"
        self._web = (lab.server.ip, WEB_PORT)
        self._closed = closed

    def rendezvous(self) -> Rendezvous:
        for site in (self.home, self.cafe):  # the two know each other by now
            if site.name in self._closed:
                only_web(site)
        return Rendezvous((self._web[0], PORT), identity=SERVER, web=Web(self._web))


@pytest.mark.parametrize("closed", [("home", "cafe"), ("home",), ("cafe",)], ids=["both", "callee", "caller"])
def test_who_may_only_use_the_web_calls_and_is_called(natlab: Lab, tmp_path: Path, closed: tuple[str, ...]) -> None:
    async def work(peer: Peer) -> None:
        began = time.monotonic()
        stream = await peer.connect(HOME, "echo")
        seconds = time.monotonic() - began
        assert stream.path.kind == "relay"
        assert seconds < CALL + WEB_HEAD_START
        assert ("443" in stream.path.why) is ("cafe" in closed)
        await stream.write(piece := os.urandom(CHUNK))
        assert await stream.readexactly(CHUNK) == piece

    with Offices(natlab, tmp_path, *closed).up() as there:
        there.call(work)
