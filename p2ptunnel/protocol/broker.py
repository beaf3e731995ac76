"""The broker: the rendezvous server's whole mind.  It knows who is registered and introduces callers to callees.

Pure: bytes and `now` in, bytes out; UDP datagrams and lines of TCP connections alike.  The one rule a change must keep: over
UDP, nothing is stored, looked up or sent on before the source has shown the cookie of its address, and an answer to such a
source is never longer than its question.  Source: wire document, sections 1 to 3.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

import msgspec

from p2ptunnel.defaults import (
    ATTEMPTS_MAX,
    ATTEMPTS_OF_CALLEE_MAX,
    ATTEMPTS_OF_SOURCE_MAX,
    COMPAT_REQUESTS_PER_MINUTE,
    COMPAT_REQUESTS_PER_SECOND,
    DATAGRAM_MAX_BYTES,
    REGISTRATION_TTL,
    REGISTRATIONS_MAX,
    RETRANSMIT_FIRST,
    TOKEN_TTL,
    TRANSACTION_TIMEOUT,
)
from p2ptunnel.protocol.cookie import CookieJar
from p2ptunnel.protocol.machine import Datagram, Entropy, Event, MachineBase, new_mid, new_secret
from p2ptunnel.protocol.observer import Observer
from p2ptunnel.protocol.transaction import AnswerMemory, Requester
from p2ptunnel.types import Address, Tag, clean, is_tag
from p2ptunnel.wire.messages import (
    ConnectAnswer,
    ConnectAnswerExtra,
    ConnectRequest,
    Heartbeat,
    HeartbeatAnswer,
    Leave,
    LeaveAnswer,
    Message,
    Observed,
    PunchAnswer,
    PunchNotice,
    PunchNoticeExtra,
    PunchResult,
    PunchResultAck,
    PunchResultExtra,
    ReflexiveProbe,
    Register,
    RegisterAnswer,
    RegisterExtra,
    encode,
)
from p2ptunnel.wire.stun import is_stun

__all__ = ["Broker", "Endpoint", "Introduced", "LineToSend", "PeerLeft", "PeerRegistered", "Verifier"]

Verifier = Callable[[Tag, RegisterExtra, str], bool]
"""`(tag, body, cookie) -> bool`: does the signature of a registration hold?"""

_SWEEP: Final = 1.0


class Endpoint(msgspec.Struct, frozen=True):
    """Where a message came from and its answer goes: an address over UDP, or one TCP connection."""

    address: Address
    connection: int | None = None

    @property
    def is_validated(self) -> bool:
        """A TCP handshake has shown that the address receives."""
        return self.connection is not None


class PeerRegistered(Event, frozen=True):
    """A peer is reachable under its tag."""

    tag: Tag
    address: Address


class PeerLeft(Event, frozen=True):
    """A registration ended; `why` is `left`, `expired` or `replaced`."""

    tag: Tag
    why: str


class Introduced(Event, frozen=True):
    """A caller was introduced to a callee, or why not: `code` is the wire's."""

    caller: Tag
    callee: Tag
    code: int


class LineToSend(Event, frozen=True):
    """Write `line`, JSON without line end, to a TCP connection."""

    connection: int
    line: bytes


class _Registration(msgspec.Struct):
    tag: Tag
    endpoint: Endpoint
    key: str
    ts: int
    epoch: int
    expires_at: float
    is_validated: bool
    """It has shown that it receives at its address; only a program of the seed need not."""


class _Attempt(msgspec.Struct):
    token: str
    caller: Endpoint
    caller_tag: Tag
    callee: Endpoint
    callee_tag: Tag
    answer_by: float
    expires_at: float
    is_caller_known: bool
    answered: bool = False


class Broker(MachineBase):
    """Registrations and introductions of one server.

    Args:
        secret: At least 16 bytes; cookies are derived from it, servers of one cluster share it.
        entropy: For tokens, epochs and message ids.
        verify: Judge of a registration's signature.
        server_key: The server's public key as text, empty while it has none; registrations are signed for it.
        compat_seed: Also serve programs written from the founding document alone, which cannot show a cookie or sign:
            a few requests per source and minute, never under a tag that a key owns.
        observer: Answers t=5 and STUN on the broker's own port.
    """

    def __init__(
        self,
        secret: bytes,
        entropy: Entropy,
        verify: Verifier,
        *,
        server_key: str = "",
        compat_seed: bool = False,
        observer: Observer | None = None,
    ) -> None:
        super().__init__()
        self._observer = observer or Observer()
        self._cookies = CookieJar(secret)
        self._entropy = entropy
        self._verify = verify
        self._server_key = server_key
        self._compat_seed = compat_seed
        self._compat_uses: list[tuple[float, str]] = []
        self._registrations: dict[Tag, _Registration] = {}
        self._attempts: dict[str, _Attempt] = {}
        self._busy: Counter[str | Endpoint] = Counter()  # attempts by the caller's host and by the callee
        self._requester = Requester(entropy)
        self._answers = AnswerMemory()
        self._sweep_at: float | None = None

    @property
    def registered(self) -> tuple[Tag, ...]:
        """The tags that are online, in order of registration."""
        return tuple(self._registrations)

    @property
    def attempts(self) -> int:
        """How many introductions are under way."""
        return len(self._attempts)

    # --- input --------------------------------------------------------------------------------------------------------

    def receive_datagram(self, data: bytes, source: Address, now: float) -> None:
        """Take one UDP datagram."""
        if is_stun(data):
            self._observer.receive_datagram(data, source, now)
            self._datagrams += self._observer.datagrams_to_send()
        else:
            self.receive(data, Endpoint(source), now)

    def receive(self, data: bytes, source: Endpoint, now: float) -> None:
        """Take one message: a datagram, or one line of a TCP connection."""
        message = self._decode(data)
        if message is None:
            return
        match message:
            case ReflexiveProbe():
                cookie = self._cookies.make(source.address[0], now) if source.is_validated else ""
                self._answer_stranger(self._observer.answer(message, source.address, cookie), source, len(data))
            case Register():
                self._on_register(message, source, len(data), now)
            case Heartbeat():
                self._on_heartbeat(message, source, len(data), now)
            case Leave():
                self._on_leave(message, source, len(data))
            case ConnectRequest():
                self._on_connect(message, source, len(data), now)
            case PunchAnswer():
                self._on_punch_answer(message, source, now)
            case PunchResultAck():
                self._on_result_ack(message)
            case _:
                self._drop("not for a server")

    def connection_closed(self, connection: int) -> None:
        """Forget what was reachable only over this TCP connection."""
        for tag, registration in list(self._registrations.items()):
            if registration.endpoint.connection == connection:
                self._remove(tag, "left")

    def handle_timer(self, now: float) -> None:
        """Repeat, give up, expire."""
        repeat, _ = self._requester.due(now)
        self._datagrams += repeat
        if self._sweep_at is not None and now >= self._sweep_at:
            self._sweep(now)

    def next_deadline(self) -> float | None:
        """Return when something is due."""
        waits = [at for at in (self._sweep_at, self._requester.next_deadline()) if at is not None]
        return min(waits, default=None)

    # --- registration -------------------------------------------------------------------------------------------------

    def _on_register(self, message: Register, source: Endpoint, size: int, now: float) -> None:
        extra = message.extra or RegisterExtra()
        if not is_tag(message.ltag):
            self._drop("bad tag")
            return
        is_seed = not (extra.v or extra.key or extra.sig)
        is_complete = is_seed or bool(extra.sig or extra.cookie)  # else it waits for a cookie to sign, over TCP as well
        if is_seed:
            is_known = self._is_known(extra.cookie, source, now)
        else:  # what is signed is our cookie for that address: over TCP as well, or an old registration could be replayed there
            is_known = is_complete and self._cookies.is_valid(extra.cookie, source.address[0], now)
        if not is_known and not (is_seed and self._is_seed_allowed(source, now)):
            self._challenge(RegisterAnswer, message.mid, source, size, now)
            return
        if is_seed and not self._compat_seed:
            self._answer(RegisterAnswer(mid=message.mid, code=403, em="a signature is needed"), source)
            return
        if not is_seed and not self._verify(message.ltag, extra, self._server_key):
            self._answer(RegisterAnswer(mid=message.mid, code=403, em="the signature does not hold"), source)
            return
        held = self._registrations.get(message.ltag)
        if held is not None and held.key not in {"", extra.key}:
            self._answer(RegisterAnswer(mid=message.mid, code=409, em="another key owns this tag"), source)
        elif held is not None and is_seed and source == held.endpoint:  # it has no heartbeat but this
            held.expires_at = now + REGISTRATION_TTL
            self._confirm_registration(message.mid, held.epoch, source, now)
        elif held is not None and held.key and extra.ts <= held.ts:
            self._repeat_registration(message, held, source, now)
        elif held is None and len(self._registrations) >= REGISTRATIONS_MAX:
            self._answer(RegisterAnswer(mid=message.mid, code=429, em="server full", extra=Observed(retry_after=60)), source)
        else:
            self._register(message, extra, source, now, is_validated=is_known)

    def _register(self, message: Register, extra: RegisterExtra, source: Endpoint, now: float, *, is_validated: bool) -> None:
        epoch = new_mid(self._entropy)
        if message.ltag in self._registrations:
            self._remove(message.ltag, "replaced")
        self._registrations[message.ltag] = _Registration(
            message.ltag, source, extra.key, extra.ts, epoch, now + REGISTRATION_TTL, is_validated
        )
        self._events.append(PeerRegistered(message.ltag, source.address))
        self._confirm_registration(message.mid, epoch, source, now)
        self._arm(now)

    def _repeat_registration(self, message: Register, held: _Registration, source: Endpoint, now: float) -> None:
        extra = message.extra or RegisterExtra()
        if extra.ts == held.ts and source == held.endpoint:  # our answer was lost
            self._confirm_registration(message.mid, held.epoch, source, now)
        else:  # an old signature: the owner may have lost its counter, anybody else only has a replay
            self._drop("registration replayed")
            observed = _observed(source, cookie=self._cookies.make(source.address[0], now), ts=held.ts, key=self._server_key)
            self._answer(RegisterAnswer(mid=message.mid, code=401, em="ts too low", extra=observed), source)

    def _confirm_registration(self, mid: int, epoch: int, source: Endpoint, now: float) -> None:
        extra = _observed(source, ttl=REGISTRATION_TTL, epoch=epoch, cookie=self._cookies.make(source.address[0], now))
        self._answer(RegisterAnswer(mid=mid, code=200, em="", extra=extra), source)

    def _on_heartbeat(self, message: Heartbeat, source: Endpoint, size: int, now: float) -> None:
        held = self._holder(message.ltag, message.extra.epoch, source)
        if held is None:
            self._challenge(HeartbeatAnswer, message.mid, source, size, now)
            return
        held.expires_at = now + REGISTRATION_TTL
        extra = _observed(source, cookie=self._cookies.make(source.address[0], now))
        self._answer(HeartbeatAnswer(mid=message.mid, code=200, em="", extra=extra), source)

    def _on_leave(self, message: Leave, source: Endpoint, size: int) -> None:
        if self._holder(message.ltag, message.extra.epoch, source) is not None:
            self._remove(message.ltag, "left")
        self._answer_stranger(LeaveAnswer(mid=message.mid, code=200, em=""), source, size)

    def _holder(self, tag: str, epoch: int, source: Endpoint) -> _Registration | None:
        held = self._registrations.get(tag)
        if held is None or held.epoch != epoch or held.endpoint != source:
            return None
        return held

    def _remove(self, tag: Tag, why: str) -> None:
        del self._registrations[tag]
        self._events.append(PeerLeft(tag, why))

    # --- introduction -------------------------------------------------------------------------------------------------

    def _on_connect(self, message: ConnectRequest, source: Endpoint, size: int, now: float) -> None:
        extra = message.extra
        is_known = self._is_known(extra.cookie, source, now)
        if not is_known and (extra.v or not self._is_seed_allowed(source, now)):
            self._challenge(ConnectAnswer, message.mid, source, size, now)
            return
        key = (source, 4, message.mid)
        given = self._answers.recall(key, now)  # not before: a stranger's repetitions are rationed as well
        if given is not None:
            self._send(given, source)
            return
        answer = encode(self._introduce(message, source, now, is_known=is_known))
        self._answers.remember(key, answer, now)
        self._send(answer, source)
        self._arm(now)

    def _introduce(self, message: ConnectRequest, source: Endpoint, now: float, *, is_known: bool) -> ConnectAnswer:
        extra = message.extra
        callee = self._registrations.get(extra.rtag)
        if not is_tag(message.ltag) or not is_tag(extra.rtag):
            return ConnectAnswer(mid=message.mid, code=400, em="not a tag")
        if callee is None:
            self._events.append(Introduced(message.ltag, extra.rtag, 404))
            return ConnectAnswer(mid=message.mid, code=404, em="no such peer is online")
        if busy := self._is_too_much(source, callee, now):
            return ConnectAnswer(mid=message.mid, code=429, em=busy, extra=ConnectAnswerExtra(retry_after=5))
        token = new_secret(self._entropy)
        host, port = source.address
        said = PunchNoticeExtra(
            token=token, host=host, port=port, v=extra.v, intent=extra.intent, cands=extra.cands, nat=extra.nat
        )
        notice = encode(PunchNotice(mid=self._mid_of(token), extra=said))
        if len(notice) > DATAGRAM_MAX_BYTES:
            return ConnectAnswer(mid=message.mid, code=413, em="too long to hand on")
        answer_by, expires_at = now + TRANSACTION_TIMEOUT, now + TOKEN_TTL
        self._attempts[token] = _Attempt(
            token, source, message.ltag, callee.endpoint, extra.rtag, answer_by, expires_at, is_known
        )
        self._busy[source.address[0]] += 1
        self._busy[callee.endpoint] += 1
        if callee.is_validated:
            self._request(10, self._mid_of(token), notice, callee.endpoint, now)
        else:  # once: it may be a victim's address
            self._send(notice, callee.endpoint)
        return ConnectAnswer(mid=message.mid, code=200, em="", extra=ConnectAnswerExtra(token=token, host=host, port=port))

    def _is_too_much(self, source: Endpoint, callee: _Registration, now: float) -> str:
        """Return why there can be no introduction now, empty if there can."""
        if len(self._attempts) >= ATTEMPTS_MAX:
            return "server busy"
        if self._busy[source.address[0]] >= ATTEMPTS_OF_SOURCE_MAX:
            return "too many calls from there"
        if self._busy[callee.endpoint] >= ATTEMPTS_OF_CALLEE_MAX:
            return "too many calls to that peer"
        if not callee.is_validated and not self._is_seed_allowed(callee.endpoint, now):
            return "too many calls to that program"
        return ""

    def _forget(self, attempt: _Attempt) -> None:
        """End an attempt: it counts no more."""
        del self._attempts[attempt.token]
        for key in (attempt.caller.address[0], attempt.callee):
            self._busy[key] -= 1
            if not self._busy[key]:
                del self._busy[key]

    def _on_result_ack(self, message: PunchResultAck) -> None:
        attempt = self._attempts.get(message.token)
        if attempt is None or not attempt.answered or message.mid != self._mid_of(message.token):
            self._drop("unexpected answer")
            return
        self._requester.answered(11, message.mid)  # over TCP nothing was waiting to be repeated
        self._forget(attempt)

    def _on_punch_answer(self, message: PunchAnswer, source: Endpoint, now: float) -> None:
        attempt = self._attempts.get(message.token)
        if attempt is None or attempt.callee.address[0] != source.address[0] or message.mid != self._mid_of(message.token):
            self._drop("unexpected answer")
            return
        self._requester.answered(10, message.mid)
        if attempt.answered:
            return
        attempt.answered = True
        if message.code != 200 or message.extra is None:
            self._result(attempt, message.code if message.code != 200 else 500, clean(message.em or ""), None, now)
            return
        host, port = source.address  # what we observe, not what the callee believes: NATs change ports
        said = message.extra
        extra = PunchResultExtra(host=host, port=port, v=said.v, intent=said.intent, cands=said.cands, nat=said.nat)
        self._result(attempt, 200, "", extra, now)

    def _result(self, attempt: _Attempt, code: int, em: str, extra: PunchResultExtra | None, now: float) -> None:
        self._events.append(Introduced(attempt.caller_tag, attempt.callee_tag, code))
        mid = self._mid_of(attempt.token)
        data = encode(PunchResult(mid=mid, token=attempt.token, code=code, em=em, extra=extra))
        if len(data) > DATAGRAM_MAX_BYTES:
            data = encode(PunchResult(mid=mid, token=attempt.token, code=413, em="too long to hand on"))
        timeout = TRANSACTION_TIMEOUT if attempt.is_caller_known else 2 * RETRANSMIT_FIRST  # twice, to whom may be a victim
        self._request(11, mid, data, attempt.caller, now, timeout=timeout)

    @staticmethod
    def _mid_of(token: str) -> int:
        return int(token[:13], 16)  # 52 of the token's random bits: one look-up less, as hard to guess

    # --- what may be answered -----------------------------------------------------------------------------------------

    def _is_known(self, cookie: str, source: Endpoint, now: float) -> bool:
        return source.is_validated or bool(cookie and self._cookies.is_valid(cookie, source.address[0], now))

    def _is_seed_allowed(self, source: Endpoint, now: float) -> bool:
        if not self._compat_seed:
            return False
        self._compat_uses = [use for use in self._compat_uses if now - use[0] < 60]
        of_source = sum(host == source.address[0] for _, host in self._compat_uses)
        of_all = sum(now - at < 1 for at, _ in self._compat_uses)
        if of_source >= COMPAT_REQUESTS_PER_MINUTE or of_all >= COMPAT_REQUESTS_PER_SECOND:
            self._drop("seed request over its rate")
            return False
        self._compat_uses.append((now, source.address[0]))
        return True

    def _challenge(
        self,
        kind: type[RegisterAnswer] | type[HeartbeatAnswer] | type[ConnectAnswer],
        mid: int,
        source: Endpoint,
        size: int,
        now: float,
    ) -> None:
        host, port = source.address
        cookie = self._cookies.make(host, now)
        if kind is ConnectAnswer:
            answer: Message = ConnectAnswer(
                mid=mid, code=401, em="cookie", extra=ConnectAnswerExtra(host=host, port=port, cookie=cookie)
            )
        elif kind is RegisterAnswer:
            extra = Observed(host=host, port=port, cookie=cookie, key=self._server_key)
            answer = RegisterAnswer(mid=mid, code=401, em="cookie", extra=extra)
        else:
            answer = HeartbeatAnswer(mid=mid, code=401, em="cookie", extra=Observed(host=host, port=port, cookie=cookie))
        self._answer_stranger(answer, source, size)

    # --- output -------------------------------------------------------------------------------------------------------

    def _answer_stranger(self, answer: Message, source: Endpoint, size: int) -> None:
        data = encode(answer)
        if source.is_validated or len(data) <= size:
            self._send(data, source)
        else:
            self._drop("question shorter than the answer")

    def _answer(self, answer: Message, source: Endpoint) -> None:
        self._send(encode(answer), source)

    def _send(self, data: bytes, to: Endpoint) -> None:
        if to.connection is None:
            self._datagrams.append(Datagram(data, to.address))
        else:
            self._events.append(LineToSend(to.connection, data))

    def _request(
        self, t: int, mid: int, data: bytes, to: Endpoint, now: float, *, timeout: float = TRANSACTION_TIMEOUT
    ) -> None:
        if to.connection is None:
            self._datagrams.append(self._requester.send(t, mid, data, to.address, now, timeout=timeout))
        else:
            self._events.append(LineToSend(to.connection, data))

    # --- expiry -------------------------------------------------------------------------------------------------------

    def _arm(self, now: float) -> None:
        if self._sweep_at is None:
            self._sweep_at = now + _SWEEP

    def _sweep(self, now: float) -> None:
        for attempt in self._attempts.values():
            if not attempt.answered and now >= attempt.answer_by:
                attempt.answered = True
                self._result(attempt, 408, "the callee did not answer", None, now)
        for attempt in [attempt for attempt in self._attempts.values() if attempt.expires_at <= now]:
            self._forget(attempt)
        for tag in [tag for tag, held in self._registrations.items() if held.expires_at <= now]:
            self._remove(tag, "expired")
        self._sweep_at = now + _SWEEP if self._registrations or self._attempts else None


def _observed(source: Endpoint, *, ttl: float = 0, epoch: int = 0, cookie: str = "", ts: int = 0, key: str = "") -> Observed:
    host, port = source.address
    return Observed(host=host, port=port, ttl=ttl, epoch=epoch, cookie=cookie, ts=ts, key=key)
