"""Transactions: when a request is repeated, when it is given up, whose answer counts; and the memory of answers."""

from __future__ import annotations

import itertools
import random

import pytest

from p2ptunnel.defaults import ANSWER_MEMORY, TRANSACTION_TIMEOUT
from p2ptunnel.protocol.machine import Datagram, Hole
from p2ptunnel.protocol.transaction import AnswerMemory, Requester
from tests.unit.protocol.actors import SERVER, STRANGER


class Level:
    """Entropy that always draws the same."""

    def __init__(self, share: float) -> None:
        self._share = share

    def random(self) -> float:
        return self._share

    def getrandbits(self, k: int, /) -> int:
        return k


def repetitions(requester: Requester) -> list[float]:
    """Run to the end; return when the request was repeated."""
    times: list[float] = []
    while (at := requester.next_deadline()) is not None:
        times += [at] * len(requester.due(at)[0])
    return times


def test_the_first_send_is_the_datagram_itself() -> None:
    requester = Requester(random.Random(1))
    assert requester.send(4, 7, b"question", SERVER, 0.0) == Datagram(b"question", SERVER)
    assert len(requester) == 1


def test_what_left_from_a_hole_is_repeated_from_there() -> None:
    requester, hole = Requester(random.Random(1)), Hole("a-token", 7)
    assert requester.send(31, 7, b"probe", SERVER, 0.0, hole=hole) == Datagram(b"probe", SERVER, hole=hole)
    assert requester.due(1.0)[0] == [Datagram(b"probe", SERVER, hole=hole)]
    request = requester.answered(31, 7)
    assert request is not None
    assert request.hole == hole


def test_repetitions_grow_by_half_up_to_a_second_and_end_with_the_transaction() -> None:
    requester = Requester(Level(0.5))  # no jitter
    requester.send(4, 7, b"question", SERVER, 0.0)
    waits = [0.1, 0.15, 0.225, 0.3375, 0.50625, 0.759375, 1.0, 1.0]
    expected = [sum(waits[: n + 1]) for n in range(len(waits))]
    assert repetitions(requester) == pytest.approx(expected)
    assert expected[-1] + 1.0 > TRANSACTION_TIMEOUT


@pytest.mark.parametrize("seed", range(20))
def test_jitter_moves_each_wait_by_a_fifth_at_most(seed: int) -> None:
    requester = Requester(random.Random(seed))
    requester.send(4, 7, b"question", SERVER, 0.0)
    at = [0.0, *repetitions(requester)]
    nominal = [0.1, 0.15, 0.225, 0.3375, 0.50625, 0.759375, *[1.0] * len(at)]
    waits = [later - earlier for earlier, later in itertools.pairwise(at)]
    assert all(0.8 * due <= wait <= 1.2 * due + 1e-9 for wait, due in zip(waits, nominal, strict=False))
    assert len({round(wait / due, 6) for wait, due in zip(waits, nominal, strict=False)}) > 3


def test_an_expired_request_is_told_once_and_forgotten() -> None:
    requester = Requester(random.Random(1))
    requester.send(4, 7, b"question", SERVER, 10.0)
    repeat, expired = requester.due(10.0 + TRANSACTION_TIMEOUT)
    assert not repeat
    assert [(request.t, request.mid, request.sent_at) for request in expired] == [(4, 7, 10.0)]
    assert requester.due(100.0) == ([], [])
    assert requester.next_deadline() is None


def test_nothing_is_due_before_its_time() -> None:
    requester = Requester(random.Random(1))
    requester.send(4, 7, b"question", SERVER, 0.0)
    deadline = requester.next_deadline()
    assert deadline is not None
    assert requester.due(deadline - 1e-6) == ([], [])


def test_a_late_timer_repeats_once_not_as_often_as_it_missed() -> None:
    requester = Requester(random.Random(1))
    requester.send(4, 7, b"question", SERVER, 0.0)
    assert len(requester.due(4.0)[0]) == 1
    deadline = requester.next_deadline()
    assert deadline is not None
    assert deadline > 4.0


@pytest.mark.parametrize(
    ("t", "mid", "source", "ends"),
    [(4, 7, SERVER, True), (4, 7, None, True), (4, 7, STRANGER, False), (4, 8, SERVER, False), (1, 7, SERVER, False)],
)
def test_only_its_own_answer_ends_a_request(t: int, mid: int, source: tuple[str, int] | None, ends: bool) -> None:
    requester = Requester(random.Random(1))
    requester.send(4, 7, b"question", SERVER, 0.0)
    assert (requester.answered(t, mid, source) is not None) is ends
    assert len(requester) == (0 if ends else 1)


def test_one_mid_may_serve_several_numbers() -> None:
    requester = Requester(random.Random(1))
    requester.send(31, 7, b"probe", SERVER, 0.0)
    requester.send(32, 7, b"open", SERVER, 0.0)
    answered = requester.answered(32, 7)
    assert answered is not None
    assert answered.data == b"open"
    assert requester.answered(31, 7) is not None


def test_cancel_forgets_one_number_or_all() -> None:
    requester = Requester(random.Random(1))
    for t in (4, 31, 32):
        requester.send(t, 7, b"", SERVER, 0.0)
    requester.cancel(31)
    assert requester.answered(31, 7) is None
    assert len(requester) == 2
    requester.cancel()
    assert len(requester) == 0


def test_what_was_answered_leaves_nothing_behind() -> None:
    requester = Requester(random.Random(1))
    for n in range(2000):
        requester.send(4, n, b"question", SERVER, n * 0.01)
        requester.answered(4, n)
        requester.next_deadline()
    assert len(requester._due) < 2


def test_among_many_the_first_due_is_found() -> None:
    rng = random.Random(1)
    requester = Requester(rng)
    for n in range(500):
        requester.send(4, n, b"%d" % n, SERVER, rng.random() * 3)
    seen: list[float] = []
    repeated: dict[bytes, int] = {}
    while (at := requester.next_deadline()) is not None:
        seen.append(at)
        for datagram in requester.due(at)[0]:
            repeated[datagram.data] = repeated.get(datagram.data, 0) + 1
    assert seen == sorted(seen)
    assert len(repeated) == 500
    assert set(repeated.values()) <= {7, 8, 9}


def test_a_request_sent_anew_under_its_old_name_counts_once() -> None:
    requester = Requester(Level(0.5))
    requester.send(4, 7, b"old", SERVER, 0.0)
    requester.send(4, 7, b"new", SERVER, 0.05)
    assert requester.due(0.1) == ([], [])
    assert [datagram.data for datagram in requester.due(0.2)[0]] == [b"new"]


# --- what was answered ------------------------------------------------------------------------------------------------


def test_a_repeated_request_gets_the_answer_it_had() -> None:
    memory = AnswerMemory()
    memory.remember(("a", 4, 7), b"answer", 0.0)
    assert memory.recall(("a", 4, 7), ANSWER_MEMORY - 0.001) == b"answer"
    assert memory.recall(("a", 4, 8), 1.0) is None


def test_memory_ends_with_its_time() -> None:
    memory = AnswerMemory()
    memory.remember("key", b"answer", 0.0)
    assert memory.recall("key", ANSWER_MEMORY) is None
    assert len(memory) == 0


def test_memory_is_bounded_and_the_oldest_goes_first() -> None:
    memory = AnswerMemory(most=3)
    for n in range(5):
        memory.remember(n, b"%d" % n, 0.0)
    assert [memory.recall(n, 1.0) for n in range(5)] == [None, None, b"2", b"3", b"4"]
    assert len(memory) == 3


def test_remembering_again_renews() -> None:
    memory = AnswerMemory(most=2)
    memory.remember("old", b"1", 0.0)
    memory.remember("young", b"2", 1.0)
    memory.remember("old", b"3", 2.0)
    memory.remember("new", b"4", 3.0)
    assert memory.recall("old", 4.0) == b"3"
    assert memory.recall("young", 4.0) is None
