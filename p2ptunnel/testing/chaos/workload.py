"""What every workload takes and gives.  Rule: values only."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from p2ptunnel.testing.chaos.flow import Flow, Ledger
from p2ptunnel.testing.chaos.world import World

__all__ = ["Load", "Running", "Workload"]


@dataclass(frozen=True, slots=True)
class Load:
    """How much an application is to move.

    Attributes:
        size_bytes: In all, at least 2.
        rate: Bytes per second at most, in all; 0 for no limit.
        seed: Of the content.
    """

    size_bytes: int
    rate: float
    seed: int


@dataclass(frozen=True, slots=True)
class Running:
    """An application at work.

    Attributes:
        pace: Its arrivals decide when a fault is due, and when nothing is left to do but to finish.
        flows: Each must move again after a fault.
        finish: Waits so many seconds for the end; returns whether everything has arrived as it was sent; raises ChaosError.
    """

    pace: Flow
    flows: Sequence[Flow]
    finish: Callable[[float], bool]


Workload: TypeAlias = Callable[[World, Ledger, Load], contextlib.AbstractContextManager[Running]]
