"""Lets every kind call every other, many pairs at once, each site in one call at a time."""

from __future__ import annotations

import asyncio
import contextlib
import math
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeAlias

from p2ptunnel.errors import P2PTunnelError
from p2ptunnel.peer import Peer
from p2ptunnel.testing.natlab.attempt import Attempt, attempt
from p2ptunnel.testing.natlab.kinds import find_kind
from p2ptunnel.testing.natlab.lab import Lab
from p2ptunnel.testing.natlab.matrix.cells import Cell
from p2ptunnel.testing.natlab.peers import Acquaintances, rendezvous, serving
from p2ptunnel.testing.natlab.site import Site
from p2ptunnel.types import RelayUse

__all__ = ["Told", "run_matrix"]

Told: TypeAlias = Callable[[str, str, Attempt], None]
"""Is told of each attempt that has ended, with its caller's and its callee's kind; by one thread at a time."""


class _Lane(NamedTuple):
    """A site of each kind for callers, and one for callees: as many calls at once as there are kinds."""

    callers: dict[str, Site]
    callees: dict[str, Site]


class _Job(NamedTuple):
    """One call of one kind to another, in a lane."""

    lane: int
    caller: str
    callee: str

    @property
    def sites(self) -> set[tuple[int, str, str]]:
        """What it needs for itself."""
        return {(self.lane, "caller", self.caller), (self.lane, "callee", self.callee)}


class _Turns:
    """Hands out calls so that no site is in two at once: the flows of another would move the ports that a kind counts."""

    def __init__(self, pairs: Sequence[tuple[str, str]], lanes: int) -> None:
        self._pairs = list(pairs)
        self._lanes = range(lanes)
        self._busy: set[tuple[int, str, str]] = set()
        self._freed = threading.Condition()

    def take(self) -> _Job | None:
        """Wait for a call whose sites are free, and keep them; None: all have been handed out."""
        with self._freed:
            while self._pairs:
                if (job := self._find()) is not None:
                    self._pairs.remove((job.caller, job.callee))
                    self._busy |= job.sites
                    return job
                self._freed.wait()
        return None

    def give_back(self, job: _Job) -> None:
        """Free the sites of a call that has ended."""
        with self._freed:
            self._busy -= job.sites
            self._freed.notify_all()

    def _find(self) -> _Job | None:
        jobs = (_Job(lane, *pair) for pair in self._pairs for lane in self._lanes)
        return next((job for job in jobs if self._busy.isdisjoint(job.sites)), None)


def run_matrix(
    kinds: Sequence[str],
    *,
    attempts: int,
    delay: float,
    at_once: int = 4,
    relay: RelayUse = "never",
    patience: float = 0.0,
    tell: Told | None = None,
) -> list[Cell]:
    """Call from every kind to every kind; each call has a fresh peer, and both sites for itself.

    Args:
        kinds: Names of `KINDS`.
        attempts: For each ordered pair.
        delay: Seconds, one way, on every line, the server's included.
        at_once: How many calls go on at the same time.
        relay: Whether the callers use it; "never": a call ends in a direct stream or not at all.
        patience: Seconds from the beginning of a call in which a direct path may take over from the relay.
        tell: Is told of each attempt that has ended.

    Returns:
        A cell for each ordered pair, row by row.

    Raises:
        ConfigError: There is no such kind.
        LaboratoryError: The laboratory cannot be built here.
    """
    for kind in kinds:
        find_kind(kind)
    with tempfile.TemporaryDirectory() as directory, Lab(server_delay=delay) as lab, contextlib.ExitStack() as stack:
        lanes = [_lane(lab, number, kinds, delay) for number in range(math.ceil(at_once / len(kinds)))]
        run = _Run(Path(directory), stack.enter_context(rendezvous(lab)), kinds, lanes, relay=relay, patience=patience)
        run.open(stack)
        found = run.call(_in_turn(kinds) * attempts, at_once, tell)
    return [Cell(caller, callee, tuple(found[caller, callee])) for caller in kinds for callee in kinds]


def _lane(lab: Lab, number: int, kinds: Sequence[str], delay: float) -> _Lane:
    def sites(role: str) -> dict[str, Site]:
        return {kind: lab.site(kind, delay=delay, name=_tag(role, number, kind)) for kind in kinds}

    return _Lane(sites("caller"), sites("callee"))


def _in_turn(kinds: Sequence[str]) -> list[tuple[str, str]]:
    """Return all ordered pairs so that as many in a row as there are kinds have no site in common."""
    count = len(kinds)
    return [(kinds[place], kinds[(place + shift) % count]) for shift in range(count) for place in range(count)]


def _tag(role: str, lane: int, kind: str) -> str:
    return f"{role}-{kind.lower()}{f'-{lane}' if lane else ''}".replace("_", "-")


class _Run:
    """The peers of one matrix."""

    def __init__(
        self, directory: Path, server: str, kinds: Sequence[str], lanes: Sequence[_Lane], *, relay: RelayUse, patience: float
    ) -> None:
        self._server = server
        self._lanes = lanes
        self._relay: RelayUse = relay
        self._patience = patience
        self._unregistered: dict[tuple[int, str], str] = {}
        self._known = [
            Acquaintances(directory, *([_tag(role, number, kind) for kind in kinds] for role in ("caller", "callee")))
            for number in range(len(lanes))
        ]

    def open(self, stack: contextlib.ExitStack) -> None:
        """Have all callees register, at the same time, until the stack is closed; who cannot is called nevertheless."""

        def serve(place: tuple[int, str, Site]) -> None:
            number, kind, site = place
            tag = _tag("callee", number, kind)
            try:
                stack.enter_context(serving(site.host, tag, self._known[number].profile(tag), self._server, lan=False))
            except P2PTunnelError as error:
                self._unregistered[number, kind] = f"the callee could not register: {error}"

        places = [(number, kind, site) for number, lane in enumerate(self._lanes) for kind, site in lane.callees.items()]
        with ThreadPoolExecutor(len(places)) as pool:
            list(pool.map(serve, places))

    def call(self, pairs: Sequence[tuple[str, str]], at_once: int, tell: Told | None) -> dict[tuple[str, str], list[Attempt]]:
        """Make all these calls."""
        found: defaultdict[tuple[str, str], list[Attempt]] = defaultdict(list)
        turns, telling = _Turns(pairs, len(self._lanes)), threading.Lock()

        def work(_: int) -> None:
            while (job := turns.take()) is not None:
                try:
                    made = self._lanes[job.lane].callers[job.caller].host.thread(asyncio.run, self._attempt(job)).result()
                finally:
                    turns.give_back(job)
                with telling:
                    found[job.caller, job.callee].append(made)
                    if tell is not None:
                        tell(job.caller, job.callee, made)

        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(work, range(at_once)))
        return found

    async def _attempt(self, job: _Job) -> Attempt:
        if problem := self._unregistered.get((job.lane, job.callee)):
            return Attempt(0.0, "", problem)
        tag = _tag("caller", job.lane, job.caller)
        profile = self._known[job.lane].profile(tag)
        async with Peer(tag, rendezvous=self._server, profile=profile, lan=False, relay=self._relay) as peer:
            return await attempt(peer, _tag("callee", job.lane, job.callee), patience=self._patience)
