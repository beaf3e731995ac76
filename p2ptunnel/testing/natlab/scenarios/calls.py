"""Makes calls in one network: several pairs of peers beside each other, each call by a fresh caller."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import tempfile
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

from p2ptunnel.errors import P2PTunnelError
from p2ptunnel.identity.store import Profile
from p2ptunnel.peer import Peer
from p2ptunnel.testing.natlab.attempt import Attempt, attempt
from p2ptunnel.testing.natlab.host import Host
from p2ptunnel.testing.natlab.lab import Lab
from p2ptunnel.testing.natlab.peers import Acquaintances, rendezvous, serving
from p2ptunnel.testing.natlab.scenarios.networks import Network, ServerPlace
from p2ptunnel.testing.natlab.scenarios.report import Calls

__all__ = ["run_calls"]

_CALL_TIMEOUT: Final = 30.0  # on the worst lines a call may take as long as this


class _Pair(NamedTuple):
    """A caller and the one it calls; `problem` is why the latter could not register."""

    caller: Host
    callee: Host
    caller_tag: str
    callee_tag: str
    profile: Profile
    problem: str


def run_calls(network: Network, *, attempts: int, at_once: int = 8, patience: float = 8.0) -> Calls:
    """Make calls in a network.

    Args:
        network: Which.
        attempts: How many calls.
        at_once: How many pairs of peers there are, each making one call after the other.
        patience: Seconds from the beginning of a call in which a direct path may take over from the relay.

    Raises:
        LaboratoryError: No laboratory can be built here.
    """
    pairs_count = min(at_once, attempts)
    with tempfile.TemporaryDirectory() as directory, Lab() as lab, contextlib.ExitStack() as stack:
        server = stack.enter_context(_server(lab, network.server))
        pairs = [_open(stack, lab, network, Path(directory), number, server) for number in range(pairs_count)]
        turns = itertools.repeat(None, attempts)  # shared, so that a pair that is fast makes more of them

        def work(pair: _Pair) -> list[Attempt]:
            return [_call(pair, server, patience) for _ in turns]

        with ThreadPoolExecutor(pairs_count) as pool:
            made = tuple(itertools.chain.from_iterable(pool.map(work, pairs)))
    return Calls(network.name, network.summary, made)


@contextlib.contextmanager
def _server(lab: Lab, place: ServerPlace) -> Generator[str | None]:
    if place == "none":
        yield None
        return
    with rendezvous(lab, is_ipv6=place == "ipv6") as line:
        yield line


def _open(stack: contextlib.ExitStack, lab: Lab, network: Network, directory: Path, number: int, server: str | None) -> _Pair:
    """Make two machines, and have a peer serve on one of them until the stack is closed."""
    caller, callee = network.places(lab)
    caller_tag, callee_tag = f"caller-{number}", f"callee-{number}"
    known = Acquaintances(directory, [caller_tag], [callee_tag])
    problem = ""
    try:
        stack.enter_context(serving(callee, callee_tag, known.profile(callee_tag), server))
    except P2PTunnelError as error:
        problem = f"the callee could not register: {error}"
    return _Pair(caller, callee, caller_tag, callee_tag, known.profile(caller_tag), problem)


def _call(pair: _Pair, server: str | None, patience: float) -> Attempt:
    async def call() -> Attempt:
        async with Peer(pair.caller_tag, rendezvous=server, profile=pair.profile) as peer:
            return await attempt(peer, pair.callee_tag, patience=patience, timeout=_CALL_TIMEOUT)

    if pair.problem:
        return Attempt(0.0, "", pair.problem)
    return pair.caller.thread(asyncio.run, call()).result()
