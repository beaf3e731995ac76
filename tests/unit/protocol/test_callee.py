"""The callee: the agent of one answered call, and the registered port that all calls share."""

from __future__ import annotations

import random

import pytest
from msgspec.structs import replace

from p2ptunnel.defaults import APART_CALLS_MAX, CALLS_MAX, FOUNDING_CALLS_BURST, PHASES, PLAIN_MARGIN, PUNCH_TIMEOUT, TOKEN_TTL
from p2ptunnel.errors import LocalProtocolError
from p2ptunnel.identity.keys import Identity
from p2ptunnel.protocol import intent as intents
from p2ptunnel.protocol.callee import (
    AnswerApart,
    CallAnswered,
    CalleeAgent,
    CalleePort,
    CalleeState,
    OtherPort,
    Refusal,
)
from p2ptunnel.protocol.intent import Answered
from p2ptunnel.protocol.machine import Event
from p2ptunnel.protocol.punch import ConnectionChosen, Dial, LocalView, PunchStarted, StopDialing, TakePort, phase_length
from p2ptunnel.protocol.registration import RegistrationState
from p2ptunnel.protocol.rounds import Rounds
from p2ptunnel.testing.simnet import Credentials
from p2ptunnel.types import Address, Candidate
from p2ptunnel.wire.claims import hash_claims
from p2ptunnel.wire.intent import IntentRole
from p2ptunnel.wire.intent import decode as decode_intent
from p2ptunnel.wire.intent import encode as encode_intent
from p2ptunnel.wire.keyed import KeyedReceiver
from p2ptunnel.wire.messages import (
    ConkeyExtra,
    HoleAnswer,
    HoleProbe,
    NatHints,
    Opener,
    OpenTcp,
    OpenTcpAnswer,
    OpenTcpExtra,
    PunchAnswer,
    PunchNotice,
    Register,
    RegisterAnswer,
    Signal,
    SignalAnswer,
    encode,
)
from p2ptunnel.wire.signal import Again, MoreCandidates, SignalReceiver
from tests.unit.protocol.actors import (
    ALICE,
    BOB,
    CALLEE,
    CALLER,
    EVE,
    SERVER,
    STRANGER,
    TOKEN,
    VIEW,
    by_caller,
    called_port,
    callee_port,
    event,
    judge,
    notice,
    only,
    registered_port,
    sent,
    signed_call,
    signer,
    tell,
    welcome,
)

State = CalleeState
W = phase_length(0.05, 0.05)
PROBE = HoleProbe(mid=31, token=TOKEN)
OPEN = OpenTcp(mid=32, token=TOKEN, extra=OpenTcpExtra(op=1))


def agent_for(message: PunchNotice, *, view: LocalView = VIEW) -> CalleeAgent:
    caller = (message.extra.host, message.extra.port)
    return CalleeAgent(message, caller, SERVER, view, random.Random(1), udp_port=CALLEE[1], signed=signed_call(message))


def opened(*, now: float = 0.0) -> CalleeAgent:
    agent = agent_for(notice())
    agent.start(now)
    return agent


def proven(*, view: LocalView = VIEW, low: bool = True) -> CalleeAgent:
    """An agent whose caller has shown that it holds the attempt's key."""
    agent = agent_for(notice(low=low), view=view)
    agent.start(0.0)
    tell(agent, PROBE, CALLER, 0.0)
    return agent


def chosen() -> CalleeAgent:
    agent = opened()
    agent.channel_accepted(7)
    return agent


def over() -> CalleeAgent:
    agent = opened()
    agent.handle_timer(PUNCH_TIMEOUT)
    return agent


def in_state(state: CalleeState) -> CalleeAgent:
    make = {State.IDLE: lambda: agent_for(notice()), State.OPENED: opened, State.CHOSEN: chosen, State.OVER: over}
    agent = make[state]()
    assert agent.state is state
    agent.events()
    agent.datagrams_to_send()
    return agent


def dials(agent: CalleeAgent) -> list[tuple[float, Dial]]:
    """Run the agent to its end; return each Dial with its time."""
    found: list[tuple[float, Dial]] = []
    now = 0.0
    while True:
        found += [(now, dial) for dial in agent.events() if isinstance(dial, Dial)]
        at = agent.next_deadline()
        if at is None:
            return found
        now = at
        agent.handle_timer(now)


# --- answering ------------------------------------------------------------------------------------------------------------


def test_it_opens_before_it_answers() -> None:
    agent = opened()
    started, dial = agent.events()
    assert started == PunchStarted(TOKEN, CALLER)
    assert dial == Dial(TOKEN, (CALLER,), low=True, patience=PUNCH_TIMEOUT)
    opener, answered = agent.datagrams_to_send()
    assert (sent([opener]), opener.destination, opener.opener) == ([Opener()], CALLER, True)
    assert (answered.destination, answered.opener) == (SERVER, False)


def test_its_answer_tells_the_port_and_all_it_knows_of_it() -> None:
    agent = opened()
    answer = only(PunchAnswer, agent.datagrams_to_send())
    assert (answer.mid, answer.token, answer.code) == (10, TOKEN, 200)
    assert answer.extra is not None
    assert (answer.extra.port, answer.extra.v, answer.extra.cands) == (CALLEE[1], 1, VIEW.candidates)
    assert answer.extra.nat == NatHints(low=True, rtt=50)


def test_a_caller_of_the_seed_is_answered_in_its_words_and_opened_for_once() -> None:
    agent = agent_for(notice(v=0))
    agent.start(0.0)
    answer = only(PunchAnswer, agent.datagrams_to_send())
    assert answer.extra is not None
    assert (answer.extra.port, answer.extra.v, answer.extra.cands, answer.extra.nat) == (CALLEE[1], 0, (), None)
    assert [(at, dial.low) for at, dial in dials(agent)] == [(0.0, True)]


def test_the_datagram_that_opens_dies_on_the_way_even_where_no_syn_can() -> None:
    agent = agent_for(notice(), view=LocalView((), 0.05, can_open_low=False))
    agent.start(0.0)
    [opener, _] = agent.datagrams_to_send()
    assert opener.opener


def test_the_callee_opens_first_and_each_dial_lasts_to_the_end() -> None:
    phases = dials(proven())
    assert [at for at, _ in phases] == pytest.approx([0.0, W, 2 * W])
    assert [dial.low for _, dial in phases] == [True, False, False]
    assert all(at + dial.patience == pytest.approx(PUNCH_TIMEOUT) for at, dial in phases)
    assert len(phases) == PHASES


def test_the_first_opening_datagram_dies_on_the_way_and_the_later_ones_cannot_die_too_soon() -> None:
    agent = opened()
    openers = [datagram.opener for datagram in agent.datagrams_to_send() if datagram.destination == CALLER]
    while (at := agent.next_deadline()) is not None:
        agent.handle_timer(at)
        openers += [datagram.opener for datagram in agent.datagrams_to_send()]
    assert openers == [True, False, False]


def test_a_caller_of_the_seed_gets_one_opening_datagram() -> None:
    agent = agent_for(notice(v=0))
    agent.start(0.0)
    agent.datagrams_to_send()
    while (at := agent.next_deadline()) is not None:
        agent.handle_timer(at)
    assert not agent.datagrams_to_send()


@pytest.mark.parametrize("caller_can", [True, False])
def test_a_callee_that_cannot_open_waits_until_the_callers_syn_has_left(caller_can: bool) -> None:
    phases = dials(proven(view=LocalView((), 0.1, can_open_low=False), low=caller_can))
    half = (0.1 + 0.05) / 2
    assert phases[0][0] == pytest.approx(half + PLAIN_MARGIN)
    assert not any(dial.low for _, dial in phases)
    assert len(phases) == PHASES


def test_a_caller_without_hints_is_one_that_cannot_open() -> None:
    message = PunchNotice(mid=10, extra=notice(v=0).extra.__class__(token=TOKEN, host=CALLER[0], port=CALLER[1], v=1))
    agent = agent_for(message)
    agent.start(0.0)
    tell(agent, PROBE, CALLER, 0.0)
    assert [dial.low for _, dial in dials(agent)] == [True, False, False]


def test_syns_go_to_no_other_host_than_the_notices() -> None:
    lies = (
        Candidate("srflx", "tcp", STRANGER[0], 80),
        Candidate("host", "tcp", "127.0.0.1", 22),
        Candidate("mapped", "tcp", CALLER[0], 50001),
    )
    agent = agent_for(notice(cands=lies))
    agent.start(0.0)
    assert agent.targets == ((CALLER[0], 50001),)
    assert all(dial.targets == agent.targets for _, dial in dials(agent))


# --- the conversation with the caller -------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [CALLER, (CALLER[0], 51111)])
def test_a_probe_and_a_question_are_answered_where_they_came_from(source: Address) -> None:
    agent = in_state(State.OPENED)
    tell(agent, PROBE, source, 0.1)
    tell(agent, OPEN, source, 0.1)
    probed, asked = agent.datagrams_to_send()
    assert probed.destination == asked.destination == source
    assert sent([probed]) == [HoleAnswer(mid=31, token=TOKEN)]
    answer = only(OpenTcpAnswer, [asked])
    assert answer.extra is not None
    assert (answer.mid, answer.code, answer.extra.conkey) == (32, 200, agent.conkey)


def test_a_repeated_question_gets_the_same_conkey() -> None:
    agent = in_state(State.OPENED)
    for _ in range(3):
        tell(agent, OPEN, CALLER, 0.1)
    keys = {m.extra.conkey for m in sent(agent.datagrams_to_send()) if isinstance(m, OpenTcpAnswer) and m.extra}
    assert keys == {agent.conkey}


def test_an_unknown_wish_is_refused() -> None:
    agent = in_state(State.OPENED)
    tell(agent, OpenTcp(mid=1, token=TOKEN, extra=OpenTcpExtra(op=2)), CALLER, 0.1)
    answer = only(OpenTcpAnswer, agent.datagrams_to_send())
    assert (answer.code, answer.extra) == (400, ConkeyExtra())


def test_another_host_is_not_answered() -> None:
    agent = in_state(State.OPENED)
    for message in (PROBE, OPEN):
        tell(agent, message, STRANGER, 0.1)
    assert not agent.datagrams_to_send()
    assert agent.dropped == {"another host": 2}


@pytest.mark.parametrize("state", [State.IDLE, State.CHOSEN, State.OVER])
def test_outside_its_time_nobody_is_answered(state: CalleeState) -> None:
    agent = in_state(state)
    for message in (PROBE, OPEN):
        tell(agent, message, CALLER, 0.1)
    assert not agent.datagrams_to_send()
    assert agent.state is state
    assert agent.dropped == {"attempt over": 2}


# --- the end --------------------------------------------------------------------------------------------------------------


def test_an_accepted_channel_ends_it() -> None:
    agent = in_state(State.OPENED)
    agent.channel_accepted(7)
    assert agent.events() == [ConnectionChosen(TOKEN, 7), StopDialing(TOKEN)]
    assert agent.is_over
    assert agent.next_deadline() is None


def test_time_ends_it() -> None:
    agent = in_state(State.OPENED)
    agent.handle_timer(PUNCH_TIMEOUT)
    assert agent.events() == [StopDialing(TOKEN)]
    assert agent.state is State.OVER
    assert agent.next_deadline() is None


@pytest.mark.parametrize("state", [State.IDLE, State.CHOSEN, State.OVER])
def test_a_channel_is_accepted_once_and_in_time(state: CalleeState) -> None:
    agent = in_state(state)
    with pytest.raises(LocalProtocolError, match=state.value):
        agent.channel_accepted(8)
    assert agent.state is state
    assert not agent.events()


@pytest.mark.parametrize("state", [State.OPENED, State.CHOSEN, State.OVER])
def test_it_is_started_once(state: CalleeState) -> None:
    agent = in_state(state)
    with pytest.raises(LocalProtocolError, match=state.value):
        agent.start(1.0)
    assert agent.state is state


@pytest.mark.parametrize("state", State)
def test_calling_the_timer_early_is_harmless(state: CalleeState) -> None:
    agent = in_state(state)
    agent.handle_timer(0.0)
    assert agent.state is state
    assert not agent.events()


def test_a_secret_is_in_no_event() -> None:
    agent = opened()
    agent.channel_accepted(7)
    shown = repr(agent.events())
    assert TOKEN not in shown
    assert agent.conkey not in shown


# --- the port ---------------------------------------------------------------------------------------------------------------


def test_a_port_answers_a_notice_of_its_server() -> None:
    port = callee_port()
    port.receive_datagram(encode(notice()), SERVER, 0.0)
    answered = event(CallAnswered, port.events())
    assert (answered.token, answered.caller, answered.is_seed_only) == (TOKEN, CALLER, False)
    assert answered.key == ALICE.public
    assert len(bytes.fromhex(answered.selector)) == 16
    assert [type(message) for message in sent(port.datagrams_to_send())] == [Opener, PunchAnswer]
    agent = port.agent(TOKEN)
    assert agent is not None
    assert port.agents == (agent,)


def test_a_port_that_does_not_punch_answers_its_server_and_sends_the_caller_nothing() -> None:
    port = callee_port(is_punching=False)
    port.receive_datagram(encode(notice()), SERVER, 0.0)
    assert [type(happened) for happened in port.events()] == [CallAnswered]
    [answer] = port.datagrams_to_send()
    assert (answer.destination, type(only(PunchAnswer, [answer]))) == (SERVER, PunchAnswer)
    port.handle_timer(PUNCH_TIMEOUT + 1)
    assert port.datagrams_to_send() == []
    assert port.agents == ()


def test_a_notice_of_anybody_else_is_dropped() -> None:
    port = callee_port()
    for source in (STRANGER, CALLER, (SERVER[0], SERVER[1] + 1)):
        port.receive_datagram(encode(notice()), source, 0.0)
    assert not port.events()
    assert not port.datagrams_to_send()
    assert port.dropped == {"t=10 not from our server": 3}
    assert not port.agents


def test_a_repeated_notice_is_answered_again_and_begins_nothing() -> None:
    port = called_port()
    port.receive_datagram(encode(notice()), SERVER, 0.1)
    assert [type(message) for message in sent(port.datagrams_to_send())] == [PunchAnswer]
    assert not port.events()
    assert len(port.agents) == 1


def test_a_notice_that_comes_late_begins_nothing_anew() -> None:
    port = called_port()
    port.handle_timer(PUNCH_TIMEOUT)
    assert port.events() == [StopDialing(TOKEN)]
    port.receive_datagram(encode(notice()), SERVER, TOKEN_TTL - 0.1)
    assert not port.datagrams_to_send()
    assert not port.agents
    assert port.dropped == {"attempt over": 1}


def test_a_refused_caller_is_sent_nothing() -> None:
    refusal: Refusal = (403, "not allowed")
    port = CalleePort("bob", SERVER, Credentials("k"), random.Random(1), udp_port=1, screen=lambda _: refusal, judge=judge())
    for _ in range(2):  # a lost -10 is repeated as it was
        port.receive_datagram(encode(notice()), SERVER, 0.0)
        [datagram] = port.datagrams_to_send()
        answer = only(PunchAnswer, [datagram])
        assert (datagram.destination, answer.code, answer.em, answer.extra) == (SERVER, 403, "not allowed", None)
    assert not port.events()
    assert not port.agents


def test_the_screen_sees_who_calls() -> None:
    seen: list[PunchNotice] = []
    port = CalleePort("bob", SERVER, Credentials("k"), random.Random(1), udp_port=1, screen=seen.append, judge=judge())
    message = notice()
    port.receive_datagram(encode(message), SERVER, 0.0)
    assert seen == [message]


def test_calls_at_one_time_are_bounded() -> None:
    port = callee_port()
    for n in range(CALLS_MAX + 3):
        port.receive_datagram(encode(notice(token=f"token-{n}")), SERVER, n / 10)
    assert len(port.agents) == CALLS_MAX
    codes = [message.code for message in sent(port.datagrams_to_send()) if isinstance(message, PunchAnswer)]
    assert codes == [200] * (CALLS_MAX + 3)
    assert port.dropped["call pushed out"] == 3
    port.handle_timer(2 * PUNCH_TIMEOUT)
    port.receive_datagram(encode(notice(token="one more")), SERVER, 2 * PUNCH_TIMEOUT)
    assert len(port.agents) == 1


def test_a_probe_finds_its_call_among_many() -> None:
    port = called_port()
    port.receive_datagram(encode(notice(token="other", caller=STRANGER)), SERVER, 0.0)
    port.datagrams_to_send()
    other = port.agent("other")
    assert other is not None
    port.receive_datagram(by_caller(other, HoleProbe(mid=1, token="other")), STRANGER, 0.1)
    assert sent(port.datagrams_to_send()) == [HoleAnswer(mid=1, token="other")]
    port.receive_datagram(by_caller(other, HoleProbe(mid=1, token="other")), CALLER, 0.1)
    assert not port.datagrams_to_send()


def test_a_token_that_is_not_ours_is_dropped() -> None:
    port = called_port()
    port.receive_datagram(encode(HoleProbe(mid=1, token="guess")), CALLER, 0.1)
    port.receive_datagram(encode(OpenTcp(mid=1, token="guess", extra=OpenTcpExtra(op=1))), CALLER, 0.1)
    assert not port.datagrams_to_send()
    assert port.dropped == {"unknown token": 2}


def test_an_ended_call_is_forgotten() -> None:
    port = called_port()
    agent = port.agent(TOKEN)
    assert agent is not None
    agent.channel_accepted(3)
    assert port.events() == [ConnectionChosen(TOKEN, 3), StopDialing(TOKEN)]
    assert port.agent(TOKEN) is None
    assert port.next_deadline() is None
    port.receive_datagram(encode(PROBE), CALLER, 0.2)
    assert port.dropped == {"unknown token": 1}


def test_what_is_malformed_or_foreign_is_counted() -> None:
    port = callee_port()
    port.receive_datagram(b"\xff", STRANGER, 0.0)
    port.receive_datagram(encode(Opener()), STRANGER, 0.0)
    assert port.dropped == {"malformed": 1, "unexpected message": 1}


def test_registration_and_calls_share_the_port() -> None:
    port = callee_port()
    port.registration.start(0.0)
    request = only(Register, port.datagrams_to_send())
    port.receive_datagram(encode(notice()), SERVER, 0.0)
    port.receive_datagram(encode(welcome(request)), SERVER, 0.0)
    assert port.registration.state is RegistrationState.REGISTERED
    port.datagrams_to_send()
    [agent] = port.agents
    tell(agent, PROBE, CALLER, 0.1)
    port.events()
    port.handle_timer(W)
    assert any(isinstance(happened, Dial) for happened in port.events())
    port.receive_datagram(encode(RegisterAnswer(mid=1, code=200, em="")), SERVER, W)
    assert port.registration.dropped == {"unexpected answer": 1}


def test_its_deadline_is_the_first_of_all() -> None:
    port = registered_port()
    heartbeat = port.next_deadline()
    port.receive_datagram(encode(notice()), SERVER, 0.0)
    assert heartbeat is not None
    assert heartbeat > W
    assert port.next_deadline() == pytest.approx(W)


def test_a_new_view_is_for_new_calls() -> None:
    port = called_port()
    port.view = LocalView((), 2.0, can_open_low=False)
    port.receive_datagram(encode(notice()), SERVER, 0.1)
    old = only(PunchAnswer, port.datagrams_to_send())
    port.receive_datagram(encode(notice(token="other")), SERVER, 0.1)
    new = only(PunchAnswer, port.datagrams_to_send())
    assert old.extra is not None
    assert new.extra is not None
    assert (old.extra.cands, new.extra.cands) == (VIEW.candidates, ())


# --- who calls --------------------------------------------------------------------------------------------------------------


def refused(port: CalleePort, message: PunchNotice) -> PunchAnswer:
    """The only thing that a port says to this: a no, to its server."""
    port.receive_datagram(encode(message), SERVER, 0.0)
    [datagram] = port.datagrams_to_send()
    assert datagram.destination == SERVER
    assert not port.events()
    assert not port.agents
    return only(PunchAnswer, [datagram])


def without(message: PunchNotice, **changes: object) -> PunchNotice:
    return replace(message, extra=replace(message.extra, **changes))


def by(identity: Identity, callee: Identity = BOB, *, cands: tuple[Candidate, ...] | None = None) -> PunchNotice:
    """A call of somebody's, signed."""
    genuine = notice()
    signed = genuine.extra.cands if cands is None else cands
    return without(genuine, intent=signer(identity, callee).sign(signed, genuine.extra.nat))


def test_an_admitted_caller_is_answered_with_a_signature_over_where_we_are() -> None:
    port = registered_port()
    port.datagrams_to_send()
    message = notice()
    port.receive_datagram(encode(message), SERVER, 0.0)
    answer = only(PunchAnswer, port.datagrams_to_send())
    assert answer.extra is not None
    assert answer.extra.cands == (Candidate("srflx", "udp", *CALLEE), *VIEW.candidates)
    [agent] = port.agents
    assert (agent.key, agent.is_stranger) == (ALICE.public, False)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (without(notice(), intent=""), "no intent"),
        (without(notice(), cands=()), "an address that the peer has not signed"),
        (without(notice(), host="192.0.2.1"), "an address that the peer has not signed"),
        (without(notice(), port=53), "a port below 1024"),
        (by(ALICE, cands=()), "an intent for something else"),
    ],
)
def test_what_is_no_call_of_where_it_says_is_answered_by_nothing(message: PunchNotice, reason: str) -> None:
    port = callee_port()
    port.receive_datagram(encode(message), SERVER, 0.0)
    assert not port.datagrams_to_send()
    assert not port.events()
    assert not port.agents
    assert port.dropped == {reason: 1}


@pytest.mark.parametrize("message", [by(EVE), by(ALICE, EVE)])
def test_who_is_not_known_or_wants_another_hears_the_same_no(message: PunchNotice) -> None:
    answer = refused(callee_port(), message)
    assert (answer.code, answer.em) == (403, "not known here")
    assert answer.extra is not None
    intent = decode_intent(answer.extra.intent)
    assert (intent.role, intent.key) == (IntentRole.REFUSE, BOB.public.raw)


def test_a_counter_that_is_too_low_is_told_the_highest() -> None:
    port = callee_port()
    old = notice(token="old")
    port.receive_datagram(encode(notice(token="new")), SERVER, 0.0)
    port.agents[0].give_up()
    port.events()
    port.datagrams_to_send()
    answer = refused(port, old)
    assert answer.code == 401
    assert answer.extra is not None
    assert decode_intent(answer.extra.intent).ts > decode_intent(old.extra.intent).ts


def test_the_same_call_is_let_in_once_whatever_its_token() -> None:
    port = called_port()
    message = notice(token="first")
    port.receive_datagram(encode(message), SERVER, 0.1)
    port.datagrams_to_send()
    port.events()
    for n in range(20):
        port.receive_datagram(encode(without(message, token=f"again-{n}")), SERVER, 0.2)
    assert port.dropped == {"intent repeated": 20}
    assert not port.datagrams_to_send()
    assert not port.events()


def test_a_call_whose_keys_anybody_could_know_is_answered_by_nothing() -> None:
    message = notice()
    weak = replace(decode_intent(message.extra.intent), ephemeral=bytes(32))
    weak = replace(weak, signature=ALICE.sign(intents._call_payload(bytes(32), BOB.public.raw, weak)))
    port = callee_port()
    port.receive_datagram(encode(without(message, intent=encode_intent(weak))), SERVER, 0.0)
    assert not port.datagrams_to_send()
    assert not port.agents
    assert port.dropped == {"unusable intent": 1}


def test_programs_that_sign_nothing_are_rationed() -> None:
    port = callee_port()
    for n in range(20):
        port.receive_datagram(encode(notice(token=f"raw-{n}", v=0)), SERVER, 0.0)
    assert len(port.agents) == FOUNDING_CALLS_BURST
    assert port.dropped == {"too many calls that nobody signs": 20 - FOUNDING_CALLS_BURST}
    port.receive_datagram(encode(notice(token="later", v=0)), SERVER, 1.0)
    assert len(port.agents) == FOUNDING_CALLS_BURST + 1


# --- until the caller is heard of ---------------------------------------------------------------------------------------------


def test_no_syn_gets_out_before_the_caller_has_shown_the_attempts_key() -> None:
    agent = opened()
    assert [(at, dial.low) for at, dial in dials(agent)] == [(0.0, True)]


def test_two_datagrams_of_53_bytes_get_out_before() -> None:
    agent = opened()
    datagrams = agent.datagrams_to_send()
    while (at := agent.next_deadline()) is not None:
        agent.handle_timer(at)
        datagrams += agent.datagrams_to_send()
    out = [datagram for datagram in datagrams if datagram.destination == CALLER and not datagram.opener]
    assert [len(datagram.data) for datagram in out] == [53, 53]


def test_the_one_way_in_that_the_callers_router_keeps_gets_two_more() -> None:
    named = tuple(Candidate("mapped", "udp", CALLER[0], port) for port in range(41_000, 41_015))
    agent = agent_for(notice(cands=named))
    agent.start(0.0)
    datagrams = agent.datagrams_to_send()
    while (at := agent.next_deadline()) is not None:
        agent.handle_timer(at)
        datagrams += agent.datagrams_to_send()
    out = [datagram.destination for datagram in datagrams if datagram.destination != SERVER and not datagram.opener]
    assert out == [CALLER, named[0].address] * 2


@pytest.mark.parametrize("message", [PROBE, OPEN])
def test_what_was_held_back_leaves_when_the_caller_is_heard_of(message: HoleProbe | OpenTcp) -> None:
    agent = opened()
    agent.handle_timer(W)
    assert [dial.low for dial in agent.events() if isinstance(dial, Dial)] == [True]
    tell(agent, message, CALLER, W + 0.1)
    dial = event(Dial, agent.events())
    assert (dial.low, dial.patience) == (False, pytest.approx(PUNCH_TIMEOUT - W - 0.1))
    tell(agent, message, CALLER, W + 0.2)
    assert not agent.events()


def test_a_side_that_cannot_open_sends_its_first_syn_without_waiting() -> None:
    agent = agent_for(notice(), view=LocalView((), 0.1, can_open_low=False))
    agent.start(0.0)
    assert [dial.low for _, dial in dials(agent)] == [False]


@pytest.mark.parametrize("is_replay", [False, True])
def test_what_is_not_keyed_or_comes_again_is_no_sign_of_the_caller(is_replay: bool) -> None:
    agent = in_state(State.OPENED)
    body = by_caller(agent, PROBE)
    if is_replay:
        agent.receive(PROBE, body, CALLER, 0.1)
        agent.datagrams_to_send()
    for data in ([body] * 3) if is_replay else (encode(PROBE), body[:-5] + b"AA" + body[-3:], b""):
        agent.receive(PROBE, data, CALLER, 0.1)
    assert not agent.datagrams_to_send()
    assert agent.dropped == {"replayed" if is_replay else "not keyed": 3}
    assert agent._approach._is_trusted is is_replay


def test_what_it_sends_to_the_caller_is_keyed_and_to_the_server_not() -> None:
    agent = opened()
    tell(agent, PROBE, CALLER, 0.1)
    keys = KeyedReceiver(agent._sender._key)
    for datagram in agent.datagrams_to_send():
        assert keys.open(datagram.data) is (datagram.destination == CALLER)


def test_a_signed_call_shows_neither_the_answer_nor_the_keys() -> None:
    signed = signed_call(notice())
    assert signed is not None
    assert repr(signed) == f"SignedCall({ALICE.public!r}, is_stranger=False)"


# --- burnt ports ----------------------------------------------------------------------------------------------------------

APART = OtherPort(LocalView((Candidate("srflx", "tcp", CALLEE[0], 50003),), 0.05), 40_003)


def burnt_port(host: str = CALLER[0], *, has_others: bool = True) -> CalleePort:
    """A port on which an attempt with that host has just failed."""
    rounds = Rounds()
    rounds.burn(CALLEE[1], host, 0.0)
    return callee_port(rounds=rounds, has_others=has_others)


def call(port: CalleePort, message: PunchNotice, now: float = 1.0) -> list[Event]:
    port.receive_datagram(encode(message), SERVER, now)
    return port.events()


def apart(*, now: float = 1.0) -> tuple[CalleePort, CalleeAgent]:
    """A port, and the agent of a call that it answers from another one."""
    port = burnt_port()
    call(port, notice(), now)
    agent = port.answer_apart(TOKEN, APART, now)
    assert agent is not None
    return port, agent


def test_a_call_from_a_host_for_which_the_port_is_burnt_waits_for_another_port() -> None:
    port = burnt_port()
    assert call(port, notice()) == [AnswerApart(TOKEN)]
    assert not port.datagrams_to_send()
    assert not port.agents


@pytest.mark.parametrize(
    ("port", "message", "now"),
    [
        (burnt_port("198.51.100.9"), notice(), 1.0),
        (burnt_port(has_others=False), notice(), 1.0),
        (burnt_port(), notice(v=0), 1.0),
        (burnt_port(), notice(), 130.0),
    ],
    ids=["another host", "no other port", "a program of the seed", "long ago"],
)
def test_all_others_are_answered_from_the_registered_one(port: CalleePort, message: PunchNotice, now: float) -> None:
    assert isinstance(call(port, message, now)[0], CallAnswered)
    answer = only(PunchAnswer, port.datagrams_to_send())
    assert answer.extra is not None
    assert answer.extra.port == CALLEE[1]
    assert port.answer_apart(TOKEN, APART, now) is None


def test_a_call_that_got_another_port_has_a_machine_of_its_own_there() -> None:
    port, agent = apart()
    assert agent.is_apart
    assert port.agents == (agent,)
    assert isinstance(event(CallAnswered, port.events()), CallAnswered)
    assert not port.datagrams_to_send()
    answer = only(PunchAnswer, agent.datagrams_to_send())
    assert answer.extra is not None
    assert (answer.extra.port, answer.extra.cands) == (APART.number, APART.view.candidates)
    assert event(Dial, agent.events()).low
    tell_by_datagram(agent, 1.1)
    assert isinstance(only(HoleAnswer, agent.datagrams_to_send()), HoleAnswer)
    agent.handle_timer(1.0 + PUNCH_TIMEOUT)
    port.handle_timer(1.0 + PUNCH_TIMEOUT)
    assert not port.agents


def tell_by_datagram(agent: CalleeAgent, now: float) -> None:
    agent.receive_datagram(by_caller(agent, PROBE), CALLER, now)


def test_what_it_signs_there_is_where_it_is() -> None:
    message = notice()
    port = burnt_port()
    call(port, message)
    agent = port.answer_apart(TOKEN, APART, 1.0)
    assert agent is not None
    answer = only(PunchAnswer, agent.datagrams_to_send())
    assert answer.extra is not None
    claims = hash_claims(APART.view.candidates, APART.view.hints)
    assert decode_intent(answer.extra.intent).claims == claims


def test_where_no_port_is_to_be_had_the_registered_one_must_do() -> None:
    port = burnt_port()
    call(port, notice())
    assert port.answer_apart(TOKEN, None, 1.0) is None
    answer = only(PunchAnswer, port.datagrams_to_send())
    assert answer.extra is not None
    assert answer.extra.port == CALLEE[1]


@pytest.mark.parametrize("times", [1, 5])
def test_a_call_that_waits_waits_once_however_often_it_is_repeated(times: int) -> None:
    port, message = burnt_port(), notice()
    call(port, message)
    assert [happened for _ in range(times) for happened in call(port, message)] == []
    assert port.answer_apart(TOKEN, APART, 1.0) is not None
    assert port.answer_apart(TOKEN, APART, 1.0) is None


def test_a_call_that_is_repeated_later_is_answered_again_from_there() -> None:
    port, agent = apart()
    agent.datagrams_to_send()
    port.events()
    assert call(port, notice()) == [AnswerApart(TOKEN)]
    assert not port.datagrams_to_send()
    assert isinstance(only(PunchAnswer, agent.datagrams_to_send()), PunchAnswer)


def test_so_many_calls_have_ports_of_their_own_at_one_time() -> None:
    port = burnt_port()
    for n in range(APART_CALLS_MAX):
        assert call(port, notice(token=f"{n:032x}")) == [AnswerApart(f"{n:032x}")]
        assert port.answer_apart(f"{n:032x}", APART, 1.0) is not None
        port.events()
    assert isinstance(call(port, notice())[0], CallAnswered)
    port.datagrams_to_send()
    for agent in port.agents[:-1]:
        agent.handle_timer(1.0 + PUNCH_TIMEOUT)
    assert call(port, notice(token="f" * 32), 2.0) == [AnswerApart("f" * 32)]


@pytest.mark.parametrize("source", [STRANGER, CALLER])
def test_on_a_port_of_its_own_signals_count_from_the_server_only(source: Address) -> None:
    _, agent = apart()
    agent.receive_datagram(encode(SignalAnswer(mid=1, code=200, em="")), source, 1.0)
    agent.receive_datagram(encode(replace(PROBE, token="0" * 32)), CALLER, 1.0)
    agent.receive_datagram(encode(notice()), source, 1.0)
    agent.receive_datagram(b"?", source, 1.0)
    assert agent.dropped == {"unexpected message": 3, "malformed": 1}


def test_an_answer_to_no_signal_is_dropped_there_too() -> None:
    _, agent = apart()
    agent.receive_datagram(encode(SignalAnswer(mid=1, code=200, em="")), SERVER, 1.0)
    assert agent.dropped == {"unexpected answer": 1}


@pytest.mark.parametrize("is_heard", [True, False])
def test_an_attempt_that_its_caller_made_in_vain_burns_the_port(is_heard: bool) -> None:
    rounds = Rounds()
    port = callee_port(rounds=rounds)
    call(port, notice(), 0.0)
    [agent] = port.agents
    if is_heard:
        tell(agent, PROBE, CALLER, 0.1)
    port.handle_timer(PUNCH_TIMEOUT)
    assert rounds.is_burnt(CALLEE[1], CALLER[0], PUNCH_TIMEOUT) is is_heard


def test_one_that_came_to_a_channel_burns_nothing() -> None:
    rounds = Rounds()
    port = callee_port(rounds=rounds)
    call(port, notice(), 0.0)
    [agent] = port.agents
    tell(agent, PROBE, CALLER, 0.1)
    agent.channel_accepted(1)
    port.handle_timer(PUNCH_TIMEOUT)
    assert not rounds.is_number_burnt(CALLEE[1], PUNCH_TIMEOUT)


# --- more ways in, and a second round -------------------------------------------------------------------------------------


def heard(port: CalleePort, ear: SignalReceiver) -> list[object]:
    """What the caller hears from it through the server."""
    return [ear.open(said.extra.sealed) for said in sent(port.datagrams_to_send()) if isinstance(said, Signal)]


def called(rounds: Rounds | None = None) -> tuple[CalleePort, CalleeAgent, SignalReceiver]:
    """A port with one call, its agent, and what its caller hears with."""
    port, signs = callee_port(rounds=rounds), signer()
    cands = (Candidate("srflx", "udp", *CALLER),)
    nat = NatHints(low=True, rtt=50)
    extra = replace(notice().extra, intent=signs.sign(cands, nat), cands=cands, nat=nat)
    port.receive_datagram(encode(PunchNotice(mid=10, extra=extra)), SERVER, 0.0)
    answer = only(PunchAnswer, port.datagrams_to_send())
    assert answer.extra is not None
    answered = signs.judge(answer.extra.intent, answer.extra.cands, answer.extra.nat)
    assert isinstance(answered, Answered)
    [agent] = port.agents
    port.events()
    return port, agent, SignalReceiver(answered.keys.callee_seal)


MAPPED = Candidate("mapped", "tcp", CALLEE[0], 51_000)


def test_calls_under_way_are_told_of_a_way_in_that_turns_up() -> None:
    port, _, ear = called()
    port.view_changed(replace(VIEW, candidates=(*VIEW.candidates, MAPPED)), 0.1)
    assert heard(port, ear) == [MoreCandidates(cands=(MAPPED,))]
    assert MAPPED in port.view.candidates
    port.view_changed(replace(VIEW, candidates=(*VIEW.candidates, MAPPED)), 0.2)
    assert heard(port, ear) == []


def test_a_call_on_a_port_of_its_own_is_told_of_none_of_another() -> None:
    port, agent = apart()
    agent.datagrams_to_send()
    port.view_changed(replace(VIEW, candidates=(MAPPED,)), 1.1)
    assert not agent.datagrams_to_send()


def test_a_port_that_is_lost_is_replaced_and_both_are_burnt_if_nothing_comes_of_it() -> None:
    rounds = Rounds()
    port, agent, ear = called(rounds)
    agent.port_lost(0.1)
    event(TakePort, port.events())
    agent.port_taken(APART.number, APART.view.candidates, 0.2)
    assert heard(port, ear) == [Again(round=1, cands=APART.view.candidates)]
    tell(agent, PROBE, CALLER, 0.3)
    port.handle_timer(PUNCH_TIMEOUT)
    assert all(rounds.is_burnt(number, CALLER[0], PUNCH_TIMEOUT) for number in (CALLEE[1], APART.number))
