"""Makes calls in one network: several pairs of peers beside each other, each call by a fresh caller."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from p2ptunnel.peer import Peer
from p2ptunnel.testing.natlab.attempt import Attempt, attempt
from p2ptunnel.testing.natlab.lab import Lab
from p2ptunnel.testing.natlab.scenarios.networks import Network
from p2ptunnel.testing.natlab.scenarios.pairs import Pair, open_pair, server_of
from p2ptunnel.testing.natlab.scenarios.report import Calls

__all__ = ["run_calls"]

_CALL_TIMEOUT: Final = 30.0  # on the worst lines a call may take as long as this
_CALLS_OF_PAIR: Final = 10  # a server takes 20 from one home to another in a row; on a lossy line one call may need several
_PAIRS_MAX: Final = 60  # of two or three sites each


def run_calls(network: Network, *, attempts: int, at_once: int = 8, patience: float = 12.0) -> Calls:
    """Make calls in a network.

    Args:
        network: Which.
        attempts: How many calls.
        at_once: How many of them beside each other, each between another pair of peers.
        patience: Seconds from the beginning of a call in which a direct path may take over from the relay.

    Raises:
        LaboratoryError: No laboratory can be built here.
    """
    count = min(max(min(at_once, attempts), math.ceil(attempts / _CALLS_OF_PAIR)), _PAIRS_MAX)
    with tempfile.TemporaryDirectory() as directory, Lab() as lab, contextlib.ExitStack() as stack:
        server = stack.enter_context(server_of(network, lab))
        free: SimpleQueue[Pair] = SimpleQueue()  # who has rested longest is first
        for number in range(count):
            free.put(open_pair(stack, lab, network, Path(directory), number, server))
        turns = itertools.repeat(None, attempts)

        def work(_: int) -> list[Attempt]:
            return [_call(free, server, patience) for _ in turns]

        workers = min(at_once, count)
        with ThreadPoolExecutor(workers) as pool:
            made = tuple(itertools.chain.from_iterable(pool.map(work, range(workers))))
    return Calls(network.name, network.summary, made)


def _call(free: SimpleQueue[Pair], server: str | None, patience: float) -> Attempt:
    """Make one call between a pair that has nothing else to do."""
    pair = free.get()

    async def call() -> Attempt:
        async with Peer(pair.caller_tag, rendezvous=server, profile=pair.profile) as peer:
            return await attempt(peer, pair.callee_tag, patience=patience, timeout=_CALL_TIMEOUT)

    try:
        return Attempt(0.0, "", pair.problem) if pair.problem else pair.caller.thread(asyncio.run, call()).result()
    finally:
        free.put(pair)
