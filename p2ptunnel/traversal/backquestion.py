"""The questions by which a peer has its server send something from elsewhere, or to elsewhere (wire document, t=5).

Rule: pure, as every machine; a server that refuses, or knows nothing of this, has said nothing about any NAT.
"""

from __future__ import annotations

import random
from typing import Final

from p2ptunnel.defaults import PROBE_PAD_BYTES
from p2ptunnel.protocol.machine import Datagram, Event, MachineBase, new_mid
from p2ptunnel.types import Address
from p2ptunnel.wire.messages import Observed, ProbeExtra, ReflexiveAnswer, ReflexiveProbe, encode_padded

__all__ = ["BackQuestion", "GotThrough", "Over"]

_REPEAT: Final = 0.3  # seconds between questions
_dice: Final = random.SystemRandom()


class GotThrough(Event, frozen=True):
    """What was asked for by this `op` has come."""

    op: str


class Over(Event, frozen=True):
    """Nothing more will come; `is_told`: the server knows that we receive, and has not refused."""

    is_told: bool


class BackQuestion(MachineBase):
    """Asks the server a few times over.

    Args:
        server: Where it listens; what comes from there is no answer from elsewhere.
        asked: What is wanted; the cookie is added.
        now: Monotonic seconds.
        repeats: How often each is asked for, once the server has given a cookie.
    """

    def __init__(self, server: Address, asked: tuple[ProbeExtra, ...], now: float, *, repeats: int = 3) -> None:
        super().__init__()
        self._server = server
        self._asked = {new_mid(_dice): extra for extra in asked}
        self._cookie: str = ""
        self._repeats = self._left = repeats
        self._due = now
        self._is_refused = False
        self.handle_timer(now)

    def receive_datagram(self, data: bytes, source: Address, now: float) -> None:
        """Take an answer; the first 401 brings the cookie that we lack."""
        message = self._decode(data)
        if not isinstance(message, ReflexiveAnswer) or message.mid not in self._asked:
            self._drop("no answer of ours")
        elif source == self._server:
            self._on_refusal(message, now)
        elif message.code == 200:
            self._events.append(GotThrough(self._asked.pop(message.mid).op))
            if not self._asked:
                self._end()

    def handle_timer(self, now: float) -> None:
        """Ask again for those that are missing, or end."""
        if now < self._due or not self._asked:
            return
        if self._left == 0:
            self._end()
            return
        self._left -= 1
        self._due = now + _REPEAT
        self._datagrams += [self._question(mid, extra) for mid, extra in self._asked.items()]

    def next_deadline(self) -> float | None:
        """When to ask again."""
        return self._due if self._asked else None

    def _question(self, mid: int, extra: ProbeExtra) -> Datagram:
        probe = ReflexiveProbe(mid=mid, extra=ProbeExtra(op=extra.op, to=extra.to, cookie=self._cookie))
        return Datagram(encode_padded(probe, PROBE_PAD_BYTES), self._server)

    def _on_refusal(self, answer: ReflexiveAnswer, now: float) -> None:
        cookie: str = (answer.extra or Observed()).cookie
        if answer.code == 401 and cookie and cookie != self._cookie:
            self._cookie, self._left, self._due = cookie, self._repeats, now
            self.handle_timer(now)
        elif answer.code != 401 and self._left == self._repeats - 1:  # else it has done the first, and the rest was too much
            self._is_refused = True
            self._end()

    def _end(self) -> None:
        self._asked.clear()
        self._events.append(Over(bool(self._cookie) and not self._is_refused))
