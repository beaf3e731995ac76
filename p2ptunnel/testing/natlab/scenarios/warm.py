"""Calls one after the other between two homes, all of it warm: how soon the first byte is at the callee.

Rule: while a call is timed nothing else goes on; whatever it needs has been waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import struct
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from p2ptunnel.abc import Stream
from p2ptunnel.errors import P2PTunnelError
from p2ptunnel.events import ChannelOpened, Events, PathChanged
from p2ptunnel.peer import Peer
from p2ptunnel.testing.natlab.attempt import READY_TIMEOUT, until_direct
from p2ptunnel.testing.natlab.lab import Lab
from p2ptunnel.testing.natlab.peers import SERVICE
from p2ptunnel.testing.natlab.scenarios.networks import DELAY, find_network
from p2ptunnel.testing.natlab.scenarios.pairs import Pair, open_pair, server_of
from p2ptunnel.testing.natlab.scenarios.report import Warm, WarmCall
from p2ptunnel.trace import TraceEvent, Tracer

__all__ = ["run_warm"]

_CALLS_OF_PAIR: Final = 10  # a server takes 20 from one home to another in a row
_ANSWER_TIMEOUT: Final = 20.0
_INSTANT: Final = struct.Struct("!d")
_TO_SERVER: Final = 2 * DELAY  # and back, from either home
_BETWEEN_PEERS: Final = 4 * DELAY  # and back
_GOAL: Final = 2 * _TO_SERVER + 2 * _BETWEEN_PEERS
_WORK: Final = 0.015  # what processors may add to that until the first byte is there
_WORK_DIRECT: Final = 0.05  # and until the callee's key has been seen on a direct path, which is in use one round trip later


async def _tell_time(stream: Stream) -> None:
    """Answer the first byte with the instant at which it came; the caller's clock is the same."""
    await stream.readexactly(1)
    await stream.write(_INSTANT.pack(time.monotonic()))
    async for _ in stream:
        pass


def run_warm(*, attempts: int, patience: float = 8.0) -> Warm:
    """Make calls one after the other, each by a fresh caller that is ready.

    Args:
        attempts: How many calls that wait until the callee has confirmed the stream, and how many that do not.
        patience: Seconds from the beginning of a call in which a direct path may take over from the relay.

    Raises:
        LaboratoryError: No laboratory can be built here.
    """
    network = find_network("ports")
    with tempfile.TemporaryDirectory() as directory, Lab() as lab, contextlib.ExitStack() as stack:
        server = stack.enter_context(server_of(network, lab))
        count = math.ceil(2 * attempts / _CALLS_OF_PAIR)
        pairs = [open_pair(stack, lab, network, Path(directory), number, server, _tell_time) for number in range(count)]
        turns = itertools.cycle(pairs)

        def call(*, confirm: bool) -> WarmCall:
            pair = next(turns)
            return pair.caller.thread(asyncio.run, _call(pair, server, patience, confirm=confirm)).result()

        made = [(call(confirm=True), call(confirm=False)) for _ in range(attempts)]
    confirmed, unconfirmed = zip(*made, strict=True)
    return Warm(
        "warm",
        network.summary,
        confirmed,
        unconfirmed,
        _GOAL + _WORK,
        _GOAL + _WORK_DIRECT,
        _GOAL + _BETWEEN_PEERS + _WORK_DIRECT,
    )


async def _call(pair: Pair, server: str | None, patience: float, *, confirm: bool) -> WarmCall:
    if pair.problem:
        return WarmCall(error=pair.problem)
    handshakes: list[float] = []

    def note(event: TraceEvent) -> None:
        if event.name == "handshake_done" and event.facts["path"] != "relay":
            handshakes.append(event.at)

    try:
        async with Peer(pair.caller_tag, rendezvous=server, profile=pair.profile, tracer=Tracer(note)) as peer:
            await peer.ready(timeout=READY_TIMEOUT)
            async with peer.events(ChannelOpened, PathChanged) as events:
                return await _timed(peer, pair.callee_tag, events, patience, handshakes, confirm=confirm)
    except (P2PTunnelError, OSError, EOFError, TimeoutError) as error:
        return WarmCall(error=f"{type(error).__name__}: {error}")


async def _timed(
    peer: Peer, tag: str, events: Events, patience: float, handshakes: Sequence[float], *, confirm: bool
) -> WarmCall:
    began = time.monotonic()
    async with await peer.connect(tag, SERVICE, confirm=confirm) as stream:
        connected = time.monotonic()
        await stream.write(b"?")
        async with asyncio.timeout(_ANSWER_TIMEOUT):
            [arrived] = _INSTANT.unpack(await stream.readexactly(_INSTANT.size))
        direct = await until_direct(events, began + patience)
    proved = handshakes[0] - began if handshakes else None
    return WarmCall(connected - began, arrived - began, proved, None if direct is None else direct - began)
