"""The server's part in signals: t=12 and -12 go to the other peer of their token, unread.

Rule: only between two peers that were introduced and receive where they are, and never more bytes out than in.

Source: docs/protocol/signals.md; wire document, t=12.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from p2ptunnel.defaults import SIGNAL_PAIRS_MAX, SIGNALS_BURST, SIGNALS_PER_SECOND, SIGNALS_WAITING_MAX, TOKEN_TTL
from p2ptunnel.protocol.limits import Buckets, Rate
from p2ptunnel.protocol.replies import Endpoint, Replies
from p2ptunnel.wire.messages import Signal, SignalAnswer, encode

__all__ = ["Messenger"]


class _Pair(msgspec.Struct, frozen=True):
    """Two introduced peers, until `expires_at`."""

    caller: Endpoint
    callee: Endpoint
    expires_at: float

    def other(self, one: Endpoint) -> Endpoint | None:
        """Return the peer that `one` is not, None to a stranger."""
        return {self.caller: self.callee, self.callee: self.caller}.get(one)


class Messenger:
    """Hands signals on between the two peers of a token, so many a second of each.

    Args:
        replies: Where what it sends goes.
    """

    def __init__(self, replies: Replies) -> None:
        self._replies = replies
        self._pairs: OrderedDict[str, _Pair] = OrderedDict()  # by token, as they were introduced
        self._askers: OrderedDict[tuple[Endpoint, int], Endpoint] = OrderedDict()  # who waits for that -12 of that peer
        self._rate = Buckets(Rate(SIGNALS_PER_SECOND, SIGNALS_BURST))

    def __len__(self) -> int:
        return len(self._pairs)

    def introduce(self, token: str, caller: Endpoint, callee: Endpoint, now: float) -> None:
        """Hand on between these two for as long as the token lives; too many pairs push the oldest out."""
        self._forget(now)
        self._pairs[token] = _Pair(caller, callee, now + TOKEN_TTL)
        if len(self._pairs) > SIGNAL_PAIRS_MAX:
            self._pairs.popitem(last=False)

    def knows(self, message: Signal | SignalAnswer, source: Endpoint, now: float) -> bool:
        """Tell whether `source` may say that."""
        if isinstance(message, SignalAnswer):
            return (source, message.mid) in self._askers
        return self._other(message, source, now) is not None

    def on_signal(self, message: Signal, source: Endpoint, size: int, now: float) -> bool:
        """Hand a t=12 of `size` bytes on; return whether its source may send one."""
        other = self._other(message, source, now)
        if other is None:
            self._replies.drop("signal of no call")
        elif not self._rate.take((message.extra.token, source), now):
            self._replies.drop("too many signals")
        elif self._hand_on(message, other, size):
            self._askers[other, message.mid] = source
            if len(self._askers) > SIGNALS_WAITING_MAX:
                self._askers.popitem(last=False)
        return other is not None

    def on_answer(self, message: SignalAnswer, source: Endpoint, size: int) -> bool:
        """Hand a -12 back, once for each t=12; return whether its source was asked."""
        asker = self._askers.pop((source, message.mid), None)
        if asker is None:
            self._replies.drop("unexpected answer")
            return False
        self._hand_on(message, asker, size)
        return True

    def _other(self, message: Signal, source: Endpoint, now: float) -> Endpoint | None:
        self._forget(now)
        pair = self._pairs.get(message.extra.token)
        return None if pair is None else pair.other(source)

    def _hand_on(self, message: Signal | SignalAnswer, to: Endpoint, size: int) -> bool:
        data = encode(message)
        if len(data) > size:
            self._replies.drop("signal that would grow")
            return False
        self._replies.send(data, to)
        return True

    def _forget(self, now: float) -> None:
        while self._pairs and next(iter(self._pairs.values())).expires_at <= now:
            self._pairs.popitem(last=False)
