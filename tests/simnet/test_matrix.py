"""Every kind calls every other: all connect but those that nobody can, as fast as the round trips allow, at every delay."""

from __future__ import annotations

import pytest

from p2ptunnel.protocol.punch import phase_length
from p2ptunnel.testing.simnet import KINDS, PUNCHABLE, run_punch
from tests.simnet.sites import MANY, pairs, seeds

SYMMETRIC = ("symR", "symS")
FILTERED = ("pubfw", "pr", "prR", "prO", "shift")
OPEN = ("pub", "fc", "ar")
RELAYED = [pair for pair in pairs(SYMMETRIC) if "symR" in pair]
GUESSED = [
    ("symS", "symS"),
    *[(one, other) for one, other in pairs((*SYMMETRIC, *FILTERED)) if (one in SYMMETRIC) is not (other in SYMMETRIC)],
]


@pytest.mark.parametrize("delay", [0.0, 0.001, 0.025, 0.4])
@pytest.mark.parametrize("caller", PUNCHABLE)
def test_all_that_need_no_guess_connect_without_a_wasted_round_trip(caller: str, delay: float) -> None:
    cookie, introduction, peers = 2 * delay, 4 * delay, 4 * delay  # round trips: to the server, by it, between the two
    for callee in PUNCHABLE:
        for seed in seeds(caller, callee, 4):  # on an even network they hardly differ
            outcome = run_punch(caller, callee, seed=seed, delay=delay)
            assert outcome.connected, (callee, seed, outcome)
            assert outcome.agreed, (callee, seed, outcome)
            assert outcome.seconds <= cookie + introduction + 2 * peers + 1e-6, (callee, seed, outcome)


@pytest.mark.parametrize("delay", [0.0, 0.001, 0.025, 0.1, 0.4])
@pytest.mark.parametrize("caller", PUNCHABLE)
def test_they_connect_when_no_two_packets_take_the_same_time(caller: str, delay: float) -> None:
    for callee in PUNCHABLE:
        for seed in seeds(caller, callee, MANY):
            outcome = run_punch(caller, callee, seed=seed, delay=delay, jitter=0.0005 + delay / 5)
            assert outcome.connected, (callee, seed, outcome)
            assert outcome.agreed, (callee, seed, outcome)


@pytest.mark.parametrize("server_delay", [0.05, 0.3])
def test_they_connect_by_a_server_that_is_far_away(server_delay: float) -> None:
    for caller, callee in pairs(PUNCHABLE):
        for seed in seeds(caller, callee, MANY // 3):
            outcome = run_punch(caller, callee, seed=seed, delay=0.1, server_delay=server_delay, jitter=0.01)
            assert outcome.connected, (caller, callee, seed, outcome)


@pytest.mark.parametrize("symmetric", SYMMETRIC)
@pytest.mark.parametrize("other", OPEN)
def test_a_symmetric_nat_connects_to_the_open_in_either_role(symmetric: str, other: str) -> None:
    for caller, callee in ((symmetric, other), (other, symmetric)):
        for seed in seeds(caller, callee, MANY):
            outcome = run_punch(caller, callee, seed=seed)
            assert outcome.connected, (caller, callee, seed, outcome)
            assert outcome.agreed


@pytest.mark.parametrize("delay", [0.001, 0.025, 0.1])
@pytest.mark.parametrize(("caller", "callee"), [pair for pair in GUESSED if "symR" not in pair])
def test_ports_that_come_next_are_met_in_the_first_phase_or_the_second(caller: str, callee: str, delay: float) -> None:
    for seed in seeds(caller, callee, 4):
        outcome = run_punch(caller, callee, seed=seed, delay=delay)
        assert (outcome.connected, outcome.agreed) == (True, True), (seed, outcome)
        assert outcome.seconds < 14 * delay + 2 * phase_length(2 * delay, 2 * delay)


@pytest.mark.parametrize(("caller", "callee"), [pair for pair in GUESSED if "symR" in pair])
def test_a_birthday_finds_a_way_within_two_rounds(caller: str, callee: str) -> None:
    for seed in seeds(caller, callee, 4):
        outcomes = [run_punch(caller, callee, seed=seed + n) for n in range(2)]  # each misses once in 75 times
        assert any(outcome.connected and outcome.agreed for outcome in outcomes), (seed, outcomes)
        assert all(outcome.agreed and outcome.seconds < 5 for outcome in outcomes), (seed, outcomes)


@pytest.mark.parametrize(("caller", "callee"), RELAYED)
def test_what_nobody_can_guess_ends_in_time_and_says_so(caller: str, callee: str) -> None:
    outcome = run_punch(caller, callee, seed=1)
    assert outcome.failure is not None
    assert outcome.failure.kind == "timeout"
    assert outcome.agreed
    assert outcome.seconds < 11
    assert outcome.packets < 60


REFUSED = [("noSO", "noSO")]
LATER = [pair for pair in pairs(tuple(KINDS)) if {"noSO", "dbl"} & set(pair) and pair not in REFUSED]


@pytest.mark.parametrize("delay", [0.0, 0.025])
@pytest.mark.parametrize(("caller", "callee"), LATER)
def test_two_routers_and_one_that_lets_no_syns_meet_are_no_obstacle(caller: str, callee: str, delay: float) -> None:
    """A phase in which one side's SYN has died before the other's comes: the one that is let in is never the one that waits."""
    for seed in seeds(caller, callee, 2):
        outcomes = [run_punch(caller, callee, seed=seed + n, delay=delay) for n in range(2)]  # a birthday may miss once
        assert any(outcome.connected and outcome.agreed for outcome in outcomes), (seed, outcomes)


@pytest.mark.parametrize(("caller", "callee"), REFUSED)
def test_where_both_sides_refuse_that_syns_meet_tcp_has_no_way(caller: str, callee: str) -> None:
    outcome = run_punch(caller, callee, seed=1)
    assert (outcome.connected, outcome.agreed) == (False, True)
    assert outcome.datagrams


def test_every_cell_is_spoken_for() -> None:
    connecting = {*pairs(PUNCHABLE), *[(s, o) for s in SYMMETRIC for o in OPEN], *[(o, s) for s in SYMMETRIC for o in OPEN]}
    others = [*GUESSED, *RELAYED, *LATER, *REFUSED]
    assert {*connecting, *others} == set(pairs(tuple(KINDS)))
    assert not connecting & {*others}


def test_a_run_can_be_repeated() -> None:
    conditions = {"loss": 0.2, "duplicate": 0.1, "reorder": 0.2}
    assert run_punch("prR", "shift", seed=7, **conditions) == run_punch("prR", "shift", seed=7, **conditions)


def test_a_call_costs_few_packets() -> None:
    outcome = run_punch("pr", "prR", seed=1)
    assert outcome.packets <= 25
    assert outcome.drops == {"TTL over": 2}  # the callee's SYN and t=30, as planned, and nothing else
