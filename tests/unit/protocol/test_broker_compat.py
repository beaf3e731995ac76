"""Programs of the founding document: served only on request, a little, and never at the cost of others."""

from __future__ import annotations

import random

import pytest

from p2ptunnel.defaults import COMPAT_REQUESTS_PER_MINUTE, COMPAT_REQUESTS_PER_SECOND, REGISTRATION_TTL
from p2ptunnel.identity.judge import Judge
from p2ptunnel.protocol.broker import Broker, PeerLeft, PeerRegistered
from p2ptunnel.protocol.compat import SeedRation
from p2ptunnel.types import Address
from p2ptunnel.wire.messages import ConnectAnswer, PunchNotice, PunchResult, RegisterAnswer, RegisterExtra, encode
from p2ptunnel.wire.messages import ConnectRequest as Ask
from p2ptunnel.wire.messages import ConnectRequestExtra as AskExtra
from p2ptunnel.wire.messages import Register as Enter
from tests.unit.protocol.actors import CALLEE, CALLER, STRANGER, only, sent
from tests.unit.protocol.brokers import JAR, SECRET, broker, connect, register, with_bob, yes

ENTER = b'{"t":1,"mid":1,"ltag":"bob"}'
ASK = b'{"t":4,"mid":4,"ltag":"alice","extra":{"rtag":"bob"}}'


def with_seed_bob() -> Broker:
    server = broker(compat_seed=True)
    server.receive_datagram(ENTER, CALLEE, 0.0)
    assert only(RegisterAnswer, server.datagrams_to_send()).code == 200
    server.events()
    return server


def test_such_a_program_gets_through_from_end_to_end() -> None:
    server = with_seed_bob()
    server.receive_datagram(ASK, CALLER, 0.0)
    datagrams = server.datagrams_to_send()
    notice = only(PunchNotice, datagrams)
    assert only(ConnectAnswer, datagrams).code == 200
    body = encode(notice)
    assert b"cands" not in body
    server.receive_datagram(yes(notice.mid, notice.extra.token), CALLEE, 0.1)
    assert only(PunchResult, server.datagrams_to_send()).code == 200


@pytest.mark.parametrize("body", [ENTER, ASK])
def test_by_default_it_is_a_stranger(body: bytes) -> None:
    server = broker()
    server.receive_datagram(body, CALLEE, 0.0)
    assert not server.datagrams_to_send()  # too short a question for a cookie
    assert not server.registered


# --- tags ---------------------------------------------------------------------------------------------------------------------


def test_a_tag_that_a_key_owns_is_never_given_to_it() -> None:
    server, _ = with_bob(compat_seed=True)
    server.receive_datagram(ENTER, STRANGER, 0.0)
    assert only(RegisterAnswer, server.datagrams_to_send()).code == 409
    assert not server.events()


@pytest.mark.parametrize("extra", [RegisterExtra(key="key"), RegisterExtra(v=1, key="key", ts=9), RegisterExtra(v=1)])
def test_naming_a_key_without_a_signature_is_not_owning_it(extra: RegisterExtra) -> None:
    server, _ = with_bob(compat_seed=True)
    body = encode(Enter(mid=1, ltag="bob", extra=extra)).ljust(400)
    server.receive_datagram(body, STRANGER, 0.0)
    answer = only(RegisterAnswer, server.datagrams_to_send())
    assert answer.code == 401  # challenged like anybody else
    server.receive_datagram(connect(), CALLER, 0.0)
    assert {to.destination for to in server.datagrams_to_send()} == {CALLER, CALLEE}


def test_a_key_takes_a_tag_that_no_key_owns() -> None:
    server = with_seed_bob()
    server.receive_datagram(register(host=STRANGER[0]), STRANGER, 0.0)
    assert only(RegisterAnswer, server.datagrams_to_send()).code == 200
    assert server.events() == [PeerLeft("bob", "replaced"), PeerRegistered("bob", STRANGER)]


def test_a_huge_counter_in_an_unsigned_registration_locks_nobody_out() -> None:
    server = broker(compat_seed=True)
    body = b'{"t":1,"mid":1,"ltag":"bob","extra":{"ts":4611686018427387903}}'
    server.receive_datagram(body, STRANGER, 0.0)
    server.datagrams_to_send()
    server.receive_datagram(register(ts=1), CALLEE, 0.0)
    assert only(RegisterAnswer, server.datagrams_to_send()).code == 200


def test_entering_again_prolongs_and_keeps_the_epoch() -> None:
    server = broker(compat_seed=True)
    epochs: list[int] = []
    for now in (0.0, 30.0, 60.0, 120.0):
        server.handle_timer(now)
        server.receive_datagram(ENTER, CALLEE, now)
        answer = only(RegisterAnswer, server.datagrams_to_send())
        assert answer.extra is not None
        epochs.append(answer.extra.epoch)
    assert len(set(epochs)) == 1
    assert server.events() == [PeerRegistered("bob", CALLEE)]
    server.handle_timer(120.0 + REGISTRATION_TTL)
    assert server.registered == ()


def test_the_newest_of_two_such_programs_has_the_tag() -> None:
    server = with_seed_bob()
    server.receive_datagram(ENTER, STRANGER, 1.0)
    assert server.events() == [PeerLeft("bob", "replaced"), PeerRegistered("bob", STRANGER)]


# --- rates --------------------------------------------------------------------------------------------------------------------


def ask_from(server: Broker, source: Address, now: float, mid: int) -> bool:
    server.receive_datagram(encode(Ask(mid=mid, ltag="alice", extra=AskExtra(rtag="nobody"))), source, now)
    return bool(server.datagrams_to_send())


def test_a_source_gets_a_few_answers_a_minute() -> None:
    server = broker(compat_seed=True)
    served = [ask_from(server, (CALLER[0], 1000 + n), n * 1.0, n) for n in range(60)]
    assert sum(served) == COMPAT_REQUESTS_PER_MINUTE
    assert ask_from(server, CALLER, 61.0, 99)
    assert server.dropped["seed request over its rate"] == 60 - COMPAT_REQUESTS_PER_MINUTE


@pytest.mark.parametrize(("hosts", "longest"), [(1, 60), (COMPAT_REQUESTS_PER_SECOND, 1)])
def test_a_ration_says_when_there_is_one_more(hosts: int, longest: float) -> None:
    ration, host = SeedRation(), "198.51.100.0"
    assert ration.wait(host, 0.0) == 0
    while ration.take(f"198.51.100.{len(ration) % hosts}", 0.5):
        assert ration.wait("198.51.100.77", 0.5) <= 1
    wait = ration.wait(host, 0.75)
    assert longest - 1 < wait <= longest
    assert not ration.take(host, 0.75 + wait - 0.01)
    assert ration.take(host, 0.75 + wait)


@pytest.mark.parametrize("over_tcp", [False, True])
def test_a_cookie_buys_no_tags_that_nobody_signs_for(over_tcp: bool) -> None:
    """H4: with a cookie, one address registered a hundred thousand."""
    server = broker(compat_seed=True)
    for n in range(100):
        body = encode(Enter(mid=n, ltag=f"t{n}", extra=RegisterExtra(cookie=JAR.make(CALLEE[0], 0.0))))
        if over_tcp:
            server.receive_line(body, CALLEE, n, 0.0)
        else:
            server.receive_datagram(body, CALLEE, 0.0)
    assert len(server.registered) == COMPAT_REQUESTS_PER_MINUTE
    codes = [message.code for message in sent(server.datagrams_to_send()) if isinstance(message, RegisterAnswer)]
    assert set(codes) == (set() if over_tcp else {200, 429})


def test_the_addresses_of_one_network_are_one_source() -> None:
    server = broker(compat_seed=True)
    served = [ask_from(server, (f"2001:db8:1:1::{n:x}", 1), n / 5, n) for n in range(60)]
    assert sum(served) == COMPAT_REQUESTS_PER_MINUTE


@pytest.mark.parametrize("judge", [Judge(join_token="a-token-of-16-or-more"), Judge(members={"p2p:somebody"})])
def test_a_server_of_members_serves_no_such_program(judge: Judge) -> None:
    """H4: nobody can tell whether it is a member."""
    server = Broker(SECRET, random.Random(3), judge, compat_seed=True)
    for body in (ENTER, ASK):
        server.receive_datagram(body, CALLEE, 0.0)
    server.receive_datagram(encode(Enter(mid=1, ltag="bob", extra=RegisterExtra(cookie=JAR.make(CALLEE[0], 0.0)))), CALLEE, 0.0)
    assert only(RegisterAnswer, server.datagrams_to_send()).code == 403
    assert server.registered == ()


@pytest.mark.bulk
def test_forged_sources_get_a_few_answers_a_second_and_leave_no_memory() -> None:
    server = broker(compat_seed=True)
    served = sum(ask_from(server, (f"192.0.{n % 250}.{n // 250}", 1), n / 1000, n) for n in range(3000))
    assert served <= COMPAT_REQUESTS_PER_SECOND * 4
    assert server._ration is not None
    assert len(server._ration) == served


def test_whoever_shows_a_cookie_is_not_rationed() -> None:
    server = broker(compat_seed=True)
    for n in range(20):
        server.receive_datagram(connect("nobody", mid=n), CALLER, 0.0)
        assert only(ConnectAnswer, server.datagrams_to_send()).code == 404


def test_whoever_could_show_a_cookie_must() -> None:
    server, _ = with_bob(compat_seed=True)
    server.receive_datagram(connect(cookie=""), CALLER, 0.0)
    assert only(ConnectAnswer, server.datagrams_to_send()).code == 401


def test_such_a_program_is_told_of_a_call_once() -> None:
    """It has not shown that it receives there: what is repeated would go to a victim."""
    server = with_seed_bob()
    server.receive_datagram(connect(), CALLER, 0.0)
    assert only(PunchNotice, server.datagrams_to_send())
    while (at := server.next_deadline()) is not None and at < 20:
        server.handle_timer(at)
        assert not [datagram for datagram in server.datagrams_to_send() if datagram.destination == CALLEE]


def test_a_result_goes_twice_at_most_to_whom_may_not_have_asked() -> None:
    server, _ = with_bob(compat_seed=True)
    server.receive_datagram(ASK, CALLER, 0.0)
    notice = only(PunchNotice, server.datagrams_to_send())
    server.receive_datagram(yes(notice.mid, notice.extra.token), CALLEE, 0.0)
    to_caller = [datagram for datagram in server.datagrams_to_send() if datagram.destination == CALLER]
    while (at := server.next_deadline()) is not None and at < 20:
        server.handle_timer(at)
        to_caller += [datagram for datagram in server.datagrams_to_send() if datagram.destination == CALLER]
    assert len(to_caller) == 2
    assert all(isinstance(message, PunchResult) for message in sent(to_caller))
