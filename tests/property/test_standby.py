"""Sessions that go back to channels which they have left, over a hostile network: every byte once and in order all the same."""

from __future__ import annotations

import random

import pytest

from p2ptunnel.defaults import ACK_EVERY_BYTES
from p2ptunnel.errors import P2PTunnelError
from p2ptunnel.protocol import resume
from tests.helpers.hostile import CALLEE, CALLER, Hostile, operate

pytestmark = pytest.mark.bulk

PER_TEST = 250
STEPS = 80


def return_to_any(world: Hostile, dice: random.Random) -> None:
    """Ask to go on over a channel that the caller still holds, be it the one in use."""
    if held := [channel for channel in world.channels if channel.held_by(CALLER)]:
        number = dice.choice(held).numbers[CALLER]
        assert number is not None
        world.ends[CALLER].resume(number)
        world.pump(CALLER)


def play(seed: int) -> tuple[Hostile, int]:
    """Play one schedule in which the session comes back to old channels; return how often it was asked to."""
    dice, returns = random.Random(seed), 0
    world = Hostile(
        seed, resume_buffer=dice.choice((1500, 40_000, 1 << 20)), closes_old=False, wire_bytes=dice.choice((1, 3000, 65536))
    )
    world.open(CALLER)
    for _ in range(STEPS):
        if dice.random() < 0.1:
            return_to_any(world, dice)
            returns += 1
        else:
            operate(world, dice)
    return world, returns


@pytest.mark.parametrize("first", range(0, 5000, PER_TEST))
def test_a_session_may_go_back_to_any_channel_at_any_time(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "ACK_EVERY_BYTES", (1, 1000, ACK_EVERY_BYTES)[first // PER_TEST % 3])
    moves = came = 0
    for seed in range(first, first + PER_TEST):
        try:
            world, returns = play(seed)
            world.heal()
        except (AssertionError, P2PTunnelError) as error:
            pytest.fail(f"seed {seed}: {type(error).__name__}: {error}")
        moves += min(returns, world.moves[CALLER])
        came += sum(flow.came for flow in world.flows.values())
    assert moves > PER_TEST
    assert came > 10_000 * PER_TEST


@pytest.mark.parametrize("first", range(0, 2000, PER_TEST))
def test_a_channel_that_was_withdrawn_before_it_answered_leaves_nobody_behind(first: int) -> None:
    """The callee may have moved there: it comes back, without another channel coming up."""
    withdrawn = 0
    for seed in range(first, first + PER_TEST):
        dice = random.Random(seed)
        world = Hostile(seed, closes_old=False, wire_bytes=3000)
        stream = world.open(CALLER)
        world.write(CALLER, stream, 20_000)
        world._exchange()
        world.write(CALLER, stream, 70_000)
        world.write(CALLEE, stream, 70_000)
        second = world.dial()
        for _ in range(dice.randrange(20)):
            world.pump(dice.randrange(2))
            world.carry(dice.choice(world.channels), dice.randrange(2), dice.choice((20, 200, 5000)))
        had_moved = world.ends[CALLER].active == second.numbers[CALLER]
        world.drop(second, CALLER)
        if had_moved:
            world.ends[CALLER].resume(1)
        withdrawn += not had_moved
        for _ in range(10):
            world._exchange()
            world.wait(0.45)
        world._check_everything_came()
    assert withdrawn > PER_TEST / 10
