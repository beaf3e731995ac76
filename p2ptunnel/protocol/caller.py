"""The caller's agent: one call, from t=4 to a channel.  The state machine is the table below."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from p2ptunnel.defaults import COOKIELESS_PAD_BYTES, IPV6_PROBING, PUNCH_TIMEOUT, RETRY_AFTER_MAX, WIRE_VERSION
from p2ptunnel.errors import InvalidKeyError, LocalProtocolError
from p2ptunnel.identity.keys import PublicKey
from p2ptunnel.protocol.approach import Approach, Birthdays
from p2ptunnel.protocol.birthday import BirthdayEnded
from p2ptunnel.protocol.consent import Consent
from p2ptunnel.protocol.detour import Detour
from p2ptunnel.protocol.intent import Answered, AnswerFault, AttemptKeys, CallSigner
from p2ptunnel.protocol.ipv6 import ProbeBeside
from p2ptunnel.protocol.machine import Datagram, Entropy, Hole, MachineBase, new_mid
from p2ptunnel.protocol.nat import Mapping
from p2ptunnel.protocol.punch import (
    AnswerProved,
    CallFailed,
    CallOffered,
    ConnectionChosen,
    FailureKind,
    HoleOpened,
    LocalView,
    Nominate,
    PunchStarted,
    StopDialing,
    aim,
    own_candidates,
)
from p2ptunnel.protocol.rounds import Rounds
from p2ptunnel.protocol.transaction import Requester
from p2ptunnel.types import Address, Candidate, Tag, clean
from p2ptunnel.wire.intent import MalformedIntentError
from p2ptunnel.wire.keyed import KeyedReceiver, KeyedSender
from p2ptunnel.wire.messages import (
    ConnectAnswer,
    ConnectAnswerExtra,
    ConnectRequest,
    ConnectRequestExtra,
    HoleAnswer,
    HoleProbe,
    Message,
    NatHints,
    Opener,
    OpenTcp,
    OpenTcpAnswer,
    OpenTcpExtra,
    PunchResult,
    PunchResultAck,
    PunchResultExtra,
    Signal,
    SignalAnswer,
    encode,
    encode_padded,
)

__all__ = ["TRANSITIONS", "CallerAgent", "CallerState", "CallerTrigger"]


class CallerState(enum.Enum):
    """Where a call stands."""

    IDLE = "idle"
    ASKING = "asking"
    OFFERED = "offered"
    PUNCHING = "punching"
    NOMINATING = "nominating"
    CONNECTED = "connected"
    FAILED = "failed"


class CallerTrigger(enum.Enum):
    """What moves a call."""

    START = "start"
    CHALLENGED = "-4 401"
    OFFERED = "-4 200"
    RENEWED = "t=11 401"
    RESULT = "t=11 200"
    CANDIDATE = "connected, conkey known"
    CHANNEL_UP = "channel up"
    CHANNEL_FAILED = "channel failed"
    FAIL = "refused, offline, silent, late"


_S, _T = CallerState, CallerTrigger
TRANSITIONS: Final = {
    (_S.IDLE, _T.START): _S.ASKING,
    (_S.ASKING, _T.CHALLENGED): _S.ASKING,
    (_S.ASKING, _T.OFFERED): _S.OFFERED,
    (_S.OFFERED, _T.RENEWED): _S.ASKING,
    (_S.OFFERED, _T.RESULT): _S.PUNCHING,
    (_S.PUNCHING, _T.CANDIDATE): _S.NOMINATING,
    (_S.NOMINATING, _T.CHANNEL_UP): _S.CONNECTED,
    (_S.NOMINATING, _T.CHANNEL_FAILED): _S.PUNCHING,
    (_S.ASKING, _T.FAIL): _S.FAILED,
    (_S.OFFERED, _T.FAIL): _S.FAILED,
    (_S.PUNCHING, _T.FAIL): _S.FAILED,
    (_S.NOMINATING, _T.FAIL): _S.FAILED,
}
"""Every legal transition of a caller; what is not here cannot happen."""

_WAYS: Final = 4  # that a birthday has found which are tried


class CallerAgent(MachineBase):
    """One call: from t=4 to a channel, on one port that nothing else uses.

    Args:
        tag: Our own, may be unregistered.
        wanted: The callee's.
        server: The rendezvous server's numeric address.
        view: What we know of our own port.
        entropy: For message ids.
        signer: Signs the call, and judges who answers before anything is sent there; None calls a program that speaks the
            founding protocol only.
        cookie: The server's cookie for our address if we have one; saves a round trip.
        server_key: The server's as text, empty while nobody has told.
        join: Makes of a cookie and of the call what shows to a private server that we know its token.
        is_punching: Whether to punch when the callee has answered; else that it has is all there is to learn.
        birthdays: What this machine has for a birthday; None: there will be none.
        rounds: What earlier attempts have shown, and this one adds to; None: nothing.
        port: Our local one.
    """

    def __init__(
        self,
        tag: Tag,
        wanted: Tag,
        server: Address,
        view: LocalView,
        entropy: Entropy,
        *,
        signer: CallSigner | None,
        cookie: str = "",
        server_key: str = "",
        join: Callable[[str, str], str] | None = None,
        is_punching: bool = True,
        birthdays: Birthdays | None = None,
        rounds: Rounds | None = None,
        port: int = 0,
    ) -> None:
        super().__init__()
        self.state = CallerState.IDLE
        self.token = ""
        self.peer_key: PublicKey | None = None
        """Who answered, as its signature has it; it proves itself again in the channel."""
        self._tag = tag
        self._wanted = wanted
        self._server = server
        self._view = view
        self._entropy = entropy
        self._cookie = cookie
        self._server_key = self._given_server_key = server_key
        self._join = join
        self._signer = signer
        self._is_punching = is_punching
        self._birthdays = birthdays
        self._rounds = rounds or Rounds()
        if signer is not None and signer.callee is not None and self._rounds.guesses_over_udp(signer.callee):
            self._view = replace(view, nat=replace(view.nat, tcp=Mapping("none")))
        self._ports = [port]
        self._keys: AttemptKeys | None = None
        self._approach: Approach | None = None
        self._candidates = view.candidates
        self._sender: KeyedSender | None = None
        self._receiver: KeyedReceiver | None = None
        self._requester = Requester(entropy)
        self._tokens: set[str] = set()  # this one, and that of the call before it was renewed
        self._early: PunchResult | None = None
        self._conkey: str | None = None
        self._has_followed = False
        self._ways: set[tuple[Address, Hole | None]] = set()
        self._peer: Address | None = None
        self._connections: list[int] = []
        self._nominated: int | None = None
        self._gives_up_at: float | None = None
        self._challenges = 0
        self._is_renewed = False
        self._detour = Detour()

    def consent(self, remote: Address) -> Consent:
        """Return what keeps asking the callee at `remote`, keyed like all that goes there.

        Raises:
            LocalProtocolError: Nobody has answered with a key.
        """
        if self._sender is None or self._receiver is None:
            raise LocalProtocolError("there is no key to ask for consent with")
        return Consent(self.token, remote, self._sender, self._receiver, self._entropy)

    # --- input --------------------------------------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Ask the server for the callee.

        Raises:
            LocalProtocolError: It has begun already.

        Source: wire t=4.
        """
        self._move(CallerTrigger.START)
        self._ask(now)

    def receive_datagram(self, data: bytes, source: Address, now: float) -> None:
        """Take one datagram from the server, the callee or anybody else."""
        message = self._decode(data)
        if isinstance(message, HoleProbe | HoleAnswer | OpenTcpAnswer | Opener) and not self._is_genuine(data):
            return
        if message is not None:
            self._receive(message, source, now)
            self._collect(now)

    def receive_at_hole(self, hole: Hole, data: bytes, source: Address, now: float) -> None:
        """Take one datagram that came to a hole of ours, from the callee or anybody else."""
        message = self._decode(data)
        if not (isinstance(message, HoleProbe | HoleAnswer) and self._is_peer(message.token, source)):
            self._drop("unexpected message")
        elif self._is_genuine(data):
            if isinstance(message, HoleAnswer):
                self._on_hole(message, source, now)
            else:
                self._probe_back(source, now, hole)
            self._collect(now)

    def datagrams_to_send(self) -> list[Datagram]:
        """Return and forget the datagrams that wait, in send order; each to the callee is keyed, a repetition anew."""
        return [self._keyed(datagram) for datagram in super().datagrams_to_send()]

    def connection_up(self, connection: int, now: float) -> None:
        """Take note of a TCP connection on our port, however it was opened; the number is the driver's."""
        if self.state in {CallerState.PUNCHING, CallerState.NOMINATING}:
            self._connections.append(connection)
            self._nominate_next()

    def channel_up(self, now: float) -> None:
        """The callee has accepted us on the nominated connection."""
        connection = self._nominated
        self._move(CallerTrigger.CHANNEL_UP)
        assert connection is not None
        if self._approach is not None:
            self._rounds.ended(self.peer_key, is_swapped=self._approach.is_swapped, is_open=True)
        self._finish()
        self._events += [ConnectionChosen(self.token, connection), StopDialing(self.token)]

    def channel_failed(self, now: float) -> None:
        """No channel came up on the nominated connection: the next one gets its chance."""
        self._move(CallerTrigger.CHANNEL_FAILED)
        self._nominated = None
        self._nominate_next()
        if self._approach is not None:
            self._approach.connection_failed(now)
            self._collect(now)

    def observed(self, port: int | None, now: float) -> None:
        """Our sequential NAT has just given `port` to a new TCP flow, or nobody knows: the answer to `ObserveRow`."""
        if self._approach is not None:
            self._approach.observed(port, now)
            self._collect(now)

    def port_lost(self, now: float) -> None:
        """Our port has turned out to be of no use."""
        if self._approach is not None:
            self._approach.port_lost(now)
            self._collect(now)

    def port_taken(self, number: int, candidates: tuple[Candidate, ...], now: float) -> None:
        """We have a fresh port of that local number, and these are its candidates: the answer to `TakePort`."""
        if self._approach is not None:
            self._ports.append(number)
            self._approach.port_taken(candidates, now)
            self._collect(now)

    def abandon(self) -> None:
        """Nobody wants the call any more: leave what is shared with other calls."""
        if self._approach is not None:
            self._approach.stop()
            self._events += self._approach.events()

    @property
    def hosts(self) -> frozenset[str]:
        """Where connections of the callee may come from."""
        return frozenset() if self._approach is None else self._approach.hosts

    def handle_timer(self, now: float) -> None:
        """Repeat, give up, begin the next phase: whatever is due."""
        repeat, expired = self._requester.due(now)
        self._datagrams += repeat
        if any(request.t == 4 for request in expired) and self.state is CallerState.ASKING:
            self._fail("rendezvous-silent", 408, "no answer", now)
        elif self._gives_up_at is not None and now >= self._gives_up_at:
            self._fail("timeout", 408, "no hole opened" if self._is_punching else "nothing came over the relay", now)
        elif self._approach is not None:
            self._approach.handle_timer(now)
            self._collect(now)
        self._events += self._detour.due(self.token, now)

    def next_deadline(self) -> float | None:
        """Return when something is due."""
        waits = [self._requester.next_deadline(), self._gives_up_at, self._detour.next_deadline()]
        if self._approach is not None:
            waits.append(self._approach.next_deadline())
        return min((at for at in waits if at is not None), default=None)

    # --- the conversation with the server -----------------------------------------------------------------------------

    def _ask(self, now: float) -> None:
        """Send t=4; a call that cannot be signed is over, since nothing else would ever end it."""
        self._requester.cancel(4)
        try:
            extra = self._question()
        except (MalformedIntentError, InvalidKeyError) as error:
            self._fail("forged", 400, f"the call cannot be signed: {error}", now)
            return
        request = ConnectRequest(mid=new_mid(self._entropy), ltag=self._tag, extra=extra)
        data = encode_padded(request, COOKIELESS_PAD_BYTES)
        self._datagrams.append(self._requester.send(4, request.mid, data, self._server, now))

    def _question(self) -> ConnectRequestExtra:
        if self._signer is None:
            return ConnectRequestExtra(rtag=self._wanted, cookie=self._cookie)
        call = self._signer.sign(self._candidates, self._view.hints)
        return ConnectRequestExtra(
            rtag=self._wanted,
            v=WIRE_VERSION,
            cookie=self._cookie,
            join="" if self._join is None else self._join(self._cookie, call),
            sig=self._signer.vouch(call, self._cookie, self._server_key),
            intent=call,
            cands=self._candidates,
            nat=self._view.hints,
        )

    def _receive(self, message: Message, source: Address, now: float) -> None:
        match message:
            case ConnectAnswer():
                if self._requester.answered(4, message.mid, source) is None:
                    self._drop("unexpected answer")
                else:
                    self._on_answer(message, now)
            case PunchResult() if source == self._server:
                if self.state is CallerState.ASKING:
                    self._early = message  # it has overtaken -4, which alone tells whether this is our attempt
                else:
                    self._on_result(message, now)
            case HoleAnswer() if self._is_peer(message.token, source):
                self._on_hole(message, source, now)
            case OpenTcpAnswer() if self._is_peer(message.token, source):
                self._on_conkey(message, now)
            case HoleProbe() if self._is_peer(message.token, source):
                self._probe_back(source, now)
            case Opener():
                self._follow(source, now)
            case Signal() | SignalAnswer() if source == self._server and self._approach is not None:
                if not self._approach.hear(message, now):
                    self._drop("unexpected answer")
            case _:
                self._drop("unexpected message")

    def _on_answer(self, message: ConnectAnswer, now: float) -> None:
        extra = message.extra or ConnectAnswerExtra()
        if message.code == 200 and extra.token:
            self.token = extra.token
            self._tokens.add(extra.token)
            self._move(CallerTrigger.OFFERED)
            self._gives_up_at = now + PUNCH_TIMEOUT
            if self._signer is not None:
                self._events.append(CallOffered(self.token, extra.relay))
            if self._early is not None and self._early.token == self.token:
                self._on_result(self._early, now)
        elif message.code == 401 and extra.cookie and self._given_server_key not in {"", extra.key}:
            self._fail("another-server", 401, "it has another key than was given for it", now)
        elif message.code == 401 and extra.cookie and self._challenges < 2:
            self._challenges += 1
            self._cookie, self._server_key = extra.cookie, self._server_key or extra.key
            self._sign_for(extra.host, extra.port)
            self._move(CallerTrigger.CHALLENGED)
            self._ask(now)
        elif message.code == 404:
            self._fail("offline", 404, clean(message.em or ""), now)
        elif message.code == 429:
            self._fail("rate-limited", 429, clean(message.em or ""), now, retry_after=min(extra.retry_after, RETRY_AFTER_MAX))
        else:
            self._fail("refused", message.code, clean(message.em or ""), now)

    def _on_result(self, message: PunchResult, now: float) -> None:
        if message.token not in self._tokens:  # not acknowledged either: who forges it could use up our rate at the server
            self._drop("result of another attempt")
            return
        self._datagrams.append(Datagram(encode(PunchResultAck(mid=message.mid, token=message.token)), self._server))
        if self.state is not CallerState.OFFERED or message.token != self.token:
            self._drop("result repeated")
            return
        if message.code == 401 and self._is_to_renew(message):
            self._renew(now)
        elif message.code == 403 and self._signer is not None and self._signer.is_of_another(_intent_of(message)):
            self._fail("key-changed", 403, AnswerFault.OTHER_KEY.value, now)
        elif message.code != 200 or message.extra is None:
            kind: FailureKind = "timeout" if message.code == 408 else "refused"
            self._fail(kind, message.code, clean(message.em or ""), now)
        elif self._accept(message.extra, now):
            self._move(CallerTrigger.RESULT)
            self._begin_punching(message.extra, now)

    def _sign_for(self, host: str, port: int) -> None:
        """Add how the server sees this very port, where we knew of no address at all: the callee sends nowhere else."""
        if host and not any(candidate.kind == "srflx" for candidate in self._candidates):
            self._candidates = (*own_candidates("udp", (host, port), self._server), *self._candidates)

    def _is_to_renew(self, message: PunchResult) -> bool:
        return self._signer is not None and not self._is_renewed and self._signer.renew(_intent_of(message))

    def _renew(self, now: float) -> None:
        """Call once more: our counter was lower than one that the callee has seen, perhaps since a file was lost."""
        self._is_renewed = True
        self._move(CallerTrigger.RENEWED)
        self.token, self._early, self._gives_up_at = "", None, None
        self._ask(now)

    def _accept(self, callee: PunchResultExtra, now: float) -> bool:
        """Find out who answered, and where it may be sent to; not one packet goes there before."""
        if self._signer is not None:
            answered = self._signer.judge(callee.intent, callee.cands, callee.nat)
            if isinstance(answered, AnswerFault):
                self._fail("key-changed" if answered is AnswerFault.OTHER_KEY else "forged", 401, answered.value, now)
                return False
            self._believe(answered)
        peer = aim((callee.host, callee.port), None if self._signer is None else callee.cands, self._server)
        if isinstance(peer, str):
            self._fail("forged", 401, f"the server names {peer}", now)
            return False
        self._peer = peer
        if self.peer_key is not None and self._keys is not None:
            self._events.append(AnswerProved(self._keys.selector.hex(), self.peer_key))
        return True

    def _believe(self, answered: Answered) -> None:
        """Take the attempt's keys; its conkey is among them, and so needs no datagram that gets through."""
        self.peer_key, self._keys = answered.key, answered.keys
        self._sender = KeyedSender(answered.keys.caller_mac)
        self._receiver = KeyedReceiver(answered.keys.callee_mac)
        self._conkey = answered.keys.conkey.hex()
        self._detour.told(self._conkey)

    # --- the conversation with the callee -----------------------------------------------------------------------------

    def _begin_punching(self, callee: PunchResultExtra, now: float) -> None:
        assert self._peer is not None
        self._gives_up_at = now + PUNCH_TIMEOUT
        if not self._is_punching:
            return
        self._events.append(PunchStarted(self.token, self._peer))
        self._approach = Approach(
            "caller",
            self.token,
            self._server,
            self._peer,
            callee.cands,
            self._view,
            callee.nat,
            self._entropy,
            keys=self._keys,
            birthdays=self._birthdays,
            peer_key=self.peer_key,
            is_swapped=self._rounds.is_swapped(self.peer_key),
        )
        self._approach.start(now, ends_at=self._gives_up_at)
        if self._keys is not None:
            self._detour.start(self._view.hints, callee.nat or NatHints(), now)
        for target in self._approach.udp_targets:
            self._probe(target, now)

    def _collect(self, now: float) -> None:
        """Take what the approach wants done; a birthday that has led to nothing was the last thing to try."""
        if self._approach is None:
            return
        self._datagrams += self._approach.datagrams_to_send()
        events = self._approach.events()
        self._events += events
        for beside in (event for event in events if isinstance(event, ProbeBeside)):
            if not self._detour.is_open:
                self._probe(beside.target, now, timeout=IPV6_PROBING)
        for ended in (event for event in events if isinstance(event, BirthdayEnded)):
            if self.state is CallerState.PUNCHING:
                self._fail("timeout", 408, f"the birthday: {ended.why}", now)

    def _is_peer(self, token: str, source: Address) -> bool:
        return self._approach is not None and token == self.token and source[0] in self._approach.hosts

    def _is_genuine(self, data: bytes) -> bool:
        """Tell whether what claims to be the callee's is keyed, once; of a program of the founding protocol nothing is."""
        if self._signer is None:
            return True
        receiver = self._receiver
        is_genuine = receiver is not None and receiver.open(data)
        if not is_genuine:
            self._drop("replayed" if receiver is not None and receiver.is_replay else "not keyed")
        return is_genuine

    def _keyed(self, datagram: Datagram) -> Datagram:
        if self._sender is None or datagram.destination == self._server:
            return datagram
        return replace(datagram, data=self._sender.seal(datagram.data))

    def _probe(self, peer: Address, now: float, hole: Hole | None = None, *, timeout: float = PUNCH_TIMEOUT) -> None:
        mid = new_mid(self._entropy)
        data = encode(HoleProbe(mid=mid, token=self.token))
        self._datagrams.append(self._requester.send(31, mid, data, peer, now, timeout=timeout, hole=hole))

    def _open_tcp(self, peer: Address, now: float) -> None:
        mid = new_mid(self._entropy)
        data = encode(OpenTcp(mid=mid, token=self.token, extra=OpenTcpExtra(op=1)))
        self._datagrams.append(self._requester.send(32, mid, data, peer, now, timeout=PUNCH_TIMEOUT))

    def _follow(self, source: Address, now: float) -> None:
        """Probe where a t=30 came from, if its NAT shows another port to us than to the server.

        Only once, since anybody can send one in the callee's name.
        """
        if self.state is not CallerState.PUNCHING or self._has_followed:
            return
        if self._peer is None or source[0] != self._peer[0] or source == self._peer:
            return
        self._has_followed = True
        self._probe(source, now)

    def _probe_back(self, source: Address, now: float, hole: Hole | None = None) -> None:
        """Probe where a t=31 of the callee's came from, and to where it came: the birthday has found a way."""
        way = (source, hole)
        is_new = self._keys is not None and way not in self._ways
        if self.state is CallerState.PUNCHING and is_new and len(self._ways) < _WAYS:
            self._ways.add(way)
            self._probe(source, now, hole)

    def _on_hole(self, message: HoleAnswer, source: Address, now: float) -> None:
        assert self._approach is not None
        request, guessed_at = self._requester.answered(31, message.mid), self._approach.guessed(message.mid)
        if request is None and guessed_at is None:
            self._drop("unexpected answer")
            return
        self._requester.cancel(31)
        self._approach.passed()
        hole = None if request is None or request.hole is None else request.hole.number
        rtt = now - guessed_at if guessed_at is not None else None
        if request is not None and request.sends == 1:
            rtt = now - request.sent_at
        self._events.append(HoleOpened(self.token, source, rtt))
        self._detour.opened(source, hole)
        self._events += self._detour.due(self.token, now)
        if self._conkey is None:  # a program of the seed tells it; where calls are signed both sides know it already
            self._open_tcp(source, now)

    def _on_conkey(self, message: OpenTcpAnswer, now: float) -> None:
        if self._requester.answered(32, message.mid) is None:
            self._drop("unexpected answer")
            return
        if message.code != 200 or message.extra is None or not message.extra.conkey:
            self._fail("refused", message.code, clean(message.em or ""), now)
            return
        self._requester.cancel(32)
        self._conkey = message.extra.conkey
        self._nominate_next()

    # --- which connection counts --------------------------------------------------------------------------------------

    def _nominate_next(self) -> None:
        if self.state is not CallerState.PUNCHING or self._conkey is None or not self._connections:
            return
        self._move(CallerTrigger.CANDIDATE)
        assert self._approach is not None
        self._approach.connection_up()
        self._nominated = self._connections.pop(0)
        self._events.append(Nominate(self._nominated, self._conkey))

    def _fail(self, kind: FailureKind, code: int, text: str, now: float, *, retry_after: float = 0.0) -> None:
        self._move(CallerTrigger.FAIL)
        self._remember_failure(now)
        self._finish()
        self._events += [CallFailed(kind, code, text, retry_after), StopDialing(self.token)]

    def _remember_failure(self, now: float) -> None:
        """Burn the port, if anything was sent from it; next time the other side opens first."""
        if self._approach is not None and self._peer is not None:
            for port in self._ports:
                self._rounds.burn(port, self._peer[0], now)
            self._rounds.ended(self.peer_key, is_swapped=self._approach.is_swapped, is_open=False)
            self._rounds.failed(self.peer_key, next_over=self._approach.next_birthday)

    def _finish(self) -> None:
        self._requester.cancel()
        self._detour.stop()
        self._gives_up_at = None
        self.abandon()

    def _move(self, trigger: CallerTrigger) -> None:
        try:
            self.state = TRANSITIONS[self.state, trigger]
        except KeyError:
            raise LocalProtocolError(f"a call that is {self.state.value} takes no {trigger.value}") from None


def _intent_of(message: PunchResult) -> str:
    return message.extra.intent if message.extra else ""
