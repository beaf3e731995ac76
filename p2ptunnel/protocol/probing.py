"""Probes back: a server answers a t=5 with `op` from another of its addresses, so that the asker learns who gets in.

Or it answers to another port of the same host, which shows whether a mapping there still stands.  Pure: it decides, and tells
the server's sockets what to do.  Rule: nothing is sent but to the very host that asks, which has shown that it receives there,
and no more than it sent; a source has few of these.  Source: RFC 5780 4.4 and 4.6; wire document, t=5.
"""

from __future__ import annotations

from typing import Final

from p2ptunnel.addresses import port_refusal
from p2ptunnel.defaults import PROBES_BACK_BURST, PROBES_BACK_PER_SECOND
from p2ptunnel.protocol.limits import Rate, SourceLimit
from p2ptunnel.protocol.machine import Event
from p2ptunnel.protocol.observer import Observer
from p2ptunnel.protocol.replies import Endpoint, Replies, observed
from p2ptunnel.types import Address
from p2ptunnel.wire.messages import ProbeExtra, ReflexiveAnswer, ReflexiveProbe, encode

__all__ = ["ProbeBack", "ProbesBack"]


class ProbeBack(Event, frozen=True):
    """Send `line` from the observer of this number: as a datagram; or dial, and then send it over the connection that asked.

    connection: The TCP connection that asked; None: over UDP.
    """

    observer: int
    address: Address
    connection: int | None
    line: bytes


class ProbesBack:
    """Decides who is probed back.

    Args:
        replies: Where refusals go.
        observer: Knows where else the server observes.
        server_key: The server's as text, empty if it has none.
    """

    def __init__(self, replies: Replies, observer: Observer, server_key: str) -> None:
        self._replies: Final = replies
        self._observer: Final = observer
        self._server_key: Final = server_key
        self._of_source: Final = SourceLimit(Rate(PROBES_BACK_PER_SECOND, PROBES_BACK_BURST))

    def on_probe(self, probe: ReflexiveProbe, extra: ProbeExtra, source: Endpoint, size: int, now: float) -> None:
        """Take a t=5 that wants one, of `size` bytes."""
        if not self._replies.is_known(extra.cookie, source, now):
            made = self._replies.cookies.make(source.host, now)
            self._refuse(probe, 401, "cookie", source, size, cookie=made)
        elif why := self._is_none(extra, source):
            self._refuse(probe, 404, why, source, size)
        elif not self._of_source.take(source.host, now, of=(extra.op, source.is_validated)):
            self._refuse(probe, 429, "too many probes", source, size)
        elif extra.op:
            self._probe_back(probe, self._observer.others_for(source.host)[int(extra.op)], source, size)
        else:
            answer = self._observer.answer(probe, source.address)
            self._replies.answer_stranger(answer, Endpoint((source.host, extra.to)), size)

    def _is_none(self, extra: ProbeExtra, source: Endpoint) -> str:
        """Return why there is nothing that could be done; empty where there is."""
        if not extra.op:
            return "over UDP only" if source.is_validated else port_refusal(extra.to) or ""
        is_number = extra.op.isascii() and extra.op.isdigit() and not extra.to
        return "" if is_number and int(extra.op) < len(self._observer.others_for(source.host)) else "no such observer"

    def _probe_back(self, probe: ReflexiveProbe, observer: int, source: Endpoint, size: int) -> None:
        line = encode(self._observer.answer(probe, source.address))
        if source.is_validated or len(line) <= size:
            self._replies.report(ProbeBack(observer, source.address, source.connection, line))
        else:
            self._replies.drop("question shorter than the answer")

    def _refuse(self, probe: ReflexiveProbe, code: int, why: str, source: Endpoint, size: int, *, cookie: str = "") -> None:
        extra = observed(source, cookie=cookie, key=self._server_key if cookie else "")
        self._replies.answer_stranger(ReflexiveAnswer(mid=probe.mid, code=code, em=why, extra=extra), source, size)
