"""The JSON wire under any value and any bytes: what goes in comes out, and damage is malformed or a message, nothing else."""

from __future__ import annotations

import json
from typing import Any, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2ptunnel.wire.messages import MalformedMessageError, Message, decode, encode
from tests.helpers.wire import anything, every_kind, messages

Key: TypeAlias = str | int
Json: TypeAlias = "dict[str, Json] | list[Json] | str | float | None"


def decoded(data: bytes) -> Message | None:
    """The message in `data`, None when it is malformed; any other error leaves the test."""
    try:
        return decode(data)
    except MalformedMessageError:
        return None


def assert_sound(message: Message | None) -> None:
    """Whatever came out of the decoder can be sent again and is the same message."""
    if message is not None:
        assert isinstance(message, every_kind)
        assert decoded(encode(message)) in (message, None)  # None: it grew beyond a datagram by spelling out nulls


def paths(tree: Json, above: tuple[Key, ...] = ()) -> list[tuple[Key, ...]]:
    """The way to each value in a JSON tree."""
    inner: dict[Key, Json] = {}
    if isinstance(tree, dict):
        inner.update(tree)
    elif isinstance(tree, list):
        inner.update(enumerate(tree))
    return [path for key, value in inner.items() for path in ((*above, key), *paths(value, (*above, key)))]


@given(messages())
def test_what_is_encoded_decodes_to_the_same(message: Message) -> None:
    assert decode(encode(message)) == message


@given(messages())
def test_the_bytes_are_json_as_everybody_else_reads_it(message: Message) -> None:
    tree = json.loads(encode(message))
    assert tree["t"] == type(message).__struct_config__.tag
    assert encode(decode(json.dumps(tree, separators=(",", ":"), ensure_ascii=False).encode())) == encode(message)


@given(messages(), st.data())
def test_any_value_in_any_member_is_malformed_or_a_message(message: Message, data: st.DataObject) -> None:
    tree = json.loads(encode(message))
    *above, last = data.draw(st.sampled_from(paths(tree)))
    place = tree
    for key in above:
        place = place[key]
    place[last] = data.draw(anything())
    assert_sound(decoded(json.dumps(tree).encode()))


@given(messages(), st.data())
def test_a_message_without_one_of_its_members_is_malformed_or_a_message(message: Message, data: st.DataObject) -> None:
    tree = json.loads(encode(message))
    del tree[data.draw(st.sampled_from(sorted(tree)))]
    assert_sound(decoded(json.dumps(tree).encode()))


@given(messages(), st.data())
def test_a_message_cut_short_is_malformed(message: Message, data: st.DataObject) -> None:
    whole = encode(message)
    with pytest.raises(MalformedMessageError):
        decode(whole[: data.draw(st.integers(0, len(whole) - 1))])


@given(messages(), st.data())
def test_one_wrong_byte_is_malformed_or_a_message(message: Message, data: st.DataObject) -> None:
    damaged = bytearray(encode(message))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    assert_sound(decoded(bytes(damaged)))


@given(st.binary(max_size=1300))
def test_any_bytes_are_malformed_or_a_message(data: bytes) -> None:
    assert_sound(decoded(data))


@given(st.text('{}[]",:\\tmid0123456789eE+-.', max_size=1300))
def test_anything_that_looks_like_json_is_malformed_or_a_message(text: str) -> None:
    assert_sound(decoded(text.encode()))


@given(anything())
def test_any_json_value_is_malformed_or_a_message(value: Any) -> None:
    assert_sound(decoded(json.dumps(value).encode()))


@given(messages(), st.text(min_size=1, max_size=80))
def test_what_is_said_of_a_malformed_message_is_one_printable_line(message: Message, text: str) -> None:
    tree = json.loads(encode(message)) | {"mid": text, "extra": {"cands": [[text, text, text, text]], text: text}}
    with pytest.raises(MalformedMessageError) as caught:
        decode(json.dumps(tree | {"t": 4, "ltag": ""}).encode())
    assert str(caught.value).isprintable()
