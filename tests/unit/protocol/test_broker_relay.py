"""What the broker has to do with the relay: it tells whom it introduced, and answers t=6."""

from __future__ import annotations

import random

import pytest
from msgspec.structs import replace

from p2ptunnel.defaults import RELAY_CIRCUITS_OF_SOURCE, RETRANSMIT_FIRST, TOKEN_TTL
from p2ptunnel.identity.grant import Offers, is_granted
from p2ptunnel.identity.keys import Identity
from p2ptunnel.identity.relay import relay_extra
from p2ptunnel.protocol.broker import Broker, LineToSend, RelayJoined
from p2ptunnel.protocol.relay import Relay
from p2ptunnel.types import Address, Candidate, Role
from p2ptunnel.wire.messages import (
    ConnectAnswer,
    ConnectRequest,
    ConnectRequestExtra,
    PunchNotice,
    PunchResult,
    PunchResultAck,
    RelayJoin,
    RelayJoinAnswer,
    decode,
    encode,
)
from tests.unit.protocol.actors import ALICE, BOB, CALLEE, CALLER, EVE, TOKEN, only, signer
from tests.unit.protocol.brokers import SECRET, Words, connect, register, yes


def called(server: Broker, caller: Identity, *, mid: int, now: float, is_signed: bool = True) -> str:
    """Have `caller` call Bob; return the token of the call."""
    server.receive_datagram(register(key=str(BOB.public), ts=mid, mid=mid, now=now), CALLEE, now)
    question = decode(connect(mid=mid, now=now))
    assert isinstance(question, ConnectRequest)
    v, signed = (1, signer(caller).sign(())) if is_signed else (0, "")
    extra: ConnectRequestExtra = replace(question.extra, v=v, intent=signed)
    server.handle_timer(now)
    server.datagrams_to_send()
    server.receive_datagram(encode(replace(question, extra=extra)), CALLER, now)
    answer = only(ConnectAnswer, server.datagrams_to_send())
    server.events()
    assert answer.extra is not None
    return answer.extra.token


def met(*, has_relay: bool = True, is_signed: bool = True) -> tuple[Broker, str]:
    """Return a broker that has introduced Alice to Bob, and the token of that call."""
    judge = Words()
    server = Broker(SECRET, random.Random(3), judge, relay=Relay(judge) if has_relay else None)
    return server, called(server, ALICE, mid=4, now=0.0, is_signed=is_signed)


def join(who: Identity, token: str, role: Role) -> bytes:
    return encode(RelayJoin(mid=6, extra=relay_extra(who, token, role)))


def answered(server: Broker, data: bytes, source: Address, connection: int, now: float = 1.0) -> RelayJoined | LineToSend:
    """Return what a t=6 over TCP has come to."""
    assert server.receive_line(data, source, connection, now)
    [event] = server.events()
    assert isinstance(event, RelayJoined | LineToSend)
    assert event.connection == connection
    return event


def test_both_ends_of_a_call_join_one_circuit() -> None:
    server, token = met()
    for line, address, connection in ((join(ALICE, token, "caller"), CALLER, 1), (join(BOB, token, "callee"), CALLEE, 2)):
        event = answered(server, line, address, connection)
        assert isinstance(event, RelayJoined)
        assert (event.circuit, event.role) == (1, "caller" if connection == 1 else "callee")
        assert decode(event.line) == RelayJoinAnswer(mid=6, code=200, em="")


def test_they_may_also_when_the_call_has_come_to_its_end() -> None:
    server, token = met()
    notice_mid = int(token[:13], 16)
    server.receive_datagram(yes(notice_mid, token), CALLEE, 0.5)
    result = only(PunchResult, server.datagrams_to_send())
    server.receive_datagram(encode(PunchResultAck(mid=result.mid, token=token)), CALLER, 0.6)
    assert server.attempts == 0
    server.events()
    assert isinstance(answered(server, join(ALICE, token, "caller"), CALLER, 1, TOKEN_TTL - 1), RelayJoined)
    assert isinstance(answered(server, join(BOB, token, "callee"), CALLEE, 2, TOKEN_TTL - 1), RelayJoined)


@pytest.mark.parametrize(
    ("who", "role", "token", "code"),
    [(EVE, "caller", "", 403), (ALICE, "callee", "", 403), (BOB, "caller", "", 403), (ALICE, "caller", TOKEN, 404)],
)
def test_for_anybody_else_the_answer_is_the_last_line(who: Identity, role: Role, token: str, code: int) -> None:
    server, made = met()
    event = answered(server, join(who, token or made, role), CALLER, 1)
    assert isinstance(event, LineToSend)
    assert event.is_last
    answer = decode(event.line)
    assert isinstance(answer, RelayJoinAnswer)
    assert (answer.mid, answer.code) == (6, code)


def test_a_call_that_nobody_has_signed_has_no_relay() -> None:
    server, token = met(is_signed=False)
    event = answered(server, join(BOB, token, "callee"), CALLEE, 1)
    assert isinstance(event, LineToSend)
    assert b'"code":404' in event.line


def test_a_relay_elsewhere_is_named_to_both_and_takes_the_place_of_its_own() -> None:
    judge, relay = Words(), Relay(Words())
    offers = Offers(ALICE, [(("192.0.2.7", 7000), str(EVE.public))], clock=lambda: 1_800_000_000.0)
    server = Broker(SECRET, random.Random(3), judge, relay=relay, offers=offers)
    server.receive_datagram(register(key=str(BOB.public), ts=4, mid=4, now=0.0), CALLEE, 0.0)
    question = decode(connect(mid=4, now=0.0))
    assert isinstance(question, ConnectRequest)
    server.handle_timer(0.0)
    server.datagrams_to_send()
    extra: ConnectRequestExtra = replace(question.extra, v=1, intent=signer(ALICE).sign(()))
    server.receive_datagram(encode(replace(question, extra=extra)), CALLER, 0.0)
    sent = server.datagrams_to_send()
    answer, notice = only(ConnectAnswer, sent), only(PunchNotice, sent)
    assert answer.extra is not None
    assert answer.extra.relay is not None
    assert notice.extra.relay == answer.extra.relay
    assert is_granted(answer.extra.relay, str(ALICE.public), answer.extra.token)
    assert relay.join(RelayJoin(mid=6, extra=relay_extra(ALICE, answer.extra.token, "caller")), "192.0.2.1", 1.0)[0].code == 404


def test_where_it_does_not_fit_into_a_datagram_the_call_goes_on_without() -> None:
    judge = Words()
    offers = Offers(ALICE, [(("192.0.2.7", 7000), str(EVE.public))], clock=lambda: 1_800_000_000.0)
    server = Broker(SECRET, random.Random(3), judge, relay=Relay(judge), offers=offers)
    server.receive_datagram(register(key=str(BOB.public), ts=4, mid=4, now=0.0), CALLEE, 0.0)
    question = decode(connect(mid=4, now=0.0))
    assert isinstance(question, ConnectRequest)
    server.handle_timer(0.0)
    server.datagrams_to_send()
    many = tuple(Candidate("host", "tcp", f"2001:db8:1111:2222:3333:4444:5555:{number:04x}", 50000) for number in range(9))
    extra: ConnectRequestExtra = replace(question.extra, v=1, intent=signer(ALICE).sign(()), cands=many)
    server.receive_datagram(encode(replace(question, extra=extra)), CALLER, 0.0)
    answer = only(ConnectAnswer, server.datagrams_to_send())
    assert (answer.code, answer.extra is not None and answer.extra.relay) == (200, None)


def test_without_a_relay_it_says_so() -> None:
    server, token = met(has_relay=False)
    event = answered(server, join(ALICE, token, "caller"), CALLER, 1)
    assert isinstance(event, LineToSend)
    assert event.is_last
    assert decode(event.line) == RelayJoinAnswer(mid=6, code=503, em="no relay here")


def test_who_asks_from_one_address_again_and_again_is_told_to_wait() -> None:
    server, _ = met()
    codes = []
    for number in range(RELAY_CIRCUITS_OF_SOURCE + 1):
        caller = Identity.from_seed(bytes([number]) * 32)
        token = called(server, caller, mid=100 + number, now=number * 60.0)
        event = answered(server, join(caller, token, "caller"), CALLER, number, now=number * 60.0)
        codes.append(decode(event.line))
    assert [answer.code for answer in codes if isinstance(answer, RelayJoinAnswer)] == [200] * RELAY_CIRCUITS_OF_SOURCE + [429]


def test_over_udp_nobody_joins() -> None:
    server, token = met()
    server.receive_datagram(join(ALICE, token, "caller"), CALLER, 1.0)
    assert not server.datagrams_to_send()
    assert not server.events()
    assert server.dropped == {"not for a server": 1}


def test_the_notice_of_a_call_is_repeated_as_ever() -> None:
    server, token = met()
    answered(server, join(ALICE, token, "caller"), CALLER, 1, now=0.01)
    server.handle_timer(2 * RETRANSMIT_FIRST)
    assert only(PunchNotice, server.datagrams_to_send()).extra.token == token


def test_what_is_said_of_a_join_shows_no_token() -> None:
    server, token = met()
    event = answered(server, join(ALICE, token, "caller"), CALLER, 1)
    assert repr(event) == "RelayJoined(connection=1, circuit=1, role='caller')"
