"""Choosing between paths, whatever they do: it settles where nothing changes, and never jumps back and forth."""

from __future__ import annotations

import random

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from p2ptunnel.defaults import SWITCH_PAUSE
from p2ptunnel.protocol.link import Health
from p2ptunnel.protocol.paths import PathCandidate, PathChooser, Tier, score

NOW = 1000.0

milliseconds = st.floats(0.1, 2000)


@st.composite
def paths(draw: st.DrawFn) -> list[PathCandidate]:
    """Two to five healthy paths."""
    return [
        PathCandidate(
            link=number,
            name=("direct", "tcp", f"192.0.2.{number}"),
            tier=draw(st.sampled_from(Tier)),
            rtt=draw(milliseconds) / 1000,
            rtt_deviation=draw(milliseconds) / 10_000,
            loss=draw(st.floats(0, 0.3)),
        )
        for number in range(1, draw(st.integers(2, 5)) + 1)
    ]


def seen(known: list[PathCandidate], current: int | None, second: int) -> list[PathCandidate]:
    return [msgspec.structs.replace(each, is_active=each.link == current, round_trips=second) for each in known]


@given(known=paths(), first=st.integers(1, 5))
def test_where_nothing_changes_it_settles(known: list[PathCandidate], first: int) -> None:
    chooser, current, moves = PathChooser(), min(first, len(known)), 0
    for second in range(200):
        link = chooser.choose(seen(known, current, second), NOW + second)
        if link is not None:
            assert second < 150, "it goes on and on"
            current, moves = link, moves + 1
    assert moves <= 2 * len(known)
    others = [each for each in known if each.link != current]
    [own] = [each for each in known if each.link == current]
    assert all(score(own) - score(each) < max(5, 0.2 * score(own)) for each in others if each.tier is own.tier)


@given(seed=st.integers(0, 1 << 32), count=st.integers(2, 5))
def test_whatever_happens_there_is_no_second_voluntary_switch_within_ten_seconds(seed: int, count: int) -> None:
    dice = random.Random(seed)
    chooser, now, last, current = PathChooser(), NOW, -1e9, 1
    for step in range(400):
        now += dice.choice((0.05, 0.25, 1.0))
        known = [
            PathCandidate(
                link=number,
                name=("direct", "tcp", f"192.0.2.{number}"),
                tier=Tier(number % 3),
                health=dice.choice((Health.UP,) * 30 + tuple(Health)),
                heard_at=now - dice.random() * 3,
                rtt=dice.choice((None, *(dice.random() * 10.0 ** -dice.randrange(4) for _ in range(9)))),
                round_trips=step,
            )
            for number in range(1, count + 1)
            if number == current or dice.random() < 0.95
        ]
        before = next(each for each in known if each.link == current)
        link = chooser.choose([msgspec.structs.replace(each, is_active=each.link == current) for each in known], now)
        if link is None:
            continue
        assert link != current
        assert next(each for each in known if each.link == link).health is Health.UP
        if before.health is Health.UP:
            assert now - last >= SWITCH_PAUSE
            last = now
        current = link
