"""Birthdays over UDP, the real agents on the network in memory: how often they find a way, and what that costs others."""

from __future__ import annotations

import os
import statistics
import sys

import pytest

from p2ptunnel.defaults import BIRTHDAY_CREDIT, BIRTHDAY_HOLES, BIRTHDAY_PROBES
from p2ptunnel.testing.simnet import Network
from p2ptunnel.testing.simnet.run import CALLEE, CALLER, SERVER, Call
from p2ptunnel.testing.simnet.side import Habits
from tests.simnet.sites import seeds

EASY = ("pubfw", "pr", "prR", "prO", "shift")
OPEN = ("pub", "fc", "ar")
ORDERS = [*[("symR", easy) for easy in EASY], *[(easy, "symR") for easy in EASY]]
RUNS = int(os.environ.get("BIRTHDAYS", "6" if sys.gettrace() else "20"))
"""Birthdays of each order, about 20 ms each."""
BLOCKED = Habits(has_tcp=False, can_quic=True)
QUIC = Habits(can_quic=True)


def calls(caller: str, callee: str, seed: int, *, delay: float = 0.025, loss: float = 0.0) -> Call:
    """Let a call go until QUIC is to begin, or all is over; the side of random ports has no TCP."""
    habits = {"caller": BLOCKED if caller == "symR" else QUIC, "callee": BLOCKED if callee == "symR" else QUIC}
    return let(Call(Network(seed=seed, loss=loss), caller, callee, delay=delay, **habits))


def let(call: Call) -> Call:
    call.register()
    clock = call.network.clock
    call.caller.start()
    clock.run_until(clock.now + 30, lambda: call.caller.quic is not None or call.caller.ended_at is not None)
    return call


def seconds(call: Call) -> float:
    assert call.caller.quic_at is not None
    return call.caller.quic_at


def probes(call: Call) -> int:
    return call.caller.probes + call.callee.probes


def test_nearly_every_round_finds_a_way() -> None:
    """As many as over TCP: a round finds a way in 98.7 cases of a hundred."""
    found: list[bool] = []
    for caller, callee in ORDERS:
        runs = [calls(caller, callee, seed) for seed in seeds(caller, callee, RUNS)]
        good = [run for run in runs if run.caller.quic is not None]
        took, sent = [seconds(run) for run in good], [probes(run) for run in good]
        share, guesses = f"{len(good)} of {len(runs)}", f"{statistics.median(sent):.0f} guesses"
        print(f"{caller} x {callee}: {share}, {guesses}, {statistics.median(took):.2f} s, {max(took):.2f} at most")
        found += [run.caller.quic is not None for run in runs]
    assert sum(found) / len(found) >= 0.94
    assert {run.caller.probes for run in runs} == {0} or {run.callee.probes for run in runs} == {0}  # one side guesses


@pytest.mark.parametrize(("caller", "callee"), ORDERS)
def test_what_is_found_is_a_way_for_more(caller: str, callee: str) -> None:
    """The caller begins QUIC from its hole, or to the callee's; there the callee expects it."""
    ways = [run for run in (calls(caller, callee, seed) for seed in seeds(caller, callee, 3)) if run.caller.quic is not None]
    assert ways
    for call in ways:
        way = call.caller.quic
        assert way is not None
        assert (way.hole is not None) == (caller == "symR")
        [agent] = call.callee.port.agents
        assert agent.expects_quic
        if way.hole is None:
            assert way.remote[0] == CALLEE[0]
            assert agent._heard_holes
        else:
            assert any(agent.has_heard_from((CALLER[0], port)) for port in range(1024, 65_536))


@pytest.mark.parametrize("easy", OPEN)
def test_a_side_that_lets_strangers_in_is_found_without_many_guesses(easy: str) -> None:
    for caller, callee in (("symR", easy), (easy, "symR")):
        for seed in seeds(caller, callee, 3):
            call = calls(caller, callee, seed)
            assert call.caller.quic is not None
            assert probes(call) <= BIRTHDAY_CREDIT / 4


@pytest.mark.parametrize(("delay", "loss"), [(0.0, 0.0), (0.001, 0.0), (0.1, 0.0), (0.025, 0.05)])
def test_neither_a_short_way_nor_a_long_one_nor_a_bad_one_is_in_the_way(delay: float, loss: float) -> None:
    for caller, callee in (("symR", "pr"), ("prR", "symR")):
        runs = [calls(caller, callee, seed, delay=delay, loss=loss) for seed in seeds(caller, callee, RUNS)]
        assert sum(run.caller.quic is not None for run in runs) / len(runs) >= 0.8


def test_where_tcp_may_do_it_udp_is_not_guessed_over() -> None:
    call = let(Call(Network(seed=1), "symR", "pr", caller=QUIC, callee=QUIC))
    assert not call.caller._udp_holes
    assert call.callee.probes > 0
    assert call.caller.chosen


@pytest.mark.parametrize(("caller", "callee"), [("symR", "pr"), ("pr", "symR")])
@pytest.mark.parametrize("lacks", ["caller", "callee"])
def test_where_one_side_lacks_quic_nobody_is_sprayed(caller: str, callee: str, lacks: str) -> None:
    habits = {"caller": BLOCKED if caller == "symR" else QUIC, "callee": BLOCKED if callee == "symR" else QUIC}
    habits[lacks] = Habits(has_tcp=habits[lacks].has_tcp)
    call = let(Call(Network(seed=1), caller, callee, **habits))
    assert probes(call) == 0
    assert call.caller.most_open + call.callee.most_open < 8
    assert call.caller.host.sent[CALLEE[0]] + call.callee.host.sent[CALLER[0]] < 60


@pytest.mark.parametrize(("caller", "callee"), ORDERS)
def test_a_round_costs_what_it_may_and_nobody_else_anything(caller: str, callee: str) -> None:
    for seed in seeds(caller, callee, 3):
        call = calls(caller, callee, seed)
        for side in (call.caller, call.callee):
            assert side.probes <= BIRTHDAY_PROBES
            assert side.most_open <= BIRTHDAY_HOLES + 8
            assert set(side.host.sent) <= {SERVER[0], CALLER[0], CALLEE[0]}
        assert call.callee.host.sent[CALLER[0]] <= BIRTHDAY_PROBES + 60
        assert call.caller.host.sent[CALLEE[0]] <= BIRTHDAY_PROBES + 60


def test_what_the_holes_send_dies_on_the_way() -> None:
    call = calls("symR", "pr", 3)
    opened = len(call.caller._udp_holes)
    assert opened > 100
    assert call.network.drops["TTL over"] >= opened - 1


def test_when_the_call_is_over_no_hole_is_left() -> None:
    for caller, callee in (("symR", "pr"), ("pr", "symR")):
        call = calls(caller, callee, 1)
        call.network.clock.advance(30.0)
        assert call.caller.ended_at is not None
        assert not call.caller._udp_holes
        assert not call.callee._udp_holes
