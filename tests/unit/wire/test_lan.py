"""The mark of a peer in its own network: who knows the key reads it, and nobody else reads anything."""

from __future__ import annotations

import base64

import pytest

from p2ptunnel.identity.keys import Identity
from p2ptunnel.wire.lan import LanKeys, LanMark, decode_mark, encode_mark, lan_keys, make_mark

KEY, OTHER = (Identity.from_seed(bytes([number]) * 32).public.raw for number in (1, 2))
SALT, OTHER_SALT = bytes(range(16)), bytes(16)
TOKEN = "0123456789abcdef0123456789abcdef"


def record(mark: LanMark, **changed: bytes | None) -> dict[bytes, bytes | None]:
    """The pairs as they arrive."""
    return {name.encode(): value for name, value in {**encode_mark(mark), **changed}.items()}


def test_a_mark_is_recognised_by_who_knows_the_key_and_by_nobody_else() -> None:
    mark = make_mark(KEY, SALT)
    assert mark.is_of(KEY)
    assert not mark.is_of(OTHER)


def test_two_marks_of_one_peer_have_nothing_in_common() -> None:
    one, two = (encode_mark(make_mark(KEY, salt)) for salt in (SALT, OTHER_SALT))
    assert one["s"] != two["s"]
    assert one["h"] != two["h"]
    assert one["v"] == two["v"] == b"1"


def test_a_mark_shows_no_part_of_the_key() -> None:
    shown = b"".join(encode_mark(make_mark(KEY, SALT)).values()) + make_mark(KEY, SALT).digest
    for part in (KEY[:4], KEY.hex()[:8].encode(), base64.urlsafe_b64encode(KEY)[:6], base64.b32encode(KEY)[:6].lower()):
        assert part not in shown


def test_a_mark_survives_the_record() -> None:
    mark = make_mark(KEY, SALT)
    assert decode_mark(record(mark)) == mark


def test_the_bytes_of_a_mark_are_these() -> None:
    """What other programs must compute: a change here is another version of the wire."""
    assert encode_mark(make_mark(bytes(32), bytes(16))) == {
        "v": b"1",
        "s": b"AAAAAAAAAAAAAAAAAAAAAA",
        "h": b"FGsMlH362-epbuEi35fFnQ",
    }


@pytest.mark.parametrize(
    "changed",
    [
        {"v": b"2"},
        {"v": None},
        {"v": b""},
        {"s": None},
        {"h": None},
        {"s": b""},
        {"s": b"A" * 21},
        {"s": b"A" * 23},
        {"h": b"A" * 5000},
        {"h": b"A" * 21 + b"B"},  # bits behind the last byte: one mark has one spelling
        {"s": b"A" * 21 + b"="},
        {"s": b"+" * 22},
        {"h": b"\xff" * 22},
        {"h": b" " * 22},
    ],
)
def test_what_is_no_mark_is_none(changed: dict[str, bytes | None]) -> None:
    assert decode_mark(record(make_mark(KEY, SALT), **changed)) is None


def test_an_empty_record_is_no_mark() -> None:
    assert decode_mark({}) is None


def test_other_pairs_in_the_record_change_nothing() -> None:
    mark = make_mark(KEY, SALT)
    assert decode_mark({**record(mark), b"tag": b"home-nas", b"x": None}) == mark


def test_keys_of_an_attempt_differ_by_key_salt_token_and_direction() -> None:
    attempts = [(KEY, SALT, TOKEN), (OTHER, SALT, TOKEN), (KEY, OTHER_SALT, TOKEN), (KEY, SALT, TOKEN[::-1])]
    keys = [
        key
        for attempt in attempts
        for made in [lan_keys(*attempt)]
        for key in (made.caller_mac, made.callee_mac, made.selector_key)
    ]
    assert len(set(keys)) == 12
    assert lan_keys(KEY, SALT, TOKEN) == lan_keys(KEY, SALT, TOKEN)


def test_the_bytes_of_a_selector_are_these() -> None:
    """What other programs must compute, as well."""
    assert lan_keys(bytes(32), bytes(16), "0" * 32).selector("00" * 16).hex() == "a249a72e99d4fb6b9ba0328f50b80185"


def test_the_keys_of_an_attempt_are_not_shown() -> None:
    keys = lan_keys(KEY, SALT, TOKEN)
    assert repr(keys) == "LanKeys(...)"
    assert isinstance(keys, LanKeys)
