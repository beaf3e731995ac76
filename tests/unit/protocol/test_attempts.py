"""Introductions under way: who holds how many, and who gives way."""

from __future__ import annotations

import pytest

from p2ptunnel.defaults import (
    ATTEMPTS_OF_CALLEE_MAX,
    ATTEMPTS_OF_SOURCE_MAX,
    ATTEMPTS_OF_SOURCE_TO_CALLEE_MAX,
    SITE_FACTOR,
)
from p2ptunnel.protocol import attempts as module
from p2ptunnel.protocol.attempts import Attempt, Attempts
from p2ptunnel.protocol.replies import Endpoint
from p2ptunnel.types import Address
from tests.unit.protocol.actors import CALLEE, CALLER

BOB = Endpoint(CALLEE)
ALICE = Endpoint(CALLER)


def at(host: str, port: int = 1) -> Endpoint:
    return Endpoint((host, port))


def callee(number: int) -> Endpoint:
    address: Address = (CALLEE[0], number)
    return Endpoint(address)


def begun(attempts: Attempts, caller: Endpoint, to: Endpoint = BOB) -> Attempt | None:
    """Begin one more as the broker does; None: there is no place."""
    if attempts.refusal(caller, to):
        return None
    attempts.make_room(caller, to)
    attempt = Attempt(f"token {object()!r} {len(attempts)} {caller}", caller, "alice", to, "bob", 5.0, 60.0, True)
    attempts.add(attempt)
    return attempt


def test_a_network_has_as_many_as_one_host_whatever_addresses_it_uses() -> None:
    """H2: one /64 is one source; counted by address, it had as many as it liked."""
    attempts = Attempts()
    made = [begun(attempts, at(f"2001:db8:1:1::{n:x}"), callee(n)) for n in range(2 * ATTEMPTS_OF_SOURCE_MAX)]
    assert [attempt is not None for attempt in made] == [True] * ATTEMPTS_OF_SOURCE_MAX + [False] * ATTEMPTS_OF_SOURCE_MAX
    assert attempts.refusal(at("2001:db8:1:1::ffff"), callee(5000)) == "too many calls from there"
    assert attempts.refusal(at("2001:db8:1:2::1"), callee(5000)) == ""


def test_a_site_has_so_many_times_as_many() -> None:
    attempts = Attempts()
    for n in range(ATTEMPTS_OF_SOURCE_MAX * SITE_FACTOR):
        assert begun(attempts, at(f"2001:db8:1:{n:x}::1"), callee(n)) is not None
    assert attempts.refusal(at("2001:db8:1:ffff::1"), callee(5000)) == "too many calls from there"
    assert attempts.refusal(at("2001:db8:2::1"), callee(5000)) == ""


def test_one_source_holds_a_few_places_of_one_callee() -> None:
    """H3: what a callee does not answer holds a place for seconds."""
    attempts = Attempts()
    made = [begun(attempts, ALICE) for _ in range(ATTEMPTS_OF_SOURCE_TO_CALLEE_MAX)]
    held = made[0]
    assert held is not None
    assert attempts.refusal(ALICE, BOB) == "too many calls from there to that peer"
    assert attempts.refusal(ALICE, callee(7)) == ""
    attempts.note_answer(held)
    assert attempts.refusal(ALICE, BOB) == ""


def test_who_holds_most_of_a_callee_gives_way_to_who_holds_least() -> None:
    attempts = Attempts()
    hogs = [begun(attempts, at(f"2001:db8:1:{n:x}::1")) for n in range(ATTEMPTS_OF_CALLEE_MAX)]
    oldest = hogs[0]
    assert oldest is not None
    assert attempts.refusal(at("2001:db8:1:ffff::1"), BOB) == "too many calls to that peer"  # it is the same party
    assert begun(attempts, ALICE) is not None
    assert len(attempts) == ATTEMPTS_OF_CALLEE_MAX
    assert attempts.get(oldest.token) is None
    assert attempts.get(hogs[1].token if hogs[1] else "") is hogs[1]


def test_who_holds_hardly_more_does_not_give_way() -> None:
    attempts = Attempts()
    for n in range(ATTEMPTS_OF_CALLEE_MAX):
        assert begun(attempts, at(f"198.51.100.{n}")) is not None
    assert attempts.refusal(at("192.0.2.1"), BOB) == "too many calls to that peer"


def test_who_holds_most_of_a_full_server_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """H2: whoever fills the server fills it for itself."""
    monkeypatch.setattr(module, "ATTEMPTS_MAX", 10)
    attempts = Attempts()
    first = begun(attempts, ALICE, callee(1000))
    hogs = [begun(attempts, at(f"2001:db8:1:{n:x}::1"), callee(n)) for n in range(9)]
    assert attempts.refusal(at("2001:db8:1:ffff::1"), callee(2000)) == "server busy"
    assert begun(attempts, at("192.0.2.1"), callee(2000)) is not None
    assert len(attempts) == 10
    assert first is not None
    assert attempts.get(first.token) is first
    assert hogs[0] is not None
    assert attempts.get(hogs[0].token) is None


def test_what_is_over_counts_nowhere() -> None:
    attempts = Attempts()
    for _ in range(3):
        made = [begun(attempts, ALICE) for _ in range(ATTEMPTS_OF_SOURCE_TO_CALLEE_MAX)]
        for number, attempt in enumerate(made):
            assert attempt is not None
            if number % 2:
                attempts.note_answer(attempt)
                attempts.note_answer(attempt)
            attempts.forget(attempt)
    assert len(attempts) == 0
    assert list(attempts) == []
    assert not attempts._held
    assert not attempts._waiting


def test_an_attempt_shows_no_token() -> None:
    assert repr(begun(Attempts(), ALICE)) == "Attempt(alice to bob)"
