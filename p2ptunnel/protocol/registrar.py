"""The registering half of a server: who is online under which tag, who owns it, and how peers come back after a restart.

t=1, 2 and 3 of the wire document.  Rule: nothing is stored or looked up for a source that has not shown its cookie.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from p2ptunnel.defaults import (
    NEW_TAGS_PER_DAY,
    RECALLS_PER_SECOND,
    REGISTRATION_TTL,
    REGISTRATIONS_MAX,
    REGISTRATIONS_PER_MINUTE,
    REREGISTRATIONS_PER_MINUTE,
    RESTART_GRACE,
)
from p2ptunnel.identity.judge import Judge
from p2ptunnel.protocol.limits import Buckets, Rate, SourceLimit, limited_source
from p2ptunnel.protocol.machine import Entropy, Event, new_mid
from p2ptunnel.protocol.replies import Endpoint, Replies, observed
from p2ptunnel.protocol.tags import TagBook, TagRecord
from p2ptunnel.types import Address, Tag, is_tag, paired_tag
from p2ptunnel.wire.messages import (
    Heartbeat,
    HeartbeatAnswer,
    Leave,
    LeaveAnswer,
    Observed,
    Register,
    RegisterAnswer,
    RegisterExtra,
    encode,
)

__all__ = ["PeerLeft", "PeerRegistered", "Registered", "Registrar"]

_RECALL_EVERY: Final = 0.01
_DAY: Final = 86_400


class PeerRegistered(Event, frozen=True):
    """A peer is reachable under its tag."""

    tag: Tag
    address: Address


class PeerLeft(Event, frozen=True):
    """A registration ended; `why` is `left`, `expired`, `replaced`, `unlisted` or `freed`."""

    tag: Tag
    why: str


class Registered(msgspec.Struct):
    """One registration; `is_validated`: it has shown that it receives there, which only a program of the seed need not.

    `displaced` is the epoch of the one by the same key, from another address, in whose place it came; 0: there was none.
    """

    tag: Tag
    endpoint: Endpoint
    key: str
    ts: int
    epoch: int
    expires_at: float
    is_validated: bool
    displaced: int = 0


class Registrar:
    """Takes registrations.

    Args:
        replies: The server's outbox.
        judge: Of signatures and memberships.
        tags: Who owns which tag.
        entropy: For epochs.
        is_seed_allowed: `(source, now)`: may a program of the founding document be served without a cookie?  None: never,
            and not with one either.
    """

    def __init__(
        self,
        replies: Replies,
        judge: Judge,
        tags: TagBook,
        entropy: Entropy,
        is_seed_allowed: Callable[[Endpoint, float], bool] | None,
    ) -> None:
        self.tags: Final = tags
        self.online: Final[dict[Tag, Registered]] = {}
        self._of_connection: Final[dict[int, set[Tag]]] = {}  # who is reachable only over which
        self._replies = replies
        self._judge = judge
        self._entropy = entropy
        self._is_seed_allowed = is_seed_allowed
        self._of_source = SourceLimit(Rate(REGISTRATIONS_PER_MINUTE / 60, REGISTRATIONS_PER_MINUTE))
        self._of_owner = Buckets(Rate(REREGISTRATIONS_PER_MINUTE / 60, REREGISTRATIONS_PER_MINUTE))
        self._new_tags = SourceLimit(Rate(NEW_TAGS_PER_DAY / _DAY, NEW_TAGS_PER_DAY))
        self._recalls: deque[tuple[Address, int]] = deque()
        self._recall_at: float | None = None
        self._awaited: dict[Tag, float] = {}

    # --- t=1 ----------------------------------------------------------------------------------------------------------

    def on_register(self, message: Register, source: Endpoint, size: int, now: float) -> bool:
        """Take a t=1; return whether its source has shown who it is."""
        extra = message.extra or RegisterExtra()
        if not is_tag(message.ltag):
            self._replies.drop("bad tag")
            return False
        if not (extra.v or extra.key or extra.sig):
            return self._on_seed(message, extra, source, size, now)
        # What is signed is our cookie for that address: over TCP as well, or an old registration could be replayed there.
        if not self._replies.has_cookie(extra.cookie, source, now):
            self._replies.challenge(RegisterAnswer, message.mid, source, size, now)
            return False
        refusal = self._refusal(message.ltag, extra, source, now)
        if refusal is None:
            self._on_signed(message, extra, source, now)
        else:
            self._replies.answer(_with_mid(refusal, message.mid), source)
        return True

    def _on_seed(self, message: Register, extra: RegisterExtra, source: Endpoint, size: int, now: float) -> bool:
        """Take a registration without a key, which only a program of the founding document sends."""
        is_known = self._replies.is_known(extra.cookie, source, now)
        allowed = self._is_seed_allowed
        is_allowed = allowed is not None and allowed(source, now)
        if not (is_known or is_allowed):
            self._replies.challenge(RegisterAnswer, message.mid, source, size, now)
            return False
        held = self.online.get(message.ltag)
        if allowed is None:
            self._refuse(message, 403, "a signature is needed", source)
        elif not is_allowed:  # a cookie costs nothing, and a tag that nobody signs for has no other bound
            self._refuse(message, 429, "too many registrations from there", source, retry_after=60)
        elif self._owner(message.ltag, now) is not None:
            self._refuse(message, 409, "another key owns this tag", source)
        elif held is not None and source == held.endpoint:  # it has no heartbeat but this
            held.expires_at = now + REGISTRATION_TTL
            self._confirm(message.mid, held, "", source, now)
        elif held is None and len(self.online) >= REGISTRATIONS_MAX:
            self._refuse(message, 429, "server full", source, retry_after=60)
        else:
            self._confirm(message.mid, self._enter(message.ltag, extra, source, now, is_validated=is_known), "", source, now)
        return is_known

    def _refusal(self, tag: Tag, extra: RegisterExtra, source: Endpoint, now: float) -> RegisterAnswer | None:
        """Return why a signed registration is not taken, None if it is; the cheap reasons come first."""
        owner = self._owner(tag, now)
        is_owner = owner is not None and owner.key == extra.key
        if wait := self._wait(extra.key if is_owner else "", source, now):
            return _refusal(429, "too many registrations from there", retry_after=wait)
        if not self._judge.is_member(tag, extra):
            return _refusal(407, "this server serves its members only")
        if not self._judge.is_signed(tag, extra):  # or for another server, whose cookie this one was passed off as
            cookie = self._replies.cookies.make(source.host, now)
            body = observed(source, cookie=cookie, key=self._judge.server_key)
            return RegisterAnswer(mid=0, code=401, em="the signature does not hold here", extra=body)
        if owner is not None and is_owner:
            return None
        if owner is not None and not (owner.key == extra.old_key and self._judge.is_handed_on(tag, extra)):
            return _refusal(409, "another key owns this tag")
        if self.tags.is_full(extra.key, now):
            return _refusal(429, "too many tags", retry_after=3600)
        if owner is None and not self._new_tags.take(source.host, now):
            return _refusal(429, "too many new tags from there", retry_after=self._new_tags.wait(source.host, now))
        return None

    def _owner(self, tag: Tag, now: float) -> TagRecord | None:
        """Return who owns the tag, None if nobody does; where a machine pairs is its own, whoever was there first."""
        return self.tags.record(paired_tag(tag), now) or self.tags.record(tag, now)

    def _wait(self, owner: str, source: Endpoint, now: float) -> float:
        """Count a registration; return 0, or for how many seconds there are to be no more of these."""
        block = limited_source(source.host)
        if block is None:
            return 0.0
        if owner and self._of_owner.take((block.block, owner), now):
            return 0.0
        return 0.0 if self._of_source.take(source.host, now) else max(1.0, self._of_source.wait(source.host, now))

    def _on_signed(self, message: Register, extra: RegisterExtra, source: Endpoint, now: float) -> None:
        held = self.online.get(message.ltag)
        owner = self.tags.record(message.ltag, now)
        floor = self.tags.floor(message.ltag, now)
        if owner is not None and owner.key == extra.key and extra.ts <= floor:
            self._on_old(message, extra, held, floor, source, now)
        elif held is None and len(self.online) >= REGISTRATIONS_MAX:
            self._refuse(message, 429, "server full", source, retry_after=60)
        else:
            entered = self._enter(message.ltag, extra, source, now, is_validated=True)
            self._confirm(message.mid, entered, self._judge.proof(extra, entered.epoch), source, now)

    def _on_old(
        self, message: Register, extra: RegisterExtra, held: Registered | None, ts: int, source: Endpoint, now: float
    ) -> None:
        """Answer a signature that is not newer than the last: a repetition, a lost counter, or a replay."""
        if held is not None and extra.ts == held.ts and source == held.endpoint:  # our answer was lost
            self._confirm(message.mid, held, self._judge.proof(extra, held.epoch), source, now)
            return
        self._replies.drop("registration replayed")
        body = observed(source, cookie=self._replies.cookies.make(source.host, now), ts=ts, key=self._judge.server_key)
        self._replies.answer(RegisterAnswer(mid=message.mid, code=401, em="ts too low", extra=body), source)

    def _enter(self, tag: Tag, extra: RegisterExtra, source: Endpoint, now: float, *, is_validated: bool) -> Registered:
        if (before := self.online.get(tag)) is not None:
            self.remove(tag, "replaced")
        is_displaced = before is not None and before.key == extra.key and before.endpoint.address != source.address
        displaced, epoch = before.epoch if before is not None and is_displaced else 0, new_mid(self._entropy)
        entered = Registered(tag, source, extra.key, extra.ts, epoch, now + REGISTRATION_TTL, is_validated, displaced)
        self.online[tag] = entered
        if source.connection is not None:
            self._of_connection.setdefault(source.connection, set()).add(tag)
        self._awaited.pop(tag, None)
        if extra.key:
            address = None if source.is_validated else source.address  # nobody can be recalled over a lost connection
            self.tags.register(TagRecord(tag, extra.key, 0, address, epoch, extra.ts), now)
        self._replies.report(PeerRegistered(tag, source.address))
        return entered

    def _confirm(self, mid: int, held: Registered, proof: str, source: Endpoint, now: float) -> None:
        cookie = self._replies.cookies.make(source.host, now)
        extra = observed(source, ttl=REGISTRATION_TTL, epoch=held.epoch, cookie=cookie, sig=proof)
        self._replies.answer(RegisterAnswer(mid=mid, code=200, em="", extra=extra), source)

    def _refuse(self, message: Register, code: int, why: str, source: Endpoint, *, retry_after: float = 0) -> None:
        self._replies.answer(_with_mid(_refusal(code, why, retry_after=retry_after), message.mid), source)

    # --- t=2, t=3 -----------------------------------------------------------------------------------------------------

    def on_heartbeat(self, message: Heartbeat, source: Endpoint, size: int, now: float) -> bool:
        """Take a t=2; return whether it was one of a registered peer."""
        held = self._holder(message.ltag, message.extra.epoch, source)
        if held is None and self._is_displaced(message.ltag, message.extra.epoch):
            answer = HeartbeatAnswer(mid=message.mid, code=409, em="registered from elsewhere since")
            self._replies.answer_stranger(answer, source, size)
            return False
        if held is None:
            self._replies.challenge(HeartbeatAnswer, message.mid, source, size, now)
            return False
        if not self._judge.is_listed(held.key):
            self.remove(held.tag, "unlisted")
            self._replies.answer(HeartbeatAnswer(mid=message.mid, code=407, em="this server serves its members only"), source)
            return True
        held.expires_at = now + REGISTRATION_TTL
        self.tags.keep(held.tag, now)
        extra = observed(source, cookie=self._replies.cookies.make(source.host, now))
        self._replies.answer(HeartbeatAnswer(mid=message.mid, code=200, em="", extra=extra), source)
        return True

    def on_leave(self, message: Leave, source: Endpoint, size: int) -> bool:
        """Take a t=3; return whether it was one of a registered peer."""
        is_holder = self.is_holder(message.ltag, message.extra.epoch, source)
        if is_holder:
            self.remove(message.ltag, "left")
        self._replies.answer_stranger(LeaveAnswer(mid=message.mid, code=200, em=""), source, size)
        return is_holder

    def callee(self, tag: str) -> Registered | None:
        """Return who can be called under the tag now, None if nobody can."""
        held = self.online.get(tag)
        return held if held is not None and self._judge.is_listed(held.key) else None

    def is_holder(self, tag: str, epoch: int, source: Endpoint) -> bool:
        """Tell whether it is registered from there, under that epoch."""
        return self._holder(tag, epoch, source) is not None

    def _holder(self, tag: str, epoch: int, source: Endpoint) -> Registered | None:
        held = self.online.get(tag)
        return held if held is not None and (held.epoch, held.endpoint) == (epoch, source) else None

    def _is_displaced(self, tag: str, epoch: int) -> bool:
        """Tell whether who asks has had the tag until now, which nobody else can show: the epoch was told to it alone."""
        held = self.online.get(tag)
        return held is not None and 0 < epoch == held.displaced

    def remove(self, tag: Tag, why: str) -> None:
        """End a registration; the tag stays its owner's."""
        connection = self.online.pop(tag).endpoint.connection
        if connection is not None and (tags := self._of_connection.get(connection)):
            tags.discard(tag)
            if not tags:
                del self._of_connection[connection]
        self.tags.leave(tag)
        self._replies.report(PeerLeft(tag, why))

    def connection_closed(self, connection: int) -> None:
        """Forget who was reachable only over this TCP connection."""
        for tag in tuple(self._of_connection.get(connection, ())):  # connections are many, and most have registered nobody
            self.remove(tag, "left")

    def free(self, tag: Tag) -> None:
        """Take the tag from its owner, and its registration with it."""
        self.tags.free(tag)
        if tag in self.online:
            self.remove(tag, "freed")

    # --- restart ------------------------------------------------------------------------------------------------------

    def recall(self, records: Iterable[TagRecord], now: float) -> None:
        """Ask who was registered before a restart to register again, a few at a time."""
        for record in records:
            if record.address is not None:
                self._recalls.append((record.address, record.epoch))
                self._awaited[record.tag] = now + RESTART_GRACE
        if self._recalls:
            self._recall_at = now

    def is_awaited(self, tag: Tag, now: float) -> bool:
        """Tell whether the tag was online before a restart, so short a time ago that it may not be back yet."""
        return self.grace(tag, now) > 0

    def grace(self, tag: Tag, now: float) -> float:
        """Return for how many seconds more the tag is awaited, if it was online before a restart; else 0."""
        return max(0.0, self._awaited.get(tag, now) - now)

    def handle_timer(self, now: float) -> None:
        """Recall the next few."""
        if self._recall_at is None or now < self._recall_at:
            return
        for _ in range(min(len(self._recalls), max(1, int(RECALLS_PER_SECOND * _RECALL_EVERY)))):
            address, epoch = self._recalls.popleft()
            gone = HeartbeatAnswer(mid=0, code=401, em="register again", extra=Observed(epoch=epoch))
            self._replies.send(encode(gone), Endpoint(address))
        self._recall_at = now + _RECALL_EVERY if self._recalls else None

    def next_deadline(self) -> float | None:
        """Return when the next are to be recalled."""
        return self._recall_at

    def sweep(self, now: float) -> None:
        """Forget who has been silent for too long."""
        for tag in [tag for tag, held in self.online.items() if held.expires_at <= now]:
            self.remove(tag, "expired")
        if self._awaited and now >= max(self._awaited.values()):
            self._awaited.clear()


def _refusal(code: int, why: str, *, retry_after: float = 0) -> RegisterAnswer:
    extra = Observed(retry_after=math.ceil(retry_after)) if retry_after else None
    return RegisterAnswer(mid=0, code=code, em=why, extra=extra)


def _with_mid(answer: RegisterAnswer, mid: int) -> RegisterAnswer:
    return msgspec.structs.replace(answer, mid=mid)
