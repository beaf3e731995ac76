"""Intents and keyed datagrams under any input: what was made is read back, what was damaged counts for nothing."""

from __future__ import annotations

import contextlib
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2ptunnel.protocol.intent import Call, CallVerdict
from p2ptunnel.types import Candidate
from p2ptunnel.wire.claims import hash_claims
from p2ptunnel.wire.intent import COUNTER_END, Intent, IntentRole, MalformedIntentError, decode, encode
from p2ptunnel.wire.keyed import KeyedReceiver, KeyedSender
from p2ptunnel.wire.messages import HoleProbe, Opener, OpenTcp, OpenTcpAnswer, OpenTcpExtra
from p2ptunnel.wire.messages import decode as decode_message
from p2ptunnel.wire.messages import encode as encode_message
from tests.unit.protocol.actors import judge, signer

INTENTS = st.builds(
    Intent,
    role=st.sampled_from(IntentRole),
    key=st.binary(min_size=32, max_size=32),
    ephemeral=st.binary(min_size=32, max_size=32),
    ts=st.integers(0, COUNTER_END - 1),
    nonce=st.binary(min_size=16, max_size=16),
    claims=st.binary(min_size=16, max_size=16),
    signature=st.binary(min_size=64, max_size=64),
)
CANDIDATES = st.lists(
    st.builds(
        Candidate,
        kind=st.sampled_from(["host", "srflx", "mapped", "prflx", "relay"]),
        proto=st.sampled_from(["tcp", "udp"]),
        host=st.ip_addresses().map(str),
        port=st.integers(0, 65535),
    ),
    max_size=16,
).map(tuple)
TEXTS = st.text(max_size=40)
MESSAGES = st.one_of(
    st.just(Opener()),
    st.builds(HoleProbe, mid=st.integers(0, 2**53 - 1), token=st.text(min_size=1, max_size=64)),
    st.builds(OpenTcp, mid=st.just(1), token=st.just("t"), extra=st.builds(OpenTcpExtra, op=st.integers(0, 9))),
    st.builds(OpenTcpAnswer, mid=st.just(1), token=st.just("t"), code=st.just(403), em=TEXTS),
)


@given(INTENTS)
def test_an_intent_is_read_back(intent: Intent) -> None:
    assert decode(encode(intent)) == intent


@given(st.one_of(st.text(max_size=300), st.text("ABCDEFGHabcdefgh0123-_=+/", min_size=227, max_size=227)))
def test_any_other_text_is_refused_or_is_the_one_spelling_of_what_it_reads_as(text: str) -> None:
    try:
        intent = decode(text)
    except MalformedIntentError:
        return
    assert encode(intent) == text


@given(CANDIDATES, CANDIDATES)
def test_only_the_same_candidates_have_the_same_hash(one: tuple[Candidate, ...], other: tuple[Candidate, ...]) -> None:
    assert (hash_claims(one) == hash_claims(other)) is (one == other)


@given(st.text(max_size=64))
def test_any_host_is_bound_or_refused(host: str) -> None:
    with contextlib.suppress(MalformedIntentError):
        assert len(hash_claims((Candidate("host", "tcp", host, 1),))) == 16


@given(st.integers(0, 226), st.integers(1, 63))
def test_a_call_with_one_other_character_is_let_in_nowhere(at: int, by: int) -> None:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    cands = (Candidate("srflx", "udp", "198.51.100.1", 40001),)
    text = signer().sign(cands)
    damaged = text[:at] + alphabet[(alphabet.index(text[at]) + by) % 64] + text[at + 1 :]
    judged = judge().judge(damaged, cands, "198.51.100.1", 0.0)
    assert isinstance(judged, str) or judged.verdict in {CallVerdict.FORGED, CallVerdict.REFUSED}


@given(st.text(max_size=300), CANDIDATES, TEXTS, st.floats(0, 1e9))
def test_a_judge_takes_anything(text: str, candidates: tuple[Candidate, ...], source: str, now: float) -> None:
    judging = judge()
    for intent in (text, signer().sign(candidates)):
        assert isinstance(judging.judge(intent, candidates, source, now), Call | str)


@given(MESSAGES, st.binary(min_size=32, max_size=32))
def test_a_keyed_message_reads_as_it_did_and_is_json(message: HoleProbe | Opener | OpenTcp, key: bytes) -> None:
    datagram = KeyedSender(key).seal(encode_message(message))
    assert KeyedReceiver(key).open(datagram)
    assert json.loads(datagram)["t"] == json.loads(encode_message(message))["t"]
    if not isinstance(message, OpenTcpAnswer):
        assert decode_message(datagram) == message


@given(st.binary(max_size=200), st.integers(0, 199), st.integers(1, 255))
def test_what_was_not_keyed_is_not_genuine(noise: bytes, at: int, by: int) -> None:
    key = bytes(32)
    datagram = KeyedSender(key).seal(encode_message(HoleProbe(mid=1, token="t")))
    at %= len(datagram)
    damaged = datagram[:at] + bytes([datagram[at] ^ by]) + datagram[at + 1 :]
    receiver = KeyedReceiver(key)
    assert not receiver.open(damaged)
    assert not receiver.open(noise)
    assert receiver.open(datagram)


@pytest.mark.parametrize("seed", range(5))
def test_whatever_order_and_however_often_each_is_let_through_once(seed: int) -> None:
    dice, key = random.Random(seed), bytes(32)
    sender, receiver = KeyedSender(key), KeyedReceiver(key)
    datagrams = [sender.seal(encode_message(Opener())) for _ in range(60)]
    mixed = datagrams * 3
    dice.shuffle(mixed)
    assert [datagram for datagram in mixed if receiver.open(datagram)] == list(dict.fromkeys(mixed))
