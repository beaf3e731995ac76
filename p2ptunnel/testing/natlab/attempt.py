"""One call of a real peer, timed: to the stream, to the first byte, to the direct path."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from typing import Final

import msgspec
from msgspec.structs import replace

from p2ptunnel.abc import Stream
from p2ptunnel.defaults import CONNECT_TIMEOUT
from p2ptunnel.errors import P2PTunnelError
from p2ptunnel.events import ChannelOpened, Events, PathChanged
from p2ptunnel.peer import Peer
from p2ptunnel.testing.natlab.peers import SERVICE
from p2ptunnel.traversal.explain import Explanation
from p2ptunnel.types import Path

__all__ = ["READY_TIMEOUT", "Attempt", "attempt", "until_direct", "why_relayed"]

READY_TIMEOUT: Final = 30.0
"""Seconds in which a peer has what a call needs; on the worst lines some of it is lost again and again."""

_ECHO_TIMEOUT: Final = 20.0
_SAMPLE_BYTES: Final = 4096


class Attempt(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of one call.

    Attributes:
        seconds: From `connect` to the confirmed stream, or to the error.
        path: Over what the bytes went in the end, kind and transport: `direct tcp`; empty if they did not come back.
        error: In words; empty if all bytes came back.
        first_byte: Seconds from `connect` until the first byte was back from the other side.
        direct_after: Seconds from `connect` until a direct path was in use; None if that did not come.
        reason: Why it did not, as far as the peer knows of its last attempt; empty if it did.
    """

    seconds: float
    path: str
    error: str = ""
    first_byte: float | None = None
    direct_after: float | None = None
    reason: str = ""

    @property
    def is_direct(self) -> bool:
        """Whether the bytes went without the relay in the end."""
        return self.path != "" and not self.path.startswith("relay")


async def attempt(peer: Peer, tag: str, *, patience: float = 0.0, timeout: float = CONNECT_TIMEOUT) -> Attempt:
    """Call a peer that serves echo, and have a sample come back over the path that the stream has in the end.

    Time is taken once the caller is ready: nothing is gathered after `connect`.

    Args:
        peer: Who calls; without a session with the other one.
        tag: Who is called.
        patience: Seconds after `connect` in which a direct path may still take over from the relay.
        timeout: Seconds until the stream must be there.
    """
    began = time.monotonic()
    try:
        await peer.ready(timeout=READY_TIMEOUT)
        async with peer.events(ChannelOpened, PathChanged) as events:
            began = time.monotonic()
            stream = await peer.connect(tag, SERVICE, timeout=timeout)
            async with stream:
                made = await _use(stream, events, began, patience)
                return made if made.is_direct else replace(made, reason=why_relayed(await peer.explain(tag)))
    except (P2PTunnelError, OSError, EOFError, TimeoutError) as error:
        return Attempt(time.monotonic() - began, "", f"{type(error).__name__}: {error}")


def why_relayed(explanation: Explanation) -> str:
    """Return in a line how each direct way ended that was tried; equal ones once, with their number."""
    direct = [each for each in explanation.tries if each.way not in {"server", "relay"}]
    ends = Counter(f"{each.way} {each.sent}: {each.reason or each.outcome}" for each in direct)
    told = [f"{count} x {end}" if count > 1 else end for end, count in ends.items()]
    return "; ".join(told) or "no direct way was tried"


async def until_direct(events: Events, end: float) -> float | None:
    """Wait until a direct path is in use between a peer and the only one that it calls.

    Args:
        events: Channels opened and paths changed, from before the call.
        end: Monotonic seconds at which nobody waits any more.

    Returns:
        Since when, in monotonic seconds; None: there is none.
    """
    is_first = True  # a second channel is in use only when the path has changed
    patience = asyncio.timeout(max(end - time.monotonic(), 0.0))
    try:
        async with patience:
            async for event in events:
                match event:
                    case ChannelOpened(path=path, at=at) if is_first and _is_direct(path):
                        return at
                    case PathChanged(new=path, at=at) if _is_direct(path):
                        return at
                    case _:
                        is_first = False
    except TimeoutError:
        if not patience.expired():
            raise
    return None


async def _use(stream: Stream, events: Events, began: float, patience: float) -> Attempt:
    connected = time.monotonic() - began
    await _echo(stream, os.urandom(1))
    first_byte = time.monotonic() - began
    direct = await until_direct(events, began + patience)
    await _echo(stream, os.urandom(_SAMPLE_BYTES))
    direct_after = None if direct is None else direct - began
    return Attempt(connected, f"{stream.path.kind} {stream.path.transport}", "", first_byte, direct_after)


async def _echo(stream: Stream, sample: bytes) -> None:
    """Send a sample and see it come back.

    Raises:
        EOFError: The stream ended before.
        OSError: Other bytes came.
        TimeoutError: It did not come.
    """
    async with asyncio.timeout(_ECHO_TIMEOUT):
        await stream.write(sample)
        if await stream.readexactly(len(sample)) != sample:
            raise OSError("the bytes that came back differ")


def _is_direct(path: Path) -> bool:
    return path.kind != "relay"
