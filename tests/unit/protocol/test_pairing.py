"""The desk, and the two sides of one attempt, without a byte sent."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2ptunnel.defaults import PAIRING_FAILURES_MAX, PAIRING_FAILURES_WITHIN, PAIRING_PAUSE, PAIRING_SOURCES_MAX
from p2ptunnel.errors import LocalProtocolError
from p2ptunnel.protocol.pairing import (
    GUEST_TRANSITIONS,
    HOST_TRANSITIONS,
    Bond,
    Compute,
    Desk,
    GuestPairing,
    GuestState,
    GuestTrigger,
    HostPairing,
    HostState,
    HostTrigger,
    Keep,
    Say,
)
from p2ptunnel.wire.pairing import Done, Exchange, Paired, PairingFrame, Proof, ProofKind, Refused, RefusedCode, Reply
from tests.helpers.pairing import GUEST, HOST, SECRET, WORDS

BOND = Bond(GUEST.public, HOST.public, bytes([1]) * 32, bytes([2]) * 32, bytes([3]) * 16)
KEY, GUEST_ELEMENT, HOST_ELEMENT = (bytes([number]) * 32 for number in (7, 8, 9))
SERVICES = {"ssh": ("ssh-rsa AA",)}
NOW = 100.0


def desk(uses: int = 1, expires_at: float = 700.0) -> Desk:
    return Desk(SECRET, WORDS, expires_at=expires_at, uses=uses)


def host(at: Desk, source: str = "198.51.100.7") -> HostPairing:
    return HostPairing(at, BOND, source)


def ticket_proof(secret: bytes = SECRET) -> Proof:
    return Proof(ProofKind.TICKET, BOND.ticket_proof(secret), "laptop")


def code_proof(key: bytes = KEY) -> Proof:
    return Proof(ProofKind.CODE, BOND.guest_proof(key, (GUEST_ELEMENT, HOST_ELEMENT)), "laptop")


def exchanged(at: Desk, now: float = NOW, source: str = "198.51.100.7") -> HostPairing:
    """A host that waits for the proof of a code."""
    side = host(at, source)
    side.receive(Exchange(GUEST_ELEMENT), now)
    side.steps()
    side.exchanged(HOST_ELEMENT, KEY, now)
    side.steps()
    return side


def refusal(side: HostPairing) -> int:
    """The code with which a host has refused."""
    [step] = side.steps()
    assert isinstance(step, Say)
    assert isinstance(step.frame, Refused)
    return step.frame.code


# --- a ticket ---------------------------------------------------------------------------------------------------------


def test_a_right_ticket_is_stored_and_then_told_so() -> None:
    at = desk()
    side = host(at)
    side.receive(ticket_proof(), NOW)
    assert side.steps() == [Keep("laptop", {})]
    side.kept(SERVICES)
    [step] = side.steps()
    assert isinstance(step, Say)
    assert step.frame == Paired(BOND.host_proof(SECRET, (ticket_proof().proof, bytes(32))), SERVICES)
    side.receive(Done(), NOW)
    assert side.is_over
    assert not side.failure
    assert at.uses_left == 0


def test_a_wrong_ticket_is_refused_and_costs_the_right_one_nothing() -> None:
    at = desk()
    side = host(at)
    side.receive(ticket_proof(bytes(16)), NOW)
    assert refusal(side) == RefusedCode.NOT_VALID
    assert side.failure == "it has a wrong ticket"
    assert at.is_open(NOW)
    assert at.words == WORDS


def test_no_number_of_wrong_tickets_closes_the_desk() -> None:
    at = desk()
    for attempt in range(2 * PAIRING_FAILURES_MAX):
        host(at, str(attempt)).receive(ticket_proof(bytes(16)), NOW)
    assert at.is_open(NOW)


def test_a_used_ticket_is_refused() -> None:
    at = desk()
    host(at, "a").receive(ticket_proof(), NOW)
    side = host(at, "b")
    side.receive(ticket_proof(), NOW)
    assert refusal(side) == RefusedCode.NOT_VALID


def test_a_ticket_for_two_is_good_for_two() -> None:
    at = desk(uses=2)
    outcomes = []
    for source in "abc":
        side = host(at, source)
        side.receive(ticket_proof(), NOW)
        outcomes.append(side.state)
    assert outcomes == [HostState.KEEPING, HostState.KEEPING, HostState.OVER]


def test_an_expired_ticket_is_refused_and_a_moment_before_it_is_not() -> None:
    late, just = host(desk(expires_at=700.0)), host(desk(expires_at=700.0))
    late.receive(ticket_proof(), 700.0)
    just.receive(ticket_proof(), 699.9)
    assert refusal(late) == RefusedCode.NOT_VALID
    assert just.state is HostState.KEEPING


@pytest.mark.parametrize("code", [RefusedCode.NAME_TAKEN, RefusedCode.NOT_STORED])
def test_a_guest_that_could_not_be_stored_has_not_used_the_ticket(code: RefusedCode) -> None:
    at = desk()
    side = host(at)
    side.receive(ticket_proof(), NOW)
    side.steps()
    side.not_kept(code, "why")
    assert refusal(side) == code
    assert side.failure == "why"
    assert at.uses_left == 1


@pytest.mark.parametrize("is_being_stored", [False, True])
def test_a_guest_that_went_away_has_used_the_ticket_if_it_may_have_been_stored(is_being_stored: bool) -> None:
    at = desk()
    side = host(at)
    side.receive(ticket_proof(), NOW)
    if is_being_stored:
        side.steps()
    side.lost(NOW)
    assert at.uses_left == (0 if is_being_stored else 1)


# --- a code -----------------------------------------------------------------------------------------------------------


def test_a_code_is_burnt_before_anything_is_computed_with_it() -> None:
    at = desk()
    side = host(at)
    side.receive(Exchange(GUEST_ELEMENT), NOW)
    assert at.words is None
    assert side.steps() == [Compute(GUEST_ELEMENT, WORDS)]


def test_the_host_says_nothing_of_the_code_before_the_guest_has_proved_it() -> None:
    side = host(desk())
    side.receive(Exchange(GUEST_ELEMENT), NOW)
    side.steps()
    side.exchanged(HOST_ELEMENT, KEY, NOW)
    assert side.steps() == [Say(Reply(HOST_ELEMENT))]


def test_a_right_code_is_stored_and_then_told_so() -> None:
    at = desk()
    side = exchanged(at)
    side.receive(code_proof(), NOW)
    assert side.steps() == [Keep("laptop", {})]
    side.kept(SERVICES)
    assert side.steps() == [Say(Paired(BOND.host_proof(KEY, (GUEST_ELEMENT, HOST_ELEMENT)), SERVICES))]
    side.receive(Done(), NOW)
    assert side.is_over
    assert at.uses_left == 0
    assert not at.is_closed


def test_a_wrong_code_is_refused_and_burnt() -> None:
    at = desk()
    side = exchanged(at)
    side.receive(code_proof(bytes(32)), NOW)
    assert refusal(side) == RefusedCode.NOT_VALID
    assert side.failure == "it tried a wrong code"
    assert at.words is None
    assert at.uses_left == 1


def test_a_burnt_code_is_refused_in_the_same_words_as_a_wrong_one() -> None:
    at = desk()
    exchanged(at)
    side = host(at, "another")
    side.receive(Exchange(GUEST_ELEMENT), NOW)
    assert refusal(side) == RefusedCode.NOT_VALID
    assert side.failure == "it tried a code that has been tried already"


def test_a_malformed_element_is_a_wrong_code() -> None:
    at = desk()
    side = host(at)
    side.receive(Exchange(bytes(32)), NOW)
    side.steps()
    side.exchanged(HOST_ELEMENT, None, NOW)
    assert refusal(side) == RefusedCode.NOT_VALID
    assert at.words is None


def test_whoever_goes_away_with_the_reply_has_used_up_a_guess() -> None:
    at = desk()
    for attempt in range(PAIRING_FAILURES_MAX):
        exchanged(at, source=str(attempt)).lost(NOW)
        at.issue(WORDS)
    assert at.is_closed


def test_three_wrong_codes_close_the_desk_for_the_right_one_and_for_the_ticket() -> None:
    at = desk(uses=5)
    for attempt in range(PAIRING_FAILURES_MAX):
        assert not at.is_closed
        exchanged(at, source=str(attempt)).receive(code_proof(bytes(32)), NOW)
        at.issue(WORDS)
    assert at.is_closed
    for source, frame in (("code", Exchange(GUEST_ELEMENT)), ("ticket", ticket_proof())):
        side = host(at, source)
        side.receive(frame, NOW)
        assert refusal(side) == RefusedCode.NOT_VALID


def test_three_wrong_codes_in_a_longer_time_do_not() -> None:
    at = desk(expires_at=10_000.0)
    for attempt in range(2 * PAIRING_FAILURES_MAX):
        exchanged(at, now=NOW + attempt * PAIRING_FAILURES_WITHIN / 2, source=str(attempt)).receive(
            code_proof(bytes(32)), NOW + attempt * PAIRING_FAILURES_WITHIN / 2
        )
        at.issue(WORDS)
    assert not at.is_closed


def test_a_guest_that_was_right_while_the_desk_closed_is_not_taken() -> None:
    at = desk()
    side = exchanged(at)
    for _ in range(PAIRING_FAILURES_MAX):
        at.fail(NOW)
    side.receive(code_proof(), NOW)
    assert refusal(side) == RefusedCode.NOT_VALID


# --- how often --------------------------------------------------------------------------------------------------------


def test_one_source_has_one_attempt_in_two_seconds_and_another_its_own() -> None:
    at = desk()
    assert at.knock("a", NOW) is None
    assert at.knock("a", NOW + PAIRING_PAUSE - 0.1) is RefusedCode.TOO_SOON
    assert at.knock("b", NOW + PAIRING_PAUSE - 0.1) is None
    assert at.knock("a", NOW + PAIRING_PAUSE) is None


def test_an_attempt_that_came_too_soon_burns_no_code() -> None:
    at = desk()
    at.knock("198.51.100.7", NOW)
    side = host(at)
    side.receive(Exchange(GUEST_ELEMENT), NOW + 1)
    assert refusal(side) == RefusedCode.TOO_SOON
    assert at.words == WORDS


def test_only_so_many_sources_are_remembered() -> None:
    at = desk()
    for source in range(PAIRING_SOURCES_MAX + 1):
        at.knock(str(source), NOW)
    assert at.knock("0", NOW) is None  # forgotten, as the oldest
    assert at.knock(str(PAIRING_SOURCES_MAX), NOW) is RefusedCode.TOO_SOON


# --- out of turn ------------------------------------------------------------------------------------------------------

ANY_FRAME = st.sampled_from(
    [
        Exchange(GUEST_ELEMENT),
        Reply(HOST_ELEMENT),
        ticket_proof(),
        ticket_proof(bytes(16)),
        code_proof(),
        code_proof(bytes(32)),
        Paired(bytes(32)),
        Refused(9),
        Done(),
    ]
)


@given(st.lists(ANY_FRAME, max_size=6), st.booleans())
def test_whatever_a_guest_says_in_whatever_order_nothing_is_raised_and_nobody_is_taken_twice(
    frames: list[PairingFrame], computes: bool
) -> None:
    at = desk()
    side = host(at)
    kept = 0
    for frame in frames:
        side.receive(frame, NOW)
        while steps := side.steps():
            for step in steps:
                match step:
                    case Compute():
                        side.exchanged(HOST_ELEMENT, KEY if computes else None, NOW)
                    case Keep():
                        kept += 1
                        side.kept(SERVICES)
                    case Say():
                        pass
    side.lost(NOW)
    assert side.is_over
    assert kept + at.uses_left == 1


@given(st.lists(ANY_FRAME, max_size=6), st.sampled_from(ProofKind))
def test_whatever_a_host_says_in_whatever_order_nothing_is_raised_and_no_other_host_is_stored(
    frames: list[PairingFrame], kind: ProofKind
) -> None:
    side = GuestPairing(BOND, "laptop", kind, SECRET if kind is ProofKind.TICKET else GUEST_ELEMENT)
    for frame in frames:
        side.receive(frame)
        for step in side.steps():
            assert not isinstance(step, Keep)
            if isinstance(step, Compute) and side.state is GuestState.EXCHANGING:
                side.exchanged(KEY)


@pytest.mark.parametrize(("state", "trigger"), list(itertools.product(HostState, HostTrigger)))
def test_a_host_moves_as_its_table_says_and_not_otherwise(state: HostState, trigger: HostTrigger) -> None:
    side = host(desk())
    side.state = state
    _walk(side, HOST_TRANSITIONS, state, trigger)


@pytest.mark.parametrize(("state", "trigger"), list(itertools.product(GuestState, GuestTrigger)))
def test_a_guest_moves_as_its_table_says_and_not_otherwise(state: GuestState, trigger: GuestTrigger) -> None:
    side = GuestPairing(BOND, "laptop", ProofKind.TICKET, SECRET)
    side.state = state
    _walk(side, GUEST_TRANSITIONS, state, trigger)


def _walk(side: Any, table: Any, state: Any, trigger: Any) -> None:
    if (state, trigger) in table:
        side._move(trigger)
        assert side.state is table[state, trigger]
    else:
        with pytest.raises(LocalProtocolError):
            side._move(trigger)


# --- the guest --------------------------------------------------------------------------------------------------------


def test_a_guest_stores_a_host_whose_proof_is_right() -> None:
    side = GuestPairing(BOND, "laptop", ProofKind.CODE, GUEST_ELEMENT)
    assert side.steps() == [Say(Exchange(GUEST_ELEMENT))]
    side.receive(Reply(HOST_ELEMENT))
    assert side.steps() == [Compute(HOST_ELEMENT)]
    side.exchanged(KEY)
    assert side.steps() == [Say(code_proof())]
    side.receive(Paired(BOND.host_proof(KEY, (GUEST_ELEMENT, HOST_ELEMENT)), SERVICES))
    assert side.steps() == [Keep("", SERVICES)]
    side.kept()
    assert side.steps() == [Say(Done())]
    assert side.is_over


@pytest.mark.parametrize(
    "proof",
    [
        bytes(32),
        BOND.guest_proof(SECRET, (ticket_proof().proof, bytes(32))),  # the guest's own role
        BOND.host_proof(SECRET, (bytes(32), bytes(32))),  # of another guest's proof
        ticket_proof().proof,  # reflected
    ],
)
def test_a_host_whose_proof_is_wrong_is_an_impostor(proof: bytes) -> None:
    side = GuestPairing(BOND, "laptop", ProofKind.TICKET, SECRET)
    side.steps()
    side.receive(Paired(proof, SERVICES))
    assert side.is_impostor
    assert side.steps() == []


@pytest.mark.parametrize(("code", "means"), [(1, 1), (2, 2), (3, 3), (4, 4), (77, 1)])
def test_a_refusal_is_kept_and_an_unknown_one_is_the_plainest(code: int, means: int) -> None:
    side = GuestPairing(BOND, "laptop", ProofKind.TICKET, SECRET)
    side.receive(Refused(code))
    assert side.refusal == means


# --- what ties a proof to its connection ------------------------------------------------------------------------------

OTHERS = {
    "guest": Bond(HOST.public, HOST.public, BOND.guest_leaf, BOND.host_leaf, BOND.selector),
    "host": Bond(GUEST.public, GUEST.public, BOND.guest_leaf, BOND.host_leaf, BOND.selector),
    "guest's leaf": Bond(GUEST.public, HOST.public, bytes(32), BOND.host_leaf, BOND.selector),
    "host's leaf": Bond(GUEST.public, HOST.public, BOND.guest_leaf, bytes(32), BOND.selector),
    "selector": Bond(GUEST.public, HOST.public, BOND.guest_leaf, BOND.host_leaf, bytes(16)),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_a_proof_holds_for_one_connection_only(other: Bond) -> None:
    messages = (GUEST_ELEMENT, HOST_ELEMENT)
    assert other.ticket_proof(SECRET) != BOND.ticket_proof(SECRET)
    assert other.guest_proof(KEY, messages) != BOND.guest_proof(KEY, messages)
    assert other.host_proof(KEY, messages) != BOND.host_proof(KEY, messages)


def test_a_proof_covers_both_elements_and_the_role() -> None:
    proof = BOND.guest_proof(KEY, (GUEST_ELEMENT, HOST_ELEMENT))
    assert proof != BOND.guest_proof(KEY, (bytes(32), HOST_ELEMENT))
    assert proof != BOND.guest_proof(KEY, (GUEST_ELEMENT, bytes(32)))
    assert proof != BOND.host_proof(KEY, (GUEST_ELEMENT, HOST_ELEMENT))


def test_nothing_shows_a_secret() -> None:
    at = desk()
    for value in (at, host(at), Compute(GUEST_ELEMENT, WORDS), Say(code_proof())):
        assert not any(secret in repr(value) for secret in (WORDS, "apple", repr(SECRET)[2:-1], repr(KEY)[2:-1]))


@pytest.mark.parametrize("is_being_stored", [False, True])
def test_a_guest_that_talks_before_it_is_told_is_refused_and_has_used_the_ticket_if_it_may_be_stored(
    is_being_stored: bool,
) -> None:
    at = desk()
    side = host(at)
    side.receive(ticket_proof(), NOW)
    if is_being_stored:
        side.steps()
    side.receive(Done(), NOW)
    assert refusal(side) == RefusedCode.NOT_VALID
    assert at.uses_left == (0 if is_being_stored else 1)


def test_a_host_whose_element_is_none_is_an_impostor() -> None:
    side = GuestPairing(BOND, "laptop", ProofKind.CODE, GUEST_ELEMENT)
    side.receive(Reply(bytes(32)))
    side.exchanged(None)
    assert side.is_over
    assert side.is_impostor
