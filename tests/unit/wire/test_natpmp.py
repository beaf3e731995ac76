"""NAT-PMP: byte vectors laid out by hand after RFC 6886 3.2, 3.3 and 3.5, and what damage does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2ptunnel.wire import natpmp
from p2ptunnel.wire.natpmp import AddressAnswer, MalformedNatPmpError, MapAnswer, MapRequest

REQUEST = bytes.fromhex("000200009cbb9cbc00001c20")  # TCP, 40123 inside, 40124 outside, 7200 s
ADDRESS = bytes.fromhex("008000000000002ac6336507")  # success, 42 s since it began, 198.51.101.7
MAPPED = bytes.fromhex("008100000000002a9cbb9cbc00000e10")  # UDP, 3600 s
MAPPING = MapAnswer(code=0, epoch=42, transport="udp", port=40123, external_port=40124, lifetime=3600)

words = st.integers(0, 2**32 - 1)
ports = st.integers(0, 65535)
codes = st.integers(0, 65535)
answers = st.one_of(
    st.builds(AddressAnswer, st.just(0), words, st.ip_addresses(v=4).map(str)),
    st.builds(AddressAnswer, codes.filter(bool), words, st.just("")),
    st.builds(
        MapAnswer,
        code=codes,
        epoch=words,
        transport=st.sampled_from(["tcp", "udp"]),
        port=ports,
        external_port=ports,
        lifetime=words,
    ),
)


def test_a_request_is_the_bytes_of_the_standard() -> None:
    assert natpmp.encode(MapRequest(transport="tcp", port=40123, external_port=40124, lifetime=7200)) == REQUEST
    assert natpmp.ADDRESS_REQUEST == b"\0\0"


def test_answers_are_read_from_the_bytes_of_the_standard() -> None:
    assert natpmp.decode(ADDRESS) == AddressAnswer(0, 42, "198.51.101.7")
    assert natpmp.decode(MAPPED) == MAPPING


def test_a_refusal_may_end_behind_its_epoch() -> None:
    refused = natpmp.decode(bytes.fromhex("008100010000002a"))
    assert refused == MapAnswer(code=1, epoch=42, transport="udp", port=0, external_port=0, lifetime=0)
    assert natpmp.decode(bytes.fromhex("008000030000002a")) == AddressAnswer(3, 42, "")


@pytest.mark.parametrize(
    "data",
    [b"", ADDRESS[:7], ADDRESS[:-1], MAPPED[:-1], b"\2" + MAPPED[1:], REQUEST, b"\0\x83" + MAPPED[2:], MAPPED + bytes(1100)],
    ids=["empty", "half a head", "no address", "no lifetime", "version 2", "a request", "opcode 131", "long"],
)
def test_what_is_no_answer_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedNatPmpError):
        natpmp.decode(data)


@pytest.mark.parametrize("code", range(1, 6))
def test_every_refusal_of_the_standard_has_words(code: int) -> None:
    assert not natpmp.reason_of(code).startswith("code")


def test_a_refusal_that_nobody_knows_is_its_number() -> None:
    assert natpmp.reason_of(600) == "code 600"


@given(answers)
def test_what_is_written_is_read_again(answer: natpmp.Answer) -> None:
    assert natpmp.decode(natpmp.encode_answer(answer)) == answer


@given(answers, st.data())
def test_one_damaged_byte_is_malformed_or_another_answer(answer: natpmp.Answer, data: st.DataObject) -> None:
    wire = bytearray(natpmp.encode_answer(answer))
    wire[data.draw(st.integers(0, len(wire) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        read = natpmp.decode(bytes(wire))
    except MalformedNatPmpError:
        return
    assert natpmp.decode(natpmp.encode_answer(read)) == read
