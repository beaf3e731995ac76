"""The easy side of a birthday: plain SYNs to random ports of the hard side's address, as long as it is told to go on.

Guesses are packets to an address that might not have asked for them, and flows in our own router.  So they go nowhere but where
the peer of this attempt was seen, and only while it says so: each go-ahead, sealed with the attempt's key, is good for 256, a
round has 672, and then there is a pause (`BirthdayGate`).

Rule: nothing but a go-ahead makes a probe.  Source: docs/explanation/nat.md.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final

from p2ptunnel.addresses import port_refusal
from p2ptunnel.defaults import (
    BIRTHDAY_BLOCK,
    BIRTHDAY_CREDIT,
    BIRTHDAY_PROBES,
    BIRTHDAY_PROBES_OPEN,
    BIRTHDAY_RENEWAL,
    BIRTHDAY_SILENCE,
)
from p2ptunnel.errors import LocalProtocolError
from p2ptunnel.protocol.birthday import FLOWS_PER_TICK, BirthdayEnded, SendProbes, next_tick, probe_packets, probe_patience
from p2ptunnel.protocol.machine import Entropy, MachineBase
from p2ptunnel.protocol.nat import PORT_FIRST, PORT_LAST
from p2ptunnel.types import Transport
from p2ptunnel.wire.signal import GoAhead

__all__ = ["TRANSITIONS", "EasySide", "EasyState", "EasyTrigger", "Guesses"]


class EasyState(enum.Enum):
    """Where an easy side stands."""

    IDLE = "idle"
    WAITING = "waiting"
    GUESSING = "guessing"
    HOLDING = "holding"
    OVER = "over"


class EasyTrigger(enum.Enum):
    """What moves it."""

    START = "start"
    GO = "go-ahead"
    SPENT = "its credit spent or out of date"
    UP = "connected"
    FAILED = "connection failed"
    END = "chosen, round spent, or silence"


_S, _T = EasyState, EasyTrigger
TRANSITIONS: Final = {
    (_S.IDLE, _T.START): _S.WAITING,
    (_S.WAITING, _T.GO): _S.GUESSING,
    (_S.GUESSING, _T.GO): _S.GUESSING,
    (_S.GUESSING, _T.SPENT): _S.WAITING,
    (_S.WAITING, _T.UP): _S.HOLDING,
    (_S.GUESSING, _T.UP): _S.HOLDING,
    (_S.HOLDING, _T.UP): _S.HOLDING,
    (_S.HOLDING, _T.GO): _S.HOLDING,
    (_S.HOLDING, _T.FAILED): _S.WAITING,
    (_S.IDLE, _T.END): _S.OVER,
    (_S.WAITING, _T.END): _S.OVER,
    (_S.GUESSING, _T.END): _S.OVER,
    (_S.HOLDING, _T.END): _S.OVER,
}
"""Every legal transition of an easy side; what is not here cannot happen."""


class EasySide(MachineBase):
    """One round: guesses as long as it is told to, at most 256 packets for one go-ahead and 672 in all.

    Args:
        host: The hard side's address as observed, of a peer that is authenticated in this attempt (`punch.aim`).
        round_trip: Seconds between the peers and back, estimated.
        entropy: Draws the ports.
        transport: Of the probes.
        probes: How many packets it may send (`BirthdayGate`).
        open_most: How many may wait for an answer at any instant, each with a socket.
        round_number: The attempt's; go-aheads of other rounds do not count.
    """

    def __init__(
        self,
        host: str,
        round_trip: float,
        entropy: Entropy,
        *,
        transport: Transport = "tcp",
        probes: int = BIRTHDAY_PROBES,
        open_most: int = BIRTHDAY_PROBES_OPEN,
        round_number: int = 0,
    ) -> None:
        super().__init__()
        self.state = EasyState.IDLE
        self._host = host
        self._patience = probe_patience(round_trip)
        self._cost = probe_packets(round_trip, transport)
        self._transport: Final[Transport] = transport
        self._round = round_number
        self._guesses = Guesses(entropy)
        self._probes = 0
        self._left = probes  # packets, like the credit
        self._open_most = open_most
        self._credit = 0
        self._credit_ends = -math.inf
        self._open_until: deque[float] = deque()  # of each probe that may still be answered
        self._acts_at = -math.inf
        self._gives_up_at = math.inf

    def start(self, now: float) -> None:
        """Wait for the first go-ahead.

        Raises:
            LocalProtocolError: It has begun already.
        """
        self._move(EasyTrigger.START)
        self._gives_up_at = now + BIRTHDAY_SILENCE

    def receive(self, go: GoAhead, now: float) -> None:
        """Take a go-ahead that the peer has sealed: it fills the credit up, and adds nothing to one that is full."""
        if go.round != self._round or self.state in {EasyState.IDLE, EasyState.OVER}:
            self._drop("go-ahead of another round")
        elif self._left >= self._cost:
            self._move(EasyTrigger.GO)
            self._guesses.narrow(go.ports)
            self._credit, self._credit_ends = BIRTHDAY_CREDIT, now + 2 * BIRTHDAY_RENEWAL
            self._acts_at = max(self._acts_at, now)
            self._gives_up_at = now + BIRTHDAY_SILENCE
            self.handle_timer(now)

    def connection_up(self) -> None:
        """A guess was right, as it seems: nothing more is sent while the connection is tried."""
        self._move(EasyTrigger.UP)

    def connection_failed(self, now: float) -> None:
        """It came to nothing: go on with the next go-ahead."""
        self._move(EasyTrigger.FAILED)
        self._gives_up_at = now + BIRTHDAY_SILENCE

    def stop(self, why: str = "chosen") -> None:
        """End it: a connection is chosen, or the attempt is over.  Stopping twice is fine."""
        if self.state is not EasyState.OVER:
            self._move(EasyTrigger.END)
            self._events.append(BirthdayEnded(why, probes=self._probes))

    def handle_timer(self, now: float) -> None:
        """Send the probes that are due, or end."""
        if self.state is EasyState.GUESSING and now >= self._acts_at:
            self._guess(now)
        elif self.state is EasyState.WAITING and now >= self._gives_up_at:
            self.stop("no go-ahead" if self._left >= self._cost else "every guess was wrong")

    def next_deadline(self) -> float | None:
        """Return when something is due."""
        if self.state is EasyState.GUESSING:
            return self._acts_at
        return self._gives_up_at if self.state is EasyState.WAITING else None

    def _guess(self, now: float) -> None:
        """Send what may leave in one tick."""
        self._acts_at = next_tick(self._acts_at, now)
        count = self._allowance(now)
        if count:
            self._probes += count
            self._left -= count * self._cost
            self._credit -= count * self._cost
            self._open_until.extend([now + self._patience] * count)
            self._events.append(SendProbes(self._host, self._guesses.draw(count), self._transport, self._patience))
        if self._left < self._cost:
            self._gives_up_at = now + self._patience
        if min(self._left, self._credit) < self._cost or now >= self._credit_ends:
            self._move(EasyTrigger.SPENT)

    def _allowance(self, now: float) -> int:
        """Return how many probes may leave now, by the go-ahead, the round, the rate, and the sockets that are open."""
        while self._open_until and self._open_until[0] <= now:
            self._open_until.popleft()
        if now >= self._credit_ends:
            return 0
        paid = min(self._left, self._credit) // self._cost
        return min(FLOWS_PER_TICK, paid, self._open_most - len(self._open_until))

    def _move(self, trigger: EasyTrigger) -> None:
        try:
            self.state = TRANSITIONS[self.state, trigger]
        except KeyError:
            raise LocalProtocolError(f"an easy side that is {self.state.value} takes no {trigger.value}") from None


class Guesses:
    """Distinct random ports, 1024 to 65535, none of those where no probe may go."""

    def __init__(self, entropy: Entropy) -> None:
        self._entropy = entropy
        self._drawn: set[int] = set()
        self._block = range(0)

    def narrow(self, ports: Sequence[int]) -> None:
        """Begin where ports lie that the NAT has given lately, if they show a block; later calls change nothing.

        Three ports that are drawn from everything lie so near to each other once in a hundred times.  So a block gets the first
        credit only: that finds what is in it, and leaves the rest for everywhere else.
        """
        if len(set(ports)) < 2 or self._drawn:
            return
        low, high = min(ports), max(ports)
        if high - low < BIRTHDAY_BLOCK:
            self._block = range(max(PORT_FIRST, high - BIRTHDAY_BLOCK + 1), min(PORT_LAST, low + BIRTHDAY_BLOCK - 1) + 1)

    def draw(self, count: int) -> tuple[int, ...]:
        """Return ports that have not been drawn before, far fewer than there are."""
        return tuple(self._draw_one() for _ in range(count))

    def _draw_one(self) -> int:
        ports = self._block if self._block and len(self._drawn) < BIRTHDAY_CREDIT else range(PORT_FIRST, PORT_LAST + 1)
        port = next(port for port in self._random(ports) if port not in self._drawn and port_refusal(port) is None)
        self._drawn.add(port)
        return port

    def _random(self, ports: range) -> Iterator[int]:
        """Yield elements for ever, each as likely as another."""
        bits = (len(ports) - 1).bit_length()
        while True:
            index = self._entropy.getrandbits(bits)
            if index < len(ports):
                yield ports[index]
