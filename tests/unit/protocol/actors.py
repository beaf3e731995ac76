"""What the tests of the machines share: addresses, messages as the other side would send them, machines in a known state."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import TypeVar
from weakref import WeakKeyDictionary

from p2ptunnel.identity.keys import Identity
from p2ptunnel.protocol.callee import CalleeAgent, CalleePort, SignedCall
from p2ptunnel.protocol.caller import CallerAgent
from p2ptunnel.protocol.intent import AttemptKeys, Call, CallSigner, CallVerdict, IntentJudge
from p2ptunnel.protocol.machine import Datagram, Event
from p2ptunnel.protocol.punch import LocalView
from p2ptunnel.protocol.rounds import Rounds
from p2ptunnel.testing.simnet import Credentials
from p2ptunnel.testing.simnet.peers import SimCounter
from p2ptunnel.types import Address, Candidate
from p2ptunnel.wire.intent import decode as decode_intent
from p2ptunnel.wire.intent import encode as encode_intent
from p2ptunnel.wire.keyed import KeyedSender
from p2ptunnel.wire.messages import (
    ConnectAnswer,
    ConnectAnswerExtra,
    ConnectRequest,
    HoleAnswer,
    HoleProbe,
    Message,
    NatHints,
    Observed,
    OpenTcp,
    OpenTcpAnswer,
    PunchAnswer,
    PunchNotice,
    PunchNoticeExtra,
    PunchResult,
    PunchResultExtra,
    Register,
    RegisterAnswer,
    decode,
    encode,
)

SERVER: Address = ("203.0.113.1", 7000)
CALLER: Address = ("198.51.100.1", 40001)
CALLEE: Address = ("198.51.100.2", 40002)
STRANGER: Address = ("192.0.2.66", 6666)
TOKEN = "0123456789abcdef0123456789abcdef"
HINTS = NatHints(low=True, rtt=50)
CONKEY = "fedcba9876543210fedcba9876543210"
VIEW = LocalView((Candidate("srflx", "tcp", CALLEE[0], 50002),), 0.05, can_open_low=True)

ALICE = Identity.from_seed(b"alice".ljust(32))  # calls
BOB = Identity.from_seed(b"bob".ljust(32))  # is called
EVE = Identity.from_seed(b"eve".ljust(32))

E = TypeVar("E", bound=Event)
M = TypeVar("M", bound=Message)


def sent(datagrams: Iterable[Datagram]) -> list[Message]:
    """Return what the datagrams say."""
    return [decode(datagram.data) for datagram in datagrams]


def only(kind: type[M], datagrams: Iterable[Datagram]) -> M:
    """Return the one message of `kind` among the datagrams."""
    [message] = [message for message in sent(datagrams) if isinstance(message, kind)]
    return message


def event(kind: type[E], events: Iterable[Event]) -> E:
    """Return the one event of `kind`."""
    [found] = [happened for happened in events if isinstance(happened, kind)]
    return found


counter = SimCounter()
_voices: WeakKeyDictionary[object, KeyedSender] = WeakKeyDictionary()


def signer(identity: Identity = ALICE, callee: Identity = BOB) -> CallSigner:
    """Return what signs a call."""
    return CallSigner(identity, counter, random.Random(3), callee=callee.public)


def judge(identity: Identity = BOB, admitted: Identity = ALICE) -> IntentJudge:
    """Return a judge that admits one key."""
    return IntentJudge(identity, random.Random(4), is_admitted=admitted.public.__eq__)


def answer_intent(
    question: str, cands: Sequence[Candidate], identity: Identity = BOB, hints: NatHints | None = None
) -> tuple[str, AttemptKeys]:
    """Return what `identity` signs as its answer to a call, and the keys of that attempt."""
    intent = decode_intent(question)
    answered = judge(identity).answer(Call(ALICE.public, CallVerdict.ADMITTED, intent, intent.ts), cands, hints)
    assert answered is not None
    return answered


# --- the caller's world ---------------------------------------------------------------------------------------------------


def asking(
    *, now: float = 0.0, cookie: str = "cookie", raw: bool = False, is_punching: bool = True
) -> tuple[CallerAgent, ConnectRequest]:
    """Return a caller that has asked, and its question."""
    view = LocalView((Candidate("srflx", "tcp", CALLER[0], 50001),), 0.05, can_open_low=True)
    signs = None if raw else signer()
    agent = CallerAgent("alice", "bob", SERVER, view, random.Random(1), signer=signs, cookie=cookie, is_punching=is_punching)
    agent.start(now)
    return agent, only(ConnectRequest, agent.datagrams_to_send())


def hear(agent: CallerAgent, body: bytes, source: Address, now: float) -> None:
    """Let the agent receive something that whoever holds the callee's key has sent."""
    voice = _voices.get(agent)
    agent.receive_datagram(voice.seal(body) if voice else body, source, now)


def offer(question: ConnectRequest, *, code: int = 200, token: str = TOKEN) -> bytes:
    """Return a -4."""
    extra = ConnectAnswerExtra(token=token) if code == 200 else None
    return encode(ConnectAnswer(mid=question.mid, code=code, em="", extra=extra))


def result(
    agent: CallerAgent | None = None,
    *,
    token: str = TOKEN,
    code: int = 200,
    cands: tuple[Candidate, ...] = (),
    by: Identity = BOB,
    nat: NatHints = HINTS,
) -> bytes:
    """Return a t=11 for what the agent has asked; the founding protocol's, if it signs nothing or there is none."""
    v, intent = 0, ""
    if agent is not None and agent._signer is not None and agent._signer._call is not None:
        v, cands = 1, (*cands, Candidate("srflx", "udp", *CALLEE))
        intent, keys = answer_intent(encode_intent(agent._signer._call), cands, by, nat)
        _voices[agent] = KeyedSender(keys.callee_mac)
    extra = PunchResultExtra(host=CALLEE[0], port=CALLEE[1], v=v, intent=intent, cands=cands, nat=nat)
    return encode(PunchResult(mid=11, token=token, code=code, em="", extra=extra if code == 200 else None))


def offered(*, now: float = 0.0, raw: bool = False, is_punching: bool = True) -> CallerAgent:
    """Return a caller that waits for t=11."""
    agent, question = asking(now=now, raw=raw, is_punching=is_punching)
    agent.receive_datagram(offer(question), SERVER, now)
    return agent


def punching(
    *, now: float = 0.0, raw: bool = False, cands: tuple[Candidate, ...] = (), is_punching: bool = True
) -> CallerAgent:
    """Return a caller that punches; its datagrams and events still wait."""
    agent = offered(now=now, raw=raw, is_punching=is_punching)
    agent.receive_datagram(result(agent, cands=cands), SERVER, now)
    return agent


def hole_answer(probe: HoleProbe, *, token: str = TOKEN) -> bytes:
    """Return a -31."""
    return encode(HoleAnswer(mid=probe.mid, token=token))


def conkey_answer(question: OpenTcp, *, code: int = 200, conkey: str = CONKEY) -> bytes:
    """Return a -32."""
    body = encode(OpenTcpAnswer(mid=question.mid, token=question.token, code=code, em=""))
    return body.replace(b'"extra":null', b'"extra":{"conkey":"%s"}' % conkey.encode()) if code == 200 else body


def asks_for_conkey(*, now: float = 0.0) -> tuple[CallerAgent, OpenTcp]:
    """Return a caller of the founding protocol whose hole is open, and what it asks for then."""
    agent = punching(now=now, raw=True)
    hear(agent, hole_answer(only(HoleProbe, agent.datagrams_to_send())), CALLEE, now)
    agent.events()
    return agent, only(OpenTcp, agent.datagrams_to_send())


def knows_conkey(*, now: float = 0.0) -> CallerAgent:
    """Return a caller that punches, as whose calls are signed knows the conkey; nothing waits in it."""
    agent = punching(now=now)
    agent.datagrams_to_send()
    agent.events()
    return agent


def conkey_of(agent: CallerAgent) -> str:
    """Return the conkey that both sides of a signed call have derived."""
    assert agent._keys is not None
    return agent._keys.conkey.hex()


def nominating(*, now: float = 0.0) -> CallerAgent:
    """Return a caller that has nominated connection 1."""
    agent = knows_conkey(now=now)
    agent.connection_up(1, now)
    agent.events()
    return agent


# --- the callee's world ---------------------------------------------------------------------------------------------------


def notice(
    *,
    token: str = TOKEN,
    caller: Address = CALLER,
    v: int = 1,
    cands: tuple[Candidate, ...] = (),
    low: bool = True,
    rtt: int = 50,
) -> PunchNotice:
    """Return a t=10: signed, if it is one of ours."""
    host, port = caller
    cands = (*cands, Candidate("srflx", "udp", host, port)) if v else cands
    nat = NatHints(low=low, rtt=rtt)
    intent = signer().sign(cands, nat) if v else ""
    extra = PunchNoticeExtra(token=token, host=host, port=port, v=v, intent=intent, cands=cands, nat=nat)
    return PunchNotice(mid=10, extra=extra)


def signed_call(message: PunchNotice) -> SignedCall | None:
    """Return what a port makes of a t=10 that is signed."""
    if not message.extra.v:
        return None
    answer, keys = answer_intent(message.extra.intent or signer().sign(()), ())
    return SignedCall(ALICE.public, False, answer, keys)


def tell(agent: CalleeAgent, message: HoleProbe | OpenTcp, source: Address, now: float) -> None:
    """Let the agent receive what whoever holds the caller's key has sent."""
    agent.receive(message, by_caller(agent, message), source, now)


def by_caller(agent: CalleeAgent, message: HoleProbe | OpenTcp) -> bytes:
    """Return the datagram in which the caller says that."""
    if agent._receiver is None:
        return encode(message)
    return _voices.setdefault(agent, KeyedSender(agent._receiver._key)).seal(encode(message))


def let_in(_: PunchNotice) -> None:
    """Screen nobody."""


def callee_port(
    *, view: LocalView = VIEW, is_punching: bool = True, rounds: Rounds | None = None, has_others: bool = False
) -> CalleePort:
    """Return a port that screens nobody and is not registered."""
    port = CalleePort(
        "bob",
        SERVER,
        Credentials("key"),
        random.Random(2),
        udp_port=CALLEE[1],
        screen=let_in,
        judge=judge(),
        is_punching=is_punching,
        rounds=rounds,
        has_others=has_others,
    )
    port.view = view
    return port


def registered_port(*, now: float = 0.0) -> CalleePort:
    """Return a port whose registration stands."""
    port = callee_port()
    port.registration.start(now)
    request = only(Register, port.datagrams_to_send())
    port.receive_datagram(encode(welcome(request)), SERVER, now)
    port.events()
    return port


def welcome(request: Register, *, observed: Address = CALLEE) -> RegisterAnswer:
    """Return a -1 that says yes."""
    extra = Observed(host=observed[0], port=observed[1], ttl=90, epoch=5, cookie="cookie")
    return RegisterAnswer(mid=request.mid, code=200, em="", extra=extra)


def called_port(*, now: float = 0.0) -> CalleePort:
    """Return a port that answers one call, of TOKEN; nothing waits in it."""
    port = callee_port()
    port.receive_datagram(encode(notice()), SERVER, now)
    port.events()
    assert isinstance(sent(port.datagrams_to_send())[-1], PunchAnswer)
    return port
