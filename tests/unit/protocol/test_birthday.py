"""How often birthdays may be, and how large: one at a time, a pause for each peer, a few an hour, what routers remember."""

from __future__ import annotations

import pytest

from p2ptunnel.defaults import BIRTHDAY_FLOWS, BIRTHDAY_HOLES, BIRTHDAY_PROBES
from p2ptunnel.protocol.birthday import BirthdayGate

HOUR = 3600.0
MINUTES = 130.0
"""That routers remember flows: afterwards what has been opened before does not matter."""


def entered(gate: BirthdayGate, peer: str, now: float, *, flows: int = 1) -> bool:
    if isinstance(gate.enter(peer, flows, now), str):
        return False
    gate.leave(flows)
    return True


def test_one_at_a_time() -> None:
    gate = BirthdayGate()
    assert gate.enter("alice", 1, 0.0) == 1
    assert gate.enter("bob", 1, 100.0) == "another birthday is under way"
    gate.leave(1)
    assert gate.enter("bob", 1, 100.0) == 1


def test_ten_seconds_between_two_with_one_peer() -> None:
    gate = BirthdayGate()
    assert entered(gate, "alice", 0.0)
    assert gate.enter("alice", 1, 9.9) == "the last birthday with this peer began less than 10 s ago"
    assert entered(gate, "bob", 9.9)
    assert entered(gate, "alice", 10.0)


def test_six_an_hour() -> None:
    gate = BirthdayGate()
    assert [entered(gate, f"peer {n}", 60.0 * n) for n in range(7)] == [True] * 6 + [False]
    assert gate.enter("alice", 1, HOUR - 1) == "6 birthdays in the last hour"
    assert entered(gate, "alice", HOUR)  # the first was an hour ago
    assert not entered(gate, "bob", HOUR + 1)


def test_two_of_them_with_one_peer() -> None:
    gate = BirthdayGate()
    assert [entered(gate, "mallory", 10.0 * n) for n in range(6)] == [True] * 2 + [False] * 4
    assert gate.enter("mallory", 1, HOUR - 1) == "2 birthdays with this peer in the last hour"
    assert entered(gate, "alice", HOUR - 1)
    assert entered(gate, "mallory", HOUR)


@pytest.mark.parametrize("flows", [BIRTHDAY_HOLES, BIRTHDAY_PROBES])
@pytest.mark.parametrize("other", ["alice", "bob"])
def test_a_round_that_has_missed_is_followed_by_none_before_routers_have_forgotten_it(flows: int, other: str) -> None:
    gate = BirthdayGate()
    assert gate.enter("alice", flows, 0.0) == flows
    gate.leave(flows)
    for now in (10.0, 60.0, MINUTES - 0.1):
        assert gate.enter(other, flows, now) == f"routers remember {flows} flows of the last birthdays"
    assert gate.enter(other, flows, MINUTES) == flows


def test_one_that_soon_hit_leaves_its_rest_to_the_next() -> None:
    gate = BirthdayGate()
    assert gate.enter("alice", BIRTHDAY_PROBES, 0.0) == 672
    gate.leave(88)
    assert gate.enter("bob", BIRTHDAY_PROBES, 2.0) == 704 - 88
    gate.leave(360)
    assert gate.enter("carol", BIRTHDAY_PROBES, 4.0) == 256
    gate.leave(5)
    assert gate.enter("dave", BIRTHDAY_PROBES, 6.0) == "routers remember 453 flows of the last birthdays"
    assert gate.enter("dave", BIRTHDAY_PROBES, MINUTES) == 704 - 365


def test_who_has_few_sockets_needs_no_more_than_those() -> None:
    gate = BirthdayGate()
    assert entered(gate, "alice", 0.0, flows=640)
    assert gate.enter("bob", 65, 1.0) == "routers remember 640 flows of the last birthdays"
    assert gate.enter("bob", 64, 1.0) == 64


def test_whatever_is_asked_for_routers_never_remember_more() -> None:
    gate, opened = BirthdayGate(), dict[int, int]()
    for second in range(0, 7200, 7):
        gate.network_changed()
        flows = gate.enter(f"peer {second}", 50 + second % 613, float(second))
        if isinstance(flows, int):
            opened[second] = flows - second % 3
            gate.leave(opened[second])
        assert sum(flows for begun, flows in opened.items() if second - begun < MINUTES) <= BIRTHDAY_FLOWS
    assert len(opened) > 100


def test_what_was_refused_does_not_count() -> None:
    gate = BirthdayGate()
    assert gate.enter("alice", 1, 0.0) == 1
    for _ in range(20):
        assert gate.enter("bob", 1, 1.0) == "another birthday is under way"
    gate.leave(1)
    assert entered(gate, "bob", 2.0)


def test_on_another_network_the_hour_begins_anew_and_the_pause_does_not() -> None:
    gate = BirthdayGate()
    for n in range(6):
        assert entered(gate, f"peer {n}", 10.0 + n)
    gate.network_changed()
    assert entered(gate, "alice", 16.0)
    assert not entered(gate, "peer 5", 16.0)


def test_it_forgets_whom_it_need_not_remember() -> None:
    gate = BirthdayGate()
    for n in range(1000):
        assert entered(gate, f"peer {n}", HOUR * n)
    assert len(gate._begun) == len(gate._on_network) == 1
