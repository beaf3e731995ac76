"""T10: every reader takes a few thousand damaged inputs, and what earlier runs found; longer runs: `make fuzz`."""

from __future__ import annotations

import contextlib
import os

import pytest

from fuzz.mutation import Escaped, Run, corpus_of
from fuzz.targets import TARGETS, Target

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0.5"))
SEED = 20
SLOW = 0.25
"""Seconds of CPU for one short input; the dearest measured are 6 ms (a spoken code), all others are below 1."""


@pytest.mark.parametrize("name", TARGETS)
def test_a_reader_returns_or_raises_what_it_may(name: str) -> None:
    run = Run(name, TARGETS[name], SEED)
    run.go_on(SECONDS, most=5000)
    assert run.inputs >= 20
    assert run.slowest[0] < SLOW, run.slowest


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_found_once_is_read_again(name: str) -> None:
    target = TARGETS[name]
    for data in corpus_of(name):
        with contextlib.suppress(*target.refusals):
            target.read(data)


def test_a_reader_that_raises_what_it_may_not_is_found() -> None:
    def brittle(data: bytes) -> None:
        if data[:1] == b"x" and len(data) > 3:
            raise KeyError(data)

    with pytest.raises(Escaped) as found:
        Run("brittle", Target(brittle, (b"xyz",), ()), 1).go_on(5)
    assert found.value.data.startswith(b"x")


def test_the_same_seed_gives_the_same_inputs() -> None:
    seen: list[list[bytes]] = [[], []]
    for inputs in seen:
        Run("noting", Target(inputs.append, (b"abc",), ()), 7).go_on(5, most=200)
    assert seen[0] == seen[1]
    assert len(set(seen[0])) > 100
