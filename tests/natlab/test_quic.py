"""Where no TCP gets through but UDP does: QUIC over the punched port, with everything that a session needs of a path."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from p2ptunnel.abc import Stream
from p2ptunnel.peer import Peer
from p2ptunnel.protocol import callee, caller
from p2ptunnel.testing.natlab import Lab
from p2ptunnel.testing.natlab.matrix import run_matrix
from p2ptunnel.traversal import port
from tests.helpers.homes import Homes
from tests.helpers.meeting import HOME

MB = 1_000_000
CHUNK = 256 * 1024
CALL = 6.0
"""Seconds within which a call ends in a stream; measured are 1.0 without delay and 2.5 with 25 ms on each line."""


async def digest(stream: Stream) -> None:
    """Answer what came with its SHA-256."""
    hasher = hashlib.sha256()
    async for part in stream:
        hasher.update(part)
    await stream.write(hasher.digest())
    await stream.write_eof()


class Refusing(Homes):
    """Two sites whose NATs refuse simultaneous open; nobody uses the relay."""

    relay = "never"

    def __init__(self, lab: Lab, directory: Path, **line: float) -> None:
        super().__init__(lab, directory, "noSO", {"digest": digest}, link=True, **line)

    def carry(self, work: Callable[[Stream], Awaitable[None]]) -> None:
        """Do something with a stream to the digests, on the caller's machine."""

        async def main(peer: Peer) -> None:
            async with await peer.connect(HOME, "digest", timeout=CALL) as stream:
                assert (stream.path.kind, stream.path.transport) == ("direct", "quic")
                await work(stream)

        self.call(main, timeout=90)


async def digested(stream: Stream, size: int, *, between: Callable[[], None] = lambda: None) -> None:
    """Send random bytes, and see that they all came; do something when half of them are written."""
    hasher, sent = hashlib.sha256(), 0
    while sent < size:
        part = os.urandom(min(CHUNK, size - sent))
        hasher.update(part)
        await stream.write(part)
        if sent < size // 2 <= sent + len(part):
            between()
        sent += len(part)
    await stream.write_eof()
    assert await stream.readexactly(32) == hasher.digest()


def test_nats_that_refuse_simultaneous_open_connect_and_carry_twenty_megabytes(natlab: Lab, tmp_path: Path) -> None:
    with Refusing(natlab, tmp_path).up() as made:
        made.carry(lambda stream: digested(stream, 20 * MB))


def test_lines_that_lose_every_twentieth_packet_carry_everything(natlab: Lab, tmp_path: Path) -> None:
    with Refusing(natlab, tmp_path, delay=0.005).up() as made:

        async def lossy(stream: Stream) -> None:
            made.cafe.link(loss=0.05)
            await digested(stream, MB)

        made.carry(lossy)


def test_routers_that_forget_every_connection_are_survived(natlab: Lab, tmp_path: Path) -> None:
    with Refusing(natlab, tmp_path).up() as made:

        def forget() -> None:
            made.cafe.flush()
            made.home.flush()

        made.carry(lambda stream: digested(stream, 4 * MB, between=forget))


def test_without_the_library_it_is_not_tried_and_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port, "can_quic", lambda: False)
    for agents in (caller, callee):
        monkeypatch.setattr(agents, "PUNCH_TIMEOUT", 3.0)
    [cell] = run_matrix(("noSO",), attempts=1, delay=0.0)
    [attempt] = cell.attempts
    assert attempt.error.startswith("NoPathError")
    assert "QUIC: not tried: this side lacks the extra `quic`" in attempt.error
