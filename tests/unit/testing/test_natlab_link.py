"""When packets come out of a link, if at all; time and dice are ours."""

from __future__ import annotations

import random
from itertools import groupby, pairwise

import pytest

from p2ptunnel.testing.natlab.engine.link import Direction, LinkSettings

PACKETS = 20_000


def direction(**settings: float) -> Direction:
    return Direction(LinkSettings(**settings), random.Random(7))  # type: ignore[arg-type]


def arrivals(link: Direction, count: int = PACKETS, *, every: float = 0.001, size: int = 1000) -> list[tuple[float, ...]]:
    return [link.admit(size, i * every) for i in range(count)]


def test_a_plain_link_delivers_at_once() -> None:
    assert direction().admit(1500, now=5.0) == (5.0,)


def test_a_delay_is_added() -> None:
    assert direction(delay=0.25).admit(1500, now=5.0) == (5.25,)


def test_jitter_is_at_most_what_was_asked_and_keeps_the_order() -> None:
    times = [when for (when,) in arrivals(direction(delay=0.1, jitter=0.05), every=0.01)]
    lags = [when - i * 0.01 for i, when in enumerate(times)]
    assert 0.1 <= min(lags) < 0.11
    assert 0.14 < max(lags) <= 0.15 + 1e-9
    assert all(before <= after for before, after in pairwise(times))


def test_loss_is_the_share_asked_for() -> None:
    link = direction(loss=0.2)
    lost = arrivals(link).count(())
    assert lost / PACKETS == pytest.approx(0.2, rel=0.05)
    assert (link.sent, link.lost) == (PACKETS - lost, lost)


def test_losses_in_bursts_have_the_same_share_and_the_length_asked_for() -> None:
    outcomes = [not times for times in arrivals(direction(loss=0.1, burst=5.0))]
    bursts = [len(list(run)) for is_lost, run in groupby(outcomes) if is_lost]
    assert sum(bursts) / PACKETS == pytest.approx(0.1, rel=0.15)
    assert sum(bursts) / len(bursts) == pytest.approx(5.0, rel=0.15)


def test_independent_losses_come_alone() -> None:
    outcomes = [not times for times in arrivals(direction(loss=0.1))]
    bursts = [len(list(run)) for is_lost, run in groupby(outcomes) if is_lost]
    assert sum(bursts) / len(bursts) == pytest.approx(1 / 0.9, rel=0.05)


def test_a_burst_ends_when_nothing_is_to_be_lost_any_more() -> None:
    link = direction(loss=0.9, burst=50.0)
    arrivals(link, 100)
    link.change({"loss": 0.0})
    assert () not in arrivals(link, 100)


def test_what_is_too_big_is_counted_as_lost_and_without_a_limit_nothing_is() -> None:
    narrow = direction(mtu=1280)
    assert [narrow.is_too_big(size) for size in (1280, 1281, 9000)] == [False, True, True]
    assert narrow.lost == 2
    assert not direction().is_too_big(65_535)


@pytest.mark.parametrize("mtu", [-1, 1, 575])
def test_a_line_narrower_than_ipv4_allows_is_none(mtu: int) -> None:
    with pytest.raises(ValueError, match="mtu is 0, or 576 at least"):
        LinkSettings(mtu=mtu)


def test_all_is_lost_in_bursts_too_when_all_is_to_be_lost() -> None:
    assert set(arrivals(direction(loss=1.0, burst=5.0), 100)) == {()}


def test_duplicates_arrive_together_and_as_often_as_asked() -> None:
    twice = [times for times in arrivals(direction(duplicate=0.3, delay=1.0)) if len(times) == 2]
    assert len(twice) / PACKETS == pytest.approx(0.3, rel=0.05)
    assert all(first == second for first, second in twice)


def test_reordered_packets_overtake_those_before_them() -> None:
    times = [when for (when,) in arrivals(direction(delay=0.1, reorder=0.25))]
    overtaking = [i for i, when in enumerate(times) if when == i * 0.001]
    assert len(overtaking) / PACKETS == pytest.approx(0.25, rel=0.05)
    assert sum(after < before for before, after in pairwise(times)) > PACKETS / 10


def test_a_rate_spaces_packets_by_their_size() -> None:
    link = direction(rate=8000.0, delay=1.0)
    assert [link.admit(100, now=0.0), link.admit(50, now=0.0), link.admit(100, now=0.0)] == [(1.1,), (1.15,), (1.25,)]


def test_an_idle_line_owes_nothing() -> None:
    link = direction(rate=8000.0)
    assert link.admit(100, now=0.0) == (0.1,)
    assert link.admit(100, now=5.0) == (5.1,)


def test_a_full_queue_loses_and_takes_again_when_it_has_drained() -> None:
    link = direction(rate=8000.0, queue=2)
    assert [len(link.admit(100, now=0.0)) for _ in range(5)] == [1, 1, 1, 0, 0]
    assert link.lost == 2
    assert link.admit(100, now=0.15) == (pytest.approx(0.4),)


def test_a_delay_is_not_a_queue() -> None:
    assert () not in arrivals(direction(delay=100.0, queue=1), 50)


def test_an_outage_loses_all_and_ends() -> None:
    link = direction(delay=0.1)
    link.change({"down": True})
    assert link.admit(100, now=0.0) == ()
    link.change({"down": False})
    assert link.admit(100, now=1.0) == (1.1,)


def test_a_shorter_delay_does_not_overtake_what_is_under_way() -> None:
    link = direction(delay=0.5)
    link.admit(100, now=0.0)
    link.change({"delay": 0.1})
    assert link.admit(100, now=0.1) == (0.5,)
    assert link.admit(100, now=1.0) == (1.1,)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"loss": 1.5}, "loss is a share from 0 to 1, not 1.5"),
        ({"duplicate": -0.1}, "duplicate is a share from 0 to 1, not -0.1"),
        ({"delay": -1.0}, "delay is not negative: -1.0"),
        ({"rate": -1.0}, "rate is not negative: -1.0"),
    ],
)
def test_no_link_can_do_that(settings: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        LinkSettings(**settings)  # type: ignore[arg-type]


def test_a_wrong_change_changes_nothing() -> None:
    link = direction(delay=0.1)
    with pytest.raises(ValueError, match="delay"):
        link.change({"delay": -1.0})
    with pytest.raises(TypeError, match="dealy"):
        link.change({"dealy": 1.0})
    assert link.settings == LinkSettings(delay=0.1)
