"""The 170 bytes of an intent: one spelling, and nothing else is read."""

from __future__ import annotations

import base64

import pytest
from msgspec.structs import replace

from p2ptunnel.wire.intent import (
    COUNTER_END,
    INTENT_BYTES,
    INTENT_CHARACTERS,
    Intent,
    IntentRole,
    MalformedIntentError,
    decode,
    encode,
    hash_intent,
)

INTENT = Intent(IntentRole.CALL, b"k" * 32, b"e" * 32, 7, b"n" * 16, b"c" * 16, b"s" * 64)


def text_of(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def test_the_fields_stand_where_the_layout_says() -> None:
    assert INTENT.raw == b"\x01\x01" + b"k" * 32 + b"e" * 32 + (7).to_bytes(8, "big") + b"n" * 16 + b"c" * 16 + b"s" * 64
    assert len(INTENT.raw) == INTENT_BYTES
    assert INTENT.signed == INTENT.raw[:-64]
    assert encode(INTENT) == text_of(INTENT.raw)
    assert len(encode(INTENT)) == INTENT_CHARACTERS


@pytest.mark.parametrize("role", IntentRole)
def test_what_was_encoded_is_decoded(role: IntentRole) -> None:
    intent = replace(INTENT, role=role)
    assert decode(encode(intent)) == intent


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "0 characters, not 227"),
        (encode(INTENT)[:-1], "226 characters, not 227"),
        (encode(INTENT) + "A", "228 characters, not 227"),
        ("!" + encode(INTENT)[1:], "not base64url"),
        (encode(replace(INTENT, signature=bytes(64)))[:-1] + "=", "169 bytes, not 170"),
        ("\u00fc" + encode(INTENT)[1:], "not base64url"),
        (text_of(b"\x02" + INTENT.raw[1:]), "version 2, not 1"),
        (text_of(b"\x01\x00" + INTENT.raw[2:]), "unknown role 0"),
        (text_of(b"\x01\x05" + INTENT.raw[2:]), "unknown role 5"),
        (encode(replace(INTENT, ts=COUNTER_END)), "a counter at its end"),
        (encode(replace(INTENT, ts=2**64 - 1)), "a counter at its end"),
        (encode(replace(INTENT, signature=bytes(64)))[:-1] + "B", "not in the one spelling of these bytes"),
    ],
)
def test_what_is_no_intent_is_not_read(text: str, reason: str) -> None:
    with pytest.raises(MalformedIntentError) as caught:
        decode(text)
    assert str(caught.value) == reason


def test_the_last_counter_is_read() -> None:
    assert decode(encode(replace(INTENT, ts=COUNTER_END - 1))).ts == 2**62 - 1


def test_its_text_shows_no_signature() -> None:
    assert repr(INTENT) == "Intent(CALL, ts=7)"


def test_an_answer_names_all_of_a_call() -> None:
    assert len(hash_intent(INTENT)) == 32
    assert hash_intent(replace(INTENT, signature=bytes(64))) != hash_intent(INTENT)
