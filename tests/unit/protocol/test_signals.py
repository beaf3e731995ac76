"""What one side of an attempt tells the other: repeated until it is there, heard once."""

from __future__ import annotations

import random

import pytest

from p2ptunnel.protocol.signals import Signals
from p2ptunnel.types import Candidate
from p2ptunnel.wire.messages import PortRow, Signal, SignalAnswer, decode
from p2ptunnel.wire.signal import Again, FreshPort, GoAhead, MoreCandidates, SignalBody, Swap, Sync
from tests.unit.protocol.actors import SERVER, TOKEN, only, sent

KEYS = b"one".ljust(32), b"other".ljust(32)
BODIES: tuple[SignalBody, ...] = (
    Sync(),
    MoreCandidates(cands=(Candidate("host", "tcp", "192.0.2.1", 5),)),
    FreshPort(proto="tcp", row=PortRow(40_000, 1)),
    GoAhead(ports=(40_000,)),
    Swap(round=1),
    Again(round=1),
)


def both(round_trip: float = 0.0) -> tuple[Signals, Signals]:
    one, other = KEYS
    return (
        Signals(TOKEN, SERVER, random.Random(1), sends=one, hears=other, round_trip=round_trip),
        Signals(TOKEN, SERVER, random.Random(2), sends=other, hears=one, round_trip=round_trip),
    )


def sealed(signals: Signals) -> Signal:
    """The one signal that waits to be sent."""
    return only(Signal, signals.datagrams_to_send())


@pytest.mark.parametrize("body", BODIES)
def test_what_one_tells_the_other_hears_and_acknowledges_by_the_server(body: SignalBody) -> None:
    one, other = both()
    one.tell(body, 0.0)
    [datagram] = one.datagrams_to_send()
    message = decode(datagram.data)
    assert isinstance(message, Signal)
    assert (datagram.destination, message.extra.token) == (SERVER, TOKEN)
    assert other.open(message) == body
    [answer] = other.datagrams_to_send()
    assert (answer.destination, decode(answer.data)) == (SERVER, SignalAnswer(mid=message.mid, code=200, em=""))


def test_it_is_repeated_until_it_is_acknowledged_as_the_same_bytes() -> None:
    one, other = both()
    one.tell(Sync(), 0.0)
    [first] = one.datagrams_to_send()
    one.handle_timer(0.2)
    [again] = one.datagrams_to_send()
    assert again == first
    message = decode(first.data)
    assert isinstance(message, Signal)
    other.open(message)
    assert one.acknowledged(only(SignalAnswer, other.datagrams_to_send()))
    assert one.next_deadline() is None
    assert not one.acknowledged(SignalAnswer(mid=message.mid, code=200))


def test_a_repetition_is_acknowledged_and_heard_no_more() -> None:
    one, other = both()
    one.tell(Sync(), 0.0)
    message = sealed(one)
    assert other.open(message) == Sync()
    assert other.open(message) is None
    assert len(sent(other.datagrams_to_send())) == 2
    assert other.dropped == {"signal: it was here before": 1}


def test_what_is_not_sealed_with_the_key_is_not_even_acknowledged() -> None:
    one, _ = both()
    one.tell(Sync(), 0.0)
    assert one.open(sealed(one)) is None  # our own, sent back to us
    assert not one.datagrams_to_send()
    assert one.dropped == {"signal: it is not sealed with the key of this direction": 1}


def test_a_newer_one_of_its_kind_takes_the_place_of_what_is_under_way() -> None:
    one, _ = both()
    one.tell(GoAhead(), 0.0)
    one.tell(Sync(), 0.0)
    one.tell(GoAhead(), 0.0)
    messages = [message for message in sent(one.datagrams_to_send()) if isinstance(message, Signal)]
    one.handle_timer(0.2)
    again = [message for message in sent(one.datagrams_to_send()) if isinstance(message, Signal)]
    assert {message.mid for message in again} == {messages[1].mid, messages[2].mid}


def test_nothing_is_repeated_before_an_answer_could_be_here() -> None:
    one, _ = both(round_trip=1.0)
    one.tell(Sync(), 0.0)
    one.datagrams_to_send()
    one.handle_timer(1.1)
    assert not one.datagrams_to_send()


def test_closed_it_repeats_nothing_and_still_acknowledges() -> None:
    one, other = both()
    one.tell(Sync(), 0.0)
    other.close()
    assert other.open(sealed(one)) == Sync()
    assert len(other.datagrams_to_send()) == 1
    one.close()
    assert one.next_deadline() is None
