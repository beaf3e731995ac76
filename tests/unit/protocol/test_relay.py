"""The relay's mind: who is let in and who is not, quotas to the byte, and how circuits end; no socket, no clock of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from p2ptunnel.defaults import (
    RELAY_CIRCUITS_OF_KEY,
    RELAY_CIRCUITS_OF_PAIR,
    RELAY_CIRCUITS_OF_SOURCE,
    RELAY_IDLE,
    RELAY_JOIN_TIMEOUT,
    RELAY_QUOTA_BYTES,
    RELAY_STALLED,
    RELAY_TICK,
    SITE_FACTOR,
    TOKEN_TTL,
)
from p2ptunnel.identity.judge import Judge
from p2ptunnel.identity.keys import Identity
from p2ptunnel.identity.relay import relay_extra
from p2ptunnel.protocol import relay as relay_module
from p2ptunnel.protocol.relay import Circuit, CircuitEnded, Relay
from p2ptunnel.types import Role
from p2ptunnel.wire.messages import Observed, RelayJoin, RelayJoinAnswer, RelayJoinExtra
from tests.unit.protocol.actors import ALICE, BOB, EVE, TOKEN

HERE, THERE = "198.51.100.1", "198.51.100.2"
DAY = 86_400.0
SERVER = Identity.from_seed(b"server".ljust(32))


def relay(token: str = TOKEN, *, quota_bytes: int = RELAY_QUOTA_BYTES, now: float = 0.0) -> Relay:
    """Return a relay at which Alice may meet Bob."""
    made = Relay(Judge(), quota_bytes=quota_bytes)
    made.introduce(token, str(ALICE.public), str(BOB.public), now)
    return made


def asked(
    there: Relay, who: Identity, role: Role, token: str = TOKEN, *, host: str = HERE, now: float = 0.0
) -> tuple[RelayJoinAnswer, Circuit | None]:
    return there.join(RelayJoin(mid=6, extra=relay_extra(who, token, role)), host, now)


def joined(there: Relay, who: Identity, role: Role, token: str = TOKEN, *, host: str = HERE, now: float = 0.0) -> Circuit:
    answer, circuit = asked(there, who, role, token, host=host, now=now)
    assert answer == RelayJoinAnswer(mid=6, code=200, em="")
    assert circuit is not None
    return circuit


def opened(there: Relay, token: str = TOKEN, *, now: float = 0.0, hosts: tuple[str, str] = (HERE, THERE)) -> Circuit:
    joined(there, ALICE, "caller", token, host=hosts[0], now=now)
    return joined(there, BOB, "callee", token, host=hosts[1], now=now)


def tokens() -> Callable[[], str]:
    numbers = itertools.count()
    return lambda: f"{next(numbers):032x}"


# --- who is let in ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("roles", list(itertools.permutations([(ALICE, "caller"), (BOB, "callee")])), ids=["caller", "callee"])
def test_whichever_end_comes_first_the_second_one_opens_the_circuit(roles: tuple[tuple[Identity, Role], ...]) -> None:
    there = relay()
    states = []
    for who, role in roles:
        circuit = joined(there, who, role)
        states.append(circuit.is_open)
    assert states == [False, True]
    assert there.circuits == {1: circuit}


def _unsigned(extra: RelayJoinExtra) -> RelayJoinExtra:
    return RelayJoinExtra(token=extra.token, role=extra.role, key=extra.key)


def _keyless(extra: RelayJoinExtra) -> RelayJoinExtra:
    return RelayJoinExtra(token=extra.token, role=extra.role)


def _as_callee(extra: RelayJoinExtra) -> RelayJoinExtra:
    return RelayJoinExtra(token=extra.token, role="callee", key=extra.key, sig=extra.sig)


def _as_bob(extra: RelayJoinExtra) -> RelayJoinExtra:
    return RelayJoinExtra(token=extra.token, role="callee", key=str(BOB.public), sig=extra.sig)


def _broken(extra: RelayJoinExtra) -> RelayJoinExtra:
    flipped = extra.sig.replace(extra.sig[5], "A" if extra.sig[5] != "A" else "B", 1)
    return RelayJoinExtra(token=extra.token, role=extra.role, key=extra.key, sig=flipped)


NOT_AN_END = (403, "not signed by that end of the call")
UNKNOWN = (404, "no such call, or it is over")
REFUSALS = [
    ("unsigned", _unsigned(relay_extra(ALICE, TOKEN, "caller")), NOT_AN_END),
    ("without a key", _keyless(relay_extra(ALICE, TOKEN, "caller")), NOT_AN_END),
    ("a stranger", relay_extra(EVE, TOKEN, "caller"), NOT_AN_END),
    ("the other end's role", relay_extra(ALICE, TOKEN, "callee"), NOT_AN_END),
    ("signed for the other role", _as_callee(relay_extra(ALICE, TOKEN, "caller")), NOT_AN_END),
    ("the other end's key", _as_bob(relay_extra(ALICE, TOKEN, "callee")), NOT_AN_END),
    ("a broken signature", _broken(relay_extra(ALICE, TOKEN, "caller")), NOT_AN_END),
    ("no signature at all", RelayJoinExtra(token=TOKEN, role="caller", key=str(ALICE.public), sig="?"), NOT_AN_END),
    ("signed for another server", relay_extra(ALICE, TOKEN, "caller", server_key=str(SERVER.public)), NOT_AN_END),
    ("no role", RelayJoinExtra(token=TOKEN, role="both", key=str(ALICE.public), sig="AA"), NOT_AN_END),
    ("another call", relay_extra(ALICE, "f" * 32, "caller"), UNKNOWN),
    ("a token of 64 characters", relay_extra(ALICE, "f" * 64, "caller"), UNKNOWN),
]


@pytest.mark.parametrize(("extra", "refusal"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS])
def test_nobody_else_is_let_in(extra: RelayJoinExtra, refusal: tuple[int, str]) -> None:
    there = relay()
    answer, circuit = there.join(RelayJoin(mid=6, extra=extra), HERE, 0.0)
    assert (answer.code, answer.em, answer.extra, circuit) == (*refusal, None, None)
    assert there.refused == {refusal[1]: 1}
    assert not there.circuits
    opened(there)


def test_a_signature_for_another_call_is_none_for_this_one() -> None:
    there = relay()
    there.introduce("f" * 32, str(ALICE.public), str(BOB.public), 0.0)
    other = relay_extra(ALICE, "f" * 32, "caller")
    stolen = RelayJoinExtra(token=TOKEN, role="caller", key=other.key, sig=other.sig)
    assert there.join(RelayJoin(mid=6, extra=stolen), HERE, 0.0)[0].code == 403


def test_a_server_with_a_key_wants_it_signed_for() -> None:
    there = Relay(Judge(SERVER))
    there.introduce(TOKEN, str(ALICE.public), str(BOB.public), 0.0)
    for server_key, code in (("", 403), (str(EVE.public), 403), (str(SERVER.public), 200)):
        extra = relay_extra(ALICE, TOKEN, "caller", server_key=server_key)
        assert there.join(RelayJoin(mid=6, extra=extra), HERE, 0.0)[0].code == code


def test_who_has_no_key_has_nothing_to_join_with() -> None:
    there = Relay(Judge())
    there.introduce(TOKEN, "", str(BOB.public), 0.0)
    there.introduce("f" * 32, str(ALICE.public), "", 0.0)
    assert asked(there, BOB, "callee")[0].code == 404
    assert asked(there, ALICE, "caller", "f" * 32)[0].code == 404


def test_an_end_is_in_once() -> None:
    there = relay()
    circuit = joined(there, ALICE, "caller")
    for _ in range(2):  # of one that waits, and of one that is open
        answer, _ = asked(there, ALICE, "caller")
        assert (answer.code, answer.em) == (409, "that end is in already")
        if not circuit.is_open:
            joined(there, BOB, "callee")
    assert len(there.circuits) == 1


def test_a_call_has_one_circuit_so_that_a_join_played_again_opens_none() -> None:
    there = relay()
    there.end(opened(there), "both ends closed")
    assert asked(there, ALICE, "caller", now=0.1)[0].code == 404
    assert asked(there, BOB, "callee", now=0.1)[0].code == 404


@pytest.mark.parametrize(("at", "code"), [(TOKEN_TTL - 0.1, 200), (TOKEN_TTL, 404)])
def test_a_token_lives_so_long(at: float, code: int) -> None:
    assert asked(relay(), ALICE, "caller", now=at)[0].code == code


def test_the_calls_that_are_known_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "RELAY_CALLS_MAX", 3)
    there, token = Relay(Judge()), tokens()
    made = [token() for _ in range(5)]
    for each in made:
        there.introduce(each, str(ALICE.public), str(BOB.public), 0.0)
    assert [asked(there, ALICE, "caller", each)[0].code for each in made] == [404, 404, 200, 200, 200]


def test_calls_that_are_over_make_room_for_others() -> None:
    there, token = Relay(Judge()), tokens()
    for now, expected in [(0.0, 6), (TOKEN_TTL, 3)]:
        for _ in range(6 if not now else 3):
            there.introduce(token(), str(ALICE.public), str(BOB.public), now)
        assert len(there._calls) == expected


# --- how many ---------------------------------------------------------------------------------------------------------


def callee(number: int) -> str:
    return str(Identity.from_seed(number.to_bytes(32, "big")).public)


def test_two_keys_have_so_many_circuits_and_leave_room_for_others() -> None:
    there, token = Relay(Judge()), tokens()
    for number in range(RELAY_CIRCUITS_OF_PAIR + 1):
        roles: tuple[Identity, Identity] = (ALICE, BOB) if number % 2 else (BOB, ALICE)
        there.introduce(name := token(), *(str(end.public) for end in roles), 0.0)
        answer, _ = asked(there, BOB, "callee" if roles[1] is BOB else "caller", name, host=f"198.51.100.{number}")
    assert (answer.code, answer.em) == (429, "too many circuits between these two")
    there.introduce(other := token(), str(EVE.public), str(BOB.public), 0.0)
    assert joined(there, BOB, "callee", other).number in there.circuits
    there.end(there.circuits[1], "both ends closed")
    assert asked(there, BOB, "callee" if roles[1] is BOB else "caller", name)[0].code == 200


def test_a_callee_is_not_counted_by_where_it_is_since_others_call_it() -> None:
    there, token = Relay(Judge(), circuits_of_key=1000), tokens()
    for number in range(2 * RELAY_CIRCUITS_OF_SOURCE):
        there.introduce(name := token(), callee(number), str(BOB.public), 0.0)
        joined(there, BOB, "callee", name)
    there.introduce(TOKEN, str(ALICE.public), str(BOB.public), 0.0)
    opened(there)


def test_a_key_has_so_many_circuits_at_a_time() -> None:
    there, token = Relay(Judge()), tokens()
    circuits: list[Circuit] = []
    for number in range(RELAY_CIRCUITS_OF_KEY + 1):
        there.introduce(name := token(), str(ALICE.public), callee(number), 0.0)
        answer, circuit = asked(there, ALICE, "caller", name, host=f"198.51.100.{number}")
        circuits += [circuit] if circuit else []
    assert (answer.code, answer.em) == (429, "too many circuits of that key")
    assert answer.extra == Observed(retry_after=5.0)
    assert len(circuits) == RELAY_CIRCUITS_OF_KEY
    there.end(circuits[0], "both ends closed")
    assert asked(there, ALICE, "caller", name)[0].code == 200


def test_who_has_not_joined_does_not_lose_circuits_by_those_who_wait_for_it() -> None:
    there, token = Relay(Judge()), tokens()
    for number in range(2 * RELAY_CIRCUITS_OF_KEY):
        caller = Identity.from_seed(bytes([number]) * 32)
        there.introduce(name := token(), str(caller.public), str(BOB.public), 0.0)
        joined(there, caller, "caller", name, host=f"198.51.100.{number}")
    there.introduce(TOKEN, str(ALICE.public), str(BOB.public), 0.0)
    opened(there, hosts=("192.0.2.1", "192.0.2.2"))


def test_a_source_has_so_many_circuits_and_a_call_within_it_counts_once() -> None:
    there, token = Relay(Judge()), tokens()
    for number in range(RELAY_CIRCUITS_OF_SOURCE + 1):
        caller = Identity.from_seed(bytes([number]) * 32)
        there.introduce(name := token(), str(caller.public), str(BOB.public), 0.0)
        answer, circuit = asked(there, caller, "caller", name)
        if circuit is not None:
            joined(there, BOB, "callee", name)
    assert (answer.code, answer.em) == (429, "too many circuits from there")
    assert asked(there, caller, "caller", name, host=THERE)[0].code == 200
    there.end(there.circuits[1], "idle")
    assert joined(there, BOB, "callee", name).is_open


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        ([f"2001:db8::{number:x}" for number in range(200)], RELAY_CIRCUITS_OF_SOURCE),
        ([f"2001:db8:0:{number:x}::1" for number in range(200)], RELAY_CIRCUITS_OF_SOURCE * SITE_FACTOR),
        (["198.51.100.7", "::ffff:198.51.100.7"] * 100, RELAY_CIRCUITS_OF_SOURCE),
        (["127.0.0.1", "::1"] * 100, 200),
    ],
    ids=["a /64", "a /48", "one IPv4 address", "loopback"],
)
def test_a_source_is_what_it_is_for_other_limits(hosts: list[str], expected: int) -> None:
    there, token = Relay(Judge(), circuits_of_key=1000), tokens()
    codes: list[int] = []
    for number, host in enumerate(hosts):
        there.introduce(name := token(), str(ALICE.public), callee(number), 0.0)
        codes.append(asked(there, ALICE, "caller", name, host=host)[0].code)
    assert codes.count(200) == expected
    assert set(codes) <= {200, 429}


def test_all_circuits_together_are_bounded_but_one_that_waits_is_still_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "RELAY_CIRCUITS_MAX", 2)
    there, token = relay(), tokens()
    joined(there, ALICE, "caller")
    for expected in (200, 429):
        there.introduce(name := token(), str(EVE.public), str(BOB.public), 0.0)
        answer, _ = asked(there, EVE, "caller", name)
        assert answer.code == expected
    assert (answer.em, answer.extra) == ("the relay is full", Observed(retry_after=5.0))
    joined(there, BOB, "callee")


def test_nothing_is_kept_of_circuits_that_are_over() -> None:
    there, token = Relay(Judge()), tokens()
    for _ in range(3 * RELAY_CIRCUITS_OF_KEY):
        there.introduce(name := token(), str(ALICE.public), str(BOB.public), 0.0)
        there.end(opened(there, name), "both ends closed")
    assert not there._of_block
    assert not there._of_site
    assert {account.circuits for account in there._accounts.values()} == {0}


# --- how much ---------------------------------------------------------------------------------------------------------


def carry(there: Relay, circuit: Circuit, wanted: int, now: float = 0.0) -> int:
    """Let a circuit carry what it may of so many bytes; return how many."""
    count = min(wanted, there.room(circuit, now))
    there.carried(circuit, count, now)
    return count


def test_a_quota_is_exact_and_of_all_circuits_of_a_key() -> None:
    there, token = Relay(Judge(), quota_bytes=1000), tokens()
    circuits: list[Circuit] = []
    for callee in (BOB, EVE):
        there.introduce(name := token(), str(ALICE.public), str(callee.public), 0.0)
        joined(there, ALICE, "caller", name)
        circuits.append(joined(there, callee, "callee", name))
    assert [carry(there, circuits[0], 400), carry(there, circuits[1], 400)] == [400, 400]
    assert [carry(there, circuits[0], 400), carry(there, circuits[1], 400)] == [200, 0]
    assert there.carried_bytes == 1000
    there.introduce(name := token(), str(EVE.public), str(BOB.public), 0.0)  # each of whom has something left
    joined(there, EVE, "caller", name)
    assert carry(there, joined(there, BOB, "callee", name), 1000) == 400


def test_who_has_used_up_the_quota_is_told_when_the_day_is_over() -> None:
    there = relay(quota_bytes=1000)
    circuit = opened(there, now=10.0)
    carry(there, circuit, 1000, now=11.0)
    there.end(circuit, "the quota is used up")
    there.introduce("f" * 32, str(ALICE.public), str(BOB.public), 3600.0)
    answer, _ = asked(there, ALICE, "caller", "f" * 32, now=3610.0)
    assert (answer.code, answer.em) == (429, "the quota of that key is used up")
    assert answer.extra == Observed(retry_after=DAY - 3600.0)


def test_a_new_day_has_a_quota_of_its_own_also_for_a_circuit_that_is_open() -> None:
    there = relay(quota_bytes=1000)
    circuit = opened(there)
    assert carry(there, circuit, 2000, now=1.0) == 1000
    assert carry(there, circuit, 2000, now=DAY - 0.1) == 0
    assert carry(there, circuit, 2000, now=DAY) == 1000


def test_a_peer_that_calls_itself_pays_once() -> None:
    there = Relay(Judge(), quota_bytes=1000)
    there.introduce(TOKEN, str(ALICE.public), str(ALICE.public), 0.0)
    joined(there, ALICE, "caller")
    circuit = joined(there, ALICE, "callee")
    assert carry(there, circuit, 2000) == 1000
    there.end(circuit, "both ends closed")
    assert {account.circuits for account in there._accounts.values()} == {0}


def test_keys_that_are_remembered_are_bounded_and_those_with_circuits_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "RELAY_ACCOUNTS_MAX", 3)
    there, token = Relay(Judge(), quota_bytes=1000), tokens()
    there.introduce(name := token(), str(ALICE.public), str(BOB.public), 0.0)
    carry(there, opened(there, name), 1000)
    for number in range(9):
        caller = Identity.from_seed(bytes([number]) * 32)
        there.introduce(name := token(), str(caller.public), str(BOB.public), 0.0)
        there.end(joined(there, caller, "caller", name, host=f"192.0.2.{number}"), "an end was lost")
    assert len(there._accounts) == 3
    there.introduce(name := token(), str(ALICE.public), str(BOB.public), 0.0)
    assert asked(there, ALICE, "caller", name)[0].em == "the quota of that key is used up"


def test_a_key_whose_day_is_over_is_forgotten() -> None:
    there = relay()
    there.end(opened(there), "both ends closed")
    there.introduce(TOKEN, str(EVE.public), str(BOB.public), DAY)
    joined(there, EVE, "caller", now=DAY)
    assert str(ALICE.public) not in there._accounts


# --- when it is over --------------------------------------------------------------------------------------------------


def ends_at(there: Relay) -> tuple[float, CircuitEnded]:
    """Run the timer until a circuit ends; return when that was, and how."""
    while (at := there.next_deadline()) is not None:
        for ended in there.handle_timer(at):
            return at, ended
    raise AssertionError("it never ends")


def test_an_end_waits_so_long_for_the_other() -> None:
    there = relay()
    circuit = joined(there, ALICE, "caller")
    at, ended = ends_at(there)
    assert RELAY_JOIN_TIMEOUT <= at < RELAY_JOIN_TIMEOUT + 2 * RELAY_TICK
    assert ended == CircuitEnded(circuit.number, "the other end did not come", 0)
    assert there.ended == {"the other end did not come": 1}
    assert there.next_deadline() is None


def test_a_circuit_that_carries_nothing_ends() -> None:
    there = relay()
    circuit = opened(there, now=3.0)
    carry(there, circuit, 10, now=100.0)
    at, ended = ends_at(there)
    assert 100 + RELAY_IDLE <= at < 100 + RELAY_IDLE + 2 * RELAY_TICK
    assert ended == CircuitEnded(circuit.number, "idle", 10)


@pytest.mark.parametrize("takes_at", [[], [1.5], [1.5, 3.0, 4.9]], ids=["nothing", "once", "slowly"])
def test_an_end_that_takes_nothing_for_a_while_ends_the_circuit(takes_at: list[float]) -> None:
    there = relay()
    circuit = opened(there)
    for at in [0.0, *takes_at]:
        assert not there.handle_timer(at)
        there.blocked(circuit, "callee", at)
    at, ended = ends_at(there)
    last = max([0.0, *takes_at])
    assert last + RELAY_STALLED <= at < last + RELAY_STALLED + 2 * RELAY_TICK
    assert ended.why == "an end does not read"


def test_an_end_that_has_taken_all_is_not_waited_for() -> None:
    there = relay()
    circuit = opened(there)
    there.blocked(circuit, "callee", 0.0)
    there.unblocked(circuit, "callee")
    there.unblocked(circuit, "caller")
    assert ends_at(there)[1].why == "idle"


def test_one_end_that_does_not_read_is_enough_however_busy_the_other_is() -> None:
    there = relay()
    circuit = opened(there)
    there.blocked(circuit, "callee", 0.0)
    for at in (0.5, 1.0, 1.5, RELAY_STALLED - 0.01):
        there.carried(circuit, 1, at)
        there.blocked(circuit, "caller", at)
        assert not there.handle_timer(at)
    assert [ended.why for ended in there.handle_timer(RELAY_STALLED + RELAY_TICK)] == ["an end does not read"]


def test_a_timer_that_comes_early_does_nothing() -> None:
    there = relay()
    joined(there, ALICE, "caller")
    assert there.handle_timer(RELAY_TICK / 2) == []
    assert there.next_deadline() == RELAY_TICK


def test_no_text_shows_a_token_or_a_signature() -> None:
    there = relay()
    circuit = opened(there)
    assert repr(circuit) == "Circuit(1, open)"
    assert TOKEN not in repr(there.end(circuit, "idle"))
