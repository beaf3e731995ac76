"""Sessions over a hostile network: every byte once and in order, clean ends where the writer ended, and nothing stuck.

`tests/helpers/hostile.py` compares each byte as it comes.  A schedule that fails is played again by `play(seed, STEPS)`.
"""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from p2ptunnel.protocol import resume
from tests.helpers.hostile import Channel, Hostile, play

pytestmark = pytest.mark.bulk

PER_TEST = 500
STEPS = 60

sides = st.sampled_from([0, 1])
sizes = st.sampled_from([1, 7, 8, 9, 100, 1500, 20_000, 70_000, 300_000])


@pytest.mark.parametrize("first", range(0, 10_000, PER_TEST))
def test_whatever_the_network_does_every_byte_comes_once_and_in_order(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "ACK_EVERY_BYTES", (1, 1000, resume.ACK_EVERY_BYTES)[first // PER_TEST % 3])
    moves = came = 0
    for seed in range(first, first + PER_TEST):
        try:
            world = play(seed, STEPS)
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
        moves += sum(world.moves)
        came += sum(flow.came for flow in world.flows.values())
    assert moves > PER_TEST  # the schedules are about something
    assert came > 10_000 * PER_TEST


@pytest.mark.parametrize("seed", range(10_000, 10_020))
def test_long_lives_with_hundreds_of_cuts_lose_nothing(seed: int) -> None:
    play(seed, 1500)


class TwoEnds(RuleBasedStateMachine):
    """The same network, moved by hypothesis, which shortens what fails."""

    def __init__(self) -> None:
        super().__init__()
        self.world = Hostile(0, resume_buffer=5000, closes_old=False)

    def channel(self, data: st.DataObject) -> Channel:
        return data.draw(st.sampled_from(self.world.channels))

    @precondition(lambda self: len(self.world.flows) < 8)
    @rule(side=sides, interactive=st.booleans())
    def open(self, side: int, interactive: bool) -> None:
        self.world.open(side, interactive=interactive)

    @precondition(lambda self: self.world.writers())
    @rule(data=st.data(), size=sizes, what=st.sampled_from(["write", "write", "feed", "end"]))
    def write(self, data: st.DataObject, size: int, what: str) -> None:
        side, stream = data.draw(st.sampled_from(self.world.writers()))
        if what == "write":
            self.world.write(side, stream, size)
        elif what == "feed":
            self.world.feed(side, stream)
        else:
            self.world.write_eof(side, stream)

    @rule(side=sides)
    def read(self, side: int) -> None:
        self.world.read(side)

    @rule(side=sides)
    def pump(self, side: int) -> None:
        self.world.pump(side)

    @rule(data=st.data(), side=sides, size=st.integers(1, 70_000))
    def carry(self, data: st.DataObject, side: int, size: int) -> None:
        self.world.carry(self.channel(data), side, size)

    @precondition(lambda self: len(self.world.channels) < 6)
    @rule()
    def dial(self) -> None:
        self.world.dial()

    @rule(data=st.data(), side=sides, share=st.floats(0, 1))
    def cut(self, data: st.DataObject, side: int, share: float) -> None:
        channel = self.channel(data)
        self.world.cut(channel, side, int(share * len(channel.wires[side])))

    @rule(data=st.data(), side=sides)
    def drop(self, data: st.DataObject, side: int) -> None:
        self.world.drop(self.channel(data), side)

    @rule(data=st.data(), side=sides)
    def stall(self, data: st.DataObject, side: int) -> None:
        channel = self.channel(data)
        channel.is_stalled[side] = not channel.is_stalled[side]

    @rule(seconds=st.sampled_from([0.1, 0.5, 3.0]), witness=st.sampled_from([None, 0.0, 100.0]))
    def wait(self, seconds: float, witness: float | None) -> None:
        self.world.wait(seconds, witness)

    def teardown(self) -> None:
        self.world.heal()


TestTwoEnds = TwoEnds.TestCase
TestTwoEnds.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
