"""The callee's side: an agent for each answered call, and the registered port that all of them share."""

from __future__ import annotations

import enum
from collections import Counter, deque
from collections.abc import Callable
from typing import Final, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from p2ptunnel.defaults import (
    APART_CALLS_MAX,
    CALLS_MAX,
    CANDIDATES_MAX,
    FOUNDING_CALLS_BURST,
    FOUNDING_CALLS_PER_SECOND,
    PUNCH_TIMEOUT,
    TOKEN_TTL,
    WIRE_VERSION,
)
from p2ptunnel.errors import LocalProtocolError
from p2ptunnel.identity.keys import PublicKey
from p2ptunnel.protocol.approach import Approach, Birthdays
from p2ptunnel.protocol.consent import Consent
from p2ptunnel.protocol.inside import is_inside, is_same_outside
from p2ptunnel.protocol.intent import AttemptKeys, Call, CallVerdict, IntentJudge
from p2ptunnel.protocol.limits import Buckets, Rate
from p2ptunnel.protocol.machine import Datagram, Entropy, Event, Hole, MachineBase, new_secret
from p2ptunnel.protocol.punch import (
    ConnectionChosen,
    HoleHeard,
    LocalView,
    PunchStarted,
    StopDialing,
    aim,
    own_candidates,
)
from p2ptunnel.protocol.registration import Credentials, Registration
from p2ptunnel.protocol.rounds import Rounds
from p2ptunnel.protocol.transaction import AnswerMemory
from p2ptunnel.types import Address, Candidate, Tag
from p2ptunnel.wire.keyed import KeyedReceiver, KeyedSender
from p2ptunnel.wire.messages import (
    ConkeyExtra,
    HoleAnswer,
    HoleProbe,
    Message,
    NatHints,
    OpenTcp,
    OpenTcpAnswer,
    PunchAnswer,
    PunchAnswerExtra,
    PunchNotice,
    RelayOffer,
    Signal,
    SignalAnswer,
    encode,
)

__all__ = [
    "TRANSITIONS",
    "AnswerApart",
    "CallAnswered",
    "CalleeAgent",
    "CalleePort",
    "CalleeState",
    "CalleeTrigger",
    "OtherPort",
    "Refusal",
    "SignedCall",
]


class CalleeState(enum.Enum):
    """Where an answered call stands."""

    IDLE = "idle"
    OPENED = "opened"
    CHOSEN = "chosen"
    OVER = "over"


class CalleeTrigger(enum.Enum):
    """What moves an answered call."""

    NOTICE = "t=10"
    ACCEPTED = "channel accepted"
    EXPIRED = "time is up"


_S, _T = CalleeState, CalleeTrigger
TRANSITIONS: Final = {
    (_S.IDLE, _T.NOTICE): _S.OPENED,
    (_S.OPENED, _T.ACCEPTED): _S.CHOSEN,
    (_S.OPENED, _T.EXPIRED): _S.OVER,
}
"""Every legal transition of a callee; what is not here cannot happen."""

_PLACES: Final = 4  # where a caller has been heard that are remembered: its NAT may map the port anew for each of our ports


_ANSWERED_AGAIN: Final = (0.1, 0.3)  # seconds after the first answer from a hole


class SignedCall(Struct, frozen=True):
    """A call that its caller has signed, and our signed answer.

    key: Of the caller.  is_stranger: It is not admitted; pairing is open.  answer: `extra.intent` of -10.
    """

    key: PublicKey
    is_stranger: bool
    answer: str
    keys: AttemptKeys

    def __repr__(self) -> str:
        return f"SignedCall({self.key!r}, is_stranger={self.is_stranger})"


class CalleeAgent(MachineBase):
    """One answered call: from t=10 to an accepted channel, on the registered port or on one of its own.

    On the registered port, which all calls to a peer share, it is fed with decoded messages (`receive`, `hear`); on a port of
    its own it is a machine like others (`receive_datagram`).  Until the caller has
    shown there that it holds the attempt's key, two datagrams of ours get further than our own NAT, two more to the way in that
    its router keeps, and no SYN; on systems that cannot send a SYN that dies on the way, the first one does.

    Args:
        notice: The t=10.
        caller: Where the caller is, as `aim` returned it.
        server: Ours.
        view: What we know of our own port.
        entropy: For the conkey.
        udp_port: Our local port.
        signed: What was signed on both sides; None of a program of the founding protocol.
        is_punching: Whether to send anything to the caller.
        birthdays: What this machine has for a birthday; None: there will be none.
        rounds: What this attempt adds to, if it comes to nothing; None: nothing.
        is_apart: It has a port of its own.
    """

    def __init__(
        self,
        notice: PunchNotice,
        caller: Address,
        server: Address,
        view: LocalView,
        entropy: Entropy,
        *,
        udp_port: int,
        signed: SignedCall | None,
        is_punching: bool = True,
        birthdays: Birthdays | None = None,
        rounds: Rounds | None = None,
        is_apart: bool = False,
    ) -> None:
        super().__init__()
        self.state = CalleeState.IDLE
        self.is_apart: Final = is_apart
        self._rounds = rounds or Rounds()
        self.token = notice.extra.token
        self.conkey = signed.keys.conkey.hex() if signed else new_secret(entropy)
        self.caller = caller
        self.key = signed.key if signed else None
        """Who called, as its signature has it; it proves itself again in the channel."""
        self.is_stranger = signed is not None and signed.is_stranger
        """It is not admitted, and was let in because pairing is open."""
        self.is_seed_only = signed is None
        self._answer = signed.answer if signed else ""
        self._sender = KeyedSender(signed.keys.callee_mac) if signed else None
        self._receiver = KeyedReceiver(signed.keys.caller_mac) if signed else None
        self._is_punching = is_punching
        self._notice = notice
        self._server = server
        self._view = view
        self._udp_port = udp_port
        self._ports = [udp_port]
        self._entropy = entropy
        self._hints = notice.extra.nat or NatHints()
        self._expires_at: float | None = None
        self._has_way_inside = signed is not None and not set(view.inside).isdisjoint(view.candidates)
        self._heard_at: deque[Address] = deque(maxlen=_PLACES)
        self._heard_holes: set[Hole] = set()
        self._again: list[tuple[float, Datagram]] = []
        self._approach = Approach(
            "callee",
            self.token,
            server,
            caller,
            notice.extra.cands,
            view,
            notice.extra.nat,
            entropy,
            keys=signed.keys if signed else None,
            birthdays=birthdays,
            peer_key=self.key,
        )

    @property
    def is_over(self) -> bool:
        """The attempt has ended, one way or the other."""
        return self.state in {CalleeState.CHOSEN, CalleeState.OVER}

    @property
    def expects_quic(self) -> bool:
        """Whether the caller may turn to QUIC: both sides can."""
        return self._is_punching and self._sender is not None and self._hints.quic and self._view.can_quic

    def consent(self) -> Consent:
        """Return what keeps asking the caller, keyed like all that goes there.

        Raises:
            LocalProtocolError: Nobody has called with a key.
        """
        if self._sender is None or self._receiver is None:
            raise LocalProtocolError("there is no key to ask for consent with")
        return Consent(self.token, self.caller, self._sender, self._receiver, self._entropy)

    @property
    def targets(self) -> tuple[Address, ...]:
        """Where the caller's TCP connection is expected from."""
        return self._approach.targets

    def expects(self, host: str) -> bool:
        """Tell whether the caller's connections may come from there: anywhere inside, if it was told of our router's way in."""
        return host in self._approach.hosts or (self._has_way_inside and is_inside(host))

    def has_heard_from(self, source: Address) -> bool:
        """Tell whether what came from that very address was keyed: only there may more be sent than came."""
        return source in self._heard_at

    def start(self, now: float) -> None:
        """Open our NAT, then answer: SYN and t=30 that die on the way, -10.

        Raises:
            LocalProtocolError: It has begun already.

        Source: wire t=10, t=30.
        """
        self._move(CalleeTrigger.NOTICE)
        self._expires_at = now + PUNCH_TIMEOUT
        if self._is_punching:
            self._events.append(PunchStarted(self.token, self.caller))
            self._approach.start(now, ends_at=self._expires_at)
            self._collect()
        self.answer_notice()

    def answer_notice(self) -> None:
        """Answer t=10, once more if it was repeated."""
        extra = PunchAnswerExtra(port=self._udp_port)
        if not self.is_seed_only:
            extra = PunchAnswerExtra(
                port=self._udp_port,
                v=WIRE_VERSION,
                intent=self._answer,
                cands=self._view.candidates,
                nat=self._view.hints,
            )
        answer = PunchAnswer(mid=self._notice.mid, token=self.token, code=200, em="", extra=extra)
        self._datagrams.append(Datagram(encode(answer), self._server))

    def receive_at_hole(self, hole: Hole, data: bytes, source: Address, now: float) -> None:
        """Take one datagram that came to a hole of ours, from the caller or anybody else."""
        message = self._decode(data)
        if isinstance(message, HoleProbe) and message.token == self.token:
            self.receive(message, data, source, now, hole)
        else:
            self._drop("unexpected message")

    def receive_datagram(self, data: bytes, source: Address, now: float) -> None:
        """Take one datagram that came to a port of our own, from the server, the caller or anybody else."""
        message = self._decode(data)
        match message:
            case None:
                pass
            case HoleProbe() | OpenTcp() if message.token == self.token:
                self.receive(message, data, source, now)
            case Signal() | SignalAnswer() if source == self._server:
                if not self.hear(message, now):
                    self._drop("unexpected answer")
            case _:
                self._drop("unexpected message")

    def receive(self, message: HoleProbe | OpenTcp, data: bytes, source: Address, now: float, hole: Hole | None = None) -> None:
        """Take a t=31 or t=32 that names our token; `data` is the datagram that it came in, at a hole or at our port."""
        if self.state is not CalleeState.OPENED:
            self._drop("attempt over")
            return
        if source[0] not in self._approach.hosts:
            self._drop("another host")
            return
        if self._receiver is not None and not self._receiver.open(data):
            self._drop("replayed" if self._receiver.is_replay else "not keyed")
            return
        if source not in self._heard_at:
            self._heard_at.append(source)
        self._approach.prove(now)
        self._approach.passed()
        self._collect()
        if isinstance(message, HoleProbe):
            answer: Message = HoleAnswer(mid=message.mid, token=self.token)
        elif message.extra.op == 1:
            answer = OpenTcpAnswer(mid=message.mid, token=self.token, code=200, em="", extra=ConkeyExtra(conkey=self.conkey))
        else:
            answer = OpenTcpAnswer(mid=message.mid, token=self.token, code=400, em="unknown op")
        self._datagrams.append(Datagram(encode(answer), source, hole=hole))
        if hole is not None:
            self._heard_at_hole(hole, self._datagrams[-1], now)

    def _heard_at_hole(self, hole: Hole, answer: Datagram, now: float) -> None:
        """Expect the caller there; no guess comes twice, so its answer is sent more than once."""
        if hole not in self._heard_holes:
            self._heard_holes.add(hole)
            self._events.append(HoleHeard(self.token, hole.number))
            self._again += [(now + after, answer) for after in _ANSWERED_AGAIN]

    def hear(self, message: Signal | SignalAnswer, now: float) -> bool:
        """Take a t=12 or a -12 of the server; return whether it was for this call."""
        is_ours = self._approach.hear(message, now)
        self._collect()
        return is_ours

    def observed(self, port: int | None, now: float) -> None:
        """Our sequential NAT has just given `port` to a new TCP flow, or nobody knows: the answer to `ObserveRow`."""
        self._approach.observed(port, now)
        self._collect()

    def tell_more(self, candidates: tuple[Candidate, ...], now: float) -> None:
        """Tell the caller of ways in to our port that have turned up since."""
        self._approach.tell_more(candidates, now)
        self._collect()

    def port_lost(self, now: float) -> None:
        """Our port has turned out to be of no use."""
        self._approach.port_lost(now)
        self._collect()

    def port_taken(self, number: int, candidates: tuple[Candidate, ...], now: float) -> None:
        """We have a fresh port of that local number, and these are its candidates: the answer to `TakePort`."""
        self._ports.append(number)
        self._approach.port_taken(candidates, now)
        self._collect()

    def connection_up(self) -> None:
        """A connection that may be the caller's is being tried."""
        self._approach.connection_up()

    def connection_failed(self, now: float) -> None:
        """It was not, or came to nothing."""
        self._approach.connection_failed(now)
        self._collect()

    def channel_accepted(self, connection: int) -> None:
        """A channel with the caller stands on `connection`: the attempt is over."""
        self._move(CalleeTrigger.ACCEPTED)
        self._end()
        self._events += [ConnectionChosen(self.token, connection), StopDialing(self.token)]

    def give_up(self) -> None:
        """End the attempt, as if its time were up."""
        self._move(CalleeTrigger.EXPIRED)
        self._end()
        self._events.append(StopDialing(self.token))

    def abandon(self) -> None:
        """Nobody wants the call any more: leave what is shared with other calls."""
        self._approach.stop()
        self._collect()

    def _end(self) -> None:
        self._expires_at = None
        self._again.clear()
        self.abandon()

    def handle_timer(self, now: float) -> None:
        """Begin the next phase or end the attempt."""
        if self._expires_at is not None and now >= self._expires_at:
            if self._approach.is_met:  # else nobody has tried: it came over the relay, or not at all
                for port in self._ports:
                    self._rounds.burn(port, self.caller[0], now)
            self.give_up()
        else:
            self._datagrams += [answer for at, answer in self._again if at <= now]
            self._again = [(at, answer) for at, answer in self._again if at > now]
            self._approach.handle_timer(now)
            self._collect()

    def next_deadline(self) -> float | None:
        """Return when something is due."""
        waits = (self._approach.next_deadline(), self._expires_at, *(at for at, _ in self._again))
        return min((at for at in waits if at is not None), default=None)

    def datagrams_to_send(self) -> list[Datagram]:
        """Return and forget the datagrams that wait, in send order; each to the caller is keyed."""
        return [self._keyed(datagram) for datagram in super().datagrams_to_send()]

    def _keyed(self, datagram: Datagram) -> Datagram:
        if self._sender is None or datagram.destination == self._server:
            return datagram
        return replace(datagram, data=self._sender.seal(datagram.data))

    def _collect(self) -> None:
        self._datagrams += self._approach.datagrams_to_send()
        self._events += self._approach.events()

    def _move(self, trigger: CalleeTrigger) -> None:
        try:
            self.state = TRANSITIONS[self.state, trigger]
        except KeyError:
            raise LocalProtocolError(f"an answered call that is {self.state.value} takes no {trigger.value}") from None


# --- the registered port -----------------------------------------------------------------------------------------------

Refusal = tuple[int, str]
"""`(code, text)` of a -10 that says no."""


class CallAnswered(Event, frozen=True):
    """A call was let in as far as punching goes; who calls is proved later, in the channel.

    Attributes:
        key: Who has signed it; None of a program of the founding protocol.
        selector: Of the attempt, 32 hex characters: what the caller shows over the relay; empty where nobody has signed.
        offer: The relay, where it is not the server.
    """

    token: str
    caller: Address
    is_seed_only: bool
    key: PublicKey | None = None
    selector: str = ""
    offer: RelayOffer | None = None


class AnswerApart(Event, frozen=True):
    """This call is to be answered from another port, since ours is burnt for its caller's host: give one by `answer_apart`.

    Where that has been done it says that the call was repeated: wake its agent.
    """

    token: str


class OtherPort(NamedTuple):
    """A port for one call: what we know of it, and its local number."""

    view: LocalView
    number: int


class _Waiting(NamedTuple):
    """A call that was let in and waits for a port of its own."""

    message: PunchNotice
    caller: Address
    call: Call


class CalleePort(MachineBase):
    """The registered port of a peer: its registration, and an agent for each call that is being answered.

    Args:
        tag: Under which we register.
        server: The rendezvous server's numeric address; t=10 counts from there only.
        credentials: Who we are.
        entropy: For message ids and conkeys.
        udp_port: Our local port, as the founding protocol wants it in -10.
        screen: Looks at a t=10 before anything else: None lets it go on, a `Refusal` is answered.
        judge: Judges who has signed it; nobody but the server hears of a call that it does not let in.
        is_punching: Whether to send anything to callers; else they reach us over the relay only.
        birthdays: What this machine has for them; None: there will be none.
        rounds: What earlier attempts have shown, and these add to; None: nothing.
        has_others: Whether there are other ports, from which to answer where this one is burnt.
    """

    def __init__(
        self,
        tag: Tag,
        server: Address,
        credentials: Credentials,
        entropy: Entropy,
        *,
        udp_port: int,
        screen: Callable[[PunchNotice], Refusal | None],
        judge: IntentJudge,
        is_punching: bool = True,
        birthdays: Birthdays | None = None,
        rounds: Rounds | None = None,
        has_others: bool = False,
    ) -> None:
        super().__init__()
        self.registration = Registration(tag, server, credentials, entropy)
        self.view = LocalView()
        self._server = server
        self._entropy = entropy
        self._udp_port = udp_port
        self._screen = screen
        self._judge = judge
        self._is_punching = is_punching
        self._birthdays = birthdays
        self._rounds = rounds or Rounds()
        self._has_others = has_others
        self._waiting: dict[str, _Waiting] = {}
        self._founding_calls = Buckets(Rate(FOUNDING_CALLS_PER_SECOND, FOUNDING_CALLS_BURST), most=1)
        self._agents: dict[str, CalleeAgent] = {}
        self._answered = AnswerMemory(seconds=TOKEN_TTL)

    @property
    def agents(self) -> tuple[CalleeAgent, ...]:
        """The calls under way."""
        return tuple(self._agents.values())

    def agent(self, token: str) -> CalleeAgent | None:
        """Return the agent of `token` while its attempt lives."""
        return self._agents.get(token)

    def view_changed(self, view: LocalView, now: float) -> None:
        """Take what we know of our port by now, for later calls; those under way are told of ways in that have turned up."""
        self.view = view
        for agent in self.agents:
            if not agent.is_apart:
                agent.tell_more(view.candidates, now)
        self._collect()

    def receive_datagram(self, data: bytes, source: Address, now: float) -> None:
        """Take one datagram from the server, a caller or anybody else."""
        message = self._decode(data)
        match message:
            case None:
                pass
            case PunchNotice():
                self._on_notice(message, source, now)
            case HoleProbe() | OpenTcp():
                agent = self._agents.get(message.token)
                if agent is None:
                    self._drop("unknown token")
                else:
                    agent.receive(message, data, source, now)
            case Signal() | SignalAnswer():
                self._on_signal(message, source, now)
            case _:
                if not self.registration.receive(message, source, now):
                    self._drop("unexpected message")
        self._collect()

    def handle_timer(self, now: float) -> None:
        """Do what is due for the registration and each call."""
        for machine in self._machines():
            machine.handle_timer(now)
        self._collect()

    def next_deadline(self) -> float | None:
        """Return when something is due."""
        waits = [machine.next_deadline() for machine in self._machines()]
        return min((at for at in waits if at is not None), default=None)

    def datagrams_to_send(self) -> list[Datagram]:
        """Return and forget the datagrams that wait, in send order."""
        self._collect()
        return super().datagrams_to_send()

    def events(self) -> list[Event]:
        """Return and forget what happened, in order."""
        self._collect()
        return super().events()

    def _on_signal(self, message: Signal | SignalAnswer, source: Address, now: float) -> None:
        if source != self._server:
            self._drop("signal not from our server")
            return
        is_for = message.extra.token if isinstance(message, Signal) else None
        agents = [agent for agent in self.agents if is_for in {None, agent.token}]
        if not any(agent.hear(message, now) for agent in agents):
            self._drop("unknown token" if is_for else "unexpected answer")

    def _on_notice(self, message: PunchNotice, source: Address, now: float) -> None:
        if source != self._server:
            self._drop("t=10 not from our server")
            return
        token = message.extra.token
        known = self._agents.get(token)
        if known is not None:
            known.answer_notice()
            if known.is_apart:
                self._events.append(AnswerApart(token))
            return
        if self._answered.recall(token, now) is not None:
            self._drop("attempt over")
            return
        refusal = self._screen(message)
        if refusal is not None:
            self._refuse(message, *refusal)
            return
        is_signed = bool(message.extra.v)
        caller = aim((message.extra.host, message.extra.port), message.extra.cands if is_signed else None, self._server)
        if isinstance(caller, str):
            self._drop(caller)
        elif is_signed:
            self._on_signed_call(message, caller, now)
        elif self._founding_calls.take(None, now):
            self._begin(message, caller, self.view, None, now)
        else:
            self._drop("too many calls that nobody signs")

    def _on_signed_call(self, message: PunchNotice, caller: Address, now: float) -> None:
        call = self._judge.judge(message.extra.intent, message.extra.cands, caller[0], now, hints=message.extra.nat)
        if isinstance(call, str):
            self._drop(call)
        elif call.verdict in {CallVerdict.REFUSED, CallVerdict.FORGED}:
            self._drop(call.verdict.value)
            self._refuse(message, 403, "not known here", intent=self._judge.refuse(call))
        elif call.verdict is CallVerdict.STALE:
            self._refuse(message, 401, "the counter is too low", intent=self._judge.renew(call))
        else:
            self._let_in(_Waiting(message, caller, call), now)

    def _let_in(self, waiting: _Waiting, now: float) -> None:
        """Answer a call; from another port, if this one is burnt for its host and the caller is no stranger."""
        is_admitted = waiting.call.verdict is CallVerdict.ADMITTED
        apart = sum(agent.is_apart and not agent.is_over for agent in self.agents) + len(self._waiting)
        is_burnt = self._rounds.is_burnt(self._udp_port, waiting.caller[0], now)
        if is_burnt and is_admitted and self._is_punching and self._has_others and apart < APART_CALLS_MAX:
            token = waiting.message.extra.token
            self._waiting[token] = waiting
            self._answered.remember(token, b"", now)
            self._events.append(AnswerApart(token))
        else:
            self._answer(waiting, self._signed_view(waiting.caller[0]), now)

    def answer_apart(self, token: str, other: OtherPort | None, now: float) -> CalleeAgent | None:
        """Answer a call that waits for a port of its own: from `other`, by a machine of its own, or from ours if there is none.

        Returns:
            What is to be run on that port; None: nothing is.
        """
        waiting = self._waiting.pop(token, None)
        if waiting is None:
            return None
        if other is None:
            self._answer(waiting, self._signed_view(waiting.caller[0]), now)
            return None
        return self._answer(waiting, other.view, now, number=other.number)

    def _answer(self, waiting: _Waiting, view: LocalView, now: float, *, number: int | None = None) -> CalleeAgent | None:
        answered = self._judge.answer(waiting.call, view.candidates, view.hints)
        if answered is None:
            self._drop("unusable intent")
            return None
        is_stranger = waiting.call.verdict is CallVerdict.PAIRING
        signed = SignedCall(waiting.call.key, is_stranger, *answered)
        return self._begin(waiting.message, waiting.caller, view, signed, now, number=number)

    def _signed_view(self, caller: str) -> LocalView:
        """Return our view, with the address that -10 comes from: the caller sends only where we have signed that we are.

        A caller behind the same outermost NAT is also told the way in that our own router keeps behind that one.
        """
        observed = self.registration.observed
        udp = () if observed is None else own_candidates("udp", observed, self._server)
        inside = self.view.inside if is_same_outside(caller, (*udp, *self.view.candidates)) else ()
        candidates = dict.fromkeys((*udp, *self.view.candidates, *inside))
        return replace(self.view, candidates=tuple(candidates)[:CANDIDATES_MAX])

    def _refuse(self, message: PunchNotice, code: int, text: str, *, intent: str = "") -> None:
        """Answer no, to the server and to nobody else."""
        extra = PunchAnswerExtra(port=self._udp_port, v=WIRE_VERSION, intent=intent) if intent else None
        answer = PunchAnswer(mid=message.mid, token=message.extra.token, code=code, em=text, extra=extra)
        self._datagrams.append(Datagram(encode(answer), self._server))

    def _begin(
        self,
        message: PunchNotice,
        caller: Address,
        view: LocalView,
        signed: SignedCall | None,
        now: float,
        *,
        number: int | None = None,
    ) -> CalleeAgent:
        """Begin to answer a call, from the registered port or, by its local number, from another one."""
        if len(self._agents) >= CALLS_MAX:
            self._make_room()
        agent = CalleeAgent(
            message,
            caller,
            self._server,
            view,
            self._entropy,
            udp_port=self._udp_port if number is None else number,
            signed=signed,
            is_punching=self._is_punching or signed is None,
            birthdays=self._birthdays,
            rounds=self._rounds,
            is_apart=number is not None,
        )
        token = agent.token
        self._agents[token] = agent
        self._answered.remember(token, b"", now)  # a late repetition of t=10 must not begin it anew
        selector = signed.keys.selector.hex() if signed else ""
        self._events.append(CallAnswered(token, agent.caller, agent.is_seed_only, agent.key, selector, message.extra.relay))
        agent.start(now)
        return agent

    def _make_room(self) -> None:
        """End the oldest call of the host that has most: a stranger's calls can push out no calls but a stranger's."""
        of_host = Counter(agent.caller[0] for agent in self._agents.values())
        [(busiest, _)] = of_host.most_common(1)
        next(agent for agent in self._agents.values() if agent.caller[0] == busiest).give_up()
        self._drop("call pushed out")
        self._collect()

    def _collect(self) -> None:
        for machine in self._machines():
            self._datagrams += machine.datagrams_to_send()
            self._events += machine.events()
        for agent in self.agents:
            if agent.is_over:
                del self._agents[agent.token]

    def _machines(self) -> list[Registration | CalleeAgent]:
        """Return what shares this port."""
        return [self.registration, *(agent for agent in self._agents.values() if not agent.is_apart)]
