"""The clock of simulations and tests: calls in order, at their time, and never by itself."""

from __future__ import annotations

import pytest

from p2ptunnel.testing.clock import FakeClock


def test_time_passes_only_when_told() -> None:
    clock = FakeClock(100.0)
    assert clock() == clock() == clock.now == 100.0
    clock.advance(2.5)
    assert clock() == 102.5


def test_calls_come_in_order_of_time_then_of_asking() -> None:
    clock, seen = FakeClock(), list[str]()
    clock.call_later(2.0, seen.append, "later")
    clock.call_later(1.0, seen.append, "first")
    clock.call_at(1.0, seen.append, "second")
    clock.advance(3.0)
    assert seen == ["first", "second", "later"]


def test_a_call_sees_its_own_time() -> None:
    clock, seen = FakeClock(), list[float]()
    clock.call_later(0.3, lambda: seen.append(clock.now))
    clock.advance(10.0)
    assert seen == [0.3]
    assert clock.now == 10.0


def test_advancing_makes_the_calls_of_its_last_instant_and_none_after() -> None:
    clock, seen = FakeClock(), list[int]()
    clock.call_at(1.0, seen.append, 1)
    clock.call_at(1.001, seen.append, 2)
    clock.advance(1.0)
    assert seen == [1]
    assert clock.next_at() == 1.001


def test_a_call_may_ask_for_another_within_the_same_advance() -> None:
    clock, seen = FakeClock(), list[float]()

    def again() -> None:
        seen.append(clock.now)
        if len(seen) < 3:
            clock.call_later(1.0, again)

    clock.call_later(1.0, again)
    clock.advance(10.0)
    assert seen == [1.0, 2.0, 3.0]
    assert clock.next_at() is None


def test_the_past_is_called_next_and_time_does_not_go_back() -> None:
    clock, seen = FakeClock(50.0), list[float]()
    clock.call_at(10.0, lambda: seen.append(clock.now))
    assert clock.step()
    assert seen == [50.0]


def test_a_step_is_one_call() -> None:
    clock, seen = FakeClock(), list[int]()
    for n in range(2):
        clock.call_later(1.0 + n, seen.append, n)
    assert clock.step()
    assert (seen, clock.now) == ([0], 1.0)
    assert clock.step()
    assert not clock.step()


def test_running_ends_when_it_is_done() -> None:
    clock, seen = FakeClock(), list[int]()
    for n in range(5):
        clock.call_later(1.0 + n, seen.append, n)
    assert clock.run_until(10.0, lambda: len(seen) == 3)
    assert clock.now == 3.0
    assert not clock.run_until(10.0, lambda: False)
    assert clock.now == 10.0


def test_what_a_call_raises_is_not_hidden() -> None:
    clock = FakeClock()
    clock.call_later(1.0, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        clock.advance(2.0)
