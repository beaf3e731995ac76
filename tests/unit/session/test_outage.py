"""An outage: since when nothing flows, what is new about it, and how often it is told of again."""

from __future__ import annotations

import pytest

from p2ptunnel.defaults import REMIND_EVERY, REMIND_RARELY
from p2ptunnel.session.outage import Outage


def test_where_bytes_flow_there_is_none() -> None:
    outage = Outage()
    assert not outage.is_suspended
    assert not outage.is_stalled
    assert outage.suspended_for(10.0) is None
    assert outage.end(10.0) is None
    assert not outage.is_reminder_due(10.0 + REMIND_EVERY)


def test_a_suspension_is_new_once_and_lasts_until_bytes_flow() -> None:
    outage = Outage()
    assert outage.suspend("the path has been dead", 10.0)
    assert not outage.suspend("another cause", 11.0)
    assert outage.cause == "the path has been dead"
    assert outage.suspended_for(12.5) == pytest.approx(2.5)
    assert outage.end(13.0) == pytest.approx(3.0)
    assert not outage.is_suspended
    assert outage.suspend("another cause", 14.0)


def test_a_stall_is_new_once_and_is_no_suspension() -> None:
    outage = Outage()
    assert outage.stall(10.0)
    assert not outage.stall(11.0)
    assert outage.is_stalled
    assert outage.suspended_for(12.0) is None
    assert outage.end(12.0) == pytest.approx(2.0)
    assert not outage.is_stalled


def test_who_stalls_and_is_lost_is_suspended_since_it_was_lost() -> None:
    outage = Outage()
    outage.stall(10.0)
    outage.suspend("the path has been dead", 20.0)
    assert not outage.is_stalled
    assert outage.end(21.0) == pytest.approx(1.0)


def test_it_is_told_of_again_ever_more_rarely() -> None:
    outage = Outage()
    outage.suspend("the path has been dead", 0.0)
    told = [second for second in range(1, 601) if outage.is_reminder_due(float(second))]
    pauses = [later - earlier for earlier, later in zip([0, *told], told, strict=False)]
    assert pauses == [3, 6, 12, 24, 48, *[REMIND_RARELY] * (len(pauses) - 5)]
    assert len(pauses) > 6


def test_another_suspension_is_told_of_as_often_as_the_first() -> None:
    outage = Outage()
    outage.suspend("the path has been dead", 0.0)
    assert outage.is_reminder_due(REMIND_EVERY)
    outage.end(5.0)
    outage.suspend("the path has been dead", 10.0)
    assert not outage.is_reminder_due(10.0 + 0.9 * REMIND_EVERY)
    assert outage.is_reminder_due(10.0 + REMIND_EVERY)
