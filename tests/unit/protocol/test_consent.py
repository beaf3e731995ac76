"""Consent: asked every five seconds, gone after ten without an answer, and it tells where a peer has moved."""

from __future__ import annotations

import random

import pytest

from p2ptunnel.defaults import CONSENT_EVERY, CONSENT_PROBE_PAUSE, CONSENT_TIMEOUT
from p2ptunnel.protocol.consent import Consent, ConsentGiven, ConsentLost
from p2ptunnel.protocol.machine import Datagram
from p2ptunnel.types import Address
from p2ptunnel.wire.keyed import KeyedReceiver, KeyedSender
from p2ptunnel.wire.messages import ConsentAnswer, ConsentCheck, decode, encode

OURS, THEIRS = bytes(32), bytes([1]) * 32
NEAR, FAR, MOVED = ("192.0.2.1", 4000), ("198.51.100.2", 5000), ("198.51.100.2", 5001)


def consent(remote: Address = FAR, *, is_peer: bool = False) -> Consent:
    mine, other = (THEIRS, OURS) if is_peer else (OURS, THEIRS)
    made = Consent("a-token", remote, KeyedSender(mine), KeyedReceiver(other), random.Random(1))
    made.start(0.0)
    return made


def give(machine: Consent, datagram: Datagram, source: Address, now: float) -> None:
    message = decode(datagram.data)
    assert isinstance(message, ConsentCheck | ConsentAnswer)
    machine.receive(message, datagram.data, source, now)


def asked(machine: Consent, now: float) -> Datagram:
    machine.handle_timer(now)
    [question] = machine.datagrams_to_send()
    return question


def answered(peer: Consent, question: Datagram, now: float) -> Datagram:
    give(peer, question, NEAR, now)
    [answer] = peer.datagrams_to_send()
    return answer


def test_it_asks_every_five_seconds_more_or_less() -> None:
    machine, peer, now = consent(), consent(NEAR, is_peer=True), 0.0
    for _ in range(20):
        due = machine.next_deadline()
        assert due is not None
        assert 0.8 * CONSENT_EVERY <= due - now <= 1.2 * CONSENT_EVERY
        now = due
        question = asked(machine, now)
        assert question.destination == FAR
        give(machine, answered(peer, question, now), FAR, now)
    assert machine.events() == []


def test_an_answer_tells_the_round_trip() -> None:
    machine, peer = consent(), consent(NEAR, is_peer=True)
    question = asked(machine, 6.0)
    give(machine, answered(peer, question, 6.0), FAR, 6.25)
    assert machine.rtt == pytest.approx(0.25)


def test_it_is_lost_after_ten_seconds_without_an_answer_and_is_asked_for_all_the_same() -> None:
    machine, peer = consent(), consent(NEAR, is_peer=True)
    asked(machine, 6.0)
    machine.handle_timer(CONSENT_TIMEOUT - 0.01)
    assert machine.is_given
    machine.handle_timer(CONSENT_TIMEOUT)
    assert not machine.is_given
    assert machine.events() == [ConsentLost(FAR)]
    machine.datagrams_to_send()
    question = asked(machine, 20.0)
    give(machine, answered(peer, question, 20.0), FAR, 20.1)
    assert machine.is_given
    assert machine.events() == [ConsentGiven(FAR)]


def test_a_question_of_the_peers_from_elsewhere_moves_nothing_before_it_answers_there() -> None:
    machine, peer = consent(), consent(NEAR, is_peer=True)
    give(machine, asked(peer, 6.0), MOVED, 6.0)
    answer, question = machine.datagrams_to_send()
    assert [answer.destination, question.destination] == [MOVED, MOVED]
    assert machine.remote == FAR
    give(machine, answered(peer, question, 6.0), MOVED, 6.1)
    assert machine.remote == MOVED
    assert machine.events() == [ConsentGiven(MOVED)]


def test_who_is_doubted_is_asked_once_a_second_and_sent_to_when_it_has_answered() -> None:
    machine, peer = consent(), consent(NEAR, is_peer=True)
    machine.doubt(MOVED, 2.0)
    [question] = machine.datagrams_to_send()
    assert (question.destination, machine.remote, machine.is_given) == (MOVED, MOVED, False)
    for now in (2.5, 2.0 + CONSENT_PROBE_PAUSE):
        machine.suspect(MOVED, now)
    assert len(machine.datagrams_to_send()) == 1
    give(machine, answered(peer, question, 3.1), MOVED, 3.1)
    assert machine.is_given
    assert machine.events() == [ConsentGiven(MOVED)]
    machine.suspect(MOVED, 5.0)
    assert machine.datagrams_to_send() == []


def test_an_answer_from_elsewhere_than_was_asked_counts_for_nothing() -> None:
    machine, peer = consent(), consent(NEAR, is_peer=True)
    question = asked(machine, 6.0)
    give(machine, answered(peer, question, 6.0), MOVED, 6.1)
    assert (machine.remote, machine.rtt, machine.dropped) == (FAR, None, {"unexpected answer": 1})


def test_an_answer_that_comes_too_late_counts_for_nothing() -> None:
    machine, peer = consent(), consent(NEAR, is_peer=True)
    question = asked(machine, 6.0)
    give(machine, answered(peer, question, 6.0), FAR, 6.0 + CONSENT_TIMEOUT)
    assert machine.rtt is None


def test_what_seems_to_come_from_elsewhere_makes_one_question_a_second() -> None:
    machine = consent()
    for _ in range(100):
        machine.suspect(MOVED, 3.0)
    assert [datagram.destination for datagram in machine.datagrams_to_send()] == [MOVED]
    machine.suspect(FAR, 4.0)
    assert machine.datagrams_to_send() == []
    machine.suspect(MOVED, 3.0 + CONSENT_PROBE_PAUSE)
    assert len(machine.datagrams_to_send()) == 1


def test_what_is_not_keyed_is_not_answered() -> None:
    machine = consent()
    for data in (encode(ConsentCheck(mid=1, token="a-token")), KeyedSender(OURS).seal(encode(ConsentCheck(mid=1, token="t")))):
        give(machine, Datagram(data, NEAR), FAR, 1.0)
    assert machine.datagrams_to_send() == []
    assert machine.dropped == {"not keyed": 2}


def test_a_question_is_answered_once() -> None:
    machine, peer = consent(), consent(NEAR, is_peer=True)
    question = asked(peer, 6.0)
    for _ in range(3):
        give(machine, question, FAR, 6.0)
    assert len(machine.datagrams_to_send()) == 1
    assert machine.dropped == {"replayed": 2}


def test_questions_that_nobody_answers_are_forgotten() -> None:
    machine, now = consent(), 0.0
    for _ in range(100):
        now += CONSENT_EVERY * 1.2
        machine.handle_timer(now)
    assert len(machine._asked) <= 4
