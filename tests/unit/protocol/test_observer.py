"""The observer: tells everybody how they look, and never says more than it was asked."""

from __future__ import annotations

import pytest

from p2ptunnel.defaults import PROBE_PAD_BYTES, STUN_BARE_PER_SECOND
from p2ptunnel.protocol.observer import Observer
from p2ptunnel.types import Address
from p2ptunnel.wire.messages import Opener, ProbeExtra, ReflexiveAnswer, ReflexiveProbe, decode, encode, encode_padded
from tests.unit.protocol.actors import CALLER, only

IPV6: Address = ("2001:db8:1111:2222:3333:4444:5555:6666", 65535)
OTHERS = (("203.0.113.1", 7001), ("203.0.113.2", 7000))
BARE_STUN = bytes.fromhex("000100002112a442") + bytes(range(12))


@pytest.mark.parametrize("source", [CALLER, IPV6])
def test_it_tells_how_one_looks_and_where_else_to_ask(source: Address) -> None:
    observer = Observer(OTHERS)
    probe = ReflexiveProbe(mid=5, extra=ProbeExtra())
    observer.receive_datagram(encode_padded(probe, PROBE_PAD_BYTES), source, 0.0)
    [datagram] = observer.datagrams_to_send()
    answer = only(ReflexiveAnswer, [datagram])
    assert answer.extra is not None
    assert (datagram.destination, answer.mid, answer.extra.host, answer.extra.port) == (source, 5, *source)
    assert answer.extra.other == OTHERS


def test_an_answer_longer_than_its_question_is_not_given() -> None:
    observer = Observer()
    observer.receive_datagram(encode(ReflexiveProbe(mid=5)), CALLER, 0.0)
    assert not observer.datagrams_to_send()
    assert observer.dropped == {"question shorter than the answer": 1}


def test_a_line_is_answered_whatever_its_length() -> None:
    line = Observer().answer_line(encode(ReflexiveProbe(mid=5)), CALLER)
    assert line is not None
    answer = decode(line)
    assert isinstance(answer, ReflexiveAnswer)
    assert answer.mid == 5


@pytest.mark.parametrize("line", [b"", b"nonsense", encode(Opener())])
def test_another_line_is_not(line: bytes) -> None:
    assert Observer().answer_line(line, CALLER) is None


@pytest.mark.parametrize(("body", "reason"), [(b"x", "malformed"), (encode(Opener()), "not for an observer")])
def test_what_is_not_for_it_is_counted(body: bytes, reason: str) -> None:
    observer = Observer()
    observer.receive_datagram(body, CALLER, 0.0)
    assert not observer.datagrams_to_send()
    assert observer.dropped[reason] == 1


def test_bare_stun_is_rationed_by_the_second() -> None:
    observer = Observer()
    for _ in range(STUN_BARE_PER_SECOND + 5):
        observer.receive_datagram(BARE_STUN, CALLER, 7.5)
    assert len(observer.datagrams_to_send()) == STUN_BARE_PER_SECOND
    assert observer.dropped == {"bare STUN over its rate": 5}
    observer.receive_datagram(BARE_STUN, CALLER, 8.0)
    assert len(observer.datagrams_to_send()) == 1


def test_damaged_stun_is_counted() -> None:
    observer = Observer()
    observer.receive_datagram(BARE_STUN[:2] + b"\xff\xff" + BARE_STUN[4:], CALLER, 0.0)
    assert not observer.datagrams_to_send()
    assert observer.dropped == {"malformed STUN": 1}


def test_it_never_wants_a_timer() -> None:
    observer = Observer()
    observer.handle_timer(1.0)
    assert observer.next_deadline() is None
    assert not observer.events()
