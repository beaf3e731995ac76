"""How often birthdays may be: one at a time, a pause for each peer, a few an hour."""

from __future__ import annotations

from p2ptunnel.protocol.birthday import BirthdayGate

HOUR = 3600.0


def entered(gate: BirthdayGate, peer: str, now: float) -> bool:
    if gate.enter(peer, now) is not None:
        return False
    gate.leave()
    return True


def test_one_at_a_time() -> None:
    gate = BirthdayGate()
    assert gate.enter("alice", 0.0) is None
    assert gate.enter("bob", 100.0) == "another birthday is under way"
    gate.leave()
    assert gate.enter("bob", 100.0) is None


def test_ten_seconds_between_two_with_one_peer() -> None:
    gate = BirthdayGate()
    assert entered(gate, "alice", 0.0)
    assert gate.enter("alice", 9.9) == "the last birthday with this peer began less than 10 s ago"
    assert entered(gate, "bob", 9.9)
    assert entered(gate, "alice", 10.0)


def test_six_an_hour() -> None:
    gate = BirthdayGate()
    assert [entered(gate, f"peer {n}", 60.0 * n) for n in range(7)] == [True] * 6 + [False]
    assert gate.enter("alice", HOUR - 1) == "6 birthdays in the last hour"
    assert entered(gate, "alice", HOUR)  # the first was an hour ago
    assert not entered(gate, "bob", HOUR + 1)


def test_two_of_them_with_one_peer() -> None:
    gate = BirthdayGate()
    assert [entered(gate, "mallory", 10.0 * n) for n in range(6)] == [True] * 2 + [False] * 4
    assert gate.enter("mallory", HOUR - 1) == "2 birthdays with this peer in the last hour"
    assert entered(gate, "alice", HOUR - 1)
    assert entered(gate, "mallory", HOUR)


def test_what_was_refused_does_not_count() -> None:
    gate = BirthdayGate()
    assert gate.enter("alice", 0.0) is None
    for _ in range(20):
        assert gate.enter("bob", 1.0) is not None
    gate.leave()
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
