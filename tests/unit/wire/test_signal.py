"""Signals: what is said comes out as it went in, once, and for who has the key; everything else is a fault."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st

from p2ptunnel.errors import LocalProtocolError
from p2ptunnel.types import Candidate
from p2ptunnel.wire.messages import PortRow, Signal, SignalExtra, encode
from p2ptunnel.wire.messages import decode as decode_message
from p2ptunnel.wire.signal import (
    SEALED_CHARACTERS,
    SIGNAL_BYTES,
    Again,
    FreshPort,
    GoAhead,
    MoreCandidates,
    SignalBody,
    SignalFault,
    SignalReceiver,
    SignalSender,
    Swap,
    Sync,
)

ROOT = Path(__file__).parents[3]
TABLE = json.loads((ROOT / "tests" / "vectors" / "signals.json").read_text(encoding="utf-8"))
VECTORS = TABLE["signals"]
KEY, OTHER = b"k" * 32, b"o" * 32
LONG_HOST = "2001:db8:1111:2222:3333:4444:5555:6666"
EIGHT = tuple(Candidate("mapped", "tcp", LONG_HOST, 65_535 - n) for n in range(8))
BODIES: list[SignalBody] = [
    Sync(),
    MoreCandidates(cands=EIGHT),
    FreshPort(proto="tcp", row=PortRow(65_535, -32, busy=True), round=1000),
    GoAhead(round=3, ports=(1, 2, 3)),
    Swap(round=0),
    Again(round=1000, cands=EIGHT),
]
NAMES = {name: value for name, value in globals().items() if isinstance(value, type)}


def sealed(plain: bytes, *, counter: int = 1, key: bytes = KEY) -> str:
    """What a peer of another make could send."""
    raw = counter.to_bytes(8, "big")
    return base64.urlsafe_b64encode(raw + ChaCha20Poly1305(key).encrypt(bytes(4) + raw, plain, None)).rstrip(b"=").decode()


@pytest.mark.parametrize("body", BODIES, ids=lambda body: type(body).__name__)
def test_what_was_sealed_is_opened(body: SignalBody) -> None:
    assert SignalReceiver(KEY).open(SignalSender(KEY).seal(body)) == body


@pytest.mark.parametrize("body", BODIES, ids=lambda body: type(body).__name__)
def test_the_longest_fit_into_a_datagram(body: SignalBody) -> None:
    text = SignalSender(KEY).seal(body)
    assert len(text) <= SEALED_CHARACTERS
    message = Signal(mid=2**53 - 1, extra=SignalExtra(token="f" * 64, sealed=text))
    assert decode_message(encode(message)) == message


def test_what_would_not_fit_is_our_mistake() -> None:
    padded = tuple(Candidate("mapped", "tcp", "0" * 64, 65_535) for _ in range(8))
    with pytest.raises(LocalProtocolError, match=f"more than {SIGNAL_BYTES}"):
        SignalSender(KEY).seal(Again(round=1000, cands=padded))
    assert len(sealed(b"x" * SIGNAL_BYTES)) == SEALED_CHARACTERS


def test_only_who_has_the_key_of_this_direction_is_believed() -> None:
    assert SignalReceiver(OTHER).open(SignalSender(KEY).seal(Sync())) is SignalFault.FORGED


def test_each_comes_once_in_whatever_order() -> None:
    sender, receiver = SignalSender(KEY), SignalReceiver(KEY)
    texts = [sender.seal(Swap(round=n)) for n in range(64)]
    assert [receiver.open(text) for text in reversed(texts)] == [Swap(round=n) for n in reversed(range(64))]
    assert {receiver.open(text) for text in texts} == {SignalFault.REPLAYED}


def test_what_is_too_far_behind_counts_as_seen() -> None:
    sender, receiver = SignalSender(KEY), SignalReceiver(KEY)
    texts = [sender.seal(Sync()) for _ in range(66)]
    assert receiver.open(texts[65]) == Sync()
    assert receiver.open(texts[1]) is SignalFault.REPLAYED
    assert receiver.open(texts[2]) == Sync()


def test_what_is_forged_does_not_move_the_window() -> None:
    receiver = SignalReceiver(KEY)
    assert receiver.open(sealed(b'{"op":"sync"}', counter=2**64 - 1, key=OTHER)) is SignalFault.FORGED
    assert receiver.open(sealed(b'{"op":"sync"}', counter=1)) == Sync()


def test_the_same_words_are_sealed_differently_each_time() -> None:
    sender = SignalSender(KEY)
    assert sender.seal(Sync()) != sender.seal(Sync())


@pytest.mark.parametrize(
    "plain",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"op":"dance"}',
        b'{"op":"go","round":-1}',
        b'{"op":"go","round":true}',
        b'{"op":"go","ports":[65536]}',
        b'{"op":"go","ports":[1,2,3,4,5,6,7,8,9]}',
        b'{"op":"ports","proto":"sctp","row":[1,1,false]}',
        b'{"op":"ports","proto":"tcp","row":[1,33,false]}',
        b'{"op":"ports","proto":"tcp"}',
        b'{"op":"cands","cands":[["host","tcp","router.lan",1]]}',
        b'{"op":"cands","cands":[["host","tcp","1.2.3.4",1],["host","tcp","1.2.3.4"]]}',
        b'{"op":"swap"}',
        b'\xff{"op":"sync"}',
        b"[" * 700,
    ],
)
def test_what_is_sealed_right_and_says_nothing_we_know_is_told_apart(plain: bytes) -> None:
    assert SignalReceiver(KEY).open(sealed(plain)) is SignalFault.UNKNOWN


def test_members_of_later_versions_are_ignored() -> None:
    assert SignalReceiver(KEY).open(sealed(b'{"op":"go","round":2,"mood":"good"}')) == GoAhead(round=2)


def test_a_signal_that_is_nested_hundreds_of_levels_deep_is_read_or_not_but_raises_nothing() -> None:
    text = sealed(b'{"op":"sync","x":' + b"[" * 360 + b"]" * 360 + b"}")

    def called_from_far_below(levels: int) -> SignalBody | SignalFault:
        return called_from_far_below(levels - 1) if levels else SignalReceiver(KEY).open(text)

    assert called_from_far_below(0) == Sync()
    assert called_from_far_below(sys.getrecursionlimit() - 250) is SignalFault.UNKNOWN


@pytest.mark.parametrize("text", ["", "A", "AAAA", "=" * 40, "\u00e4" * 40, "A" * 31, "A" * 1024, "!" * 100])
def test_what_is_no_signal_at_all_is_forged(text: str) -> None:
    assert SignalReceiver(KEY).open(text) is SignalFault.FORGED


@given(st.data())
def test_one_damaged_character_makes_it_forged(data: st.DataObject) -> None:
    text = SignalSender(KEY).seal(data.draw(st.sampled_from(BODIES)))
    at = data.draw(st.integers(0, len(text) - 2))  # the last one may have bits that spell nothing
    other = data.draw(st.characters().filter(lambda character: character not in text[at] + "-_+/"))
    assert SignalReceiver(KEY).open(text[:at] + other + text[at + 1 :]) is SignalFault.FORGED
    assert SignalReceiver(KEY).open(text[:at]) is SignalFault.FORGED


def test_the_same_bytes_spelt_otherwise_are_a_replay() -> None:
    receiver, text = SignalReceiver(KEY), sealed(b'{"op":"go","round":1}', counter=0xFB << 56)
    assert text.startswith("-w")
    assert receiver.open(text) == GoAhead(round=1)
    assert receiver.open("+" + text[1:]) is SignalFault.REPLAYED


@given(st.text(max_size=1100))
def test_any_text_is_forged(text: str) -> None:
    assert SignalReceiver(KEY).open(text) is SignalFault.FORGED


# --- vectors ----------------------------------------------------------------------------------------------------------------


def test_the_vectors_are_what_is_sealed() -> None:
    senders = {who: SignalSender(bytes.fromhex(TABLE[f"{who}_seal"])) for who in ("caller", "callee")}
    receivers = {who: SignalReceiver(bytes.fromhex(TABLE[f"{who}_seal"])) for who in ("caller", "callee")}
    for vector in VECTORS:
        body = eval(vector["python"], NAMES)
        assert senders[vector["by"]].seal(body) == vector["sealed"], vector["name"]
        assert receivers[vector["by"]].open(vector["sealed"]) == body
        assert SignalReceiver(KEY).open(sealed(vector["plain"].encode())) == body


def test_the_keys_are_those_of_the_intents() -> None:
    [intents] = json.loads((ROOT / "tests" / "vectors" / "intents.json").read_text(encoding="utf-8"))["intents"]
    assert {name: TABLE[name] for name in ("caller_seal", "callee_seal")}.items() <= intents.items()


def test_every_kind_has_a_vector() -> None:
    assert {type(eval(vector["python"], NAMES)) for vector in VECTORS} == {type(body) for body in BODIES}


def test_the_page_shows_every_vector() -> None:
    page = (ROOT / "docs" / "protocol" / "signals.md").read_text(encoding="utf-8")
    assert [vector for vector in VECTORS if vector["plain"] not in page or vector["sealed"] not in page] == []
