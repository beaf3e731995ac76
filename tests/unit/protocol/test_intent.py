"""Signed calls: who is let in, who is told no, who hears nothing, and what both sides know afterwards."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from p2ptunnel.defaults import (
    INTENT_KEYS_MAX,
    INTENT_WINDOW,
    INTENTS_OF_SOURCE_PER_SECOND,
    INTENTS_PER_SECOND,
    PAIRING_CALL_PAUSE,
    STRANGERS_PER_SECOND,
)
from p2ptunnel.identity.keys import Identity, PublicKey
from p2ptunnel.protocol import intent as module
from p2ptunnel.protocol.intent import Answered, AnswerFault, AttemptKeys, Call, CallSigner, CallVerdict, IntentJudge
from p2ptunnel.testing.simnet.peers import SimCounter
from p2ptunnel.types import Candidate
from p2ptunnel.wire.intent import COUNTER_END, IntentRole, MalformedIntentError, decode, encode
from p2ptunnel.wire.keyed import KeyedSender
from p2ptunnel.wire.messages import NatHints, PortRow
from tests.unit.protocol.actors import ALICE, BOB, EVE

[VECTOR] = json.loads((Path(__file__).parents[2] / "vectors" / "intents.json").read_text(encoding="utf-8"))["intents"]
KEYED = json.loads((Path(__file__).parents[2] / "vectors" / "intents.json").read_text(encoding="utf-8"))["keyed"]
HOST = "198.51.100.1"
HERE = (Candidate("srflx", "udp", HOST, 40001),)
THERE = (Candidate("srflx", "udp", "198.51.100.2", 40002),)
HINTS = NatHints(tcp="eim", udp="eim", low=True, rtt=50)
LOW_ORDER = bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800")


def signer(identity: Identity = ALICE, callee: Identity | None = BOB, counter: SimCounter | None = None) -> CallSigner:
    pinned = None if callee is None else callee.public
    return CallSigner(identity, counter or SimCounter(), random.Random(1), callee=pinned)


def judge(*, admits: Callable[[PublicKey], bool] = ALICE.public.__eq__, pairing: bool = False) -> IntentJudge:
    return IntentJudge(BOB, random.Random(2), is_admitted=admits, is_pairing_open=lambda: pairing)


def judged(judging: IntentJudge, text: str, *, now: float = 0.0, source: str = HOST) -> Call:
    call = judging.judge(text, HERE, source, now)
    assert isinstance(call, Call), call
    return call


def resigned(text: str, **changes: Any) -> str:
    """A call of ALICE to BOB that differs from `text` and is signed as it should be."""
    intent = replace(decode(text), **changes)
    return encode(replace(intent, signature=ALICE.sign(module._call_payload(bytes(32), BOB.public.raw, intent))))


# --- both agree --------------------------------------------------------------------------------


def test_a_call_and_its_answer_give_both_sides_the_same_keys() -> None:
    calling, judging = signer(), judge()
    call = judged(judging, calling.sign(HERE))
    assert (call.key, call.verdict) == (ALICE.public, CallVerdict.ADMITTED)
    text, theirs = judging.answer(call, THERE) or ("", None)
    answered = calling.judge(text, THERE)
    assert isinstance(answered, Answered)
    assert answered.key == BOB.public
    assert theirs is not None
    values = [[getattr(keys, name) for name in AttemptKeys.__slots__] for keys in (answered.keys, theirs)]
    assert values[0] == values[1]
    assert len(set(values[0])) == 6
    assert not any(value.hex() in repr((answered, call, theirs)) for value in values[0])


def test_the_next_attempt_has_other_keys() -> None:
    selectors = set()
    calling, judging = signer(), judge()
    for _ in range(3):
        answered = judging.answer(judged(judging, calling.sign(HERE)), THERE)
        assert answered is not None
        selectors.add(answered[1].selector)
    assert len(selectors) == 3


# --- the callee says no, or nothing --------------------------------------------------------------------------------


def test_a_stranger_is_told_no_by_our_key() -> None:
    calling, judging = signer(EVE), judge()
    call = judged(judging, calling.sign(HERE))
    assert call.verdict is CallVerdict.REFUSED
    assert not calling.is_of_another(judging.refuse(call))
    assert calling.judge(judging.refuse(call), ()) is AnswerFault.FORGED  # a no is no yes


def test_a_call_for_another_key_is_told_no_and_by_whom() -> None:
    calling, judging = signer(callee=EVE), judge()
    call = judged(judging, calling.sign(HERE))
    assert call.verdict is CallVerdict.FORGED
    assert calling.is_of_another(judging.refuse(call))


@pytest.mark.parametrize("field", ["ephemeral", "nonce", "ts", "signature"])
def test_what_was_changed_on_the_way_is_not_let_in(field: str) -> None:
    intent = decode(signer().sign(HERE))
    value = getattr(intent, field)
    other = value + 1 if isinstance(value, int) else bytes([value[0] ^ 1]) + value[1:]
    assert judged(judge(), encode(replace(intent, **{field: other}))).verdict is CallVerdict.FORGED


def test_a_key_that_was_changed_on_the_way_is_a_strangers() -> None:
    text = encode(replace(decode(signer().sign(HERE)), key=EVE.public.raw))
    assert judged(judge(), text).verdict is CallVerdict.FORGED


SILENT: list[tuple[str, str]] = [
    ("", "no intent"),
    ("A" * 227, "no intent"),
    (encode(replace(decode(signer().sign(HERE)), key=bytes(32))), "no intent"),
    (signer().sign(()), "an intent for something else"),
    (signer().sign(THERE), "an intent for something else"),
    (encode(replace(decode(signer().sign(HERE)), role=IntentRole.ANSWER)), "an intent for something else"),
]


@pytest.mark.parametrize(("text", "reason"), SILENT, ids=range(len(SILENT)))
def test_what_is_no_call_of_these_candidates_costs_no_signature(
    text: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PublicKey, "verify", None)
    assert judge().judge(text, HERE, HOST, 0.0) == reason


@pytest.mark.parametrize("told", [None, replace(HINTS, udp="rnd"), replace(HINTS, tcp="seq", tcp_row=PortRow(50_000, 1))])
def test_hints_that_somebody_else_has_written_are_none_of_the_callers(told: NatHints | None) -> None:
    text = signer().sign(HERE, HINTS)
    assert judge().judge(text, HERE, HOST, 0.0, hints=told) == "an intent for something else"
    call = judge().judge(text, HERE, HOST, 0.0, hints=HINTS)
    assert isinstance(call, Call)
    assert call.verdict is CallVerdict.ADMITTED


def test_candidates_that_are_no_addresses_are_dropped() -> None:
    assert judge().judge(signer().sign(HERE), (Candidate("host", "udp", "localhost", 1),), HOST, 0.0) == "no intent"


def test_an_unusable_point_makes_no_keys() -> None:
    judging = judge()
    call = judged(judging, resigned(signer().sign(HERE), ephemeral=LOW_ORDER))
    assert call.verdict is CallVerdict.ADMITTED
    assert judging.answer(call, THERE) is None


# --- replays and counters --------------------------------------------------------------------------------


def test_a_thousand_replays_are_counted_and_verify_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    judging, text = judge(), signer().sign(HERE)
    judged(judging, text)
    monkeypatch.setattr(PublicKey, "verify", None)
    answers = [judging.judge(text, HERE, source, n / 10) for n in range(500) for source in (HOST, "192.0.2.1")]
    assert answers == ["intent repeated"] * 1000


def test_a_counter_below_all_that_are_remembered_is_asked_to_come_again_higher() -> None:
    counter = SimCounter()
    counter.next(1000)
    judging = judge()
    judged(judging, signer(counter=counter).sign(HERE))
    calling = signer(counter=SimCounter())
    call = judged(judging, calling.sign(HERE))
    assert (call.verdict, call.highest) == (CallVerdict.STALE, 1002)
    assert calling.renew(judging.renew(call))
    again = judged(judging, calling.sign(HERE))
    assert (again.verdict, again.intent.ts) == (CallVerdict.ADMITTED, 1003)


def test_a_lost_counter_that_hits_a_remembered_one_is_no_replay() -> None:
    judging = judge()
    judged(judging, signer().sign(HERE))
    other = CallSigner(ALICE, SimCounter(), random.Random(99), callee=BOB.public)
    assert judged(judging, other.sign(HERE)).verdict is CallVerdict.STALE


@pytest.mark.parametrize("by", [EVE, ALICE])
def test_nobody_but_the_callee_makes_the_counter_jump(by: Identity) -> None:
    calling = signer()
    call = Call(ALICE.public, CallVerdict.STALE, decode(calling.sign(HERE)), 2**60)
    forger = IntentJudge(by, random.Random(3), is_admitted=lambda _: True)
    assert not calling.renew(forger.renew(call))
    assert not calling.renew("")
    assert decode(calling.sign(HERE)).ts == 2


def renewal(calling: CallSigner, highest: int) -> str:
    """What BOB says to a call whose counter is too low, or so BOB has it."""
    call = Call(ALICE.public, CallVerdict.STALE, decode(calling.sign(HERE)), highest)
    return IntentJudge(BOB, random.Random(3), is_admitted=lambda _: True).renew(call)


@pytest.mark.parametrize("highest", [COUNTER_END - 1, COUNTER_END, 2**64 - 4, 2**64 - 1])
def test_no_renewal_brings_a_counter_to_its_end(highest: int) -> None:
    counter = SimCounter()
    calling = signer(counter=counter)
    assert not calling.renew(renewal(calling, highest))
    assert decode(calling.sign(HERE)).ts == 2
    assert counter.next() == 3


@pytest.mark.parametrize("highest", [COUNTER_END // 2, COUNTER_END - 2])
def test_a_renewal_in_the_upper_half_holds_for_its_attempt_alone(highest: int) -> None:
    counter = SimCounter()
    calling = signer(counter=counter)
    assert calling.renew(renewal(calling, highest))
    assert decode(calling.sign(HERE)).ts == highest + 1
    assert decode(signer(counter=counter).sign(HERE)).ts == 3


def test_whose_key_is_yet_to_be_learnt_lifts_the_counter_of_its_attempt_alone() -> None:
    counter = SimCounter()
    calling = signer(callee=None, counter=counter)
    assert calling.renew(renewal(calling, 10**6))
    assert decode(calling.sign(HERE)).ts == 10**6 + 1
    assert decode(signer(counter=counter).sign(HERE)).ts == 3


def test_a_counter_at_its_end_signs_nothing() -> None:
    counter = SimCounter()
    counter.next(COUNTER_END - 2)
    with pytest.raises(MalformedIntentError, match=r"^the counter is at its end$"):
        signer(counter=counter).sign(HERE)


def test_a_call_with_a_counter_at_its_end_is_not_remembered() -> None:
    judging = judge()
    assert judging.judge(resigned(signer().sign(HERE), ts=COUNTER_END), HERE, HOST, 0.0) == "no intent"
    assert not judging._seen
    assert judged(judging, signer().sign(HERE)).verdict is CallVerdict.ADMITTED


def test_calls_may_overtake_each_other_within_the_window() -> None:
    counter, judging = SimCounter(), judge()
    judged(judging, signer(counter=counter).sign(HERE))
    texts = [signer(counter=counter).sign(HERE) for _ in range(INTENT_WINDOW + 2)]
    verdicts = [judged(judging, text, now=n * 1.0).verdict for n, text in enumerate(reversed(texts))]
    assert verdicts == [CallVerdict.ADMITTED] * INTENT_WINDOW + [CallVerdict.STALE] * 2


def test_a_call_that_is_not_let_in_is_not_remembered() -> None:
    judging = judge()
    text = signer(EVE).sign(HERE)
    for n in range(3):
        assert judged(judging, text, now=n * 1.0).verdict is CallVerdict.REFUSED
    assert not judging._seen


def test_memory_is_bounded_and_who_called_last_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    assert INTENT_KEYS_MAX == 4096
    monkeypatch.setattr(module, "INTENT_KEYS_MAX", 3)
    judging = judge(admits=lambda _: True)
    callers = [Identity.from_seed(bytes([n]) * 32) for n in range(5)]
    counter = SimCounter()
    for n, caller in enumerate((*callers[:3], callers[0], *callers[3:])):
        judged(judging, signer(caller, counter=counter).sign(HERE), now=n * 1.0)
    assert list(judging._seen) == [callers[n].public for n in (0, 3, 4)]
    assert judging._hosts.keys() == judging._seen.keys()


# --- how much is verified --------------------------------------------------------------------------------


def verified(judging: IntentJudge, texts: list[str], sources: list[str]) -> int:
    """How many of these were verified at one instant."""
    results = [judging.judge(text, HERE, source, 0.0) for text, source in zip(texts, sources, strict=True)]
    assert all(result == "too many intents" for result in results if isinstance(result, str))
    return sum(isinstance(result, Call) for result in results)


def test_one_key_is_let_in_so_often_a_second() -> None:
    counter = SimCounter()
    texts = [signer(counter=counter).sign(HERE) for _ in range(100)]
    assert verified(judge(), texts, [f"192.0.2.{n}" for n in range(100)]) == INTENTS_OF_SOURCE_PER_SECOND


def test_one_source_is_verified_so_often_a_second() -> None:
    texts = [signer(Identity.from_seed(bytes([n]) * 32)).sign(HERE) for n in range(100)]
    assert verified(judge(admits=lambda _: True), texts, [HOST] * 100) == INTENTS_OF_SOURCE_PER_SECOND


def test_all_together_are_verified_so_often_a_second() -> None:
    texts = [signer(Identity.from_seed(bytes([n]) * 32)).sign(HERE) for n in range(100)]
    sources = [f"192.0.2.{n}" for n in range(100)]
    at_new_hosts = INTENTS_PER_SECOND / 2 + STRANGERS_PER_SECOND
    assert verified(judge(admits=lambda _: True), texts, sources) == at_new_hosts


def test_peers_at_the_hosts_that_they_called_from_have_a_share_of_their_own() -> None:
    judging = judge(admits=lambda _: True)
    callers = [signer(Identity.from_seed(bytes([n]) * 32)) for n in range(100)]
    for n, calling in enumerate(callers):
        judged(judging, calling.sign(HERE), now=n * 1.0, source=f"192.0.2.{n}")
    results = [judging.judge(calling.sign(HERE), HERE, f"203.0.113.{n}", 200.0) for n, calling in enumerate(callers)]
    results += [judging.judge(calling.sign(HERE), HERE, f"192.0.2.{n}", 200.0) for n, calling in enumerate(callers)]
    assert sum(isinstance(result, Call) for result in results) == INTENTS_PER_SECOND + STRANGERS_PER_SECOND
    assert isinstance(results[100 + int(INTENTS_PER_SECOND / 2 + STRANGERS_PER_SECOND)], Call)


def forged(number: int, key: Identity = ALICE) -> str:
    """A call in the name of `key` that it has not signed."""
    return resigned(signer().sign(HERE), key=key.public.raw, nonce=number.to_bytes(16, "big"))[:-3] + "AAA"


def test_forged_calls_from_elsewhere_use_up_nothing_that_their_key_needs() -> None:
    judging = judge()
    for n in range(100):
        judging.judge(forged(n), HERE, "203.0.113.7", 0.0)
    assert judged(judging, signer().sign(HERE)).verdict is CallVerdict.ADMITTED


def test_forged_calls_from_everywhere_keep_no_peer_out_where_it_called_from_last() -> None:
    judging, counter = judge(), SimCounter()
    judged(judging, signer(counter=counter).sign(HERE))
    results = [judging.judge(forged(n), HERE, f"203.0.113.{n}", 0.0) for n in range(200)]
    assert "too many intents" in results
    assert judged(judging, signer(counter=counter).sign(HERE)).verdict is CallVerdict.ADMITTED


@pytest.mark.bulk
def test_forged_calls_are_verified_so_often_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    verifications, verify = 0, PublicKey.verify

    def counted(key: PublicKey, signature: bytes, data: bytes) -> bool:
        nonlocal verifications
        verifications += 1
        return verify(key, signature, data)

    judging, counter = judge(), SimCounter()
    judged(judging, signer(counter=counter).sign(HERE))
    monkeypatch.setattr(PublicKey, "verify", counted)
    for n in range(1000):
        judging.judge(forged(n), HERE, HOST if n % 10 == 0 else f"203.0.{n // 250}.{n % 250}", 0.0)
    assert INTENTS_PER_SECOND / 2 < verifications <= INTENTS_PER_SECOND + STRANGERS_PER_SECOND


@pytest.mark.bulk
@pytest.mark.parametrize("burnt", [0, 3, STRANGERS_PER_SECOND, 20])
def test_whether_a_key_is_admitted_does_not_show_in_what_is_said_to_forged_calls(burnt: int) -> None:
    said = []
    for key in (ALICE, EVE):
        judging = judge()
        for n in range(int(burnt)):
            judging.judge(forged(n, Identity.from_seed(bytes([n]) * 32)), HERE, f"192.0.2.{n}", 0.0)
        results = [judging.judge(forged(n, key), HERE, f"203.0.113.{n % 9}", n / 50) for n in range(300)]
        said.append([result if isinstance(result, str) else result.verdict for result in results])
    assert said[0] == said[1]
    assert CallVerdict.FORGED in said[0]


def test_a_peers_calls_use_up_nothing_that_strangers_need() -> None:
    judging, counter = judge(), SimCounter()
    for _ in range(int(STRANGERS_PER_SECOND) + 1):
        judged(judging, signer(counter=counter).sign(HERE))
    assert judged(judging, signer(EVE).sign(HERE), source="192.0.2.1").verdict is CallVerdict.REFUSED


def test_strangers_use_up_nothing_that_peers_need() -> None:
    judging = judge()
    texts = [signer(Identity.from_seed(bytes([n]) * 32)).sign(HERE) for n in range(100)]
    assert verified(judging, texts, [f"192.0.2.{n}" for n in range(100)]) == STRANGERS_PER_SECOND
    assert judged(judging, signer().sign(HERE)).verdict is CallVerdict.ADMITTED


# --- pairing --------------------------------------------------------------------------------


def test_while_pairing_is_open_strangers_are_let_in_one_after_the_other() -> None:
    judging = judge(pairing=True)
    first = judged(judging, signer(EVE).sign(HERE))
    assert (first.verdict, first.key) == (CallVerdict.PAIRING, EVE.public)
    other = Identity.from_seed(b"other".ljust(32))
    assert judging.judge(signer(other).sign(HERE), HERE, HOST, 0.1) == "too many strangers"
    assert judged(judging, signer(other).sign(HERE), now=PAIRING_CALL_PAUSE).verdict is CallVerdict.PAIRING


@pytest.mark.parametrize("identity", [ALICE, EVE])
def test_who_pairs_by_a_spoken_code_need_not_know_the_key(identity: Identity) -> None:
    text = signer(identity, callee=None).sign(HERE)
    assert judged(judge(), text).verdict is CallVerdict.FORGED
    judging = judge(pairing=True)
    calling = signer(identity, callee=None)
    answered = judging.answer(judged(judging, calling.sign(HERE)), THERE)
    assert answered is not None
    accepted = calling.judge(answered[0], THERE)
    assert isinstance(accepted, Answered)
    assert accepted.key == BOB.public


# --- the caller judges --------------------------------------------------------------------------------


def answer_by(identity: Identity, calling: CallSigner) -> str:
    judging = IntentJudge(identity, random.Random(5), is_admitted=lambda _: True)
    intent = decode(calling.sign(HERE))
    text, _ = judging.answer(Call(ALICE.public, CallVerdict.ADMITTED, intent, intent.ts), THERE) or ("", None)
    return text


def test_an_answer_of_another_key_is_told_apart() -> None:
    calling = signer()
    assert calling.judge(answer_by(EVE, calling), THERE) is AnswerFault.OTHER_KEY


def test_an_answer_counts_for_its_own_call_only() -> None:
    calling = signer()
    old = answer_by(BOB, calling)
    calling.sign(HERE)
    assert calling.judge(old, THERE) is AnswerFault.FORGED


@pytest.mark.parametrize("told", [None, replace(HINTS, udp="rnd")])
def test_an_answer_counts_with_its_own_hints_only(told: NatHints | None) -> None:
    calling, judging = signer(), judge()
    answered = judging.answer(judged(judging, calling.sign(HERE)), THERE, HINTS)
    assert answered is not None
    assert calling.judge(answered[0], THERE, told) is AnswerFault.FORGED
    assert isinstance(calling.judge(answered[0], THERE, HINTS), Answered)


def test_an_answer_counts_for_its_own_candidates_only() -> None:
    calling = signer()
    text = answer_by(BOB, calling)
    for candidates in ((), HERE, (*THERE, *HERE), (Candidate("host", "udp", "x", 1),)):
        assert calling.judge(text, candidates) is AnswerFault.FORGED
    assert isinstance(calling.judge(text, THERE), Answered)


@pytest.mark.parametrize(
    ("text", "fault"),
    [("", AnswerFault.UNSIGNED), ("x", AnswerFault.FORGED), ("A" * 227, AnswerFault.FORGED)],
)
def test_what_is_no_answer_is_none(text: str, fault: AnswerFault) -> None:
    calling = signer()
    calling.sign(HERE)
    assert calling.judge(text, THERE) is fault


def test_before_a_call_there_is_no_answer() -> None:
    assert signer().judge("A" * 227, ()) is AnswerFault.UNSIGNED


def test_an_unusable_point_in_an_answer_makes_no_keys() -> None:
    calling = signer()
    answer = replace(decode(answer_by(BOB, calling)), ephemeral=LOW_ORDER)
    call = calling._call
    assert call is not None
    payload = module._answer_payload(bytes(32), call, answer)
    assert calling.judge(encode(replace(answer, signature=BOB.sign(payload))), THERE) is AnswerFault.FORGED


def test_a_call_is_no_answer_to_itself() -> None:
    calling = signer(callee=ALICE)
    assert calling.judge(calling.sign(HERE), HERE) is AnswerFault.FORGED


def test_the_servers_key_is_part_of_both_signatures() -> None:
    calling = CallSigner(ALICE, SimCounter(), random.Random(1), callee=BOB.public, server_key=b"s" * 32)
    text = calling.sign(HERE)
    assert judged(judge(), text).verdict is CallVerdict.FORGED
    judging = IntentJudge(BOB, random.Random(2), is_admitted=ALICE.public.__eq__, server_key=b"s" * 32)
    call = judged(judging, text)
    assert call.verdict is CallVerdict.ADMITTED
    assert calling.judge((judge().answer(call, THERE) or ("",))[0], THERE) is AnswerFault.FORGED
    assert isinstance(calling.judge((judging.answer(call, THERE) or ("",))[0], THERE), Answered)


# --- vectors --------------------------------------------------------------------------------


class Drawn:
    """Randomness that has been drawn before."""

    def __init__(self, *values: str) -> None:
        self._values = [bytes.fromhex(value) for value in values]

    def random(self) -> float:
        return 0.5

    def getrandbits(self, k: int, /) -> int:
        value = self._values.pop(0)
        assert k == 8 * len(value)
        return int.from_bytes(value, "big")


def test_the_vectors_are_what_is_signed() -> None:
    caller, callee = (Identity.from_seed(bytes.fromhex(VECTOR[f"{who}_seed"])) for who in ("caller", "callee"))
    assert (caller.public.raw.hex(), callee.public.raw.hex()) == (VECTOR["caller_key"], VECTOR["callee_key"])
    here, there = (tuple(Candidate(*row) for row in VECTOR[f"{who}_candidates"]) for who in ("caller", "callee"))
    counter = SimCounter()
    counter.next(VECTOR["ts"] - 2)
    calling = CallSigner(caller, counter, Drawn(VECTOR["caller_secret"], VECTOR["caller_nonce"]), callee=callee.public)
    assert calling.sign(here) == VECTOR["call"]
    drawn = Drawn(VECTOR["callee_secret"], *VECTOR["callee_nonces"])
    judging = IntentJudge(callee, drawn, is_admitted=caller.public.__eq__)
    call = judging.judge(VECTOR["call"], here, HOST, 0.0)
    assert isinstance(call, Call)
    text, keys = judging.answer(call, there) or ("", None)
    assert (text, judging.renew(call), judging.refuse(call)) == (VECTOR["answer"], VECTOR["renew"], VECTOR["refuse"])
    assert {name: getattr(keys, name).hex() for name in AttemptKeys.__slots__}.items() <= VECTOR.items()
    assert isinstance(calling.judge(text, there), Answered)


def test_the_vectors_are_what_is_keyed() -> None:
    senders = {who: KeyedSender(bytes.fromhex(VECTOR[f"{who}_mac"])) for who in ("caller", "callee")}
    for case in KEYED:
        assert senders[case["by"]].seal(case["message"].encode()).decode() == case["wire"], case["name"]


def test_the_page_shows_every_vector() -> None:
    page = (Path(__file__).parents[3] / "docs" / "protocol" / "intents.md").read_text(encoding="utf-8")
    shown = [VECTOR[name] for name in ("call", "answer", "renew", "refuse", *AttemptKeys.__slots__)]
    assert [value for value in (*shown, *(case["wire"] for case in KEYED)) if value not in page] == []
