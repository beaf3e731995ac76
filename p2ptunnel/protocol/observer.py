"""The observer: tells whoever asks how it looks from here, by t=5 and by STUN.  It keeps no state at all.

A rendezvous server has one on each address and port it listens on, so that peers can learn how their NAT maps (RFC 5780).
"""

from __future__ import annotations

from p2ptunnel.defaults import (
    SOURCE_DATAGRAMS_BURST,
    SOURCE_DATAGRAMS_PER_SECOND,
    STUN_BARE_OF_SOURCE_PER_SECOND,
    STUN_BARE_PER_SECOND,
)
from p2ptunnel.protocol.limits import Buckets, Rate, SourceLimit
from p2ptunnel.protocol.machine import Datagram, MachineBase
from p2ptunnel.types import Address
from p2ptunnel.wire.messages import Observed, ReflexiveAnswer, ReflexiveProbe, encode
from p2ptunnel.wire.stun import MalformedStunError, decode_request, encode_response, is_stun

__all__ = ["Observer"]


class Observer(MachineBase):
    """Answers t=5 and STUN Binding requests.

    Args:
        others: Where else the same server observes; each -5 tells those of the asker's family.
    """

    def __init__(self, others: tuple[Address, ...] = ()) -> None:
        super().__init__()
        self.others = others
        self._of_source = SourceLimit(Rate(SOURCE_DATAGRAMS_PER_SECOND, SOURCE_DATAGRAMS_BURST))
        self._bare_of_source = SourceLimit(Rate(STUN_BARE_OF_SOURCE_PER_SECOND, STUN_BARE_OF_SOURCE_PER_SECOND))
        self._bare = Buckets(Rate(STUN_BARE_PER_SECOND, STUN_BARE_PER_SECOND))

    def receive_datagram(self, data: bytes, source: Address, now: float) -> None:
        """Take one datagram; an answer that would be longer than the question is not given."""
        if not self._of_source.take(source[0], now):
            self._drop("source over its rate")
            return
        if is_stun(data):
            self._on_stun(data, source, now)
            return
        answer = self._answer(data, source)
        if answer is None:
            return
        if len(answer) <= len(data):
            self._datagrams.append(Datagram(answer, source))
        else:
            self._drop("question shorter than the answer")

    def others_for(self, host: str) -> tuple[int, ...]:
        """Return the numbers among `others` of those that a host can ask, in order: those of its own family."""
        return tuple(number for number, (other, _) in enumerate(self.others) if (":" in other) == (":" in host))

    def answer(self, probe: ReflexiveProbe, source: Address, cookie: str = "", key: str = "") -> ReflexiveAnswer:
        """Return the -5 for `probe`; a source that receives there may be given its `cookie` and the server's `key`."""
        host, port = source
        others = tuple(self.others[number] for number in self.others_for(host))
        extra = Observed(host=host, port=port, cookie=cookie, key=key, other=others)
        return ReflexiveAnswer(mid=probe.mid, code=200, em="", extra=extra)

    def receive_line(self, line: bytes, source: Address) -> tuple[bool, bytes | None]:
        """Take one line of a TCP connection; return whether it was a message, and the answer if it was a t=5."""
        malformed = self.dropped["malformed"]
        answer = self._answer(line, source)
        return self.dropped["malformed"] == malformed, answer

    def _answer(self, line: bytes, source: Address) -> bytes | None:
        message = self._decode(line)
        if isinstance(message, ReflexiveProbe):
            return encode(self.answer(message, source))
        if message is not None:
            self._drop("not for an observer")
        return None

    def handle_timer(self, now: float) -> None:
        """Nothing is ever due."""

    def next_deadline(self) -> float | None:
        """Nothing is ever due."""
        return None

    def _on_stun(self, data: bytes, source: Address, now: float) -> None:
        try:
            request = decode_request(data)
        except MalformedStunError:
            self._drop("malformed STUN")
            return
        response = encode_response(request.transaction_id, source)
        if len(response) <= len(data) or self._may_answer_bare(source[0], now):
            self._datagrams.append(Datagram(response, source))
        else:
            self._drop("bare STUN over its rate")

    def _may_answer_bare(self, host: str, now: float) -> bool:
        """Ration the one answer that is longer than its question: a bare Binding request, as other people's clients send it."""
        return self._bare_of_source.take(host, now) and self._bare.take(None, now)
