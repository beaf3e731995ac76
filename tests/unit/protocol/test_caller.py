"""The caller's agent: what each message, each silence and each connection does in each state."""

from __future__ import annotations

import json
import random

import pytest
from msgspec.structs import replace

from p2ptunnel.defaults import COOKIELESS_PAD_BYTES, PHASES, PUNCH_TIMEOUT, TRANSACTION_TIMEOUT
from p2ptunnel.errors import LocalProtocolError
from p2ptunnel.identity.keys import Identity
from p2ptunnel.protocol.caller import CallerAgent, CallerState
from p2ptunnel.protocol.intent import Call, CallSigner, CallVerdict
from p2ptunnel.protocol.punch import (
    AnswerProved,
    CallFailed,
    CallOffered,
    ConnectionChosen,
    Dial,
    HoleOpened,
    LocalView,
    Nominate,
    PunchStarted,
    StopDialing,
    TakePort,
    phase_length,
)
from p2ptunnel.protocol.rounds import Rounds
from p2ptunnel.types import Address, Candidate
from p2ptunnel.wire.intent import COUNTER_END
from p2ptunnel.wire.intent import decode as decode_intent
from p2ptunnel.wire.keyed import KeyedSender
from p2ptunnel.wire.messages import (
    ConnectAnswer,
    ConnectAnswerExtra,
    ConnectRequest,
    HoleProbe,
    NatHints,
    Opener,
    OpenTcp,
    OpenTcpExtra,
    PunchNotice,
    PunchNoticeExtra,
    PunchResult,
    PunchResultAck,
    PunchResultExtra,
    Signal,
    decode,
    encode,
)
from tests.unit.protocol.actors import (
    ALICE,
    BOB,
    CALLEE,
    CALLER,
    CONKEY,
    EVE,
    SERVER,
    STRANGER,
    TOKEN,
    asking,
    asks_for_conkey,
    conkey_answer,
    conkey_of,
    event,
    hear,
    hole_answer,
    judge,
    knows_conkey,
    nominating,
    offer,
    offered,
    only,
    punching,
    result,
    sent,
    signer,
)

State = CallerState
W = phase_length(0.05, 0.05)


def idle() -> CallerAgent:
    return CallerAgent("alice", "bob", SERVER, LocalView(), random.Random(1), signer=signer())


def connected() -> CallerAgent:
    agent = nominating()
    agent.channel_up(0.0)
    return agent


def failed() -> CallerAgent:
    agent, question = asking()
    agent.receive_datagram(offer(question, code=404), SERVER, 0.0)
    return agent


def in_state(state: CallerState) -> CallerAgent:
    make = {
        State.IDLE: idle,
        State.ASKING: lambda: asking()[0],
        State.OFFERED: offered,
        State.PUNCHING: punching,
        State.NOMINATING: nominating,
        State.CONNECTED: connected,
        State.FAILED: failed,
    }
    agent = make[state]()
    assert agent.state is state
    agent.events()
    agent.datagrams_to_send()
    return agent


def is_quiet(agent: CallerAgent) -> bool:
    return not agent.datagrams_to_send() and not agent.events()


def is_over(agent: CallerAgent) -> bool:
    return agent.next_deadline() is None and len(agent._requester) == 0


# --- asking -------------------------------------------------------------------------------------------------------------


def test_it_asks_with_all_it_knows_of_its_port() -> None:
    _, question = asking()
    assert (question.ltag, question.extra.rtag, question.extra.v, question.extra.cookie) == ("alice", "bob", 1, "cookie")
    assert question.extra.cands == (Candidate("srflx", "tcp", "198.51.100.1", 50001),)
    assert question.extra.nat == NatHints(low=True, rtt=50)


def test_a_cookieless_question_is_padded() -> None:
    agent = idle()
    agent.start(0.0)
    [datagram] = agent.datagrams_to_send()
    assert len(datagram.data) >= COOKIELESS_PAD_BYTES


def test_a_raw_question_is_the_seeds() -> None:
    _, question = asking(raw=True, cookie="")
    assert (question.extra.v, question.extra.cookie, question.extra.cands, question.extra.nat) == (0, "", (), None)


@pytest.mark.parametrize("raw", [False, True])
def test_a_challenge_is_met_with_its_cookie(raw: bool) -> None:
    agent, question = asking(cookie="", raw=raw)
    challenge = ConnectAnswer(mid=question.mid, code=401, em="cookie", extra=ConnectAnswerExtra(cookie="fresh"))
    agent.receive_datagram(encode(challenge), SERVER, 0.1)
    again = only(ConnectRequest, agent.datagrams_to_send())
    assert again.extra.cookie == "fresh"
    assert again.mid != question.mid
    assert (agent.state, len(agent._requester)) == (State.ASKING, 1)


def test_endless_challenges_end_the_call() -> None:
    agent, question = asking()
    for _ in range(3):
        extra = ConnectAnswerExtra(cookie="fresh")
        agent.receive_datagram(encode(ConnectAnswer(mid=question.mid, code=401, em="no", extra=extra)), SERVER, 0.1)
        question = next((m for m in sent(agent.datagrams_to_send()) if isinstance(m, ConnectRequest)), question)
    assert event(CallFailed, agent.events()) == CallFailed("refused", 401, "no")
    assert is_over(agent)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (404, "offline"),
        (429, "rate-limited"),
        (403, "refused"),
        (413, "refused"),
        (500, "refused"),
        (401, "refused"),
        (0, "refused"),
    ],
)
def test_a_refusal_ends_the_call(code: int, kind: str) -> None:
    agent, question = asking()
    extra = ConnectAnswerExtra(retry_after=7.0) if code == 429 else None
    agent.receive_datagram(encode(ConnectAnswer(mid=question.mid, code=code, em="be\tcause", extra=extra)), SERVER, 0.1)
    failure, stop = agent.events()
    assert isinstance(failure, CallFailed)
    assert (failure.kind, failure.code, failure.text) == (kind, code, "be\\x09cause")
    assert failure.retry_after == (7.0 if code == 429 else 0.0)
    assert isinstance(stop, StopDialing)
    assert is_over(agent)


def test_an_offer_without_a_token_is_none() -> None:
    agent, question = asking()
    agent.receive_datagram(encode(ConnectAnswer(mid=question.mid, code=200, em="")), SERVER, 0.1)
    assert event(CallFailed, agent.events()).kind == "refused"


def test_a_silent_server_ends_the_call() -> None:
    agent, _ = asking(now=5.0)
    agent.handle_timer(5.0 + TRANSACTION_TIMEOUT)
    assert event(CallFailed, agent.events()).kind == "rendezvous-silent"
    assert is_over(agent)


def test_a_result_that_overtakes_the_offer_waits_for_it() -> None:
    agent, question = asking()
    agent.receive_datagram(result(agent), SERVER, 0.1)
    assert is_quiet(agent)  # not even acknowledged: the server repeats it, should it be forgotten
    assert agent.state is State.ASKING
    agent.receive_datagram(offer(question), SERVER, 0.2)
    assert agent.state is State.PUNCHING
    assert only(PunchResultAck, agent.datagrams_to_send()).token == TOKEN


@pytest.mark.parametrize("code", [200, 403])
def test_a_result_of_an_earlier_attempt_is_not_taken_for_ours(code: int) -> None:
    agent, question = asking()
    agent.receive_datagram(result(agent, token="an earlier one", code=code), SERVER, 0.1)
    agent.receive_datagram(offer(question), SERVER, 0.2)
    assert (agent.state, agent.token) == (State.OFFERED, TOKEN)
    assert agent.events() == [CallOffered(TOKEN)]
    agent.receive_datagram(result(agent), SERVER, 0.3)
    assert agent.state is State.PUNCHING


# --- the callee's answer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "kind"), [(403, "refused"), (408, "timeout"), (429, "refused"), (500, "refused")])
def test_a_callee_that_does_not_answer_yes_is_sent_nothing(code: int, kind: str) -> None:
    agent = offered()
    agent.receive_datagram(result(agent, code=code), SERVER, 0.1)
    failure = event(CallFailed, agent.events())
    assert (failure.kind, failure.code) == (kind, code)
    assert {datagram.destination for datagram in agent.datagrams_to_send()} == {SERVER}
    assert is_over(agent)


def test_a_yes_without_an_address_is_none() -> None:
    agent = offered()
    agent.receive_datagram(b'{"t":11,"mid":1,"token":"%s","code":200,"em":"","extra":null}' % TOKEN.encode(), SERVER, 0.1)
    assert event(CallFailed, agent.events()).code == 200


def test_a_yes_begins_everything_at_once() -> None:
    agent = punching(now=1.0, cands=(Candidate("srflx", "tcp", CALLEE[0], 50002),))
    offer_, proof, started, dial = agent.events()
    assert offer_ == CallOffered(TOKEN)
    assert isinstance(proof, AnswerProved)
    assert (proof.key, len(bytes.fromhex(proof.selector))) == (BOB.public, 16)
    assert started == PunchStarted(TOKEN, CALLEE)
    assert dial == Dial(TOKEN, ((CALLEE[0], 50002),), low=False, patience=PUNCH_TIMEOUT)
    acknowledged, probe, told = agent.datagrams_to_send()
    assert [type(message) for message in sent([acknowledged, probe, told])] == [PunchResultAck, HoleProbe, Signal]
    assert [acknowledged.destination, probe.destination, told.destination] == [SERVER, CALLEE, SERVER]


def test_what_the_callees_router_keeps_open_is_asked_and_connected_to_as_well() -> None:
    kept: Address = (CALLEE[0], 41_000)
    agent = punching(cands=(Candidate("mapped", "tcp", *kept), Candidate("mapped", "udp", *kept)))
    assert event(Dial, agent.events()).targets == (kept,)
    to_callee = [datagram for datagram in agent.datagrams_to_send() if datagram.destination != SERVER]
    asked = [(datagram.destination, type(decode(datagram.data))) for datagram in to_callee]
    assert asked == [(CALLEE, HoleProbe), (kept, HoleProbe)]
    agent.connection_up(1, 0.2)
    assert event(Nominate, agent.events()).connection == 1


def test_the_selector_is_shown_to_nobody() -> None:
    agent = punching()
    proof = event(AnswerProved, agent.events())
    assert proof.selector not in repr(proof)
    assert set(proof.facts()) == {"key"}


def test_who_does_not_punch_learns_who_answers_and_sends_nothing_there() -> None:
    agent = punching(is_punching=False)
    assert [type(happened) for happened in agent.events()] == [CallOffered, AnswerProved]
    assert {datagram.destination for datagram in agent.datagrams_to_send()} == {SERVER}
    agent.handle_timer(PUNCH_TIMEOUT + 1)
    assert event(CallFailed, agent.events()).text == "nothing came over the relay"


def test_a_callee_of_the_seed_is_asked_one_thing_after_the_other() -> None:
    agent = punching(raw=True)
    [*_, probe] = sent(agent.datagrams_to_send())
    assert isinstance(probe, HoleProbe)
    hear(agent, hole_answer(probe), CALLEE, 0.1)
    assert only(OpenTcp, agent.datagrams_to_send())


@pytest.mark.parametrize("state", [State.PUNCHING, State.NOMINATING, State.CONNECTED])
def test_a_repeated_result_is_acknowledged_and_nothing_else(state: CallerState) -> None:
    agent = in_state(state)
    deadline = agent.next_deadline()
    agent.receive_datagram(result(agent), SERVER, 0.1)
    assert only(PunchResultAck, agent.datagrams_to_send()).mid == 11
    assert not agent.events()
    assert (agent.state, agent.next_deadline()) == (state, deadline)
    assert sum(agent.dropped.values()) == 1


def test_a_result_of_another_attempt_is_dropped() -> None:
    agent = offered()
    agent.receive_datagram(result(agent, token="another"), SERVER, 0.1)
    assert not agent.datagrams_to_send()
    assert agent.state is State.OFFERED
    assert agent.dropped == {"result of another attempt": 1}


def test_a_callee_that_is_never_heard_of_ends_the_call() -> None:
    agent = offered(now=3.0)
    agent.handle_timer(3.0 + PUNCH_TIMEOUT)
    assert event(CallFailed, agent.events()).kind == "timeout"
    assert is_over(agent)


# --- phases -------------------------------------------------------------------------------------------------------------


def dials(agent: CallerAgent) -> list[tuple[float, Dial]]:
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


def test_the_caller_opens_in_the_second_phase_and_each_dial_lasts_to_the_end() -> None:
    phases = dials(punching())
    assert [at for at, _ in phases] == pytest.approx([0.0, W, 2 * W])
    assert [dial.low for _, dial in phases] == [False, True, False]
    assert all(at + dial.patience == pytest.approx(PUNCH_TIMEOUT) for at, dial in phases)
    assert len(phases) == PHASES


def test_a_callee_that_cannot_open_is_opened_for() -> None:
    agent = offered()
    agent.receive_datagram(result(agent, nat=NatHints(low=False, rtt=50)), SERVER, 0.0)
    assert [dial.low for _, dial in dials(agent)] == [True, False, False]


def test_for_a_callee_of_the_seed_nothing_is_opened() -> None:
    assert [dial.low for _, dial in dials(punching(raw=True))] == [False, False, False]


def test_no_phase_begins_while_a_connection_is_tried() -> None:
    agent = nominating()
    agent.handle_timer(W)
    assert not any(isinstance(dial, Dial) for dial in agent.events())
    agent.channel_failed(2 * W)
    agent.handle_timer(2 * W)
    assert event(Dial, agent.events()).low


# --- hole and conkey ----------------------------------------------------------------------------------------------------


def test_an_answered_probe_tells_the_round_trip() -> None:
    agent = punching(now=1.0)
    probe = only(HoleProbe, agent.datagrams_to_send())
    agent.events()
    hear(agent, hole_answer(probe), CALLEE, 1.08)
    assert agent.events() == [HoleOpened(TOKEN, CALLEE, pytest.approx(0.08))]
    assert not agent.datagrams_to_send()


def test_a_repeated_probe_measures_nothing() -> None:
    agent = punching()
    probe = only(HoleProbe, agent.datagrams_to_send())
    agent.handle_timer(0.2)
    hear(agent, hole_answer(probe), CALLEE, 0.25)
    assert event(HoleOpened, agent.events()).rtt is None


def test_a_hole_at_another_port_is_used_there() -> None:
    agent = punching(raw=True)
    hear(agent, hole_answer(only(HoleProbe, agent.datagrams_to_send())), (CALLEE[0], 51111), 0.1)
    [question] = agent.datagrams_to_send()
    assert question.destination == (CALLEE[0], 51111)
    hear(agent, conkey_answer(only(OpenTcp, [question])), (CALLEE[0], 51111), 0.11)
    agent.connection_up(1, 0.12)
    assert event(Nominate, agent.events()).conkey == CONKEY
    assert len(agent._requester) == 0


def test_a_signed_call_asks_for_no_conkey() -> None:
    agent = punching()
    hear(agent, hole_answer(only(HoleProbe, agent.datagrams_to_send())), (CALLEE[0], 51111), 0.1)
    assert not agent.datagrams_to_send()


@pytest.mark.parametrize(("source", "token"), [(STRANGER, TOKEN), (SERVER, TOKEN), (CALLEE, "another"), (STRANGER, "another")])
def test_answers_of_others_change_nothing(source: tuple[str, int], token: str) -> None:
    agent, question = asks_for_conkey()
    hear(agent, hole_answer(HoleProbe(mid=31, token=TOKEN), token=token), source, 0.1)
    hear(agent, conkey_answer(question).replace(TOKEN.encode(), token.encode()), source, 0.1)
    agent.connection_up(1, 0.1)
    assert is_quiet(agent)
    assert agent.state is State.PUNCHING
    assert sum(agent.dropped.values()) == 2


def test_a_guess_at_a_message_id_is_dropped() -> None:
    agent = punching()
    agent.datagrams_to_send()
    agent.events()
    hear(agent, hole_answer(HoleProbe(mid=1, token=TOKEN)), CALLEE, 0.1)
    agent.receive_datagram(encode(ConnectAnswer(mid=1, code=404, em="")), SERVER, 0.1)
    assert is_quiet(agent)
    assert agent.dropped == {"unexpected answer": 2}


def test_a_callee_that_refuses_a_connection_ends_the_call() -> None:
    agent, question = asks_for_conkey()
    hear(agent, conkey_answer(question, code=403), CALLEE, 0.1)
    assert event(CallFailed, agent.events()).code == 403


def test_duplicates_of_answers_are_dropped() -> None:
    agent = punching(raw=True)
    probed = hole_answer(only(HoleProbe, agent.datagrams_to_send()))
    hear(agent, probed, CALLEE, 0.1)
    asked = conkey_answer(only(OpenTcp, agent.datagrams_to_send()))
    hear(agent, asked, CALLEE, 0.1)
    agent.events()
    for body in (probed, asked):
        hear(agent, body, CALLEE, 0.2)
        assert is_quiet(agent)
    assert agent.dropped == {"unexpected answer": 2}


def test_an_opening_datagram_from_another_port_of_the_callee_is_followed_once() -> None:
    agent = punching()
    agent.datagrams_to_send()
    for port in (51111, 51112):
        hear(agent, encode(Opener()), (CALLEE[0], port), 0.1)
    datagrams = agent.datagrams_to_send()
    assert {datagram.destination for datagram in datagrams} == {(CALLEE[0], 51111)}
    hear(agent, hole_answer(only(HoleProbe, datagrams)), (CALLEE[0], 51111), 0.2)
    assert event(HoleOpened, agent.events()).remote == (CALLEE[0], 51111)
    assert len(agent._requester) == 0
    assert not agent.datagrams_to_send()


def test_of_a_callee_of_the_seed_it_is_probed_first() -> None:
    agent = punching(raw=True)
    agent.datagrams_to_send()
    hear(agent, encode(Opener()), (CALLEE[0], 51111), 0.1)
    assert [type(message) for message in sent(agent.datagrams_to_send())] == [HoleProbe]


@pytest.mark.parametrize("source", [CALLEE, STRANGER, SERVER, (STRANGER[0], CALLEE[1])])
def test_an_opening_datagram_from_elsewhere_is_not_followed(source: tuple[str, int]) -> None:
    agent = punching()
    agent.datagrams_to_send()
    hear(agent, encode(Opener()), source, 0.1)
    assert not agent.datagrams_to_send()


@pytest.mark.parametrize("state", [state for state in State if state is not State.PUNCHING])
def test_outside_punching_no_opening_datagram_is_followed(state: CallerState) -> None:
    agent = in_state(state)
    deadline = agent.next_deadline()
    hear(agent, encode(Opener()), (CALLEE[0], 51111), 0.1)
    assert is_quiet(agent)
    assert (agent.state, agent.next_deadline()) == (state, deadline)


# --- connections ----------------------------------------------------------------------------------------------------------


def test_a_connection_waits_for_the_conkey_of_a_program_of_the_seed() -> None:
    agent, question = asks_for_conkey()
    agent.connection_up(7, 0.1)
    assert agent.state is State.PUNCHING
    hear(agent, conkey_answer(question), CALLEE, 0.2)
    assert event(Nominate, agent.events()) == Nominate(7, CONKEY)
    assert agent.state is State.NOMINATING


def test_a_signed_call_waits_for_nothing_but_a_connection() -> None:
    agent = knows_conkey()
    agent.connection_up(7, 0.1)
    assert agent.events() == [Nominate(7, conkey_of(agent))]


def test_connections_are_tried_one_after_the_other() -> None:
    agent = knows_conkey()
    conkey = conkey_of(agent)
    for connection in (1, 2, 3):
        agent.connection_up(connection, 0.1)
    assert agent.events() == [Nominate(1, conkey)]
    agent.channel_failed(0.2)
    agent.channel_failed(0.3)
    assert agent.events() == [Nominate(2, conkey), Nominate(3, conkey)]
    agent.channel_failed(0.4)
    assert agent.state is State.PUNCHING
    assert is_quiet(agent)


def test_a_channel_ends_the_call_and_all_that_waits() -> None:
    agent = nominating()
    agent.channel_up(0.2)
    assert agent.events() == [ConnectionChosen(TOKEN, 1), StopDialing(TOKEN)]
    assert agent.state is State.CONNECTED
    assert is_over(agent)


def test_time_runs_out_in_the_middle_of_a_nomination() -> None:
    agent = nominating()
    agent.handle_timer(PUNCH_TIMEOUT)
    assert event(CallFailed, agent.events()).kind == "timeout"
    with pytest.raises(LocalProtocolError, match="failed"):
        agent.channel_up(PUNCH_TIMEOUT)


@pytest.mark.parametrize("state", [State.IDLE, State.ASKING, State.OFFERED, State.CONNECTED, State.FAILED])
def test_a_connection_that_nobody_waits_for_is_nobodys(state: CallerState) -> None:
    agent = in_state(state)
    agent.connection_up(9, 0.1)
    assert is_quiet(agent)
    assert agent.state is state
    assert not agent._connections


@pytest.mark.parametrize("state", [state for state in State if state is not State.NOMINATING])
def test_there_is_no_channel_without_a_nomination(state: CallerState) -> None:
    for misuse in (CallerAgent.channel_up, CallerAgent.channel_failed):
        agent = in_state(state)
        with pytest.raises(LocalProtocolError, match=state.value):
            misuse(agent, 0.1)
        assert agent.state is state
        assert is_quiet(agent)


@pytest.mark.parametrize("state", [state for state in State if state is not State.IDLE])
def test_a_call_is_started_once(state: CallerState) -> None:
    agent = in_state(state)
    with pytest.raises(LocalProtocolError, match=state.value):
        agent.start(1.0)
    assert agent.state is state


# --- whatever comes -------------------------------------------------------------------------------------------------------

STRAY = [
    encode(Opener()),
    encode(PunchNotice(mid=1, extra=PunchNoticeExtra(token=TOKEN, host="192.0.2.9", port=9))),
    encode(HoleProbe(mid=1, token=TOKEN)),
    hole_answer(HoleProbe(mid=1, token=TOKEN)),
    conkey_answer(OpenTcp(mid=1, token=TOKEN, extra=OpenTcpExtra(op=1))),
    encode(ConnectAnswer(mid=1, code=200, em="", extra=ConnectAnswerExtra(token="evil"))),
    result(token="evil"),
    b"\xff\xfe",
    b"",
    b"{}",
]


@pytest.mark.parametrize("source", [STRANGER, CALLEE])
@pytest.mark.parametrize("body", STRAY, ids=range(len(STRAY)))
@pytest.mark.parametrize("state", State)
def test_stray_datagrams_change_nothing(state: CallerState, body: bytes, source: tuple[str, int]) -> None:
    agent = in_state(state)
    before = (agent.state, agent.token, agent.next_deadline(), agent._conkey, agent._peer)
    agent.receive_datagram(body, source, 0.1)
    assert (agent.state, agent.token, agent.next_deadline(), agent._conkey, agent._peer) == before
    assert is_quiet(agent)
    assert sum(agent.dropped.values()) == 1


@pytest.mark.parametrize("state", State)
def test_calling_the_timer_early_is_harmless(state: CallerState) -> None:
    agent = in_state(state)
    agent.handle_timer(0.0)
    assert agent.state is state
    assert is_quiet(agent)


@pytest.mark.parametrize("state", [State.ASKING, State.OFFERED, State.PUNCHING, State.NOMINATING])
def test_left_alone_every_call_ends(state: CallerState) -> None:
    agent = in_state(state)
    for _ in range(100):
        at = agent.next_deadline()
        if at is None:
            break
        agent.handle_timer(at)
    assert agent.state is State.FAILED
    assert is_over(agent)


# --- who answers ----------------------------------------------------------------------------------------------------------


def failure_of(agent: CallerAgent) -> CallFailed:
    """How the call ended; nothing but the acknowledgement has been sent, and that to the server."""
    assert {datagram.destination for datagram in agent.datagrams_to_send()} == {SERVER}
    assert is_over(agent)
    events = agent.events()
    assert not any(isinstance(happened, PunchStarted | Dial) for happened in events)
    return event(CallFailed, events)


def test_the_pinned_keys_answer_is_followed() -> None:
    agent = punching()
    assert agent.peer_key == BOB.public
    assert event(PunchStarted, agent.events()).peer == CALLEE


def test_an_answer_of_another_key_is_sent_nothing() -> None:
    agent = offered()
    agent.receive_datagram(result(agent, by=EVE), SERVER, 0.1)
    assert failure_of(agent) == CallFailed("key-changed", 401, "it is signed by another key")


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        (b'"intent":"', b'"intent":"A', "its signature does not hold"),
        (b'"intent"', b'"intend"', "it is not signed"),
        (b'"srflx"', b'"mapped"', "its signature does not hold"),
        (b'"host":"198.51.100.2"', b'"host":"198.51.100.3"', "the server names an address that the peer has not signed"),
        (b'"port":40002', b'"port":22', "the server names a port below 1024"),
    ],
)
def test_what_was_changed_on_the_way_ends_the_call(old: bytes, new: bytes, text: str) -> None:
    agent = offered()
    body = result(agent)
    assert body.count(old) == 1
    agent.receive_datagram(body.replace(old, new), SERVER, 0.1)
    assert failure_of(agent) == CallFailed("forged", 401, text)


def refusal(agent: CallerAgent, code: int, kind: str, *, by: Identity = BOB, highest: int = 10**6) -> bytes:
    """A t=11 that says no, signed."""
    assert agent._signer is not None
    call = agent._signer._call
    assert call is not None
    sign = getattr(judge(by), kind)
    intent = sign(Call(ALICE.public, CallVerdict.STALE, call, highest))
    extra = PunchResultExtra(host="", port=0, intent=intent)
    return encode(PunchResult(mid=11, token=TOKEN, code=code, em="no", extra=extra))


def test_a_call_whose_counter_is_too_low_is_made_once_more_with_a_higher_one() -> None:
    agent = offered()
    agent.receive_datagram(refusal(agent, 401, "renew"), SERVER, 0.1)
    acknowledged, question = sent(agent.datagrams_to_send())
    assert isinstance(acknowledged, PunchResultAck)
    assert isinstance(question, ConnectRequest)
    assert decode_intent(question.extra.intent).ts > 10**6
    assert (agent.state, agent.events()) == (State.ASKING, [CallOffered(TOKEN)])
    agent.receive_datagram(offer(question, token="another"), SERVER, 0.2)
    assert agent.events() == [CallOffered("another")]
    agent.receive_datagram(result(agent, token=TOKEN), SERVER, 0.2)  # of the call before: late, and acknowledged
    assert agent.state is State.OFFERED
    agent.receive_datagram(result(agent, token="another"), SERVER, 0.2)
    assert agent.state is State.PUNCHING


def test_it_is_made_no_third_time() -> None:
    agent = offered()
    agent.receive_datagram(refusal(agent, 401, "renew"), SERVER, 0.1)
    question = only(ConnectRequest, agent.datagrams_to_send())
    agent.receive_datagram(offer(question), SERVER, 0.2)
    agent.receive_datagram(refusal(agent, 401, "renew"), SERVER, 0.3)
    assert failure_of(agent) == CallFailed("refused", 401, "no")


@pytest.mark.parametrize("highest", [2**62 - 1, 2**64 - 1])
def test_a_counter_that_no_call_can_have_ends_the_call(highest: int) -> None:
    agent = offered()
    agent.receive_datagram(refusal(agent, 401, "renew", highest=highest), SERVER, 0.1)
    assert failure_of(agent) == CallFailed("refused", 401, "no")
    assert is_over(agent)


class Spent:
    """A counter that comes to its end."""

    def __init__(self, after: int) -> None:
        self._left = after

    def next(self, at_least: int = 0) -> int:
        self._left -= 1
        return 1 if self._left >= 0 else COUNTER_END


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_a_call_that_cannot_be_signed_is_over(calls: int) -> None:
    signs = CallSigner(ALICE, Spent(calls), random.Random(3), callee=BOB.public)
    agent = CallerAgent("alice", "bob", SERVER, LocalView(), random.Random(1), signer=signs)
    agent.start(0.0)
    if calls > 0:
        question = only(ConnectRequest, agent.datagrams_to_send())
        challenge = ConnectAnswer(mid=question.mid, code=401, em="cookie", extra=ConnectAnswerExtra(cookie="fresh"))
        agent.receive_datagram(encode(challenge), SERVER, 0.1)
    if calls > 1:
        agent.receive_datagram(offer(only(ConnectRequest, agent.datagrams_to_send())), SERVER, 0.2)
        agent.receive_datagram(refusal(agent, 401, "renew"), SERVER, 0.3)
    text = "the call cannot be signed: the counter is at its end"
    assert event(CallFailed, agent.events()) == CallFailed("forged", 400, text)
    assert agent.state is State.FAILED
    assert is_over(agent)


@pytest.mark.parametrize("kind", ["renew", "refuse"])
def test_nobody_else_has_it_made_once_more(kind: str) -> None:
    agent = offered()
    agent.receive_datagram(refusal(agent, 401, kind, by=BOB if kind == "refuse" else EVE), SERVER, 0.1)
    assert failure_of(agent).kind == "refused"


@pytest.mark.parametrize(("by", "kind"), [(BOB, "refused"), (EVE, "key-changed")])
def test_whose_no_it_is_is_told(by: Identity, kind: str) -> None:
    agent = offered()
    agent.receive_datagram(refusal(agent, 403, "refuse", by=by), SERVER, 0.1)
    failure = failure_of(agent)
    assert (failure.kind, failure.code) == (kind, 403)


@pytest.mark.parametrize("own", [(), (Candidate("host", "tcp", "2001:db8:1::2", 40001),)], ids=["nothing", "IPv6 alone"])
def test_who_knows_no_address_that_a_server_sees_signs_that_as_well_when_told(own: tuple[Candidate, ...]) -> None:
    agent = CallerAgent("alice", "bob", SERVER, LocalView(own), random.Random(1), signer=signer())
    agent.start(0.0)
    question = only(ConnectRequest, agent.datagrams_to_send())
    assert question.extra.cands == own
    seen = ConnectAnswerExtra(host="198.51.100.1", port=40001, cookie="fresh")
    agent.receive_datagram(encode(ConnectAnswer(mid=question.mid, code=401, em="cookie", extra=seen)), SERVER, 0.1)
    again = only(ConnectRequest, agent.datagrams_to_send())
    assert again.extra.cands == (Candidate("srflx", "udp", "198.51.100.1", 40001), *own)
    extra = again.extra
    assert isinstance(judge().judge(extra.intent, extra.cands, "198.51.100.1", 0.0, hints=extra.nat), Call)


# --- keyed datagrams --------------------------------------------------------------------------------------------------------


def test_all_that_goes_to_the_callee_is_keyed_and_each_repetition_anew() -> None:
    agent = punching()
    [first] = [datagram for datagram in agent.datagrams_to_send() if datagram.destination == CALLEE]
    agent.handle_timer(0.2)
    [again] = [datagram for datagram in agent.datagrams_to_send() if datagram.destination == CALLEE]
    assert [json.loads(datagram.data)["extra"]["s"] for datagram in (first, again)] == [1, 2]
    assert decode(again.data) == decode(first.data)


@pytest.mark.parametrize("is_replay", [False, True])
def test_what_is_not_keyed_or_comes_again_changes_nothing(is_replay: bool) -> None:
    agent = punching()
    datagrams = agent.datagrams_to_send()
    agent.events()
    voice = KeyedSender(agent._receiver._key) if is_replay else KeyedSender(bytes(32))
    bodies = [voice.seal(encode(Opener())), voice.seal(hole_answer(only(HoleProbe, datagrams)))]
    if is_replay:
        for body in bodies:
            agent.receive_datagram(body, CALLEE, 0.1)
        agent.events()
    for body in (*bodies, *bodies):
        agent.receive_datagram(body, CALLEE, 0.2)
    assert is_quiet(agent)
    assert agent.dropped["replayed" if is_replay else "not keyed"] == 4


def test_an_opening_datagram_that_overtakes_the_answer_is_ignored() -> None:
    agent = offered()
    body = result(agent)
    hear(agent, encode(Opener()), (CALLEE[0], 51111), 0.1)
    assert agent.dropped == {"not keyed": 1}
    agent.receive_datagram(body, SERVER, 0.2)
    assert agent.state is State.PUNCHING


# --- UDP over IPv6, where TCP gets nowhere --------------------------------------------------------------------------------

CALLEE_6: Address = ("2001:db8:2::2", 40_002)


def punching_over_ipv6() -> CallerAgent:
    """A caller both sides of which have IPv6, and QUIC."""
    agent, question = asking()
    own = Candidate("host", "tcp", "2001:db8:1::2", 40_001)
    agent._view = replace(agent._view, candidates=(*agent._view.candidates, own), can_quic=True)
    agent.receive_datagram(offer(question), SERVER, 0.0)
    there = (Candidate("host", "tcp", *CALLEE_6), Candidate("host", "udp", *CALLEE_6))
    agent.receive_datagram(result(agent, cands=there, nat=NatHints(low=True, rtt=50, quic=True)), SERVER, 0.0)
    return agent


def probing_ipv6(*, has_hole: bool) -> list[float]:
    """Let a call go on that gets no TCP through; return when it has probed the callee's IPv6 address."""
    agent = punching_over_ipv6()
    waiting = agent.datagrams_to_send()
    if has_hole:
        hear(agent, hole_answer(next(m for m in sent(waiting) if isinstance(m, HoleProbe))), CALLEE, 0.1)
    times: list[float] = []
    while (due := agent.next_deadline()) is not None and due < PUNCH_TIMEOUT:
        agent.handle_timer(due)
        times += [due for datagram in agent.datagrams_to_send() if datagram.destination == CALLEE_6]
    return times


def test_an_address_that_no_server_has_seen_gets_three_probes_and_only_after_the_syns() -> None:
    times = probing_ipv6(has_hole=False)
    assert len(times) == 3
    assert 1.2 < times[0] < times[2] < times[0] + 0.35


def test_where_a_hole_is_open_it_gets_none() -> None:
    assert probing_ipv6(has_hole=True) == []


def test_an_answer_from_there_is_a_hole() -> None:
    agent = punching_over_ipv6()
    agent.events()
    probes: list[HoleProbe] = []
    while not probes:
        due = agent.next_deadline()
        assert due is not None
        agent.handle_timer(due)
        waiting = [datagram for datagram in agent.datagrams_to_send() if datagram.destination == CALLEE_6]
        probes = [message for message in sent(waiting) if isinstance(message, HoleProbe)]
    hear(agent, hole_answer(probes[0]), STRANGER, due + 0.1)
    assert not [event for event in agent.events() if isinstance(event, HoleOpened)]
    hear(agent, hole_answer(probes[0]), CALLEE_6, due + 0.1)
    [opened] = [event for event in agent.events() if isinstance(event, HoleOpened)]
    assert opened.remote == CALLEE_6


# --- rounds ---------------------------------------------------------------------------------------------------------------


def remembering(rounds: Rounds) -> CallerAgent:
    """A caller that punches from port 40001, and remembers."""
    view = LocalView((Candidate("srflx", "tcp", CALLER[0], 50001),), 0.05)
    agent = CallerAgent("alice", "bob", SERVER, view, random.Random(1), signer=signer(), rounds=rounds, port=CALLER[1])
    agent.start(0.0)
    agent.receive_datagram(offer(only(ConnectRequest, agent.datagrams_to_send())), SERVER, 0.0)
    agent.receive_datagram(result(agent), SERVER, 0.0)
    return agent


def opens_first(agent: CallerAgent) -> bool:
    return event(Dial, agent.events()).low


def test_a_round_that_opened_nothing_burns_its_port_and_swaps_the_roles_of_the_next() -> None:
    rounds = Rounds()
    agent = remembering(rounds)
    assert not opens_first(agent)
    agent.handle_timer(PUNCH_TIMEOUT)
    assert rounds.is_burnt(CALLER[1], CALLEE[0], PUNCH_TIMEOUT)
    assert opens_first(remembering(rounds))


def test_the_roles_of_a_round_that_opened_are_those_of_the_next() -> None:
    rounds = Rounds()
    remembering(rounds).handle_timer(PUNCH_TIMEOUT)
    agent = remembering(rounds)
    agent.connection_up(1, 0.1)
    agent.channel_up(0.2)
    assert opens_first(remembering(rounds))


@pytest.mark.parametrize("code", [404, 408, 403])
def test_a_call_that_came_to_no_round_burns_nothing(code: int) -> None:
    rounds = Rounds()
    view = LocalView((Candidate("srflx", "tcp", CALLER[0], 50001),), 0.05)
    agent = CallerAgent("alice", "bob", SERVER, view, random.Random(1), signer=signer(), rounds=rounds, port=CALLER[1])
    agent.start(0.0)
    agent.receive_datagram(offer(only(ConnectRequest, agent.datagrams_to_send())), SERVER, 0.0)
    agent.receive_datagram(result(agent, code=code), SERVER, 0.0)
    assert agent.state is CallerState.FAILED
    assert not rounds.is_number_burnt(CALLER[1], 0.0)
    assert not opens_first(remembering(rounds))


def test_the_port_of_a_second_round_is_burnt_like_that_of_the_first() -> None:
    rounds = Rounds()
    agent = remembering(rounds)
    agent.port_lost(0.1)
    assert event(TakePort, agent.events()) == TakePort(TOKEN)
    agent.port_taken(40_009, (Candidate("srflx", "tcp", CALLER[0], 50_009),), 0.2)
    agent.handle_timer(PUNCH_TIMEOUT)
    assert all(rounds.is_burnt(port, CALLEE[0], PUNCH_TIMEOUT) for port in (CALLER[1], 40_009))


def test_before_anybody_answers_there_is_no_round_to_repeat() -> None:
    agent = offered()
    agent.port_lost(0.0)
    agent.port_taken(40_009, (), 0.0)
    assert not [happened for happened in agent.events() if isinstance(happened, TakePort)]
