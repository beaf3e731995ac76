"""The hard side of a birthday: many holes to one port of the easy side, and the invitations to guess where they are.

Rule: whoever holds a `HardSide` tells it what connections do; what it wants done are events.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from typing import Final

from p2ptunnel.defaults import (
    BIRTHDAY_DESCRIPTORS,
    BIRTHDAY_HOLES,
    BIRTHDAY_HOLES_AT_ONCE,
    BIRTHDAY_HOLES_FEW,
    BIRTHDAY_RENEWAL,
    BIRTHDAY_TICK,
)
from p2ptunnel.errors import LocalProtocolError
from p2ptunnel.protocol.birthday import BirthdayEnded, OpenHoles, Tell, round_length
from p2ptunnel.protocol.machine import MachineBase
from p2ptunnel.types import Address, Transport
from p2ptunnel.wire.signal import GO_PORTS_MAX, GoAhead

__all__ = ["TRANSITIONS", "HardSide", "HardState", "HardTrigger", "hole_count"]


class HardState(enum.Enum):
    """Where a hard side stands."""

    IDLE = "idle"
    INVITING = "inviting"
    HOLDING = "holding"
    OVER = "over"


class HardTrigger(enum.Enum):
    """What moves it."""

    START = "start"
    UP = "connected"
    FAILED = "connection failed"
    END = "chosen, or time is up"


_S, _T = HardState, HardTrigger
TRANSITIONS: Final = {
    (_S.IDLE, _T.START): _S.INVITING,
    (_S.INVITING, _T.UP): _S.HOLDING,
    (_S.HOLDING, _T.UP): _S.HOLDING,
    (_S.HOLDING, _T.FAILED): _S.INVITING,
    (_S.IDLE, _T.END): _S.OVER,
    (_S.INVITING, _T.END): _S.OVER,
    (_S.HOLDING, _T.END): _S.OVER,
}
"""Every legal transition of a hard side; what is not here cannot happen."""


class HardSide(MachineBase):
    """One round: opens holes, and invites guesses as long as they may come.

    Args:
        target: The easy side's address, as observed over `transport`.
        round_trip: Seconds between the peers and back, estimated.
        ports: Outside ports that our NAT has given lately, over `transport`.
        transport: Of the holes.
        holes: How many, at least 1 (`hole_count`).
        round_number: The attempt's.
    """

    def __init__(
        self,
        target: Address,
        round_trip: float,
        *,
        ports: Sequence[int] = (),
        transport: Transport = "tcp",
        holes: int = BIRTHDAY_HOLES,
        round_number: int = 0,
    ) -> None:
        super().__init__()
        self.state = HardState.IDLE
        self._target = target
        self._transport: Final[Transport] = transport
        self._holes = holes
        self._go = GoAhead(round=round_number, ports=tuple(ports)[-GO_PORTS_MAX:])
        self._length = round_length(round_trip)
        self._opened = 0
        self._acts_at = math.inf
        self._ends_at = math.inf

    def start(self, now: float) -> None:
        """Open the first holes.

        Raises:
            LocalProtocolError: It has begun already.
        """
        self._move(HardTrigger.START)
        self._acts_at, self._ends_at = now, now + self._length
        self.handle_timer(now)

    def connection_up(self) -> None:
        """Something came through a hole: nobody is invited while it is tried."""
        self._move(HardTrigger.UP)

    def connection_failed(self, now: float) -> None:
        """It came to nothing: go on, as long as the round lasts."""
        self._move(HardTrigger.FAILED)
        self.handle_timer(now)

    def stop(self, why: str = "chosen") -> None:
        """End it: a connection is chosen, or the attempt is over.  Stopping twice is fine."""
        if self.state is not HardState.OVER:
            self._move(HardTrigger.END)
            self._events.append(BirthdayEnded(why))

    def handle_timer(self, now: float) -> None:
        """Open the next holes, or invite, or end."""
        if self.state is not HardState.INVITING:
            return
        if now >= self._ends_at:
            self.stop("nothing came through")
        elif now >= self._acts_at and self._opened < self._holes:
            self._open_some(now)
        elif now >= self._acts_at:
            self._invite(now)

    def next_deadline(self) -> float | None:
        """Return when something is due."""
        return min(self._acts_at, self._ends_at) if self.state is HardState.INVITING else None

    def _open_some(self, now: float) -> None:
        """Open as many holes as the loop can spare the time for; over UDP the first one alone, and plain."""
        is_first_udp = self._transport == "udp" and self._opened == 0
        count = 1 if is_first_udp else BIRTHDAY_HOLES_AT_ONCE
        holes = range(self._opened, min(self._opened + count, self._holes))
        self._opened = holes.stop
        self._events.append(OpenHoles(holes, self._target, self._transport, low=not is_first_udp))
        self._acts_at = now + BIRTHDAY_TICK
        if self._opened == self._holes:
            self._invite(now)

    def _invite(self, now: float) -> None:
        self._acts_at = now + BIRTHDAY_RENEWAL
        self._events.append(Tell(self._go))

    def _move(self, trigger: HardTrigger) -> None:
        try:
            self.state = TRANSITIONS[self.state, trigger]
        except KeyError:
            raise LocalProtocolError(f"a hard side that is {self.state.value} takes no {trigger.value}") from None


def hole_count(descriptors: int | None) -> int:
    """Return how many holes so many free descriptors allow, 0 for no birthday at all; None: there is no limit."""
    if descriptors is None or descriptors >= BIRTHDAY_DESCRIPTORS:
        return BIRTHDAY_HOLES
    return BIRTHDAY_HOLES_FEW if descriptors >= 2 * BIRTHDAY_HOLES_FEW else 0
