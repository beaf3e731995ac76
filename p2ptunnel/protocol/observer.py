"""The observer: tells whoever asks how it looks from here, by t=5 and by STUN.  It keeps no state at all.

A rendezvous server has one on each address and port it listens on, so that peers can learn how their NAT maps (RFC 5780).
"""

from __future__ import annotations

from p2ptunnel.defaults import STUN_BARE_PER_SECOND
from p2ptunnel.protocol.machine import Datagram, MachineBase
from p2ptunnel.types import Address
from p2ptunnel.wire.messages import Observed, ReflexiveAnswer, ReflexiveProbe, encode
from p2ptunnel.wire.stun import MalformedStunError, decode_request, encode_response, is_stun

__all__ = ["Observer"]


class Observer(MachineBase):
    """Answers t=5 and STUN Binding requests.

    Args:
        others: Where else the same server observes, told in each -5.
    """

    def __init__(self, others: tuple[Address, ...] = ()) -> None:
        super().__init__()
        self.others = others
        self._bare_second = -1
        self._bare_answers = 0

    def receive_datagram(self, data: bytes, source: Address, now: float) -> None:
        """Take one datagram; an answer that would be longer than the question is not given."""
        if is_stun(data):
            self._on_stun(data, source, now)
            return
        answer = self.answer_line(data, source)
        if answer is None:
            return
        if len(answer) <= len(data):
            self._datagrams.append(Datagram(answer, source))
        else:
            self._drop("question shorter than the answer")

    def answer(self, probe: ReflexiveProbe, source: Address, cookie: str = "") -> ReflexiveAnswer:
        """Return the -5 for `probe`; a source that has shown that it receives there may be given its `cookie`."""
        host, port = source
        extra = Observed(host=host, port=port, cookie=cookie, other=self.others)
        return ReflexiveAnswer(mid=probe.mid, code=200, em="", extra=extra)

    def answer_line(self, line: bytes, source: Address) -> bytes | None:
        """Return the answer to one line of a TCP connection, None if it is no t=5."""
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
        if len(response) <= len(data) or self._may_answer_bare(now):
            self._datagrams.append(Datagram(response, source))
        else:
            self._drop("bare STUN over its rate")

    def _may_answer_bare(self, now: float) -> bool:
        """Ration the one answer that is longer than its question: a bare Binding request, as other people's clients send it."""
        if int(now) != self._bare_second:
            self._bare_second, self._bare_answers = int(now), 0
        self._bare_answers += 1
        return self._bare_answers <= STUN_BARE_PER_SECOND
