"""The observer: how one looks from here, by t=5 and by STUN; never more out than came in."""

from __future__ import annotations

import pytest

from p2ptunnel.defaults import PROBE_PAD_BYTES, STUN_BARE_OF_SOURCE_PER_SECOND, STUN_BARE_PER_SECOND
from p2ptunnel.protocol.machine import Datagram
from p2ptunnel.protocol.observer import Observer
from p2ptunnel.types import Address
from p2ptunnel.wire.messages import Opener, ProbeExtra, ReflexiveAnswer, ReflexiveProbe, decode, encode, encode_padded
from p2ptunnel.wire.stun import decode_response, encode_request

OVER_4: Address = ("198.51.100.7", 40001)
OVER_6: Address = ("2001:db8::1:2:3:4", 40001)
OTHERS: tuple[Address, ...] = (("203.0.113.1", 7001), ("203.0.113.2", 7000))
OTHERS_6: tuple[Address, ...] = (("2001:db8:1111:2222:3333:4444:5555:6666", 65535), ("2001:db8:ffff::1", 7000))
ID = b"twelve bytes"
BARE = bytes.fromhex("000100002112a442") + ID
NOW = 100.0


def asked(observer: Observer, data: bytes, source: Address = OVER_4, now: float = NOW) -> list[Datagram]:
    observer.receive_datagram(data, source, now)
    return observer.datagrams_to_send()


@pytest.mark.parametrize(("source", "others"), [(OVER_4, OTHERS), (OVER_6, OTHERS_6)], ids=["IPv4", "IPv6"])
def test_a_padded_question_is_answered_with_less(source: Address, others: tuple[Address, ...]) -> None:
    question = encode_padded(ReflexiveProbe(mid=2**53 - 1, extra=ProbeExtra()), PROBE_PAD_BYTES)
    [answer] = asked(Observer(others * 2), question, source)  # as many as the wire allows
    assert answer.destination == source
    assert len(answer.data) <= len(question)
    message = decode(answer.data)
    assert isinstance(message, ReflexiveAnswer)
    assert message.extra is not None
    assert (message.mid, message.code) == (2**53 - 1, 200)
    assert (message.extra.host, message.extra.port) == source
    assert message.extra.other == others * 2
    assert message.extra.cookie == ""


def test_a_question_that_is_shorter_than_its_answer_is_not_answered() -> None:
    observer = Observer()
    assert asked(observer, encode(ReflexiveProbe(mid=1))) == []
    assert observer.dropped == {"question shorter than the answer": 1}


@pytest.mark.parametrize("source", [OVER_4, OVER_6], ids=["IPv4", "IPv6"])
def test_a_binding_request_as_ours_is_answered_with_no_more(source: Address) -> None:
    question = encode_request(ID)
    [answer] = asked(Observer(), question, source)
    assert len(answer.data) <= len(question)
    assert decode_response(answer.data).mapped == source
    assert decode_response(answer.data).transaction_id == ID


def test_bare_binding_requests_are_rationed_by_the_second() -> None:
    observer = Observer()
    sources = [(f"198.51.{n // 100}.{n % 100}", 1) for n in range(int(STUN_BARE_PER_SECOND) + 3)]
    answers = [asked(observer, BARE, source, now=NOW) for source in sources]
    assert sum(map(len, answers)) == STUN_BARE_PER_SECOND
    assert observer.dropped == {"bare STUN over its rate": 3}
    assert len(asked(observer, encode_request(ID), now=NOW)) == 1  # what amplifies nothing is not
    assert len(asked(observer, BARE, now=NOW + 1.0)) == 1


def test_one_source_gets_a_few_answers_to_bare_requests_and_a_few_more_to_longer_ones() -> None:
    observer = Observer()
    bare = sum(len(asked(observer, BARE)) for _ in range(15))
    longer = sum(len(asked(observer, encode_request(ID))) for _ in range(15))
    assert (bare, bare + longer) == (STUN_BARE_OF_SOURCE_PER_SECOND, STUN_BARE_OF_SOURCE_PER_SECOND + 5)
    assert observer.dropped == {"bare STUN over its rate": 5, "source over its rate": 10}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "malformed"),
        (b"{}", "malformed"),
        (b"\xff" * 100, "malformed"),
        (encode(Opener()), "not for an observer"),
        (BARE[:4] + bytes(16), "malformed"),  # without the cookie it is no STUN at all
        (BARE + b"\0", "malformed STUN"),
        (BARE.replace(b"\0\x01", b"\x01\x01", 1), "malformed STUN"),  # an answer
    ],
)
def test_junk_is_counted_and_not_answered(data: bytes, reason: str) -> None:
    observer = Observer()
    assert asked(observer, data) == []
    assert observer.dropped == {reason: 1}


def test_a_line_needs_no_padding() -> None:
    """The handshake has shown that the other side receives at its address."""
    is_message, line = Observer(OTHERS).receive_line(b'{"t":5,"mid":4}', OVER_4)
    assert is_message
    assert line is not None
    message = decode(line)
    assert isinstance(message, ReflexiveAnswer)
    assert message.extra is not None
    assert (message.mid, message.extra.host, message.extra.port, message.extra.other) == (4, *OVER_4, OTHERS)


@pytest.mark.parametrize("line", [b"", b"{", b'{"t":30}', b'{"t":-5,"mid":1,"code":200}'])
def test_any_other_line_is_counted_and_not_answered(line: bytes) -> None:
    observer = Observer()
    is_message, answer = observer.receive_line(line, OVER_4)
    assert answer is None
    assert is_message is line.startswith(b'{"t')
    assert observer.dropped.total() == 1


def test_who_asks_is_told_of_the_observers_of_its_own_family() -> None:
    both = Observer((("192.0.2.1", 7001), ("2001:db8::1", 7000), ("192.0.2.2", 7000)))
    told = {host: both.answer(ReflexiveProbe(mid=1), (host, 40_000)).extra for host in ("198.51.100.7", "2001:db8::7")}
    assert [extra.other for extra in told.values() if extra is not None] == [
        (("192.0.2.1", 7001), ("192.0.2.2", 7000)),
        (("2001:db8::1", 7000),),
    ]


def test_a_cookie_is_passed_on_where_there_is_one() -> None:
    answer = Observer().answer(ReflexiveProbe(mid=1), OVER_4, "the cookie")
    assert answer.extra is not None
    assert answer.extra.cookie == "the cookie"


def test_nothing_is_ever_due_and_nothing_ever_happens() -> None:
    observer = Observer()
    observer.handle_timer(NOW)
    asked(observer, BARE)
    assert observer.next_deadline() is None
    assert observer.events() == []
