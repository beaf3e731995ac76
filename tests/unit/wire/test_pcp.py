"""PCP: byte vectors laid out by hand after RFC 6887 7 and 11.1, and what damage does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2ptunnel.wire import pcp
from p2ptunnel.wire.pcp import Announcement, MalformedPcpError, MapAnswer, MapRequest

NONCE = bytes(range(1, 13))

REQUEST = bytes.fromhex(
    "02010000"  # version 2, MAP
    "00001c20"  # 7200 s
    "00000000000000000000ffffc0a80102"  # 192.168.1.2
    "0102030405060708090a0b0c"  # the nonce
    "06000000"  # TCP
    "9cbb9cbc"  # 40123 inside, 40124 outside
    "00000000000000000000ffff00000000"  # any outside address
)
ANSWER = bytes.fromhex(
    "02810000"  # an answer to MAP: success
    "00000e10"  # 3600 s
    "0000002a"  # 42 s since it began
    "000000000000000000000000"
    "0102030405060708090a0b0c"
    "11000000"  # UDP
    "9cbb9cbc"
    "00000000000000000000ffffc6336507"  # 198.51.101.7
)
ANSWERED = MapAnswer(
    code=0, lifetime=3600, epoch=42, nonce=NONCE, transport="udp", port=40123, external=("198.51.101.7", 40124)
)
IPV6_EXTERNAL = bytes.fromhex("20010db8000000000000000000000002")

words = st.integers(0, 2**32 - 1)
ports = st.integers(0, 65535)
hosts = st.ip_addresses().map(str).filter(lambda host: not host.startswith("::ffff:"))
answers = st.one_of(
    st.builds(Announcement, st.integers(0, 255), words),
    st.builds(
        MapAnswer,
        code=st.integers(0, 255),
        lifetime=words,
        epoch=words,
        nonce=st.binary(min_size=12, max_size=12),
        transport=st.sampled_from(["tcp", "udp"]),
        port=ports,
        external=st.tuples(hosts, ports),
    ),
)


def test_a_request_is_the_bytes_of_the_standard() -> None:
    request = MapRequest(
        nonce=NONCE, transport="tcp", client="192.168.1.2", port=40123, external=("0.0.0.0", 40124), lifetime=7200
    )
    assert pcp.encode(request) == REQUEST


def test_an_answer_is_read_from_the_bytes_of_the_standard() -> None:
    assert pcp.decode(ANSWER) == ANSWERED
    assert pcp.encode_answer(ANSWERED) == ANSWER


def test_an_ipv6_address_stands_for_itself() -> None:
    answer = pcp.decode(ANSWER[:-16] + IPV6_EXTERNAL)
    assert isinstance(answer, MapAnswer)
    assert answer.external == ("2001:db8::2", 40124)


def test_an_announcement_is_a_head_alone() -> None:
    assert pcp.decode(bytes.fromhex("02800000 00000000 00000003") + bytes(12)) == Announcement(0, 3)


def test_options_behind_an_answer_are_not_read() -> None:
    assert pcp.decode(ANSWER + bytes.fromhex("fe000004deadbeef")) == ANSWERED


@pytest.mark.parametrize(
    "data",
    [
        b"",
        ANSWER[:20],
        ANSWER[:-4],
        ANSWER + b"\0",
        ANSWER + bytes(1044),
        b"\1" + ANSWER[1:],
        REQUEST,
        ANSWER[:36] + b"\x84" + ANSWER[37:],
        b"\2\x82" + ANSWER[2:],
    ],
    ids=["empty", "half a head", "short", "odd", "long", "version 1", "a request", "SCTP", "PEER"],
)
def test_what_is_no_answer_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedPcpError):
        pcp.decode(data)


@pytest.mark.parametrize("code", range(1, 14))
def test_every_refusal_of_the_standard_has_words(code: int) -> None:
    assert not pcp.reason_of(code).startswith("code")


def test_a_refusal_that_nobody_knows_is_its_number() -> None:
    assert pcp.reason_of(200) == "code 200"


@given(answers)
def test_what_is_written_is_read_again(answer: pcp.Answer) -> None:
    assert pcp.decode(pcp.encode_answer(answer)) == answer


@given(answers, st.data())
def test_one_damaged_byte_is_malformed_or_another_answer(answer: pcp.Answer, data: st.DataObject) -> None:
    wire = bytearray(pcp.encode_answer(answer))
    wire[data.draw(st.integers(0, len(wire) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        read = pcp.decode(bytes(wire))
    except MalformedPcpError:
        return
    assert pcp.decode(pcp.encode_answer(read)) == read
