"""Registration: a peer makes itself known under its tag, stays known, and notices when its NAT has rebound.

t=1, 2 and 3 of the wire document.  The state machine is the table below; the server's silence never ends it, only `leave` does.
"""

from __future__ import annotations

import enum
from typing import Final, Protocol

from p2ptunnel.defaults import (
    COOKIELESS_PAD_BYTES,
    HEARTBEAT_MAX,
    HEARTBEAT_MIN,
    RECALL_MAX,
    RECALL_MIN,
    RECONNECT_CAP,
    RECONNECT_FACTOR,
    RECONNECT_FIRST,
    RETRY_AFTER_MAX,
    TRANSACTION_TIMEOUT,
)
from p2ptunnel.errors import LocalProtocolError
from p2ptunnel.protocol.machine import Entropy, Event, MachineBase, new_mid
from p2ptunnel.protocol.transaction import Request, Requester
from p2ptunnel.types import Address, Tag, clean
from p2ptunnel.wire.messages import (
    EpochExtra,
    Heartbeat,
    HeartbeatAnswer,
    Leave,
    LeaveAnswer,
    Message,
    Observed,
    Register,
    RegisterAnswer,
    RegisterExtra,
    encode_padded,
)

__all__ = [
    "TRANSITIONS",
    "AddressChanged",
    "Credentials",
    "Displaced",
    "Left",
    "Registered",
    "Registration",
    "RegistrationLost",
    "RegistrationRefused",
    "RegistrationState",
    "RegistrationTrigger",
    "ServerUnproven",
]


class RegistrationState(enum.Enum):
    """Where a registration stands."""

    IDLE = "idle"
    REGISTERING = "registering"
    REGISTERED = "registered"
    WAITING = "waiting"
    REFUSED = "refused"
    LEAVING = "leaving"
    LEFT = "left"


class RegistrationTrigger(enum.Enum):
    """What moves a registration."""

    START = "start"
    CHALLENGED = "401 with a cookie"
    ACCEPTED = "200"
    REFUSED = "another code"
    SILENCE = "no answer"
    RETRY = "time to try again"
    UNKNOWN = "the server does not know us any more"
    LEAVE = "leave"
    GONE = "left, or no answer to leaving"


_S, _T = RegistrationState, RegistrationTrigger
TRANSITIONS: Final = {
    (_S.IDLE, _T.START): _S.REGISTERING,
    (_S.REGISTERING, _T.CHALLENGED): _S.REGISTERING,
    (_S.REGISTERING, _T.ACCEPTED): _S.REGISTERED,
    (_S.REGISTERING, _T.REFUSED): _S.REFUSED,
    (_S.REGISTERING, _T.SILENCE): _S.WAITING,
    (_S.REGISTERED, _T.UNKNOWN): _S.REGISTERING,
    (_S.REGISTERED, _T.SILENCE): _S.REGISTERING,
    (_S.WAITING, _T.RETRY): _S.REGISTERING,
    (_S.REFUSED, _T.RETRY): _S.REGISTERING,
    (_S.IDLE, _T.LEAVE): _S.LEFT,
    (_S.REGISTERING, _T.LEAVE): _S.LEFT,
    (_S.REGISTERED, _T.LEAVE): _S.LEAVING,
    (_S.WAITING, _T.LEAVE): _S.LEFT,
    (_S.REFUSED, _T.LEAVE): _S.LEFT,
    (_S.LEAVING, _T.LEAVE): _S.LEAVING,
    (_S.LEAVING, _T.GONE): _S.LEFT,
    (_S.LEFT, _T.LEAVE): _S.LEFT,
}
"""Every legal transition; what is not here cannot happen."""


class Registered(Event, frozen=True):
    """The server knows us, as `observed` from outside; `rtt` in seconds, None if the request was repeated."""

    observed: Address
    rtt: float | None


class AddressChanged(Event, frozen=True):
    """The server sees us at another address than before: our NAT has rebound, or we moved."""

    old: Address
    new: Address


class RegistrationRefused(Event, frozen=True):
    """The server said no; `code` as in the wire document, `text` cleaned."""

    code: int
    text: str
    retry_after: float


class RegistrationLost(Event, frozen=True):
    """The server has not answered for a whole transaction; the next try is in `retry_in` seconds."""

    retry_in: float


class Displaced(Event, frozen=True):
    """Another program has registered our tag by our key from elsewhere; we take it back."""


class ServerUnproven(Event, frozen=True):
    """Whoever answers is not the server whose key was given to us; nothing of ours counts there."""


class Left(Event, frozen=True):
    """The registration is over."""


class Credentials(Protocol):
    """Who registers: signs the body of t=1 with the peer's key."""

    @property
    def server_key(self) -> str:
        """The server's public key as text if it was given to us, else empty."""
        ...

    def register_extra(self, *, cookie: str, server_key: str, at_least_ts: int) -> RegisterExtra:
        """Return a freshly signed body; its `ts` is above `at_least_ts`, and above every one of ours that was not asked for."""
        ...

    def is_proven(self, answer: Observed) -> bool:
        """Tell whether the server that answered our last body holds the key that was given to us, if one was."""
        ...


class Registration(MachineBase):
    """One peer's registration with one server.

    It is fed with decoded messages (`receive`), since it shares its port with punch agents.
    """

    def __init__(self, tag: Tag, server: Address, credentials: Credentials, entropy: Entropy) -> None:
        super().__init__()
        self.tag = tag
        self.server = server
        self.state = RegistrationState.IDLE
        self.observed: Address | None = None
        self.rtt: float | None = None
        self.cookie = ""
        self.server_key = credentials.server_key
        self._credentials = credentials
        self._entropy = entropy
        self._requester = Requester(entropy)
        self._epoch = 0
        self._ts = 0
        self._failures = 0
        self._challenges = 0
        self._timer: float | None = None
        self._is_recalled = False

    def start(self, now: float) -> None:
        """Register.

        Raises:
            LocalProtocolError: It has been started already.
        """
        self._move(RegistrationTrigger.START)
        self._register(now)

    def leave(self, now: float) -> None:
        """Tell the server that we go; `Left` follows at once or when the server has answered."""
        before = self._move(RegistrationTrigger.LEAVE)
        if before is RegistrationState.REGISTERED:
            self._requester.cancel()
            self._timer = None
            message = Leave(mid=new_mid(self._entropy), ltag=self.tag, extra=EpochExtra(epoch=self._epoch))
            self._request(message, now, timeout=1.0)
        elif before not in {RegistrationState.LEAVING, RegistrationState.LEFT}:
            self._finish()

    def network_changed(self, now: float) -> None:
        """Ask the server at once what it sees: the network has changed, or we slept."""
        if self.state is RegistrationState.REGISTERED:
            self._heartbeat(now)
        elif self.state in {RegistrationState.WAITING, RegistrationState.REFUSED}:
            self._failures = 0
            self._timer = now

    def receive(self, message: Message, source: Address, now: float) -> bool:
        """Take an answer of the server's; return whether it was for this machine."""
        match message:
            case RegisterAnswer():
                self._on_answer(self._requester.answered(1, message.mid, source), message, now)
            case HeartbeatAnswer():
                self._on_heartbeat_answer(message, source, now)
            case LeaveAnswer():
                if self._requester.answered(3, message.mid, source) is None:
                    self._drop("unexpected answer")
                else:
                    self._move(RegistrationTrigger.GONE)
                    self._finish()
            case _:
                return False
        return True

    def handle_timer(self, now: float) -> None:
        """Repeat, give up, send the heartbeat, try again: whatever is due."""
        repeat, expired = self._requester.due(now)
        self._datagrams += repeat
        for request in expired:
            self._on_silence(request, now)
        if self._timer is None or now < self._timer:
            return
        self._timer = None
        if self.state is RegistrationState.REGISTERED and not self._is_recalled:
            self._heartbeat(now)
            return
        self._move(RegistrationTrigger.UNKNOWN if self._is_recalled else RegistrationTrigger.RETRY)
        self._register(now)

    def next_deadline(self) -> float | None:
        """Return when something is due."""
        waits = [at for at in (self._timer, self._requester.next_deadline()) if at is not None]
        return min(waits, default=None)

    def _move(self, trigger: RegistrationTrigger) -> RegistrationState:
        before = self.state
        try:
            self.state = TRANSITIONS[before, trigger]
        except KeyError:
            raise LocalProtocolError(f"registration is {before.value}: no {trigger.value} there") from None
        return before

    def _request(self, message: Register | Heartbeat | Leave, now: float, *, timeout: float = TRANSACTION_TIMEOUT) -> None:
        data = encode_padded(message, COOKIELESS_PAD_BYTES)
        t = {Register: 1, Heartbeat: 2, Leave: 3}[type(message)]
        self._datagrams.append(self._requester.send(t, message.mid, data, self.server, now, timeout=timeout))

    def _register(self, now: float) -> None:
        self._requester.cancel()
        self._is_recalled = False
        floor, self._ts = self._ts, 0  # for one try: a server forgets it soon, and who forges one is not believed for ever
        extra = self._credentials.register_extra(cookie=self.cookie, server_key=self.server_key, at_least_ts=floor)
        self._request(Register(mid=new_mid(self._entropy), ltag=self.tag, extra=extra), now)

    def _heartbeat(self, now: float) -> None:
        self._requester.cancel(2)
        self._timer, self._is_recalled = None, False
        self._request(Heartbeat(mid=new_mid(self._entropy), ltag=self.tag, extra=EpochExtra(epoch=self._epoch)), now)

    def _on_answer(self, request: Request | None, message: RegisterAnswer, now: float) -> None:
        if request is None or self.state is not RegistrationState.REGISTERING:
            self._drop("unexpected answer")
            return
        extra = message.extra or Observed()
        if message.code == 401 and extra.cookie and self._challenges < 3:
            self._on_challenge(extra, now)
        elif message.code == 200 and not self._credentials.is_proven(extra):
            self._unproven(now)
        elif message.code == 200 and extra.host:
            self._challenges = self._failures = 0
            self._move(RegistrationTrigger.ACCEPTED)
            self._epoch = extra.epoch
            self.cookie = extra.cookie or self.cookie
            self.rtt = now - request.sent_at if request.sends == 1 else self.rtt
            self._events.append(Registered((extra.host, extra.port), self.rtt))
            self._observe(extra, now)
        else:
            self._refused(message.code, message.em, extra.retry_after, now)

    def _on_challenge(self, extra: Observed, now: float) -> None:
        """Sign for the server and the cookie that the answer names; once we were given a key, for no other."""
        if self._credentials.server_key and extra.key != self._credentials.server_key:
            self._unproven(now)
            return
        self._challenges += 1
        self.cookie, self.server_key, self._ts = extra.cookie, extra.key, extra.ts
        self._move(RegistrationTrigger.CHALLENGED)
        try:
            self._register(now)
        except ValueError:  # the credentials cannot sign what it sent: a key that is none, a counter at its end
            self.server_key = self._credentials.server_key
            self._refused(400, "its challenge is malformed", 0.0, now)

    def _unproven(self, now: float) -> None:
        """Treat a server that is not ours as one that is silent, and say so: the right one may be back later."""
        self._challenges = 0
        self._move(RegistrationTrigger.REFUSED)
        self._timer = now + RECONNECT_CAP
        self._events.append(ServerUnproven())

    def _refused(self, code: int, text: str | None, retry_after: float, now: float) -> None:
        self._challenges = 0
        self._move(RegistrationTrigger.REFUSED)
        wait = max(min(retry_after, RETRY_AFTER_MAX), RECONNECT_CAP)
        self._timer = now + wait
        self._events.append(RegistrationRefused(code, clean(text or ""), wait))

    def _on_heartbeat_answer(self, message: HeartbeatAnswer, source: Address, now: float) -> None:
        request = self._requester.answered(2, message.mid, source)
        extra = message.extra or Observed()
        if request is None and source == self.server and self._is_recall(message.code, extra):
            self._is_recalled = True
            self._timer = now + RECALL_MIN + (RECALL_MAX - RECALL_MIN) * self._entropy.random()
            return
        if request is None or self.state is not RegistrationState.REGISTERED:
            self._drop("unexpected answer")
            return
        self.cookie = extra.cookie or self.cookie
        if message.code == 200:
            self._observe(extra, now)
        else:
            if message.code == 409:
                self._events.append(Displaced())
            self._move(RegistrationTrigger.UNKNOWN)
            self._register(now)

    def _is_recall(self, code: int, extra: Observed) -> bool:
        """Tell whether a restarted server asks us to come back: only that server knows the epoch of our registration."""
        is_ours = self.state is RegistrationState.REGISTERED and 0 < extra.epoch == self._epoch
        return code == 401 and is_ours and not self._is_recalled

    def _observe(self, extra: Observed, now: float) -> None:
        seen = (extra.host, extra.port) if extra.host else self.observed
        if self.observed is not None and seen is not None and self.observed != seen:
            self._events.append(AddressChanged(self.observed, seen))
        self.observed = seen
        self._timer = now + HEARTBEAT_MIN + (HEARTBEAT_MAX - HEARTBEAT_MIN) * self._entropy.random()

    def _on_silence(self, request: Request, now: float) -> None:
        if self.state is RegistrationState.LEAVING:
            self._move(RegistrationTrigger.GONE)
            self._finish()
        elif self.state is RegistrationState.REGISTERED:
            self._move(RegistrationTrigger.SILENCE)
            self._register(now)
        else:
            self._move(RegistrationTrigger.SILENCE)
            longest = RECONNECT_FIRST * RECONNECT_FACTOR ** min(self._failures, 99)  # 1.6**1512 is more than a float holds
            wait = min(longest, RECONNECT_CAP) * self._entropy.random()
            self._failures += 1
            self._timer = now + wait
            self._events.append(RegistrationLost(wait))

    def _finish(self) -> None:
        self._requester.cancel()
        self._timer = None
        self._events.append(Left())
