"""One channel's signs of life: how often they are asked for, and what is thought of it when they do not come."""

from __future__ import annotations

import math

import pytest

from p2ptunnel.defaults import DEAD_ACTIVE, DEAD_DORMANT, DEAD_IDLE, PING_ACTIVE, PING_DORMANT, PING_IDLE, SUSPECT_AFTER
from p2ptunnel.errors import RemoteProtocolError
from p2ptunnel.protocol.link import ACTIVE, DORMANT, IDLE, Health, Link, Pace
from p2ptunnel.wire.frames import FrameReader, Ping, Pong

NOW = 100.0
PACES = [(ACTIVE, PING_ACTIVE, DEAD_ACTIVE), (IDLE, PING_IDLE, DEAD_IDLE), (DORMANT, PING_DORMANT, DEAD_DORMANT)]


def asked(link: Link) -> list[Ping]:
    """The questions that wait to be sent, taken out."""
    frames = [frame for frame in FrameReader().feed(memoryview(bytes(link.control))) if isinstance(frame, Ping)]
    link.control.clear()
    return frames


def answered(link: Link, sent: float, took: float) -> None:
    """Ask at `sent`, if nothing is asked yet, and be answered."""
    link.ping(sent)
    [question] = asked(link)
    link.heard(sent + took)
    link.on_pong(Pong(question.payload), sent + took)


def measured(*round_trips: float) -> Link:
    """A link that has measured these, the last one up to now, and of which nothing is asked."""
    now = NOW - sum(round_trips)
    link = Link(now)
    for took in round_trips:
        answered(link, now, took)
        now += took
    link.control.clear()
    link._ping = b""
    link.heard(NOW)
    return link


def judged(silence: float, pace: Pace = ACTIVE, witness: float | None = None, link: Link | None = None) -> Health:
    """What is thought of a link so many seconds after it was asked."""
    link = link or Link(NOW)
    link.ping(NOW)
    return link.handle_timer(NOW + silence, pace, witness)


# --- asking -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pace", "ping", "dead"), PACES)
def test_silence_is_asked_about_after_the_time_of_its_pace(pace: Pace, ping: float, dead: float) -> None:
    link = Link(NOW)
    assert link.next_deadline(pace) == NOW + ping
    link.handle_timer(NOW + ping - 0.01, pace, None)
    assert asked(link) == []
    link.handle_timer(NOW + ping, pace, None)
    assert len(asked(link)) == 1
    link.handle_timer(NOW + ping + 0.1, pace, None)
    assert asked(link) == []


@pytest.mark.parametrize(("pace", "ping", "dead"), PACES)
def test_a_link_is_dead_after_the_silence_of_its_pace(pace: Pace, ping: float, dead: float) -> None:
    assert judged(SUSPECT_AFTER - PING_ACTIVE - 0.01, pace) is Health.UP
    assert judged(SUSPECT_AFTER - PING_ACTIVE + 0.01, pace) is Health.SUSPECT
    assert judged(dead - ping - 0.01, pace) is Health.SUSPECT
    assert judged(dead - ping + 0.01, pace) is Health.DEAD


def test_bytes_of_any_kind_are_a_sign_of_life() -> None:
    link = Link(NOW)
    link.ping(NOW)
    assert not link.heard(NOW + 0.5)
    assert link.handle_timer(NOW + 0.7, ACTIVE, None) is Health.UP
    assert link.heard_at == NOW + 0.5


def test_bytes_that_were_no_longer_expected_are_told() -> None:
    for silence in (1.0, 5.0):
        link = Link(NOW)
        assert judged(silence, link=link) in {Health.SUSPECT, Health.DEAD}
        assert link.heard(NOW + 6)
        assert link.health is Health.UP
        assert not link.heard(NOW + 7)


def test_one_question_is_under_way_at_a_time() -> None:
    link = Link(NOW)
    link.ping(NOW)
    [first] = asked(link)
    link.heard(NOW + 1)  # something else came
    link.ping(NOW + 2)
    assert asked(link) == []
    link.on_pong(Pong(first.payload), NOW + 2.5)
    assert link.rtt == 2.5
    [second] = asked(link)  # the first few are asked one behind the other
    assert second != first


def test_a_question_that_was_overtaken_still_counts_for_the_silence() -> None:
    link = Link(NOW)
    link.ping(NOW)
    link.heard(NOW + 1)
    link.ping(NOW + 2)
    assert link.handle_timer(NOW + 2.5, ACTIVE, None) is Health.UP
    assert link.handle_timer(NOW + 2 + SUSPECT_AFTER, ACTIVE, None) is Health.SUSPECT


# --- round trips ------------------------------------------------------------------------------------------------------


def test_round_trips_are_smoothed_by_an_eighth() -> None:
    assert measured(0.1).rtt == pytest.approx(0.1)
    assert measured(0.1).rtt_deviation == pytest.approx(0.05)
    link = measured(0.1, 0.1, 0.1, 0.1, 0.9)
    assert link.rtt == pytest.approx(0.2)
    assert link.round_trips == 5


def test_an_answer_to_no_question_measures_nothing() -> None:
    link = Link(NOW)
    link.ping(NOW)
    for payload in (bytes(8), b"another?"):
        link.on_pong(Pong(payload), NOW + 1)
    assert link.rtt is None
    assert link.round_trips == 0


def test_a_slow_path_is_given_more_time() -> None:
    slow = measured(1.0, 1.0, 1.0, 1.0)
    assert slow.next_deadline(ACTIVE) == pytest.approx(NOW + 2)
    assert judged(3.9, link=measured(1.0, 1.0, 1.0, 1.0)) is Health.UP
    assert judged(4.1, link=measured(1.0, 1.0, 1.0, 1.0)) is Health.SUSPECT
    assert judged(11.9, link=measured(1.0, 1.0, 1.0, 1.0)) is Health.SUSPECT
    assert judged(12.1, link=measured(1.0, 1.0, 1.0, 1.0)) is Health.DEAD


@pytest.mark.parametrize("witness", [None, 0.0])
def test_the_time_for_which_a_peer_stood_still_is_no_round_trip(witness: float | None) -> None:
    """It would be: a minute of it, and the next loss is seen minutes too late."""
    link = measured(0.05, 0.05, 0.05, 0.05)
    link.ping(NOW)
    [question] = asked(link)
    link.handle_timer(NOW + 5, ACTIVE, witness)
    assert link.handle_timer(NOW + 5.25, ACTIVE, witness) in {Health.DEAD, Health.STALLED}
    asked(link)  # a stalled peer is asked again, which measures nothing
    link.heard(NOW + 60)
    link.on_pong(Pong(question.payload), NOW + 60)
    assert link.rtt == pytest.approx(0.05)
    assert link.round_trips == 5  # it has answered, though
    answered(link, NOW + 61, 0.05)
    assert link.round_trips == 6


def test_a_path_that_became_slow_is_measured_and_believed() -> None:
    link = measured(0.05, 0.05, 0.05, 0.05)
    for number in range(12):
        sent = NOW + 10 * number
        link.ping(sent)
        [question] = asked(link)
        link.handle_timer(sent + 0.9, ACTIVE, None)
        link.heard(sent + 1.0)
        link.on_pong(Pong(question.payload), sent + 1.0)
    assert link.rtt == pytest.approx(1.0, rel=0.25)


# --- the kernel as a witness ------------------------------------------------------------------------------------------


def test_a_peer_whose_kernel_has_acknowledged_everything_is_waited_for() -> None:
    for silence in (1.0, 10.0, 500.0):
        link = Link(NOW)
        assert judged(silence, witness=0.0, link=link) is Health.UP  # it may have acknowledged before the silence
        assert len(asked(link)) == 2
        assert link.handle_timer(NOW + silence + 0.25, ACTIVE, 0.0) is Health.STALLED


def test_a_path_that_died_behind_an_acknowledgement_is_no_peer_that_stands_still() -> None:
    link = Link(NOW)
    assert judged(1.0, witness=0.0, link=link) is Health.UP
    assert link.handle_timer(NOW + 1.2, ACTIVE, 1.2) is Health.UP  # what is new to acknowledge has a moment
    assert link.handle_timer(NOW + 1.3, ACTIVE, 1.3) is Health.SUSPECT
    assert link.handle_timer(NOW + 3.1, ACTIVE, 3.1) is Health.DEAD


def test_each_silence_has_a_trial_of_its_own() -> None:
    link = Link(NOW)
    judged(1.0, witness=0.0, link=link)
    assert link.handle_timer(NOW + 1.25, ACTIVE, 0.0) is Health.STALLED
    link.heard(NOW + 2)
    asked(link)
    link.ping(NOW + 2)
    assert link.handle_timer(NOW + 3, ACTIVE, 0.0) is Health.UP
    assert link.handle_timer(NOW + 3.25, ACTIVE, 0.0) is Health.STALLED


def test_a_path_that_is_still_acknowledged_is_up_and_one_that_is_not_dies() -> None:
    assert judged(2.0, witness=0.5) is Health.UP
    assert judged(2.0, witness=1.5) is Health.SUSPECT
    assert judged(5.0, witness=4.9) is Health.DEAD


def test_a_stalled_peer_whose_kernel_falls_silent_is_dead() -> None:
    link = Link(NOW)
    judged(2.0, witness=0.0, link=link)
    assert link.handle_timer(NOW + 2.25, ACTIVE, 0.0) is Health.STALLED
    assert link.handle_timer(NOW + 10, ACTIVE, 8.0) is Health.DEAD


# --- time -------------------------------------------------------------------------------------------------------------


def test_a_link_in_doubt_is_looked_at_often_and_a_dead_one_is_left_alone() -> None:
    link = Link(NOW)
    link.ping(NOW)
    assert link.next_deadline(ACTIVE) == pytest.approx(NOW + SUSPECT_AFTER - PING_ACTIVE)
    link.handle_timer(NOW + 1, ACTIVE, None)
    assert link.next_deadline(ACTIVE) == NOW + 1.25
    link.handle_timer(NOW + 4, ACTIVE, None)
    assert link.next_deadline(ACTIVE) == math.inf


def test_a_deadline_that_was_met_lies_behind_us_no_more() -> None:
    """Else whoever drives it turns without end."""
    for witness in (None, 0.0, 0.1, 5.0):
        link, now = Link(NOW), NOW
        for _ in range(50):
            now = min(link.next_deadline(ACTIVE), now + 1)
            link.handle_timer(now, ACTIVE, witness)
            assert link.next_deadline(ACTIVE) > now


def test_time_in_which_we_stood_still_speaks_against_nobody() -> None:
    link = Link(NOW)
    link.ping(NOW)
    [question] = asked(link)
    link.forgive(30)
    assert link.handle_timer(NOW + 30.5, ACTIVE, None) is Health.UP
    assert link.handle_timer(NOW + 31, ACTIVE, None) is Health.SUSPECT
    link.heard(NOW + 31)
    link.on_pong(Pong(question.payload), NOW + 31)
    assert link.rtt == 1.0


def test_questions_are_answered_but_not_without_end() -> None:
    link = Link(NOW)
    while len(link.control) <= 64 * 1024:
        link.on_ping(Ping(b"12345678"))
    with pytest.raises(RemoteProtocolError, match="does not read the answers"):
        link.on_ping(Ping(b"12345678"))
