"""The network in memory says of every pair what the kernel says: who connects over TCP, and who does not."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from p2ptunnel.testing.natlab.matrix import run_matrix
from p2ptunnel.testing.simnet import KINDS, run_punch

pytestmark = [pytest.mark.natlab, pytest.mark.timeout(180)]

SEEDS = range(3)
PATIENCE = 5.0
"""Seconds for a direct path."""


def reached(kinds: Sequence[str], attempts: int) -> set[tuple[str, str]]:
    """Return the pairs in which a call ended on a direct TCP path; each must have connected, if only over the relay."""
    cells = run_matrix(kinds, attempts=attempts, delay=0.005, at_once=26, relay="auto", patience=PATIENCE)
    assert {(cell.caller, cell.callee): [a.error for a in cell.attempts] for cell in cells if not cell.connected} == {}
    return {(cell.caller, cell.callee) for cell in cells if "direct tcp" in cell.paths}


def test_the_kernel_connects_whom_the_network_in_memory_connects() -> None:
    """Where the two differ the kernel is asked again: on a busy machine a phase may have been missed."""
    kinds = tuple(kind for kind in KINDS if KINDS[kind].allocation != "random")  # else it is luck: test_guessing has its share
    pairs = itertools.product(kinds, kinds)
    simulated = {pair for pair in pairs if any(run_punch(*pair, seed=seed).connected for seed in SEEDS)}
    real = reached(kinds, attempts=1)
    for pair in simulated - real:
        real |= {pair} & reached(tuple(dict.fromkeys(pair)), attempts=3)
    assert (simulated - real, real - simulated) == (set(), set())
