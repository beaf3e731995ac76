"""Consent to be sent to: a question and its answer (t=33), again and again, as long as a punched UDP port carries anything.

Whoever answers holds the attempt's key and is where the question went; so the answers also tell where a peer is whose NAT has
given it another port.  Rule: nothing but the question is sent to an address that has not answered for a while.

Source: RFC 7675; docs/explanation/data-path.md.
"""

from __future__ import annotations

from typing import Final

from p2ptunnel.defaults import CONSENT_EVERY, CONSENT_PROBE_PAUSE, CONSENT_TIMEOUT
from p2ptunnel.protocol.machine import Datagram, Entropy, Event, MachineBase, new_mid
from p2ptunnel.types import Address
from p2ptunnel.wire.keyed import KeyedReceiver, KeyedSender
from p2ptunnel.wire.messages import ConsentAnswer, ConsentCheck, encode

__all__ = ["Consent", "ConsentGiven", "ConsentLost"]

_SPREAD: Final = 0.2


class ConsentGiven(Event, frozen=True):
    """The peer answers at `remote`, after it had not, or from another address than before."""

    remote: Address


class ConsentLost(Event, frozen=True):
    """The peer has not answered for so long that nothing more may be sent to `remote`."""

    remote: Address


class Consent(MachineBase):
    """The questions to one peer and the answers to its own.

    Args:
        token: Of the attempt that opened the path.
        remote: Where the peer is; it has just shown that.
        sender: Keys what leaves.
        receiver: Judges what comes.
        entropy: For message ids, and so that two sides do not ask in step.

    Attributes:
        remote: Where the peer is.
        is_given: Whether it may be sent to.
        rtt: Seconds from the last question to its answer, None before.
    """

    def __init__(self, token: str, remote: Address, sender: KeyedSender, receiver: KeyedReceiver, entropy: Entropy) -> None:
        super().__init__()
        self.remote = remote
        self.is_given = True
        self.rtt: float | None = None
        self.token: Final = token
        self._sender: Final = sender
        self._receiver: Final = receiver
        self._entropy: Final = entropy
        self._asked: dict[int, tuple[Address, float]] = {}
        self._asks_at: float | None = None
        self._ends_at: float | None = None
        self._probes_at = 0.0

    def start(self, now: float) -> None:
        """Begin to ask: the consent that the hole's own probes gave is used up in a while."""
        self._ends_at = now + CONSENT_TIMEOUT
        self._asks_at = now + self._interval()

    def doubt(self, remote: Address, now: float) -> None:
        """Take the peer to be at `remote`, where it may not be sent to before it has answered there."""
        self.remote, self.is_given = remote, False
        self.suspect(remote, now)

    def receive(self, message: ConsentCheck | ConsentAnswer, data: bytes, source: Address, now: float) -> None:
        """Take a t=33 or -33 that names our token; `data` is the datagram that it came in."""
        if not self._receiver.open(data):
            self._drop("replayed" if self._receiver.is_replay else "not keyed")
        elif isinstance(message, ConsentCheck):
            self._send(ConsentAnswer(mid=message.mid, token=self.token), source)
            self.suspect(source, now)
        else:
            self._on_answer(message, source, now)

    def suspect(self, source: Address, now: float) -> None:
        """Ask where something of the peer's came from, if it has not answered there; once in a while: anybody can forge it."""
        if (source != self.remote or not self.is_given) and now >= self._probes_at:
            self._probes_at = now + CONSENT_PROBE_PAUSE
            self._ask(source, now)

    def handle_timer(self, now: float) -> None:
        """Ask, or note that nobody has answered."""
        if self._ends_at is not None and now >= self._ends_at:
            self._ends_at, self.is_given = None, False
            self._events.append(ConsentLost(self.remote))
        if self._asks_at is not None and now >= self._asks_at:
            self._asks_at = now + self._interval()
            self._asked = {mid: asked for mid, asked in self._asked.items() if now - asked[1] < CONSENT_TIMEOUT}
            self._ask(self.remote, now)

    def next_deadline(self) -> float | None:
        """Return when something is due."""
        return min((at for at in (self._asks_at, self._ends_at) if at is not None), default=None)

    def _on_answer(self, answer: ConsentAnswer, source: Address, now: float) -> None:
        asked, sent_at = self._asked.pop(answer.mid, (None, now))
        if asked != source or now - sent_at >= CONSENT_TIMEOUT:
            self._drop("unexpected answer")
            return
        self.rtt = now - sent_at
        self._ends_at = now + CONSENT_TIMEOUT
        if not self.is_given or source != self.remote:
            self.is_given, self.remote = True, source
            self._events.append(ConsentGiven(source))

    def _ask(self, remote: Address, now: float) -> None:
        mid = new_mid(self._entropy)
        self._asked[mid] = (remote, now)
        self._send(ConsentCheck(mid=mid, token=self.token), remote)

    def _send(self, message: ConsentCheck | ConsentAnswer, destination: Address) -> None:
        self._datagrams.append(Datagram(self._sender.seal(encode(message)), destination))

    def _interval(self) -> float:
        return CONSENT_EVERY * (1 - _SPREAD + 2 * _SPREAD * self._entropy.random())
