"""Both sides of a birthday on real sockets, through real routers: what the machines ask for can be done as it is written."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from functools import partial

import pytest

from p2ptunnel.defaults import BIRTHDAY_HOLES
from p2ptunnel.net import low
from p2ptunnel.net.dial import Dial
from p2ptunnel.net.sockets import ANY_IPV4
from p2ptunnel.protocol.birthday import BirthdayEnded, OpenHoles, SendProbes, Tell
from p2ptunnel.protocol.guessing import EasySide
from p2ptunnel.protocol.holes import HardSide
from p2ptunnel.testing.natlab import Lab, Site
from p2ptunnel.wire.signal import GoAhead

TTL = 2  # dies at the internet's router
DELAY = 0.025
ROUND_TRIP = 4 * DELAY
ROUNDS = 3  # of which each misses once in 75 times
HOLES = BIRTHDAY_HOLES


class Round:
    """One round: a hard side and an easy side, each with the sockets of its own host, in one loop."""

    def __init__(self, hard: Site, easy: Site, port: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[bool] = self.loop.create_future()
        self.outcomes: Counter[str] = Counter()
        self._hard, self._easy, self._port = hard, easy, port
        self._random = random.Random(port)
        self._dials: list[Dial] = []
        self._timers: dict[HardSide | EasySide, asyncio.TimerHandle] = {}
        self.hard_side = HardSide((easy.wan_address, port), ROUND_TRIP, holes=HOLES)
        self.easy_side = EasySide(hard.wan_address, ROUND_TRIP, self._random)

    def start(self, *sides: HardSide | EasySide) -> None:
        for side in sides:
            side.start(self.loop.time())
            self._flush(side)

    def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        for dial in self._dials:
            dial.close()

    def _flush(self, side: HardSide | EasySide) -> None:
        for event in side.events():
            match event:
                case OpenHoles():
                    with self._hard.host.inside():
                        for _ in event.holes:
                            self._dial(0, event.target, TTL, 10.0)
                case SendProbes():
                    with self._easy.host.inside():
                        for port in event.ports:
                            self._dial(self._port, (event.host, port), None, event.patience)
                case Tell(body=GoAhead() as go):
                    self.loop.call_later(ROUND_TRIP / 2, self._go, go)  # the way by the server
                case BirthdayEnded():
                    self._end(False)
                case _:
                    raise AssertionError(event)
        self._mind(side)

    def _mind(self, side: HardSide | EasySide) -> None:
        if (timer := self._timers.pop(side, None)) is not None:
            timer.cancel()
        if (deadline := side.next_deadline()) is not None and not self.ended.done():
            self._timers[side] = self.loop.call_at(deadline, self._wake, side)

    def _wake(self, side: HardSide | EasySide) -> None:
        side.handle_timer(self.loop.time())
        self._flush(side)

    def _go(self, go: GoAhead) -> None:
        if not self.ended.done():
            self.easy_side.receive(go, self.loop.time())
            self._flush(self.easy_side)

    def _dial(self, port: int, target: tuple[str, int], low_ttl: int | None, patience: float) -> None:
        on_end = partial(self._dial_ended, is_hole=low_ttl is not None)
        dial = Dial((ANY_IPV4, port), target, on_end, rng=self._random, low_ttl=low_ttl, patience=patience, redials=0)
        self._dials.append(dial)
        dial.connect()

    def _dial_ended(self, dial: Dial, *, is_hole: bool) -> None:
        outcome = str(dial.record.outcome)
        self.outcomes[f"{'hole' if is_hole else 'probe'} {outcome}"] += 1
        if self.outcomes["hole connected"] and self.outcomes["probe connected"]:
            self._end(True)

    def _end(self, connected: bool) -> None:
        if not self.ended.done():
            self.ended.set_result(connected)


async def meet(hard: Site, easy: Site, port: int) -> bool:
    """Tell whether one round connects the two."""
    a_round = Round(hard, easy, port)
    try:
        a_round.start(a_round.hard_side, a_round.easy_side)
        async with asyncio.timeout(20):
            return await a_round.ended
    finally:
        a_round.close()


async def refused_holes(hard: Site, easy: Site, port: int) -> int:
    """Return how many holes a router's RST has ended, after a round without a guess."""
    a_round = Round(hard, easy, port)
    try:
        a_round.start(a_round.hard_side)
        async with asyncio.timeout(20):
            await a_round.ended
        return a_round.outcomes["hole refused"]
    finally:
        a_round.close()


@pytest.mark.parametrize("kind", ["pr", "prR", "prO"])
def test_a_hole_is_found(natlab: Lab, kind: str) -> None:
    hard, easy = natlab.site("symR", delay=DELAY), natlab.site(kind, delay=DELAY)
    assert any(asyncio.run(meet(hard, easy, 41_000 + n)) for n in range(ROUNDS))


@pytest.mark.parametrize("kind", ["prR", "prO"])
def test_holes_outlive_the_repetition_of_their_syns(natlab: Lab, kind: str) -> None:
    hard, easy = natlab.site("symR", delay=DELAY), natlab.site(kind, delay=DELAY)
    rounds = (asyncio.run(refused_holes(hard, easy, 41_100 + n)) for n in range(ROUNDS))
    assert any(refused <= HOLES / 16 for refused in rounds)  # a machine that is busy for a moment lowers some too late


def test_repetitions_that_went_all_the_way_would_end_them_all(natlab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(low.LowConnect, "_await_repeat", lambda *_: None)
    hard, easy = natlab.site("symR", delay=DELAY), natlab.site("prR", delay=DELAY)
    assert asyncio.run(refused_holes(hard, easy, 41_200)) == HOLES
