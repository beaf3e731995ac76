"""The server's part in signals: only between two that it has introduced, at a rate, and never more out than in."""

from __future__ import annotations

import pytest

from p2ptunnel.defaults import SIGNALS_BURST, TOKEN_TTL
from p2ptunnel.protocol import messenger
from p2ptunnel.protocol.broker import Broker
from p2ptunnel.protocol.machine import Datagram
from p2ptunnel.types import Address
from p2ptunnel.wire.messages import PunchNotice, Signal, SignalAnswer, SignalExtra, decode, encode
from tests.unit.protocol.actors import CALLEE, CALLER, STRANGER, only
from tests.unit.protocol.brokers import connect, with_bob, yes

PEERS = (CALLER, CALLEE)


def introduced() -> tuple[Broker, str]:
    """Return a broker that has introduced two peers, and their token; nothing waits in it."""
    server, _ = with_bob()
    token = call(server)
    return server, token


def call(server: Broker, mid: int = 4, now: float = 0.0) -> str:
    """Let alice call bob, who says yes; return the token."""
    server.receive_datagram(connect(now=now, mid=mid), CALLER, now)
    notice = only(PunchNotice, server.datagrams_to_send())
    server.receive_datagram(yes(notice.mid, notice.extra.token), CALLEE, now)
    server.datagrams_to_send()
    server.events()
    return notice.extra.token


def signal(token: str, mid: int = 12, sealed: str = "c2VhbGVk") -> bytes:
    return encode(Signal(mid=mid, extra=SignalExtra(token=token, sealed=sealed)))


def answer(mid: int = 12) -> bytes:
    return encode(SignalAnswer(mid=mid, code=200, em=""))


def say(server: Broker, data: bytes, source: Address, now: float = 0.0) -> list[Datagram]:
    server.receive_datagram(data, source, now)
    return server.datagrams_to_send()


@pytest.mark.parametrize(("one", "other"), [PEERS, PEERS[::-1]])
def test_a_signal_goes_to_the_other_peer_and_its_answer_back(one: Address, other: Address) -> None:
    server, token = introduced()
    assert say(server, signal(token), one) == [Datagram(signal(token), other)]
    assert say(server, answer(), other) == [Datagram(answer(), one)]


def test_a_repetition_is_handed_on_again_and_so_is_its_answer() -> None:
    server, token = introduced()
    for _ in range(2):
        assert say(server, signal(token), CALLER) == [Datagram(signal(token), CALLEE)]
        assert say(server, answer(), CALLEE) == [Datagram(answer(), CALLER)]


@pytest.mark.parametrize("source", [STRANGER, (CALLER[0], 1), (CALLEE[0], 1)])
def test_strangers_can_neither_signal_nor_answer(source: Address) -> None:
    server, token = introduced()
    say(server, signal(token), CALLER)
    assert not say(server, signal(token), source)
    assert not say(server, answer(), source)
    assert (server.dropped["signal of no call"], server.dropped["unexpected answer"]) == (1, 1)


def test_a_signal_is_answered_once_and_only_by_whom_it_was_for() -> None:
    server, token = introduced()
    say(server, signal(token), CALLER)
    assert not say(server, answer(), CALLER)
    assert say(server, answer(), CALLEE)
    assert not say(server, answer(), CALLEE)


def test_who_knows_no_token_reaches_nobody() -> None:
    server, _ = introduced()
    assert not say(server, signal("guessed"), CALLER)


def test_before_the_callee_has_said_yes_nothing_is_handed_on() -> None:
    server, _ = with_bob()
    server.receive_datagram(connect(), CALLER, 0.0)
    notice = only(PunchNotice, server.datagrams_to_send())
    assert not say(server, signal(notice.extra.token), CALLER)


def test_a_token_ends() -> None:
    server, token = introduced()
    assert say(server, signal(token), CALLER, TOKEN_TTL - 1)
    assert not say(server, signal(token), CALLER, TOKEN_TTL)


def test_each_side_has_a_rate() -> None:
    server, token = introduced()
    handed_on = [say(server, signal(token, mid), CALLER) for mid in range(100)]
    assert sum(map(len, handed_on)) == SIGNALS_BURST
    assert server.dropped["too many signals"] == 100 - SIGNALS_BURST
    assert say(server, signal(token), CALLEE)
    assert say(server, signal(token), CALLER, 1.0)


def test_signals_of_a_call_are_not_held_up_by_what_others_send_in_the_names_of_its_peers() -> None:
    server, token = introduced()
    for _ in range(100):
        server.receive_datagram(b"{}", CALLER, 0.0)
    assert say(server, signal(token), CALLER)


def test_nothing_goes_out_that_is_longer_than_what_came_in() -> None:
    server, token = introduced()
    say(server, signal(token), CALLER)
    assert not say(server, b'{"t":-12,"mid":12,"code":200}', CALLEE)
    assert server.dropped["signal that would grow"] == 1
    odd = signal(token).replace(b'"extra"', b'"x":"unknown","extra"')
    [datagram] = say(server, odd, CALLER)
    assert decode(datagram.data) == decode(odd)
    assert len(datagram.data) < len(odd)


def test_the_pairs_that_are_known_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messenger, "SIGNAL_PAIRS_MAX", 2)
    server, _ = with_bob()
    first, *others = [call(server, mid) for mid in (4, 5, 6)]
    assert not say(server, signal(first), CALLER)
    assert all(say(server, signal(token), CALLER) for token in others)


def test_the_answers_that_are_waited_for_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messenger, "SIGNALS_WAITING_MAX", 2)
    server, token = introduced()
    for mid in (1, 2, 3):
        say(server, signal(token, mid), CALLER)
    assert [bool(say(server, answer(mid), CALLEE)) for mid in (1, 2, 3)] == [False, True, True]
