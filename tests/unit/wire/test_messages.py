"""The JSON wire: byte vectors, and what hostile bytes come to."""

from __future__ import annotations

import json
import time
import typing
from pathlib import Path

import msgspec
import pytest

from p2ptunnel.defaults import COOKIELESS_PAD_BYTES, DATAGRAM_MAX_BYTES, MID_MAX
from p2ptunnel.types import Candidate
from p2ptunnel.wire import messages
from p2ptunnel.wire.messages import (
    ConnectAnswer,
    ConnectAnswerExtra,
    ConnectRequest,
    ConnectRequestExtra,
    HeartbeatAnswer,
    HoleProbe,
    MalformedMessageError,
    Message,
    Observed,
    Opener,
    ReflexiveProbe,
    RegisterAnswer,
    decode,
    encode,
    encode_padded,
)

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "messages.json").read_text(encoding="utf-8"))
KINDS: tuple[type[Message], ...] = typing.get_args(Message)
NAMES = {**vars(messages), "Candidate": Candidate}


def value_of(vector: dict[str, str]) -> Message:
    """The message that a vector spells in Python, made without the decoder."""
    message: Message = eval(vector["python"], {"__builtins__": {}}, NAMES)
    return message


def named(vector: dict[str, str]) -> str:
    return vector["name"]


# --- vectors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS["exact"], ids=named)
def test_a_message_is_these_bytes(vector: dict[str, str]) -> None:
    assert encode(value_of(vector)) == vector["wire"].encode()


@pytest.mark.parametrize("vector", VECTORS["exact"] + VECTORS["decode_only"], ids=named)
def test_these_bytes_are_a_message(vector: dict[str, str]) -> None:
    assert decode(vector["wire"].encode()) == value_of(vector)


@pytest.mark.parametrize("vector", VECTORS["exact"], ids=named)
def test_a_vector_is_named_after_its_t(vector: dict[str, str]) -> None:
    assert vector["name"].startswith(f"t={json.loads(vector['wire'])['t']} ")


def test_every_message_has_a_vector() -> None:
    assert {type(value_of(vector)) for vector in VECTORS["exact"]} == set(KINDS)


def test_every_message_of_the_seed_has_the_seeds_own_example() -> None:
    examples = {json.loads(vector["wire"])["t"] for vector in VECTORS["decode_only"] if "the seed's" in vector["name"]}
    assert examples == {4, -4, 10, -10, 11, -11, 30, 31, -31, 32, -32}


def test_members_stand_in_the_seeds_order() -> None:
    order = ["t", "mid", "ltag", "token", "code", "em", "extra"]
    for vector in VECTORS["exact"]:
        members = list(json.loads(vector["wire"]))
        assert members == [member for member in order if member in members]


# --- the shape of the whole -------------------------------------------------------------------------------------------


def test_every_public_message_can_be_decoded() -> None:
    tagged = {
        kind
        for name in messages.__all__
        if isinstance(kind := getattr(messages, name), type) and issubclass(kind, msgspec.Struct)
        if kind.__struct_config__.tag is not None
    }
    assert tagged == set(KINDS)


def test_every_request_but_the_opener_has_an_answer() -> None:
    numbers = {typing.cast("int", kind.__struct_config__.tag) for kind in KINDS}
    assert {t for t in numbers if -t not in numbers} == {30}


def test_every_message_but_the_opener_has_a_mid() -> None:
    assert [kind for kind in KINDS if "mid" not in kind.__struct_fields__] == [Opener]


# --- hostile bytes ----------------------------------------------------------------------------------------------------

TOKEN = b'"token":"x"'
HOSTILE = {
    "nothing": b"",
    "no JSON": b"hello",
    "no object": b'["t",31]',
    "null": b"null",
    "no t": b'{"mid":1,' + TOKEN + b"}",
    "t is true": b'{"t":true,"mid":1,' + TOKEN + b"}",
    "t is 31.0": b'{"t":31.0,"mid":1,' + TOKEN + b"}",
    "t is 3.1e1": b'{"t":3.1e1,"mid":1,' + TOKEN + b"}",
    "t is text": b'{"t":"31","mid":1,' + TOKEN + b"}",
    "t is unknown": b'{"t":7,"mid":1}',
    "t is 0": b'{"t":0,"mid":1}',
    "t is beyond 64 bits": b'{"t":99999999999999999999,"mid":1}',
    "t twice": b'{"t":31,"t":-31,"mid":1,' + TOKEN + b"}",
    "mid missing": b'{"t":31,' + TOKEN + b"}",
    "mid is true": b'{"t":31,"mid":true,' + TOKEN + b"}",
    "mid is 1.0": b'{"t":31,"mid":1.0,' + TOKEN + b"}",
    "mid is 1e3": b'{"t":31,"mid":1e3,' + TOKEN + b"}",
    "mid is negative": b'{"t":31,"mid":-1,' + TOKEN + b"}",
    "mid beyond 53 bits": b'{"t":31,"mid":9007199254740992,' + TOKEN + b"}",
    "mid of 1100 digits": b'{"t":31,"mid":' + b"9" * 1100 + b"," + TOKEN + b"}",
    "mid is NaN": b'{"t":31,"mid":NaN,' + TOKEN + b"}",
    "mid is Infinity": b'{"t":31,"mid":Infinity,' + TOKEN + b"}",
    "mid is 1e400": b'{"t":31,"mid":1e400,' + TOKEN + b"}",
    "float 1e400": b'{"t":-2,"mid":1,"code":200,"extra":{"ttl":1e400}}',
    "float below its range": b'{"t":-4,"mid":1,"code":429,"extra":{"retry_after":-1}}',
    "NaN in a member that we do not know": b'{"t":30,"x":NaN}',
    "code of 900 digits": b'{"t":-3,"mid":1,"code":' + b"9" * 900 + b"}",
    "code below 32 bits": b'{"t":-3,"mid":1,"code":-2147483649}',
    "token empty": b'{"t":31,"mid":1,"token":""}',
    "token too long": b'{"t":31,"mid":1,"token":"' + b"x" * 65 + b'"}',
    "token null": b'{"t":31,"mid":1,"token":null}',
    "tag too long": b'{"t":1,"mid":1,"ltag":"' + b"x" * 64 + b'"}',
    "port beyond 65535": b'{"t":11,"mid":1,"token":"x","code":200,"extra":{"host":"192.0.2.1","port":65536}}',
    "extra is a list": b'{"t":32,"mid":1,"token":"x","extra":[1]}',
    "candidate of an unknown kind": b'{"t":4,"mid":1,"ltag":"a","extra":{"rtag":"b","cands":[["lan","tcp","192.0.2.1",1]]}}',
    "candidate cut short": b'{"t":4,"mid":1,"ltag":"a","extra":{"rtag":"b","cands":[["host","tcp","192.0.2.1"]]}}',
    "candidate with a port beyond 65535": b'{"t":4,"mid":1,"ltag":"a","extra":{"rtag":"b","cands":[["host","tcp","h",70000]]}}',
    "candidate with a negative port": b'{"t":4,"mid":1,"ltag":"a","extra":{"rtag":"b","cands":[["host","tcp","h",-1]]}}',
    "17 candidates": b'{"t":4,"mid":1,"ltag":"a","extra":{"rtag":"b","cands":['
    + b",".join([b'["host","tcp","192.0.2.1",1]'] * 17)
    + b"]}}",
    "lone surrogate": b'{"t":31,"mid":1,"token":"\\ud800"}',
    "lone surrogate in a member that we do not know": b'{"t":30,"x":"\\udfff"}',
    "surrogate as raw UTF-8": b'{"t":31,"mid":1,"token":"\xed\xa0\x80"}',
    "overlong UTF-8": b'{"t":31,"mid":1,"token":"\xc0\xaf"}',
    "latin-1 in a member that we do not know": b'{"t":30,"x":"\xe9"}',
    "latin-1": b'{"t":31,"mid":1,"token":"\xe9"}',
    "UTF-16": '{"t":30}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"t":30}',
    "raw control character": b'{"t":31,"mid":1,"token":"\n"}',
    "two objects": b'{"t":30}{"t":30}',
    "trailing comma": b'{"t":30,}',
    "comment": b'{"t":30/* */}',
    "five levels": b'{"t":30,"x":{"y":{"z":[[1]]}}}',
    "brackets only": b"[" * DATAGRAM_MAX_BYTES,
    "object openings only": b'{"":' * (DATAGRAM_MAX_BYTES // 4),
    "escapes that never end": b'[[[["' + b'\\"' * 590 + b"[",
    "quotes without an end": b"[[[[" + b'"' * 1189 + b"[",
    "closings first": b'{"t":30,"x":' + b"]" * 500 + b"[" * 500,
    "1201 bytes": b'{"t":30}' + b" " * (DATAGRAM_MAX_BYTES - 7),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_bytes_are_malformed(data: bytes) -> None:
    with pytest.raises(MalformedMessageError):
        decode(data)


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_bytes_cost_little(data: bytes) -> None:
    def cost() -> float:
        began = time.perf_counter()
        with pytest.raises(MalformedMessageError):
            decode(data)
        return time.perf_counter() - began

    assert min(cost() for _ in range(20)) < 0.0005  # measured: 3 to 60 us; a scan that backtracks: 5 ms


def test_what_is_wrong_is_said_without_raw_text_of_the_sender() -> None:
    with pytest.raises(MalformedMessageError) as caught:
        decode(b'{"t":4,"mid":1,"ltag":"a","extra":{"rtag":"b","cands":[["\\u001b[31m","tcp","192.0.2.1",1]]}}')
    assert str(caught.value) == r"Invalid enum value '\x1b[31m' - at `$.extra.cands[0][0]`"


# --- what is allowed --------------------------------------------------------------------------------------------------


def test_exactly_1200_bytes_are_taken() -> None:
    assert decode(b'{"t":30}'.ljust(DATAGRAM_MAX_BYTES)) == Opener()


def test_four_levels_are_taken() -> None:
    assert decode(b'{"t":30,"x":{"y":[["[[[[[{{{{{","\\"[[[[["]],"z":{}}}') == Opener()


def test_of_a_member_given_twice_the_last_counts() -> None:
    assert decode(b'{"t":31,"mid":1,"mid":2,"token":"x"}') == HoleProbe(mid=2, token="x")


def test_the_greatest_mid_passes() -> None:
    probe = HoleProbe(mid=MID_MAX, token="x")
    assert decode(encode(probe)) == probe


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_is_taken(kind: type) -> None:
    assert decode(kind(b'{"t":30}')) == Opener()


# --- padding ----------------------------------------------------------------------------------------------------------


def request(rtag: str = "home-nas") -> ConnectRequest:
    return ConnectRequest(mid=1, ltag="laptop", extra=ConnectRequestExtra(rtag=rtag))


def test_a_padded_request_has_the_size_asked_for() -> None:
    assert len(encode_padded(request(), COOKIELESS_PAD_BYTES)) == COOKIELESS_PAD_BYTES


def test_a_request_that_lacks_less_than_the_member_itself_grows_a_little_more() -> None:
    short = request(rtag="x" * 63)
    assert len(encode_padded(short, len(encode(short)) + 3)) == len(encode(short)) + len(',"pad":" "')


def test_padding_changes_nothing_else() -> None:
    padded = decode(encode_padded(request(), COOKIELESS_PAD_BYTES))
    assert isinstance(padded, ConnectRequest)
    assert msgspec.structs.replace(padded, extra=msgspec.structs.replace(padded.extra, pad="")) == request()


def test_a_request_long_enough_is_left_alone() -> None:
    assert encode_padded(request(), 10) == encode(request())


def test_a_request_without_a_body_is_left_alone() -> None:
    probe = ReflexiveProbe(mid=1)
    assert encode_padded(probe, COOKIELESS_PAD_BYTES) == encode(probe)


@pytest.mark.parametrize(
    "answer",
    [
        RegisterAnswer(mid=MID_MAX, code=401, em="cookie", extra=Observed(host="x" * 39, port=65535, cookie="x" * 22)),
        HeartbeatAnswer(mid=MID_MAX, code=401, em="cookie", extra=Observed(host="x" * 39, port=65535, cookie="x" * 22)),
        ConnectAnswer(mid=MID_MAX, code=401, em="cookie", extra=ConnectAnswerExtra(host="x" * 39, port=65535, cookie="x" * 22)),
    ],
    ids=lambda answer: type(answer).__name__,
)
def test_the_longest_request_for_a_cookie_is_no_longer_than_a_padded_question(answer: Message) -> None:
    assert len(encode(answer)) <= COOKIELESS_PAD_BYTES
