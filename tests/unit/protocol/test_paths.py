"""Which channel a session runs over: each rule by itself, in virtual time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import pytest

from p2ptunnel.defaults import SWITCH_PAUSE
from p2ptunnel.protocol.link import Health
from p2ptunnel.protocol.paths import PathCandidate, PathChooser, Tier, name_of, score, tier_of
from p2ptunnel.types import Path

NOW = 1000.0


def candidate(link: int, tier: Tier = Tier.DIRECT, ms: float | None = 50, **facts: object) -> PathCandidate:
    """A healthy path without jitter; its name is its link's unless told."""
    known = PathCandidate(
        link=link, name=("direct", "tcp", f"192.0.2.{link}"), tier=tier, rtt=None if ms is None else ms / 1000
    )
    return msgspec.structs.replace(known, **facts)


def active(link: int, tier: Tier = Tier.DIRECT, ms: float | None = 50, **facts: object) -> PathCandidate:
    """The one in use."""
    return candidate(link, tier, ms, is_active=True, **facts)


def on(link: int, candidates: Sequence[PathCandidate]) -> list[PathCandidate]:
    """The same candidates with the session on `link`."""
    return [msgspec.structs.replace(each, is_active=each.link == link) for each in candidates]


def watch(
    chooser: PathChooser, candidates: Sequence[PathCandidate], seconds: float, begin: float = NOW
) -> list[tuple[float, int]]:
    """Ask every half second, each path measured once a second; return when the session moved, and where."""
    current = next((each.link for each in candidates if each.is_active), None)
    moves: list[tuple[float, int]] = []
    for half in range(int(2 * seconds) + 1):
        measured = [msgspec.structs.replace(each, round_trips=each.round_trips + half // 2) for each in candidates]
        link = chooser.choose(
            [msgspec.structs.replace(each, is_active=each.link == current) for each in measured], begin + half / 2
        )
        if link is not None:
            current = link
            moves.append((half / 2, link))
    return moves


# --- the score --------------------------------------------------------------------------------------------------------


def test_the_score_is_round_trip_deviation_and_loss_with_credit_for_good_roads() -> None:
    assert score(candidate(1, ms=50)) == pytest.approx(50)
    assert score(candidate(1, ms=50, rtt_deviation=0.01)) == pytest.approx(70)
    assert score(candidate(1, ms=50, loss=0.02)) == pytest.approx(70)
    assert score(candidate(1, ms=50, is_ipv6=True)) == pytest.approx(47)
    assert score(candidate(1, ms=50, is_on_link=True)) == pytest.approx(45)
    assert score(candidate(1, ms=None)) == math.inf


@pytest.mark.parametrize(
    ("kind", "transport", "tier"),
    [("lan", "tcp", Tier.DIRECT), ("direct", "tcp", Tier.DIRECT), ("direct", "quic", Tier.QUIC), ("relay", "tcp", Tier.RELAY)],
)
def test_tcp_comes_before_quic_and_quic_before_a_relay(kind: str, transport: str, tier: Tier) -> None:
    path = msgspec.convert({"kind": kind, "transport": transport, "local": ["192.0.2.1", 1], "remote": ["192.0.2.2", 2]}, Path)
    assert tier_of(path) is tier


def test_two_attempts_at_one_path_have_one_name_whatever_their_ports() -> None:
    first = Path(kind="direct", transport="tcp", local=("192.0.2.1", 1), remote=("198.51.100.2", 2))
    again = msgspec.structs.replace(first, local=("192.0.2.1", 9), remote=("198.51.100.2", 8))
    assert name_of(first) == name_of(again)
    assert name_of(first) != name_of(msgspec.structs.replace(first, kind="relay"))
    assert name_of(first) != name_of(msgspec.structs.replace(first, remote=("198.51.100.3", 2)))


# --- up ---------------------------------------------------------------------------------------------------------------


def test_a_first_direct_path_takes_over_from_the_relay_at_once() -> None:
    assert PathChooser().choose([active(1, Tier.RELAY), candidate(2, ms=120)], NOW) == 2
    assert PathChooser().choose([active(1, Tier.RELAY), candidate(2, Tier.QUIC, ms=120)], NOW) == 2


def test_nobody_moves_to_a_path_of_his_own_will_that_was_not_measured_or_does_not_answer() -> None:
    for other in (candidate(2, ms=None), candidate(2, health=Health.SUSPECT), candidate(2, health=Health.STALLED)):
        assert watch(PathChooser(), [active(1, Tier.RELAY), other], 30) == []


@pytest.mark.parametrize(("ms", "moves"), [(200, [(0.0, 2)]), (201, [])])
def test_a_better_tier_may_cost_twice_as_much_and_100_ms(ms: float, moves: list[tuple[float, int]]) -> None:
    assert watch(PathChooser(), [active(1, Tier.RELAY, 50), candidate(2, ms=ms)], 30) == moves


def test_a_direct_path_that_costs_far_more_than_the_relay_is_left_after_three_seconds() -> None:
    assert watch(PathChooser(), [active(1, ms=201), candidate(2, Tier.RELAY, 50)], 30) == [(3.0, 2)]
    assert watch(PathChooser(), [active(1, ms=200), candidate(2, Tier.RELAY, 50)], 30) == []


def test_a_tier_is_measured_against_all_worse_ones_else_three_paths_go_round_in_a_circle() -> None:
    paths = [candidate(1, ms=300), candidate(2, Tier.QUIC, 110), candidate(3, Tier.RELAY, 10)]
    assert watch(PathChooser(), on(2, paths), 60) == []
    assert watch(PathChooser(), on(1, paths), 60) == [(3.0, 2)]


def test_tcp_takes_over_from_quic_only_when_it_has_been_worth_it_for_three_seconds() -> None:
    assert watch(PathChooser(), [active(1, Tier.QUIC, 50), candidate(2, ms=50)], 30) == [(3.0, 2)]


def test_a_direct_path_that_carried_the_session_before_must_prove_itself() -> None:
    chooser = PathChooser()
    paths = [candidate(1), candidate(2, Tier.RELAY)]
    assert chooser.choose(on(1, paths), NOW) is None
    assert chooser.choose([active(1, health=Health.SUSPECT), candidate(2, Tier.RELAY)], NOW + 1) == 2
    assert watch(chooser, on(2, paths), 20, NOW + 2) == [(3.0, 1)]


# --- between equals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ours", "theirs", "moves"), [(50, 41, 0), (50, 39.9, 1), (10, 5.1, 0), (10, 4.9, 1)])
def test_between_equals_a_path_must_be_better_by_5_ms_and_by_a_fifth(ours: float, theirs: float, moves: int) -> None:
    assert len(watch(PathChooser(), [active(1, ms=ours), candidate(2, ms=theirs)], 30)) == moves


def test_between_equals_a_path_must_be_better_for_three_seconds() -> None:
    chooser, paths = PathChooser(), [active(1), candidate(2, ms=20)]
    answers = [
        chooser.choose([paths[0], msgspec.structs.replace(paths[1], round_trips=number)], NOW + number / 4)
        for number in range(14)
    ]
    assert answers == [None] * 12 + [2, None]


def test_between_equals_a_path_must_be_better_in_three_measurements() -> None:
    chooser, paths = PathChooser(), [active(1), candidate(2, ms=20)]
    for second in range(20):
        assert chooser.choose(paths, NOW + second) is None
        assert chooser.contender == 2  # to be measured
    for trips, answer in ((1, None), (1, None), (2, 2)):
        assert chooser.choose([paths[0], msgspec.structs.replace(paths[1], round_trips=trips)], NOW + 21) == answer
    assert chooser.contender is None


def test_a_path_of_a_better_tier_is_measured_again_although_it_is_not_worth_it_now() -> None:
    chooser = PathChooser()
    assert chooser.choose([active(1, Tier.RELAY), candidate(2, ms=900), candidate(3, ms=800)], NOW) is None
    assert chooser.contender == 3
    assert chooser.choose([active(1, Tier.RELAY), candidate(3, health=Health.SUSPECT)], NOW + 1) is None
    assert chooser.contender is None


def test_one_measurement_in_which_it_was_not_better_begins_the_count_anew() -> None:
    chooser = PathChooser()
    moved = [
        second
        for second in range(12)
        if chooser.choose([active(1), candidate(2, ms=48 if second == 2 else 20, round_trips=second)], NOW + second)
    ]
    assert moved[0] == 6


def test_a_path_that_we_fill_ourselves_is_not_left_for_its_score() -> None:
    busy = active(1, ms=900, is_loaded=True)
    assert watch(PathChooser(), [busy, candidate(2, ms=20), candidate(3, Tier.RELAY, 20)], 30) == []
    assert watch(PathChooser(), [active(1, Tier.RELAY, 900, is_loaded=True), candidate(2, ms=20)], 5) == [(0.0, 2)]


def test_a_path_in_use_that_was_not_measured_is_not_compared() -> None:
    assert watch(PathChooser(), [active(1, ms=None), candidate(2, ms=20), candidate(3, Tier.RELAY, 20)], 30) == []


# --- at most once in ten seconds --------------------------------------------------------------------------------------


def test_ten_seconds_lie_between_two_voluntary_switches() -> None:
    chooser = PathChooser()
    assert chooser.choose([active(1, Tier.RELAY), candidate(2)], NOW) == 2
    paths = [active(2), candidate(3, ms=10)]
    assert watch(chooser, paths, 20, NOW + 0.5) == [(9.5, 3)]


def test_even_a_first_direct_path_waits_for_them() -> None:
    chooser = PathChooser()
    assert chooser.choose([active(1, Tier.RELAY), candidate(2)], NOW) == 2
    paths = [candidate(2, health=Health.DEAD), candidate(1, Tier.RELAY), candidate(3)]
    assert chooser.choose(on(2, paths)[:2], NOW + 1) == 1
    assert watch(chooser, on(1, paths), 20, NOW + 2) == [(8.0, 3)]


# --- doubt ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("health", [Health.SUSPECT, Health.DEAD])
def test_a_path_in_doubt_is_left_at_once(health: Health) -> None:
    chooser = PathChooser()
    assert chooser.choose([active(1, Tier.RELAY), candidate(2)], NOW) == 2  # ten seconds do not count here
    assert chooser.choose([candidate(1, Tier.RELAY), active(2, health=health)], NOW + 1) == 1


def test_a_session_without_a_channel_takes_the_best_that_answers_measured_or_not() -> None:
    others = [candidate(1, Tier.RELAY), candidate(2, health=Health.DEAD), candidate(3, Tier.QUIC, 60), candidate(4, ms=400)]
    assert PathChooser().choose(others, NOW) == 3
    assert PathChooser().choose([candidate(5, ms=None)], NOW) == 5
    assert PathChooser().choose([], NOW) is None


def test_in_doubt_without_another_path_one_stays() -> None:
    lone = [active(1, health=Health.SUSPECT), candidate(2, health=Health.SUSPECT)]
    assert PathChooser().choose(lone, NOW) is None


def test_a_stalled_peer_is_waited_for_unless_it_speaks_elsewhere() -> None:
    still = active(1, health=Health.STALLED, heard_at=NOW - 5)
    assert watch(PathChooser(), [still, candidate(2, ms=1, heard_at=NOW - 5)], 30) == []
    assert PathChooser().choose([still, candidate(2, heard_at=NOW - 4.3)], NOW) == 2


# --- paths that die again and again -----------------------------------------------------------------------------------


def died(chooser: PathChooser, now: float, *, returns: bool = False) -> float:
    """Let path 1 carry the session and die at `now`; return for how long it waits then."""
    paths = [candidate(1), candidate(2, Tier.RELAY)]
    chooser.choose(on(1, paths), now - 0.1)
    if returns:
        assert chooser.choose([active(1, health=Health.SUSPECT), paths[1]], now) == 2
    else:
        assert chooser.choose([paths[1]], now) == 2
    return max(chooser.waits_until(paths[0].name) - now, 0)


@pytest.mark.parametrize("returns", [False, True])
def test_a_path_that_dies_again_within_a_minute_waits_longer_each_time(returns: bool) -> None:
    chooser, now, waits = PathChooser(), NOW, list[float]()
    for _ in range(8):
        waits.append(died(chooser, now, returns=returns))
        now += waits[-1] + 30
    assert waits == [0, 10, 20, 40, 80, 160, 300, 300]


def test_after_a_minute_it_is_forgiven() -> None:
    chooser = PathChooser()
    assert [died(chooser, NOW), died(chooser, NOW + 59)] == [0, 10]
    assert died(chooser, NOW + 59 + 10 + 61) == 0
    assert len(chooser._deaths) == 1


def test_the_dead_of_long_ago_are_forgotten() -> None:
    chooser = PathChooser()
    for number in range(50):
        name = ("direct", "tcp", f"198.51.100.{number}")
        chooser.choose([active(number, name=name)], NOW + number * 10)
        chooser.choose([], NOW + number * 10 + 1)
    assert len(chooser._deaths) < 10


def test_a_path_that_waits_is_not_gone_back_to_until_then() -> None:
    chooser = PathChooser()
    died(chooser, NOW, returns=True)
    assert died(chooser, NOW + 20, returns=True) == 10
    [(seconds, link)] = watch(chooser, on(2, [candidate(1), candidate(2, Tier.RELAY)]), 30, NOW + 21)
    assert (seconds, link) == (12.0, 1)  # the end of its wait, and three seconds of proof


def test_a_path_that_waits_is_better_than_none_and_worse_than_any() -> None:
    chooser = PathChooser()
    died(chooser, NOW)
    died(chooser, NOW + 20)
    assert chooser.choose([candidate(1)], NOW + 21) == 1
    assert chooser.choose([candidate(1), candidate(2, Tier.RELAY, 900)], NOW + 21) == 2


def test_a_doubt_that_was_not_acted_upon_is_no_death() -> None:
    chooser = PathChooser()
    for second in range(20):
        chooser.choose([active(1)], NOW + second)
        chooser.choose([active(1, health=Health.SUSPECT)], NOW + second + 0.5)
    assert chooser.waits_until(candidate(1).name) == -math.inf


# --- a path that is just coming up ------------------------------------------------------------------------------------


def test_the_first_path_that_needs_no_relay_takes_over_at_once() -> None:
    assert PathChooser().takes_over(candidate(0, ms=90), [active(1, Tier.RELAY)], NOW)
    assert PathChooser().takes_over(candidate(0, Tier.QUIC, ms=90), [active(1, Tier.RELAY, ms=None)], NOW)


@pytest.mark.parametrize(
    ("fresh", "candidates"),
    [
        (candidate(0), [active(1)]),  # nothing is gained at once
        (candidate(0, Tier.RELAY), [active(1, Tier.RELAY)]),
        (candidate(0, ms=1000), [active(1, Tier.RELAY)]),  # a detour that the relay is better than
        (candidate(0), [active(1, Tier.RELAY, health=Health.SUSPECT)]),  # another rule decides
        (candidate(0), [candidate(1, Tier.RELAY)]),  # nothing is in use
    ],
)
def test_any_other_path_is_measured_first(fresh: PathCandidate, candidates: list[PathCandidate]) -> None:
    assert not PathChooser().takes_over(fresh, candidates, NOW)


def test_it_counts_as_a_switch_and_the_next_one_waits() -> None:
    chooser = PathChooser()
    relayed = [active(1, Tier.RELAY)]
    assert chooser.takes_over(candidate(0), relayed, NOW)
    assert not chooser.takes_over(candidate(0), relayed, NOW + SWITCH_PAUSE - 0.1)
    assert chooser.takes_over(candidate(0), relayed, NOW + SWITCH_PAUSE)


def test_a_path_that_died_too_often_is_not_gone_back_to_at_once() -> None:
    chooser, relay = PathChooser(), candidate(1, Tier.RELAY)
    now = NOW
    for _ in range(3):
        chooser.choose([active(2), relay], now)
        chooser.choose([active(2, health=Health.DEAD), relay], now + 1)
        now += 2
    dead = candidate(0, name=candidate(2).name)
    assert chooser.waits_until(dead.name) > now
    assert not chooser.takes_over(dead, [active(1, Tier.RELAY)], now)
    assert chooser.takes_over(candidate(0), [active(1, Tier.RELAY)], now)  # another one does


def test_one_that_did_not_answer_counts_as_no_switch_and_the_next_is_measured_first() -> None:
    chooser, relayed = PathChooser(), [active(1, Tier.RELAY)]
    assert chooser.takes_over(candidate(0), relayed, NOW)
    chooser.has_not_taken_over()
    assert not chooser.takes_over(candidate(0), relayed, NOW + 1)
    assert chooser.choose([active(1, Tier.RELAY), candidate(2)], NOW + 1) == 2  # no pause is in the way
    chooser.choose(on(2, [candidate(1, Tier.RELAY), candidate(2)]), NOW + 2)
    assert chooser.takes_over(candidate(0), relayed, NOW + 20)  # since one has done well
