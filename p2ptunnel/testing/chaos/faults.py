"""The faults of a run: which, when and on which side; each a block at whose end the path is there again."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from p2ptunnel.testing.chaos.flow import ChaosError
from p2ptunnel.testing.natlab import Site
from p2ptunnel.testing.natlab.faults import change_address, cut, kill_tcp, part, rebind

__all__ = ["KINDS", "Fault", "Injector", "plan"]


@dataclass(frozen=True, slots=True)
class Injector:
    """One kind of fault.

    Attributes:
        inject: Makes it at the first site, while the block lasts; the second is the far one.
        seconds: How long it lasts; 0 for what is done in an instant, after which a new connection would come up.
    """

    inject: Callable[[Site, Site], contextlib.AbstractContextManager[None]]
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault to come.

    Attributes:
        number: From 1.
        kind: A name in `KINDS`.
        side: 0 at home, 1 at the caller's.
        after: Share of the transfer that has arrived by then, between 0 and 1.
    """

    number: int
    kind: str
    side: int
    after: float


@contextlib.contextmanager
def _kill(site: Site, far: Site) -> Generator[None]:
    if not kill_tcp(site.host, far.wan_address):
        raise ChaosError(f"no connection from {site.name} to {far.name} is there to be killed")
    yield


@contextlib.contextmanager
def _rebind(site: Site, _far: Site) -> Generator[None]:
    rebind(site)
    yield


@contextlib.contextmanager
def _cut(site: Site, _far: Site) -> Generator[None]:
    with cut(site):
        yield


@contextlib.contextmanager
def _part(site: Site, far: Site) -> Generator[None]:
    with part(site, far):
        yield


@contextlib.contextmanager
def _move(site: Site, _far: Site) -> Generator[None]:
    change_address(site)
    yield


KINDS: Final[Mapping[str, Injector]] = {
    "kill": Injector(_kill),
    "rebind": Injector(_rebind),
    "cut": Injector(_cut, seconds=5.0),
    "move": Injector(_move),
    "part": Injector(_part, seconds=5.0),
}
"""kill: the kernel resets the connection.  rebind: the router forgets it, and gives it another port.  cut: nothing passes
for 5 s.  move: the machine gets another address.  part: the two do not reach each other for 5 s,
and the relay carries."""


def plan(count: int, seed: int, kinds: Sequence[str]) -> Iterator[Fault]:
    """Yield so many faults, evenly spread over the transfer, the kinds in turn, the sides drawn."""
    dice = random.Random(seed)
    for number, kind in zip(range(1, count + 1), itertools.cycle(kinds)):
        yield Fault(number, kind, dice.randrange(2), number / (count + 1))
