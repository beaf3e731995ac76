"""Whom a server probes back: who has shown where it is, at that very address, and not often."""

from __future__ import annotations

import pytest

from p2ptunnel.defaults import PROBE_PAD_BYTES, PROBES_BACK_BURST, PROBES_BACK_PER_SECOND
from p2ptunnel.protocol.broker import Broker, LineToSend
from p2ptunnel.protocol.observer import Observer
from p2ptunnel.protocol.probing import ProbeBack
from p2ptunnel.types import Address
from p2ptunnel.wire.messages import Observed, ProbeExtra, ReflexiveAnswer, ReflexiveProbe, decode, encode, encode_padded
from tests.unit.protocol.brokers import broker

ASKER: Address = ("198.51.100.7", 41000)
ELSEWHERE: Address = ("198.51.100.8", 41000)
OTHERS: tuple[Address, ...] = (("203.0.113.1", 7001), ("203.0.113.2", 7000))


@pytest.fixture
def server() -> Broker:
    return broker(observer=Observer(OTHERS))


def question(op: str, cookie: str = "", size: int = PROBE_PAD_BYTES) -> bytes:
    return encode_padded(ReflexiveProbe(mid=7, extra=ProbeExtra(op=op, cookie=cookie)), size)


def answer(server: Broker) -> ReflexiveAnswer:
    """The one datagram that waits."""
    [datagram] = server.datagrams_to_send()
    assert datagram.destination == ASKER
    message = decode(datagram.data)
    assert isinstance(message, ReflexiveAnswer)
    return message


def cookie(server: Broker, now: float = 0.0) -> str:
    """The cookie that a first question brings."""
    server.receive_datagram(question("1"), ASKER, now)
    told = answer(server)
    assert (told.code, told.extra is not None) == (401, True)
    assert server.events() == []
    return (told.extra or Observed()).cookie


def test_over_udp_the_first_question_brings_a_cookie_and_nothing_else(server: Broker) -> None:
    assert len(cookie(server)) == 22


def test_with_the_cookie_the_answer_leaves_from_the_other_address(server: Broker) -> None:
    shown = cookie(server)
    server.receive_datagram(question("1", shown), ASKER, 0.1)
    [wanted] = server.events()
    assert isinstance(wanted, ProbeBack)
    assert (wanted.observer, wanted.address, wanted.connection) == (1, ASKER, None)
    told = decode(wanted.line)
    assert isinstance(told, ReflexiveAnswer)
    assert (told.mid, told.code) == (7, 200)
    assert told.extra is not None
    assert (told.extra.host, told.extra.port) == ASKER
    assert server.datagrams_to_send() == []


def test_a_cookie_of_another_address_is_none(server: Broker) -> None:
    shown = cookie(server)
    server.receive_datagram(question("1", shown), ELSEWHERE, 0.1)
    assert server.events() == []
    [refused] = server.datagrams_to_send()
    assert (refused.destination, len(refused.data) <= PROBE_PAD_BYTES) == (ELSEWHERE, True)


def test_over_tcp_the_handshake_has_shown_it(server: Broker) -> None:
    server.receive_line(encode(ReflexiveProbe(mid=7, extra=ProbeExtra(op="0"))), ASKER, 3, 0.0)
    [wanted] = server.events()
    assert isinstance(wanted, ProbeBack)
    assert (wanted.observer, wanted.address, wanted.connection) == (0, ASKER, 3)


def test_no_answer_is_longer_than_its_question(server: Broker) -> None:
    shown = cookie(server)
    short = question("1", shown, 0)
    server.receive_datagram(short, ASKER, 0.1)
    assert server.events() == []
    assert all(len(datagram.data) <= len(short) for datagram in server.datagrams_to_send())
    assert server.dropped["question shorter than the answer"] == 1


@pytest.mark.parametrize("op", ["2", "-1", "addr", "¹", "00000009"])
def test_an_observer_that_there_is_not_is_a_404(server: Broker, op: str) -> None:
    shown = cookie(server)
    server.receive_datagram(question(op, shown), ASKER, 0.1)
    assert answer(server).code == 404
    assert server.events() == []


def test_the_number_is_that_among_the_observers_which_the_source_can_ask() -> None:
    both: tuple[Address, ...] = (("2001:db8:ffff::1", 7001), *OTHERS)
    server = broker(observer=Observer(both))
    for op in ("0", "1", "2"):
        server.receive_line(encode(ReflexiveProbe(mid=7, extra=ProbeExtra(op=op))), ASKER, 1, 0.0)
    seen = [event.observer for event in server.events() if isinstance(event, ProbeBack)]
    assert seen == [1, 2]


def test_a_source_may_ask_a_few_times_and_then_one_in_ten_seconds(server: Broker) -> None:
    burst = int(PROBES_BACK_BURST)
    for _ in range(burst + 2):
        server.receive_line(encode(ReflexiveProbe(mid=7, extra=ProbeExtra(op="0"))), ASKER, 3, 0.0)
    events = server.events()
    assert sum(isinstance(event, ProbeBack) for event in events) == burst
    refusals = [decode(event.line) for event in events if isinstance(event, LineToSend)]
    assert [refusal.code for refusal in refusals if isinstance(refusal, ReflexiveAnswer)] == [429, 429]
    server.receive_line(encode(ReflexiveProbe(mid=8, extra=ProbeExtra(op="0"))), ASKER, 3, 1.01 / PROBES_BACK_PER_SECOND)
    assert isinstance(server.events()[0], ProbeBack)


def test_another_port_of_the_same_source_counts_for_the_same_source(server: Broker) -> None:
    for number in range(int(PROBES_BACK_BURST) + 1):
        server.receive_line(encode(ReflexiveProbe(mid=7, extra=ProbeExtra(op="0"))), (ASKER[0], 41000 + number), number, 0.0)
    assert isinstance(server.events()[-1], LineToSend)


def test_a_question_without_op_is_answered_as_ever(server: Broker) -> None:
    server.receive_datagram(question(""), ASKER, 0.0)
    assert answer(server).code == 200


def to(port: int, cookie: str = "", size: int = PROBE_PAD_BYTES) -> bytes:
    return encode_padded(ReflexiveProbe(mid=9, extra=ProbeExtra(to=port, cookie=cookie)), size)


def test_the_answer_goes_to_another_port_of_the_same_host(server: Broker) -> None:
    shown = cookie(server)
    server.receive_datagram(to(42000, shown), ASKER, 0.1)
    [datagram] = server.datagrams_to_send()
    assert datagram.destination == (ASKER[0], 42000)
    assert len(datagram.data) <= PROBE_PAD_BYTES
    told = decode(datagram.data)
    assert isinstance(told, ReflexiveAnswer)
    assert (told.mid, told.code) == (9, 200)


def test_nothing_goes_to_another_port_for_who_has_shown_no_cookie(server: Broker) -> None:
    server.receive_datagram(to(42000), ASKER, 0.1)
    assert answer(server).code == 401


def test_nothing_longer_than_the_question_goes_to_another_port(server: Broker) -> None:
    shown = cookie(server)
    server.receive_datagram(to(42000, shown, 0), ASKER, 0.1)
    assert server.datagrams_to_send() == []


@pytest.mark.parametrize("port", [1, 53, 1023, 1900, 5353, 11211])
def test_no_answer_goes_to_a_port_of_services(server: Broker, port: int) -> None:
    shown = cookie(server)
    server.receive_datagram(to(port, shown), ASKER, 0.1)
    assert answer(server).code == 404


def test_over_tcp_there_is_no_other_port(server: Broker) -> None:
    server.receive_line(to(42000), ASKER, 3, 0.0)
    [line] = server.events()
    assert isinstance(line, LineToSend)
    told = decode(line.line)
    assert isinstance(told, ReflexiveAnswer)
    assert told.code == 404
