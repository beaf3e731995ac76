"""Lets every kind call every other, many pairs at once, each site in one call at a time.

Rule: both ends of a call are fresh, since what a peer remembers of earlier ones would tell in the next: how many birthdays it
has begun, which pairs of ports are burnt.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import tempfile
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from p2ptunnel.errors import P2PTunnelError
from p2ptunnel.peer import Peer
from p2ptunnel.testing.natlab.attempt import Attempt, attempt
from p2ptunnel.testing.natlab.kinds import find_kind
from p2ptunnel.testing.natlab.lab import SITES_MAX, Lab
from p2ptunnel.testing.natlab.matrix.cells import Cell
from p2ptunnel.testing.natlab.peers import Acquaintances, rendezvous, serving
from p2ptunnel.testing.natlab.site import Site
from p2ptunnel.types import RelayUse

__all__ = ["Told", "diagonal", "run_matrix"]

_CALLS_OF_SITES: Final = 5  # of one site to another, as far as there is room: a server takes 20 in a row and then 5 a minute
_SITES_A_CALL: Final = 2  # so that few calls wait for a site

Told: TypeAlias = Callable[[str, str, Attempt], None]
"""Is told of each attempt that has ended, with its caller's and its callee's kind; by one thread at a time."""


class _Lane(NamedTuple):
    """A site of each kind for callers, and one for callees: as many calls at once as there are kinds.

    The profiles are of the sites; the peers of one call after the other have them.
    """

    callers: dict[str, Site]
    callees: dict[str, Site]
    known: Acquaintances


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
        self._left = Counter(pairs)
        self._lanes = range(lanes)
        self._made: Counter[_Job] = Counter()
        self._busy: set[tuple[int, str, str]] = set()
        self._freed = threading.Condition()

    def take(self) -> _Job | None:
        """Wait for a call whose sites are free, and keep them; None: all have been handed out."""
        with self._freed:
            while self._left:
                if (job := self._find()) is not None:
                    self._keep(job)
                    return job
                self._freed.wait()
        return None

    def give_back(self, job: _Job) -> None:
        """Free the sites of a call that has ended."""
        with self._freed:
            self._busy -= job.sites
            self._freed.notify_all()

    def _find(self) -> _Job | None:
        """Return a call whose sites are free: of the pair with most calls left, where it was made least often."""
        for pair, _ in self._left.most_common():
            free = [job for lane in self._lanes if self._busy.isdisjoint((job := _Job(lane, *pair)).sites)]
            if free:
                return min(free, key=self._made.__getitem__)
        return None

    def _keep(self, job: _Job) -> None:
        self._busy |= job.sites
        self._made[job] += 1
        self._left[job.caller, job.callee] -= 1
        self._left += Counter()  # without those of which none is left


def run_matrix(
    kinds: Sequence[str],
    *,
    attempts: int,
    delay: float,
    at_once: int = 4,
    relay: RelayUse = "never",
    patience: float = 0.0,
    pairs: Sequence[tuple[str, str]] | None = None,
    tell: Told | None = None,
) -> list[Cell]:
    """Call from every kind to every kind, or in those pairs only; each call has fresh peers that are ready, and its own sites.

    Args:
        kinds: Names of `KINDS`.
        attempts: For each ordered pair.
        delay: Seconds, one way, on the line of each site; the server's has none.
        at_once: How many calls go on at the same time.
        relay: Whether the callers use it; "never": a call ends in a direct stream or not at all.
        patience: Seconds from the beginning of a call in which a direct path may take over from the relay.
        pairs: Ordered pairs of these kinds; None: all of them.
        tell: Is told of each attempt that has ended.

    Returns:
        A cell for each ordered pair, row by row, or as they are given.

    Raises:
        ConfigError: There is no such kind.
        LaboratoryError: The laboratory cannot be built here.
    """
    for kind in kinds:
        find_kind(kind)
    with tempfile.TemporaryDirectory() as directory, Lab() as lab, contextlib.ExitStack() as stack:
        lanes_wanted = max(math.ceil(_SITES_A_CALL * at_once / len(kinds)), math.ceil(attempts / _CALLS_OF_SITES))
        count = min(lanes_wanted, _lanes_max(kinds))
        lanes = [_lane(lab, number, kinds, delay, Path(directory)) for number in range(count)]
        run = _Run(stack.enter_context(rendezvous(lab)), lanes, relay=relay, patience=patience)
        found = run.call(list(pairs or _in_turn(kinds)) * attempts, at_once, tell)
    wanted = pairs or [(caller, callee) for caller in kinds for callee in kinds]
    return [Cell(caller, callee, tuple(found[caller, callee])) for caller, callee in wanted]


def diagonal(kinds: Sequence[str], number: int) -> list[tuple[str, str]]:
    """Return one part of all ordered pairs, as many as there are kinds: each of them calls once, and is called once."""
    return [(kind, kinds[(place + number) % len(kinds)]) for place, kind in enumerate(kinds)]


def _lanes_max(kinds: Sequence[str]) -> int:
    """Return for how many lanes a laboratory has room, one at least."""
    return max(1, SITES_MAX // sum(4 if find_kind(kind).carrier else 2 for kind in kinds))


def _lane(lab: Lab, number: int, kinds: Sequence[str], delay: float, directory: Path) -> _Lane:
    def sites(role: str) -> dict[str, Site]:
        return {kind: lab.site(kind, delay=delay, name=_tag(role, number, kind)) for kind in kinds}

    known = Acquaintances(directory, *([_tag(role, number, kind) for kind in kinds] for role in ("caller", "callee")))
    return _Lane(sites("caller"), sites("callee"), known)


def _in_turn(kinds: Sequence[str]) -> list[tuple[str, str]]:
    """Return all ordered pairs so that as many in a row as there are kinds have no site in common."""
    return [pair for number in range(len(kinds)) for pair in diagonal(kinds, number)]


def _tag(role: str, lane: int, kind: str) -> str:
    return f"{role}-{kind.lower()}{f'-{lane}' if lane else ''}".replace("_", "-")


class _Run:
    """The calls of one matrix."""

    def __init__(self, server: str, lanes: Sequence[_Lane], *, relay: RelayUse, patience: float) -> None:
        self._server = server
        self._lanes = lanes
        self._relay: RelayUse = relay
        self._patience = patience

    def call(self, pairs: Sequence[tuple[str, str]], at_once: int, tell: Told | None) -> dict[tuple[str, str], list[Attempt]]:
        """Make all these calls."""
        found: defaultdict[tuple[str, str], list[Attempt]] = defaultdict(list)
        turns, telling = _Turns(pairs, len(self._lanes)), threading.Lock()

        def work(_: int) -> None:
            while (job := turns.take()) is not None:
                try:
                    made = self._make(job)
                finally:
                    turns.give_back(job)
                with telling:
                    found[job.caller, job.callee].append(made)
                    if tell is not None:
                        tell(job.caller, job.callee, made)

        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(work, range(at_once)))
        return found

    def _make(self, job: _Job) -> Attempt:
        """Have a callee serve, and a caller call it; who cannot register is not called."""
        lane, tag = self._lanes[job.lane], _tag("callee", job.lane, job.callee)
        try:
            with serving(lane.callees[job.callee].host, tag, lane.known.profile(tag), self._server, lan=False):
                return lane.callers[job.caller].host.thread(asyncio.run, self._attempt(job, tag)).result()
        except P2PTunnelError as error:
            return Attempt(0.0, "", f"the callee could not be called: {error}")

    async def _attempt(self, job: _Job, wanted: str) -> Attempt:
        tag = _tag("caller", job.lane, job.caller)
        profile = self._lanes[job.lane].known.profile(tag)
        async with Peer(tag, rendezvous=self._server, profile=profile, lan=False, relay=self._relay) as peer:
            return await attempt(peer, wanted, patience=self._patience)
