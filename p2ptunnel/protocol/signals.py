"""The signals of one attempt: each is repeated until the other side has it, and what comes from there is opened once.

Rule: of each kind one is under way; a newer one takes its place, since what it says is newer too.

Source: docs/protocol/signals.md; wire document, t=12.
"""

from __future__ import annotations

from p2ptunnel.defaults import RETRANSMIT_FIRST
from p2ptunnel.protocol.machine import Datagram, Entropy, MachineBase, new_mid
from p2ptunnel.protocol.transaction import Requester
from p2ptunnel.types import Address
from p2ptunnel.wire.messages import Signal, SignalAnswer, SignalExtra, encode
from p2ptunnel.wire.signal import SignalBody, SignalFault, SignalReceiver, SignalSender

__all__ = ["Signals"]


class Signals(MachineBase):
    """What one side of an attempt tells the other through the server, and hears from it.

    Args:
        token: The attempt's.
        server: Hands them on.
        entropy: For message ids.
        sends: 32 bytes, the key for what we say (`AttemptKeys`).
        hears: 32 bytes, the key for what the other side says.
        round_trip: Seconds between the peers and back by the server, estimated.
    """

    def __init__(
        self, token: str, server: Address, entropy: Entropy, *, sends: bytes, hears: bytes, round_trip: float = 0.0
    ) -> None:
        super().__init__()
        self._token = token
        self._server = server
        self._entropy = entropy
        self._sender = SignalSender(sends)
        self._receiver = SignalReceiver(hears)
        self._requester = Requester(entropy)
        self._first = max(RETRANSMIT_FIRST, 1.5 * round_trip)  # no answer can be here before
        self._under_way: dict[type[SignalBody], int] = {}

    def tell(self, body: SignalBody, now: float) -> None:
        """Seal and send `body`, until it is acknowledged or a newer one of its kind is told."""
        before = self._under_way.get(type(body))
        if before is not None:
            self._requester.answered(12, before)
        mid = self._under_way[type(body)] = new_mid(self._entropy)
        said = SignalExtra(token=self._token, sealed=self._sender.seal(body))
        data = encode(Signal(mid=mid, extra=said))
        self._datagrams.append(self._requester.send(12, mid, data, self._server, now, first=self._first))

    def open(self, message: Signal) -> SignalBody | None:
        """Return what a t=12 says, None if it does not count; whatever the other side has sealed is acknowledged."""
        body = self._receiver.open(message.extra.sealed)
        if body is not SignalFault.FORGED:  # a replay too: the first acknowledgement may have been lost
            self._datagrams.append(Datagram(encode(SignalAnswer(mid=message.mid, code=200, em="")), self._server))
        if isinstance(body, SignalFault):
            self._drop(f"signal: {body.value}")
            return None
        return body

    def acknowledged(self, message: SignalAnswer) -> bool:
        """Take a -12 of the server's; return whether it was for a signal of ours."""
        return self._requester.answered(12, message.mid, self._server) is not None

    def handle_timer(self, now: float) -> None:
        """Repeat what is due."""
        repeat, _ = self._requester.due(now)
        self._datagrams += repeat

    def next_deadline(self) -> float | None:
        """Return when something is due."""
        return self._requester.next_deadline()

    def close(self) -> None:
        """Repeat nothing more."""
        self._requester.cancel()
