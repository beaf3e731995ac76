"""The broker: the rendezvous server's whole mind.  It knows who is registered and introduces callers to callees.

Pure: bytes and `now` in, bytes out; UDP datagrams and lines of TCP connections alike.  The one rule a change must keep: over
UDP, nothing is stored, looked up or sent on before the source has shown the cookie of its address, and an answer to such a
source is never longer than its question.  Source: wire document, sections 1 to 3.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Final

from msgspec.structs import replace

from p2ptunnel.defaults import (
    CALLS_BURST,
    CALLS_BURST_OF_SOURCE,
    CALLS_PER_MINUTE,
    CALLS_PER_SECOND_OF_CALLEE,
    CALLS_PER_SECOND_OF_SOURCE,
    DATAGRAM_MAX_BYTES,
    RETRANSMIT_FIRST,
    SOURCE_DATAGRAMS_BURST,
    SOURCE_DATAGRAMS_PER_SECOND,
    TOKEN_TTL,
    TRANSACTION_TIMEOUT,
)
from p2ptunnel.identity.grant import Offers
from p2ptunnel.identity.judge import Judge
from p2ptunnel.protocol.attempts import Attempt, Attempts
from p2ptunnel.protocol.compat import SeedRation
from p2ptunnel.protocol.limits import Buckets, Rate, SourceLimit, limited_source
from p2ptunnel.protocol.machine import Datagram, Entropy, Event, new_secret
from p2ptunnel.protocol.messenger import Messenger
from p2ptunnel.protocol.observer import Observer
from p2ptunnel.protocol.probing import ProbesBack
from p2ptunnel.protocol.registrar import PeerLeft, PeerRegistered, Registered, Registrar
from p2ptunnel.protocol.relay import Relay, RelayJoined
from p2ptunnel.protocol.replies import Endpoint, LineToSend, Replies
from p2ptunnel.protocol.tags import TagBook
from p2ptunnel.protocol.transaction import AnswerMemory
from p2ptunnel.types import Address, Tag, clean, is_tag
from p2ptunnel.wire.messages import (
    ConnectAnswer,
    ConnectAnswerExtra,
    ConnectRequest,
    ConnectRequestExtra,
    Heartbeat,
    Leave,
    MalformedMessageError,
    Message,
    PunchAnswer,
    PunchNotice,
    PunchNoticeExtra,
    PunchResult,
    PunchResultAck,
    PunchResultExtra,
    ReflexiveProbe,
    Register,
    RegisterExtra,
    RelayJoin,
    RelayJoinAnswer,
    RelayOffer,
    Signal,
    SignalAnswer,
    decode,
    encode,
)
from p2ptunnel.wire.stun import is_stun

__all__ = ["Broker", "Endpoint", "Introduced", "LineToSend", "PeerLeft", "PeerRegistered", "RelayJoined"]

_SWEEP: Final = 1.0


class Introduced(Event, frozen=True):
    """A caller was introduced to a callee, or why not: `code` is the wire's."""

    caller: Tag
    callee: Tag
    code: int


class Broker:
    """Registrations and introductions of one server.

    Args:
        secret: At least 16 bytes; cookies are derived from it, servers of one cluster share it.
        entropy: For tokens, epochs and message ids.
        judge: Of signatures and memberships.
        tags: Who owns which tag; None: nobody yet.
        compat_seed: Also serve programs written from the founding document alone, which cannot show a cookie or sign:
            a few requests per source and minute, never under a tag that a key owns.  Nobody where only members are served.
        observer: Answers t=5 and STUN on the broker's own port.
        relay: Learns who may meet there, and answers t=6; None: there is no relay here.
        offers: Names relays elsewhere, which then take the place of ours; None: there are none.

    Attributes:
        registrar: The registering half.
    """

    def __init__(
        self,
        secret: bytes,
        entropy: Entropy,
        judge: Judge,
        *,
        tags: TagBook | None = None,
        compat_seed: bool = False,
        observer: Observer | None = None,
        relay: Relay | None = None,
        offers: Offers | None = None,
    ) -> None:
        self._observer = observer or Observer()
        self._relay = relay
        self._offers = offers
        self._entropy = entropy
        self._judge = judge
        self._replies = Replies(secret, entropy, judge.server_key)
        serves_seed = compat_seed and not judge.is_private
        self._ration = SeedRation() if serves_seed else None
        self.registrar: Final = Registrar(
            self._replies, judge, TagBook() if tags is None else tags, entropy, self._is_seed_allowed if serves_seed else None
        )
        self._probes_back = ProbesBack(self._replies, self._observer, judge.server_key)
        self._attempts = Attempts()
        self._messenger = Messenger(self._replies)
        self._answers = AnswerMemory()
        self._of_source = SourceLimit(Rate(SOURCE_DATAGRAMS_PER_SECOND, SOURCE_DATAGRAMS_BURST))
        self._asked = SourceLimit(Rate(CALLS_PER_SECOND_OF_SOURCE, CALLS_BURST_OF_SOURCE))
        self._calls = SourceLimit(Rate(CALLS_PER_MINUTE / 60, CALLS_BURST))
        self._calls_to = Buckets(Rate(CALLS_PER_SECOND_OF_CALLEE, CALLS_PER_SECOND_OF_CALLEE))
        self._sweep_at: float | None = None

    @property
    def registered(self) -> tuple[Tag, ...]:
        """The tags that are online, in order of registration."""
        return tuple(self.registrar.online)

    @property
    def attempts(self) -> int:
        """How many introductions are under way."""
        return len(self._attempts)

    @property
    def dropped(self) -> Counter[str]:
        """How often something that came was dropped, by reason."""
        return self._replies.dropped

    # --- input --------------------------------------------------------------------------------------------------------

    def receive_datagram(self, data: bytes, source: Address, now: float) -> None:
        """Take one UDP datagram.

        A source has a rate, which anybody can use up in its name: who shows a cookie or a registration of its own has none.
        """
        if is_stun(data):
            self._observer.receive_datagram(data, source, now)
            self._replies.take(self._observer)
            return
        endpoint = Endpoint(source)
        if not self._of_source.take(source[0], now):
            self._receive_beyond(data, endpoint, now)
        elif self._receive(data, endpoint, now):
            self._of_source.give_back(source[0])

    def _receive_beyond(self, data: bytes, source: Endpoint, now: float) -> None:
        """Take one datagram of a source that is over its rate, if it shows that it is not one of those in its name."""
        try:
            message = decode(data)
        except MalformedMessageError:
            message = None
        if message is None or not self._shows_who(message, source, now):
            self._replies.drop("source over its rate")
        else:
            self._take(message, source, len(data), now)

    def _shows_who(self, message: Message, source: Endpoint, now: float) -> bool:
        match message:
            case Register(extra=RegisterExtra(cookie=cookie)) | ConnectRequest(extra=ConnectRequestExtra(cookie=cookie)):
                return self._replies.has_cookie(cookie, source, now)
            case Heartbeat() | Leave():
                return self.registrar.is_holder(message.ltag, message.extra.epoch, source)
            case PunchAnswer() | PunchResultAck():
                return self._attempts.get(message.token) is not None and message.mid == self._mid_of(message.token)
            case Signal() | SignalAnswer():
                return self._messenger.knows(message, source, now)
            case _:
                return False

    def receive_line(self, line: bytes, source: Address, connection: int, now: float) -> bool:
        """Take one line of a TCP connection; return whether it was a message of ours."""
        malformed = self._replies.dropped["malformed"]
        self._receive(line, Endpoint(source, connection), now)
        return self._replies.dropped["malformed"] == malformed

    def _receive(self, data: bytes, source: Endpoint, now: float) -> bool:
        """Take one message; return whether its source has shown who it is."""
        try:
            message = decode(data)
        except MalformedMessageError:
            self._replies.drop("malformed")
            return False
        return self._take(message, source, len(data), now)

    def _take(self, message: Message, source: Endpoint, size: int, now: float) -> bool:
        """Do what a message wants; return whether its source has shown who it is."""
        match message:
            case ReflexiveProbe():
                self._on_probe(message, source, size, now)
                return False
            case Register():
                is_known = self.registrar.on_register(message, source, size, now)
            case Heartbeat():
                is_known = self.registrar.on_heartbeat(message, source, size, now)
            case Leave():
                is_known = self.registrar.on_leave(message, source, size)
            case ConnectRequest():
                is_known = self._on_connect(message, source, size, now)
            case PunchAnswer():
                is_known = self._on_punch_answer(message, source, now)
            case PunchResultAck():
                is_known = self._on_result_ack(message)
            case Signal():
                is_known = self._messenger.on_signal(message, source, size, now)
            case SignalAnswer():
                is_known = self._messenger.on_answer(message, source, size)
            case RelayJoin() if source.connection is not None:
                is_known = self._on_relay_join(message, source.host, source.connection, now)
            case _:
                self._replies.drop("not for a server")
                return False
        if self._sweep_at is None and (self.registrar.online or self._attempts):
            self._sweep_at = now + _SWEEP
        return is_known

    def connection_closed(self, connection: int) -> None:
        """Forget what was reachable only over this TCP connection."""
        self.registrar.connection_closed(connection)

    def handle_timer(self, now: float) -> None:
        """Repeat, give up, expire."""
        self._replies.repeat(now)
        self.registrar.handle_timer(now)
        if self._sweep_at is not None and now >= self._sweep_at:
            self._sweep(now)

    def next_deadline(self) -> float | None:
        """Return when something is due."""
        waits = (self._sweep_at, self._replies.requester.next_deadline(), self.registrar.next_deadline())
        return min((at for at in waits if at is not None), default=None)

    def datagrams_to_send(self) -> list[Datagram]:
        """Return and forget the datagrams that wait, in send order."""
        return self._replies.datagrams_to_send()

    def events(self) -> list[Event]:
        """Return and forget what happened, in order."""
        return self._replies.events()

    def _on_probe(self, message: ReflexiveProbe, source: Endpoint, size: int, now: float) -> None:
        """Answer a t=5; who has shown that it receives is also told its cookie, and who we are."""
        if message.extra is not None and (message.extra.op or message.extra.to):
            self._probes_back.on_probe(message, message.extra, source, size, now)
            return
        cookie = self._replies.cookies.make(source.host, now) if source.is_validated else ""
        key = self._judge.server_key if source.is_validated else ""
        self._replies.answer_stranger(self._observer.answer(message, source.address, cookie, key), source, size)

    # --- the relay ----------------------------------------------------------------------------------------------------

    def _on_relay_join(self, message: RelayJoin, host: str, connection: int, now: float) -> bool:
        """Answer a t=6: with a circuit, which the connection belongs to from then on, or for the last time."""
        answer, circuit = RelayJoinAnswer(mid=message.mid, code=503, em="no relay here"), None
        if self._relay is not None:
            answer, circuit = self._relay.join(message, host, now)
        if circuit is None:
            self._replies.report(LineToSend(connection, encode(answer), is_last=True))
        else:
            self._replies.report(RelayJoined(connection, circuit.number, message.extra.role, encode(answer)))
        return circuit is not None

    # --- introduction -------------------------------------------------------------------------------------------------

    def _on_connect(self, message: ConnectRequest, source: Endpoint, size: int, now: float) -> bool:
        extra = message.extra
        is_known = self._is_caller_known(extra.cookie, source, now)
        if not is_known and (extra.v or not self._is_seed_allowed(source, now)):
            self._replies.challenge(ConnectAnswer, message.mid, source, size, now)
            return False
        key = (source, 4, message.mid)
        given = self._answers.recall(key, now)  # not before: a stranger's repetitions are rationed as well
        if given is None:
            given = encode(self._introduce(message, source, now, is_known=is_known))
            self._answers.remember(key, given, now)
        self._replies.send(given, source)
        return is_known

    def _is_caller_known(self, cookie: str, source: Endpoint, now: float) -> bool:
        """Tell whether the caller receives there; where membership is asked for, it is proved over the cookie."""
        if self._judge.is_private:
            return self._replies.has_cookie(cookie, source, now)
        return self._replies.is_known(cookie, source, now)

    def _introduce(self, message: ConnectRequest, source: Endpoint, now: float, *, is_known: bool) -> ConnectAnswer:
        extra = message.extra
        if not is_tag(message.ltag) or not is_tag(extra.rtag):
            return ConnectAnswer(mid=message.mid, code=400, em="not a tag")
        if not self._asked.take(source.host, now):
            return _later(message.mid, "too many calls from there", self._asked.wait(source.host, now))
        if not self._judge.is_calling_member(extra):
            return ConnectAnswer(mid=message.mid, code=407, em="this server serves its members only")
        caller = self._judge.caller_key(extra.intent)
        if not caller and (extra.v or extra.intent):  # the callee would drop it, and hold a place for it until then
            return ConnectAnswer(mid=message.mid, code=400, em="a call that is not signed")
        callee = self.registrar.callee(extra.rtag)
        if callee is None:
            return self._absent(message, now)
        if busy := self._is_too_much(source, callee, now):
            return _later(message.mid, *busy)
        token = new_secret(self._entropy)
        host, port = source.address
        said = PunchNoticeExtra(
            token=token, host=host, port=port, v=extra.v, intent=extra.intent, cands=extra.cands, nat=extra.nat
        )
        offer = None if self._offers is None else self._offers.make(token, caller, callee.key)
        notice = self._notice(token, replace(said, relay=self._seen_from(offer, callee.endpoint.host)))
        if len(notice) > DATAGRAM_MAX_BYTES:  # a direct path may still come up
            offer, notice = None, self._notice(token, said)
        if len(notice) > DATAGRAM_MAX_BYTES:
            return ConnectAnswer(mid=message.mid, code=413, em="too long to hand on")
        answer_by, expires_at = now + TRANSACTION_TIMEOUT, now + TOKEN_TTL
        self._make_room(source, callee.endpoint)
        self._attempts.add(Attempt(token, source, message.ltag, callee.endpoint, extra.rtag, answer_by, expires_at, is_known))
        if self._relay is not None and offer is None:
            self._relay.introduce(token, caller, callee.key, now)
        if callee.is_validated:
            self._replies.request(10, self._mid_of(token), notice, callee.endpoint, now)
        else:  # once: it may be a victim's address
            self._replies.send(notice, callee.endpoint)
        answer = ConnectAnswerExtra(token=token, host=host, port=port, relay=self._seen_from(offer, host))
        return ConnectAnswer(mid=message.mid, code=200, em="", extra=answer)

    def _seen_from(self, offer: RelayOffer | None, host: str) -> RelayOffer | None:
        """Return the offer with the relay's address in the family of one end of the call."""
        return None if offer is None or self._offers is None else self._offers.seen_from(offer, host)

    def _notice(self, token: str, said: PunchNoticeExtra) -> bytes:
        return encode(PunchNotice(mid=self._mid_of(token), extra=said))

    def _absent(self, message: ConnectRequest, now: float) -> ConnectAnswer:
        """Answer who asks for a peer that is not online."""
        wanted = message.extra.rtag
        if self.registrar.is_awaited(wanted, now):
            return _later(message.mid, "that peer is about to come back", self.registrar.grace(wanted, now))
        self._replies.report(Introduced(message.ltag, wanted, 404))
        return ConnectAnswer(mid=message.mid, code=404, em="no such peer is online")

    def _is_too_much(self, source: Endpoint, callee: Registered, now: float) -> tuple[str, float] | None:
        """Return why there can be no introduction now, and after how many seconds that is over; None if there can be one."""
        if refusal := self._attempts.refusal(source, callee.endpoint):
            return refusal, self._attempts.free_at(source, callee.endpoint) + _SWEEP - now
        if not callee.is_validated and not self._is_seed_allowed(callee.endpoint, now):
            return "too many calls to that program", 0.0 if self._ration is None else self._ration.wait(
                callee.endpoint.host, now
            )
        if limited_source(source.host) is None:
            return None
        if not self._calls.take(source.host, now, of=callee.tag):
            return "too many calls from there to that peer", self._calls.wait(source.host, now, of=callee.tag)
        if not self._calls_to.take(callee.tag, now):
            return "too many calls to that peer", self._calls_to.wait(callee.tag, now)
        return None

    def _make_room(self, caller: Endpoint, callee: Endpoint) -> None:
        """Give up what has to give way; its caller hears no more of it, as if the callee were silent."""
        for attempt in self._attempts.make_room(caller, callee):
            self._replies.requester.answered(10, self._mid_of(attempt.token))
            self._replies.report(Introduced(attempt.caller_tag, attempt.callee_tag, 429))

    def _on_result_ack(self, message: PunchResultAck) -> bool:
        attempt = self._attempts.get(message.token)
        if attempt is None or not attempt.answered or message.mid != self._mid_of(message.token):
            self._replies.drop("unexpected answer")
            return False
        self._replies.requester.answered(11, message.mid)  # over TCP nothing was waiting to be repeated
        self._attempts.forget(attempt)
        return True

    def _on_punch_answer(self, message: PunchAnswer, source: Endpoint, now: float) -> bool:
        attempt = self._attempts.get(message.token)
        if attempt is None or attempt.callee.host != source.host or message.mid != self._mid_of(message.token):
            self._replies.drop("unexpected answer")
            return False
        self._replies.requester.answered(10, message.mid)
        if attempt.answered:
            return True
        self._attempts.note_answer(attempt)
        if message.code != 200 or message.extra is None:
            no = _signed_refusal(message)
            self._result(attempt, message.code if message.code != 200 else 500, clean(message.em or ""), no, now)
            return True
        host, port = source.address  # what we observe, not what the callee believes: NATs change ports
        said = message.extra
        if attempt.is_caller_known and said.v:  # both of ours, and both receive where they are
            self._messenger.introduce(attempt.token, attempt.caller, source, now)
        extra = PunchResultExtra(host=host, port=port, v=said.v, intent=said.intent, cands=said.cands, nat=said.nat)
        self._result(attempt, 200, "", extra, now)
        return True

    def _result(self, attempt: Attempt, code: int, em: str, extra: PunchResultExtra | None, now: float) -> None:
        self._replies.report(Introduced(attempt.caller_tag, attempt.callee_tag, code))
        mid = self._mid_of(attempt.token)
        data = encode(PunchResult(mid=mid, token=attempt.token, code=code, em=em, extra=extra))
        if len(data) > DATAGRAM_MAX_BYTES:
            data = encode(PunchResult(mid=mid, token=attempt.token, code=413, em="too long to hand on"))
        timeout = TRANSACTION_TIMEOUT if attempt.is_caller_known else 2 * RETRANSMIT_FIRST  # twice, to whom may be a victim
        self._replies.request(11, mid, data, attempt.caller, now, timeout=timeout)

    @staticmethod
    def _mid_of(token: str) -> int:
        return int(token[:13], 16)  # 52 of the token's random bits: one look-up less, as hard to guess

    def _is_seed_allowed(self, source: Endpoint, now: float) -> bool:
        if self._ration is None:
            return False
        if self._ration.take(source.host, now):
            return True
        self._replies.drop("seed request over its rate")
        return False

    # --- expiry -------------------------------------------------------------------------------------------------------

    def _sweep(self, now: float) -> None:
        for attempt in self._attempts:
            if not attempt.answered and now >= attempt.answer_by:
                self._attempts.note_answer(attempt)
                self._result(attempt, 408, "the callee did not answer", None, now)
        for attempt in [attempt for attempt in self._attempts if attempt.expires_at <= now]:
            self._attempts.forget(attempt)
        self.registrar.sweep(now)
        self._sweep_at = now + _SWEEP if self.registrar.online or self._attempts else None


def _later(mid: int, why: str, wait: float) -> ConnectAnswer:
    """Refuse for so many seconds, rounded up: who asks then must not be told to wait again."""
    return ConnectAnswer(mid=mid, code=429, em=why, extra=ConnectAnswerExtra(retry_after=math.floor(wait) + 1))


def _signed_refusal(answer: PunchAnswer) -> PunchResultExtra | None:
    """Return what the callee has signed of its no, which tells the caller who says it and why; not where the callee is."""
    if answer.extra is None or not answer.extra.intent:
        return None
    return PunchResultExtra(host="", port=0, intent=answer.extra.intent)
