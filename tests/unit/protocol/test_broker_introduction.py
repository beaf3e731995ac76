"""The broker introduces: t=4, -4, t=10, -10, t=11, -11, each lost, repeated, late or forged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from p2ptunnel.defaults import (
    ANSWER_MEMORY,
    ATTEMPTS_OF_CALLEE_MAX,
    ATTEMPTS_OF_SOURCE_MAX,
    ATTEMPTS_OF_SOURCE_TO_CALLEE_MAX,
    CALLS_BURST,
    CALLS_PER_MINUTE,
    CALLS_PER_SECOND_OF_CALLEE,
    DATAGRAM_MAX_BYTES,
    SITE_FACTOR,
    TOKEN_TTL,
    TRANSACTION_TIMEOUT,
)
from p2ptunnel.protocol import attempts
from p2ptunnel.protocol.broker import Broker, Introduced, LineToSend
from p2ptunnel.protocol.machine import Event
from p2ptunnel.types import Address, Candidate
from p2ptunnel.wire.messages import (
    ConnectAnswer,
    ConnectRequest,
    Message,
    PunchAnswer,
    PunchNotice,
    PunchResult,
    PunchResultAck,
    decode,
    encode,
)
from tests.unit.protocol.actors import CALLEE, CALLER, STRANGER, only, sent
from tests.unit.protocol.brokers import broker, connect, lines, register, with_bob, yes

CANDS = (Candidate("srflx", "tcp", CALLER[0], 50001),)


def asked(*, now: float = 0.0) -> tuple[Broker, ConnectAnswer, PunchNotice]:
    """Return a broker that has asked bob for alice, its -4 and its t=10."""
    server, _ = with_bob(now=now)
    server.receive_datagram(connect(now=now, cands=CANDS), CALLER, now)
    datagrams = server.datagrams_to_send()
    assert {(type(message), to.destination) for message, to in zip(sent(datagrams), datagrams, strict=True)} == {
        (ConnectAnswer, CALLER),
        (PunchNotice, CALLEE),
    }
    return server, only(ConnectAnswer, datagrams), only(PunchNotice, datagrams)


def answered(*, now: float = 0.0) -> tuple[Broker, PunchResult]:
    """Return a broker whose callee has said yes, and its t=11."""
    server, _, notice = asked(now=now)
    server.receive_datagram(yes(notice.mid, notice.extra.token), CALLEE, now)
    [datagram] = server.datagrams_to_send()
    assert datagram.destination == CALLER
    return server, only(PunchResult, [datagram])


def repeated(server: Broker, until: float) -> list[bytes]:
    """Run the timers; return what was sent."""
    found: list[bytes] = []
    while (at := server.next_deadline()) is not None and at <= until:
        server.handle_timer(at)
        found += [datagram.data for datagram in server.datagrams_to_send()]
    return found


# --- the good case ----------------------------------------------------------------------------------------------------------


def test_caller_and_callee_hear_of_each_other_at_once() -> None:
    server, answer, notice = asked()
    assert answer.extra is not None
    assert (answer.mid, answer.code, answer.extra.token) == (4, 200, notice.extra.token)
    assert (answer.extra.host, answer.extra.port) == CALLER
    assert (notice.extra.host, notice.extra.port, notice.extra.v, notice.extra.cands) == (*CALLER, 1, CANDS)
    assert server.attempts == 1


def test_the_result_tells_where_the_answer_came_from_not_what_it_says() -> None:
    server, _, notice = asked()
    moved = (CALLEE[0], 55555)  # the socket that will be punched, not the registered one
    server.receive_datagram(yes(notice.mid, notice.extra.token, cands=CANDS), moved, 0.1)
    result = only(PunchResult, server.datagrams_to_send())
    assert result.extra is not None
    assert (result.code, result.extra.host, result.extra.port, result.extra.cands) == (200, *moved, CANDS)
    assert Introduced("alice", "bob", 200) in server.events()


def test_two_calls_have_two_tokens() -> None:
    server, first, _ = asked()
    server.receive_datagram(connect(mid=5), CALLER, 0.1)
    second = only(ConnectAnswer, server.datagrams_to_send())
    assert first.extra is not None
    assert second.extra is not None
    assert first.extra.token != second.extra.token


# --- refusals -------------------------------------------------------------------------------------------------------------


def test_nobody_there_is_404() -> None:
    server = broker()
    server.receive_datagram(connect("nobody"), CALLER, 0.0)
    answer = only(ConnectAnswer, server.datagrams_to_send())
    assert (answer.code, answer.extra) == (404, None)
    assert server.events() == [Introduced("alice", "nobody", 404)]


@pytest.mark.parametrize(("ltag", "wanted"), [("Alice", "bob"), ("alice", "Bob"), ("", "bob"), ("alice", "")])
def test_what_is_no_tag_is_400(ltag: str, wanted: str) -> None:
    server, _ = with_bob()
    server.receive_datagram(connect(wanted, ltag=ltag), CALLER, 0.0)
    assert only(ConnectAnswer, server.datagrams_to_send()).code == 400
    assert server.attempts == 0


def test_a_busy_server_says_when_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "ATTEMPTS_MAX", 1)
    server, _, _ = asked()
    server.receive_datagram(connect(mid=5), CALLER, 0.0)
    answer = only(ConnectAnswer, server.datagrams_to_send())
    assert answer.extra is not None
    assert (answer.code, answer.extra.retry_after > 0) == (429, True)


Call = Callable[[float], bytes]


def call_again(mid: int = 5000, host: str = CALLER[0]) -> Call:
    return lambda now: connect(mid=mid + int(now * 1000), host=host, now=now)


def refused_for(server: Broker, call: Call, at: float, source: Address = CALLER) -> float | None:
    """Make a call; return the seconds that the refusal names, None if it is let in."""
    repeated(server, at)
    server.receive_datagram(call(at), source, at)
    answer = only(ConnectAnswer, [each for each in server.datagrams_to_send() if each.destination == source])
    if answer.code == 200:
        return None
    assert answer.code == 429
    assert answer.extra is not None
    return answer.extra.retry_after


def crowd(server: Broker, count: int, *, hosts: int = 1, every: float = 0.0, wanted: int = 1, says_yes: bool = False) -> None:
    """So many calls, of that many hosts in turn, to that many peers in turn, who answer or do not."""
    for port in range(1, wanted):
        server.receive_datagram(register(f"peer-{port}"), (CALLEE[0], port + 1), 0.0)
    for n in range(count):
        host = f"198.51.100.{n % hosts}" if hosts > 1 else CALLER[0]
        name = f"peer-{n % wanted}" if n % wanted else "bob"
        server.receive_datagram(connect(name, mid=n, host=host, now=n * every), (host, CALLER[1]), n * every)
        if says_yes:
            for datagram in server.datagrams_to_send():
                if datagram.destination == CALLEE and isinstance(notice := decode(datagram.data), PunchNotice):
                    server.receive_datagram(yes(notice.mid, notice.extra.token), CALLEE, n * every)
        server.datagrams_to_send()


@pytest.mark.parametrize(
    ("crowded", "at", "longest"),
    [
        ({"count": 25, "every": 0.2, "says_yes": True}, 5.0, 13),  # one source to one peer: a few a minute
        ({"count": ATTEMPTS_OF_SOURCE_TO_CALLEE_MAX}, 0.1, 7),  # the same, as long as the callee says nothing
        ({"count": ATTEMPTS_OF_CALLEE_MAX, "hosts": ATTEMPTS_OF_CALLEE_MAX, "every": 0.1}, 3.2, 7),  # all to one peer
        ({"count": int(CALLS_PER_SECOND_OF_CALLEE), "hosts": int(CALLS_PER_SECOND_OF_CALLEE)}, 0.0, 1),  # the same, by rate
        ({"count": ATTEMPTS_OF_SOURCE_MAX, "wanted": 22}, 0.1, 62),  # one source to all peers
    ],
)
def test_who_waits_as_long_as_it_is_told_is_let_in_and_who_waits_much_less_is_not(
    crowded: dict[str, Any], at: float, longest: float
) -> None:
    def after(share: float) -> float | None:
        server, _ = with_bob()
        crowd(server, **crowded)
        told = refused_for(server, call_again(), at)
        assert told is not None
        assert 1 <= told <= longest
        return refused_for(server, call_again(), at + told * share)

    assert after(1.0) is None
    again = after(0.4)
    assert again is None or again >= 1
    assert again is not None or longest == 1


def test_of_a_busy_server_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "ATTEMPTS_MAX", 1)
    server, _, _ = asked()
    told = refused_for(server, call_again(), 3.0)
    assert told == pytest.approx(TOKEN_TTL - 3.0, abs=3)
    assert refused_for(server, call_again(), 3.0 + told / 2) is not None
    assert refused_for(server, call_again(), 3.0 + told) is None


def test_without_a_cookie_the_callee_hears_nothing() -> None:
    server, _ = with_bob()
    server.receive_datagram(connect(cookie=""), CALLER, 0.0)
    [datagram] = server.datagrams_to_send()
    assert datagram.destination == CALLER
    assert only(ConnectAnswer, [datagram]).code == 401
    assert server.attempts == 0


def test_a_no_of_the_callee_is_handed_on_cleaned() -> None:
    server, _, notice = asked()
    no = PunchAnswer(mid=notice.mid, token=notice.extra.token, code=403, em="not\x1b[31m you")
    server.receive_datagram(encode(no), CALLEE, 0.1)
    result = only(PunchResult, server.datagrams_to_send())
    assert (result.code, result.em, result.extra) == (403, "not\\x1b[31m you", None)


def test_a_yes_without_a_port_is_500() -> None:
    server, _, notice = asked()
    server.receive_datagram(encode(PunchAnswer(mid=notice.mid, token=notice.extra.token, code=200)), CALLEE, 0.1)
    assert only(PunchResult, server.datagrams_to_send()).code == 500


def long_candidates(count: int) -> tuple[Candidate, ...]:
    return tuple(Candidate("mapped", "tcp", f"2001:db8:1111:2222:3333:4444:5555:{n:04x}", 60000 + n) for n in range(count))


@pytest.mark.parametrize("direction", ["question", "answer"])
def test_nothing_is_ever_sent_that_is_longer_than_a_datagram(direction: str) -> None:
    codes: set[int] = set()
    for mid, length in enumerate(range(0, 513, 8)):
        server, _ = with_bob()
        intent = '"intent":"' + "x" * length + '",'
        if direction == "question":
            server.receive_datagram(connect(mid=mid, cands=long_candidates(8 + mid % 9)), CALLER, 0.0)
        else:
            server.receive_datagram(connect(mid=mid), CALLER, 0.0)
            notice = only(PunchNotice, server.datagrams_to_send())
            body = yes(notice.mid, notice.extra.token, cands=long_candidates(13))
            server.receive_datagram(body.replace(b'"cands"', intent.encode() + b'"cands"'), CALLEE, 0.0)
        datagrams = server.datagrams_to_send()
        assert all(len(datagram.data) <= DATAGRAM_MAX_BYTES for datagram in datagrams)
        codes |= {message.code for message in sent(datagrams) if isinstance(message, ConnectAnswer | PunchResult)}
    assert codes == {200, 413}


# --- losses -------------------------------------------------------------------------------------------------------------------


def test_two_parties_do_not_keep_all_others_from_a_callee() -> None:
    """H3: calls that it drops unanswered held all its places, at 34 datagrams in five seconds."""
    server, _ = with_bob()
    for n in range(3 * ATTEMPTS_OF_CALLEE_MAX):
        host = f"198.51.100.{n % 2}"
        server.receive_datagram(connect(mid=n, host=host), (host, 1), n / 50)
    server.datagrams_to_send()
    server.receive_datagram(connect(mid=1000, host=STRANGER[0]), STRANGER, 2.0)
    assert only(ConnectAnswer, server.datagrams_to_send()).code == 200


def test_what_gave_way_is_not_repeated_to_the_callee(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "ATTEMPTS_OF_CALLEE_MAX", 2)
    server, first, _ = asked()
    server.receive_datagram(connect(mid=5), CALLER, 0.0)
    server.datagrams_to_send()
    server.receive_datagram(connect(mid=6, host=STRANGER[0]), STRANGER, 0.0)
    server.datagrams_to_send()
    assert server.attempts == 2
    assert first.extra is not None
    token = first.extra.token.encode()
    assert not any(token in data for data in repeated(server, 3.0))
    assert Introduced("alice", "bob", 429) in server.events()


@pytest.mark.parametrize(("v", "intent"), [(1, ""), (1, "A" * 227), (0, "A" * 227), (0, "AQFk")])
def test_a_call_that_is_not_signed_holds_no_place(intent: str, v: int) -> None:
    """H3: what the callee would drop is not handed on."""
    server, _ = with_bob()
    question = decode(connect())
    assert isinstance(question, ConnectRequest)
    server.receive_datagram(encode(replace(question, extra=replace(question.extra, v=v, intent=intent))), CALLER, 0.0)
    assert only(ConnectAnswer, server.datagrams_to_send()).code == 400
    assert server.attempts == 0


def test_a_repeated_question_is_answered_from_memory_and_asked_once() -> None:
    server, answer, _ = asked()
    server.receive_datagram(connect(cands=CANDS), CALLER, 0.3)
    assert sent(server.datagrams_to_send()) == [answer]
    assert server.attempts == 1


def test_the_same_message_id_from_elsewhere_is_another_question() -> None:
    server, _, _ = asked()
    server.receive_datagram(connect(host=STRANGER[0]), STRANGER, 0.3)
    assert len(server.datagrams_to_send()) == 2
    assert server.attempts == 2


def test_memory_of_an_answer_ends() -> None:
    server, _, _ = asked()
    server.receive_datagram(connect(), CALLER, ANSWER_MEMORY + 1)
    server.datagrams_to_send()
    assert server.attempts == 2


def test_the_notice_is_repeated_until_it_is_answered() -> None:
    server, _, notice = asked()
    again = repeated(server, 0.5)
    assert again == [encode(notice)] * len(again)
    assert len(again) >= 3
    server.receive_datagram(yes(notice.mid, notice.extra.token), CALLEE, 0.6)
    server.datagrams_to_send()
    assert all(b'"t":11' in data for data in repeated(server, 2.0))


def test_the_result_is_repeated_until_it_is_acknowledged() -> None:
    server, result = answered()
    again = repeated(server, 0.5)
    assert again == [encode(result)] * len(again)
    assert len(again) >= 3
    server.receive_datagram(encode(PunchResultAck(mid=result.mid, token=result.token)), CALLER, 0.6)
    assert repeated(server, 5.0) == []


def test_a_result_that_nobody_acknowledges_is_given_up() -> None:
    server, _ = answered()
    repeated(server, TRANSACTION_TIMEOUT + 0.1)
    assert repeated(server, 50.0) == []


def test_an_acknowledgement_too_many_is_dropped() -> None:
    server, result = answered()
    acknowledged = encode(PunchResultAck(mid=result.mid, token=result.token))
    server.receive_datagram(acknowledged, CALLER, 0.6)
    server.receive_datagram(acknowledged, CALLER, 0.7)
    assert server.dropped == {"unexpected answer": 1}


def test_a_repeated_answer_makes_one_result() -> None:
    server, _, notice = asked()
    for _ in range(3):
        server.receive_datagram(yes(notice.mid, notice.extra.token), CALLEE, 0.1)
    assert len(server.datagrams_to_send()) == 1


def test_a_callee_that_does_not_answer_is_408() -> None:
    server, _, _ = asked()
    results = [data for data in repeated(server, TRANSACTION_TIMEOUT + 1.1) if b'"t":11' in data]
    assert results
    assert all(b'"code":408' in data for data in results)
    assert Introduced("alice", "bob", 408) in server.events()


def test_an_answer_after_that_is_too_late() -> None:
    server, _, notice = asked()
    repeated(server, TRANSACTION_TIMEOUT + 1.1)
    server.receive_datagram(yes(notice.mid, notice.extra.token), CALLEE, 6.2)
    assert not server.datagrams_to_send()


def test_an_attempt_is_forgotten() -> None:
    server, _ = answered()
    repeated(server, TOKEN_TTL + 1.1)
    assert server.attempts == 0


def test_an_answer_to_a_forgotten_attempt_is_dropped() -> None:
    server, _, notice = asked()
    repeated(server, TOKEN_TTL + 1.1)
    server.receive_datagram(yes(notice.mid, notice.extra.token), CALLEE, 65.0)
    assert not server.datagrams_to_send()
    assert server.dropped == {"unexpected answer": 1}


# --- forgeries ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["host", "token", "mid"])
def test_an_answer_of_somebody_else_is_dropped(what: str) -> None:
    server, _, notice = asked()
    mid = notice.mid + (what == "mid")
    token = "guess" if what == "token" else notice.extra.token
    source = STRANGER if what == "host" else CALLEE
    server.receive_datagram(yes(mid, token), source, 0.1)
    assert not server.datagrams_to_send()
    assert server.dropped == {"unexpected answer": 1}
    server.receive_datagram(yes(notice.mid, notice.extra.token), CALLEE, 0.2)
    assert only(PunchResult, server.datagrams_to_send()).code == 200


@pytest.mark.bulk
def test_message_ids_are_as_hard_to_guess_as_tokens() -> None:
    server, _ = with_bob()
    mids: set[int] = set()
    for n in range(300):
        host = f"198.51.{n // 250}.{n % 250}"
        server.receive_datagram(connect(mid=n, host=host), (host, 1), n / 10)
        notice = only(PunchNotice, server.datagrams_to_send())
        mids.add(notice.mid)
        _finish(server, notice)
    assert len(mids) == 300
    assert max(mids) > 2**51


def _finish(server: Broker, notice: PunchNotice) -> None:
    """Say yes to a notice, and acknowledge the result."""
    server.receive_datagram(yes(notice.mid, notice.extra.token), CALLEE, 0.1)
    result = only(PunchResult, server.datagrams_to_send())
    server.receive_datagram(encode(PunchResultAck(mid=result.mid, token=result.token)), CALLER, 0.2)


def test_calls_of_one_host_and_to_one_callee_are_bounded_until_they_are_over() -> None:
    server, _ = with_bob()
    notices: list[PunchNotice] = []
    for n in range(ATTEMPTS_OF_CALLEE_MAX):
        host = f"198.51.100.{n}"
        server.receive_datagram(connect(mid=n, host=host), (host, 1), n / 10)
        notices.append(only(PunchNotice, server.datagrams_to_send()))
    server.receive_datagram(connect(mid=1000), CALLER, 4.0)
    refusal = only(ConnectAnswer, server.datagrams_to_send())
    assert (refusal.code, refusal.em) == (429, "too many calls to that peer")
    _finish(server, notices[0])
    assert server.attempts == ATTEMPTS_OF_CALLEE_MAX - 1
    server.receive_datagram(connect(mid=1001), CALLER, 4.1)
    assert only(PunchNotice, server.datagrams_to_send())


def test_a_callee_that_has_answered_is_not_kept_busy_by_callers_who_acknowledge_nothing() -> None:
    server, _ = with_bob()
    for n in range(2 * ATTEMPTS_OF_CALLEE_MAX):
        host = f"198.51.100.{n}"
        server.receive_datagram(connect(mid=n, host=host), (host, 1), n / 10)
        asking = only(PunchNotice, server.datagrams_to_send())
        no = PunchAnswer(mid=asking.mid, token=asking.extra.token, code=403, em="no")
        server.receive_datagram(encode(no), CALLEE, n / 10)
        server.datagrams_to_send()
    server.receive_datagram(connect(mid=1000), CALLER, 7.0)
    assert only(PunchNotice, server.datagrams_to_send())


@pytest.mark.bulk
def test_the_networks_of_one_site_call_one_callee_at_a_rate_together() -> None:
    server, _ = with_bob()
    let_in = 0
    for n in range(600):
        now, host = n / 10, f"2001:db8:1:{n:x}::1"
        server.receive_datagram(connect(mid=n, host=host, now=now), (host, 1), now)
        let_in += any(isinstance(message, PunchNotice) for message in sent(server.datagrams_to_send()))
        server.handle_timer(now)
        server.datagrams_to_send()
    assert let_in <= SITE_FACTOR * (CALLS_BURST + CALLS_PER_MINUTE)


def test_calls_of_one_source_to_one_callee_are_a_few_a_minute() -> None:
    server, _ = with_bob()
    codes: list[int] = []
    for n in range(120):
        server.receive_datagram(connect(mid=n, now=n / 2), CALLER, n / 2)
        codes.append(only(ConnectAnswer, server.datagrams_to_send()).code)
        server.handle_timer(n / 2)
        server.datagrams_to_send()
    assert sum(code == 200 for code in codes) == pytest.approx(CALLS_BURST + CALLS_PER_MINUTE, abs=1)
    assert set(codes) == {200, 429}


def test_calls_to_one_callee_are_a_few_a_second_from_all_sources_together() -> None:
    server, _ = with_bob()
    codes: list[int] = []
    for n in range(int(3 * CALLS_PER_SECOND_OF_CALLEE)):
        host = f"198.51.100.{n}"
        server.receive_datagram(connect(mid=n, host=host), (host, 1), 0.0)
        codes.append(only(ConnectAnswer, server.datagrams_to_send()).code)
    assert codes.count(200) == CALLS_PER_SECOND_OF_CALLEE


def test_calls_of_one_host_are_bounded_whoever_they_are_for() -> None:
    server, _ = with_bob()
    tags = [f"peer-{n}" for n in range(22)]  # so many that no limit of calls to one of them is in the way
    for port, tag in enumerate(tags, 2):
        server.receive_datagram(register(tag), (CALLEE[0], port), 0.0)
    server.datagrams_to_send()
    for n in range(ATTEMPTS_OF_SOURCE_MAX):
        server.receive_datagram(connect(mid=n, wanted=tags[n % 22]), CALLER, 0.0)
        server.datagrams_to_send()
    assert server.attempts == ATTEMPTS_OF_SOURCE_MAX
    server.receive_datagram(connect(mid=1000, wanted="bob"), CALLER, 0.0)
    refusal = only(ConnectAnswer, server.datagrams_to_send())
    assert (refusal.code, refusal.em) == (429, "too many calls from there")


# --- over TCP -----------------------------------------------------------------------------------------------------------------


def test_on_tcp_the_same_lines_pass_and_nothing_is_repeated() -> None:
    server = broker()
    server.receive_line(register(), CALLEE, 1, 0.0)
    server.events()
    server.receive_line(connect(cookie=""), CALLER, 2, 0.0)
    written = server.events()
    notice = next(m for m in _lines_of(written, 1) if isinstance(m, PunchNotice))
    assert [type(m) for m in _lines_of(written, 2)] == [ConnectAnswer]
    server.receive_line(yes(notice.mid, notice.extra.token), CALLEE, 1, 0.1)
    [result] = lines(server, 2)
    assert isinstance(result, PunchResult)
    assert result.extra is not None
    assert (result.extra.host, result.extra.port) == CALLEE
    repeated(server, 4.0)
    assert lines(server, 1) == lines(server, 2) == []
    assert not server.datagrams_to_send()


def _lines_of(events: list[Event], connection: int) -> list[Message]:
    return [decode(event.line) for event in events if isinstance(event, LineToSend) and event.connection == connection]


def test_a_line_shows_nothing_of_itself() -> None:
    assert "token" not in repr(LineToSend(1, b'{"token":"secret"}'))


def test_a_callee_that_goes_in_the_middle_is_408() -> None:
    server = broker()
    server.receive_line(register(), CALLEE, 1, 0.0)
    server.receive_datagram(connect(), CALLER, 0.0)
    server.connection_closed(1)
    server.datagrams_to_send()
    assert any(b'"code":408' in data for data in repeated(server, 7.0))
