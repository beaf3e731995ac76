"""The two agents of an attempt and QUIC: what they say of themselves, when the caller turns to it, with which keys they ask."""

from __future__ import annotations

import random

import pytest
from msgspec.structs import replace

from p2ptunnel.defaults import PHASES, PUNCH_TIMEOUT
from p2ptunnel.errors import LocalProtocolError
from p2ptunnel.protocol.callee import CalleeAgent
from p2ptunnel.protocol.caller import CallerAgent
from p2ptunnel.protocol.detour import OpenQuic, QuicRuledOut
from p2ptunnel.protocol.punch import CallFailed, LocalView, phase_length
from p2ptunnel.wire.messages import ConsentCheck, HoleProbe, NatHints, PunchAnswer, decode
from tests.unit.protocol.actors import (
    CALLEE,
    CALLER,
    HINTS,
    SERVER,
    TOKEN,
    VIEW,
    asking,
    event,
    hear,
    hole_answer,
    notice,
    offer,
    only,
    punching,
    result,
    signed_call,
)

AFTER_PHASES = PHASES * phase_length(0.05, 0.05)


def caller(*, ours: bool = True, theirs: bool = True) -> CallerAgent:
    """A caller that punches at 0.0; both sides can QUIC unless it is said otherwise."""
    agent, question = asking()
    agent._view = replace(agent._view, can_quic=ours)
    agent.receive_datagram(offer(question), SERVER, 0.0)
    agent.receive_datagram(result(agent, nat=replace(HINTS, quic=theirs)), SERVER, 0.0)
    agent.events()
    return agent


def through(agent: CallerAgent, now: float) -> CallerAgent:
    """Have the hole opened; the conkey is the attempt's, which both sides know."""
    hear(agent, hole_answer(only(HoleProbe, agent.datagrams_to_send())), CALLEE, now)
    return agent


def wanted(agent: CallerAgent) -> list[OpenQuic]:
    """What is to be asked for."""
    assert agent._conkey is not None
    return [OpenQuic(TOKEN, CALLEE, agent._conkey)]


def requests(agent: CallerAgent) -> list[OpenQuic]:
    return [happened for happened in agent.events() if isinstance(happened, OpenQuic)]


def callee(*, ours: bool = True, theirs: bool = True) -> CalleeAgent:
    called = notice()
    called = replace(called, extra=replace(called.extra, nat=NatHints(low=True, rtt=50, quic=theirs)))
    view = replace(VIEW, can_quic=ours)
    return CalleeAgent(called, CALLER, SERVER, view, random.Random(2), udp_port=40002, signed=signed_call(called))


def test_a_view_that_can_says_so_and_one_that_cannot_says_nothing() -> None:
    assert LocalView(can_quic=True).hints == NatHints(low=True, quic=True)
    agent = callee()
    agent.start(0.0)
    answer = only(PunchAnswer, agent.datagrams_to_send())
    assert answer.extra is not None
    assert answer.extra.nat is not None
    assert answer.extra.nat.quic is True


def test_quic_is_turned_to_after_the_phases() -> None:
    agent = through(caller(), 0.1)
    assert requests(agent) == []
    while (now := agent.next_deadline()) is not None and now < AFTER_PHASES:
        agent.handle_timer(now)
        assert requests(agent) == []
    assert now == pytest.approx(AFTER_PHASES)
    agent.handle_timer(AFTER_PHASES)
    assert requests(agent) == wanted(agent)


def test_a_hole_that_opens_late_is_used_at_once() -> None:
    agent = through(caller(), AFTER_PHASES + 0.5)
    assert requests(agent) == wanted(agent)


def test_where_no_side_lets_simultaneous_open_through_nobody_waits() -> None:
    agent = caller()
    agent._detour.start(NatHints(quic=True, crosses=False), NatHints(quic=True, crosses=False), 0.0)
    through(agent, 0.1)
    assert requests(agent) == wanted(agent)


@pytest.mark.parametrize(("ours", "theirs", "who"), [(False, True, "this side"), (True, False, "the other side")])
def test_where_one_side_cannot_it_is_not_turned_to(ours: bool, theirs: bool, who: str) -> None:
    agent = through(caller(ours=ours, theirs=theirs), AFTER_PHASES)
    assert event(QuicRuledOut, agent.events()).reason == f"not tried: {who} lacks the extra `quic`"


def test_a_connection_by_quic_is_nominated_like_any_other() -> None:
    agent = through(caller(), AFTER_PHASES)
    agent.events()
    agent.connection_up(1, AFTER_PHASES + 0.1)
    assert [type(happened).__name__ for happened in agent.events()] == ["Nominate"]
    agent.channel_failed(AFTER_PHASES + 0.2)
    while (now := agent.next_deadline()) is not None:
        agent.handle_timer(now)
    happened = agent.events()
    assert event(CallFailed, happened).kind == "timeout"
    assert not any(isinstance(each, OpenQuic) for each in happened)


def test_a_call_that_is_over_turns_to_nothing() -> None:
    agent = through(caller(), 0.1)
    while (now := agent.next_deadline()) is not None and now < AFTER_PHASES:
        agent.handle_timer(now)
    agent._finish()
    agent.events()
    assert agent.next_deadline() is None
    agent.handle_timer(PUNCH_TIMEOUT)
    assert requests(agent) == []


def test_a_program_of_the_founding_protocol_hears_nothing_of_it() -> None:
    agent = punching(raw=True)
    assert not any(isinstance(happened, OpenQuic | QuicRuledOut) for happened in agent.events())
    with pytest.raises(LocalProtocolError, match="no key to ask for consent with"):
        agent.consent(CALLEE)


@pytest.mark.parametrize(("ours", "theirs"), [(True, True), (True, False), (False, True)])
def test_a_callee_expects_it_where_both_can(ours: bool, theirs: bool) -> None:
    assert callee(ours=ours, theirs=theirs).expects_quic is (ours and theirs)


def test_consent_is_keyed_like_all_else_of_the_attempt() -> None:
    agent = callee()
    asks = agent.consent()
    assert (asks.remote, asks.token) == (CALLER, TOKEN)
    asks.start(0.0)
    asks.handle_timer(6.0)
    [question] = asks.datagrams_to_send()
    message = decode(question.data)
    assert isinstance(message, ConsentCheck)
    stranger = caller().consent(CALLEE)
    stranger.receive(message, question.data, CALLEE, 6.0)
    assert stranger.dropped == {"not keyed": 1}  # by the callee of another attempt
    assert stranger.datagrams_to_send() == []
