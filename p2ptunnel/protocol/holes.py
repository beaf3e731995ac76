"""The hard side of a birthday: many holes to one port of the easy side, and the invitations to guess where they are.

Rule: whoever holds a `HardSide` tells it what connections do; what it wants done are events.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from typing import Final

from p2ptunnel.defaults import (
    BIRTHDAY_HOLES,
    BIRTHDAY_HOLES_FIRST,
    BIRTHDAY_RENEWAL,
)
from p2ptunnel.errors import LocalProtocolError
from p2ptunnel.protocol.birthday import FLOWS_PER_TICK, BirthdayEnded, OpenHoles, Tell, next_tick, round_length
from p2ptunnel.protocol.machine import MachineBase
from p2ptunnel.types import Address, Transport
from p2ptunnel.wire.signal import GO_PORTS_MAX, GoAhead

__all__ = ["TRANSITIONS", "HardSide", "HardState", "HardTrigger"]


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
    """One round: opens holes, as many in a second as there are guesses, and invites those once the first holes are open.

    Args:
        target: The easy side's address, as observed over `transport`.
        round_trip: Seconds between the peers and back, estimated.
        ports: Outside ports that our NAT has given lately, over `transport`.
        transport: Of the holes.
        holes: How many, at least 1 (`BirthdayGate`, `socket_count`).
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
        self._opens_at = math.inf
        self._invites_at = math.inf
        self._ends_at = math.inf

    def start(self, now: float) -> None:
        """Open the first holes.

        Raises:
            LocalProtocolError: It has begun already.
        """
        self._move(HardTrigger.START)
        self._opens_at, self._ends_at = now, now + self._length
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
            self._events.append(BirthdayEnded(why, holes=self._opened))

    def handle_timer(self, now: float) -> None:
        """Open the next holes, or invite, or end."""
        if self.state is not HardState.INVITING:
            return
        if now >= self._ends_at:
            self.stop("nothing came through")
            return
        if now >= self._opens_at:
            self._open_some(now)
        if now >= self._invites_at:
            self._invites_at = now + BIRTHDAY_RENEWAL
            self._events.append(Tell(self._go))

    def next_deadline(self) -> float | None:
        """Return when something is due."""
        return min(self._opens_at, self._invites_at, self._ends_at) if self.state is HardState.INVITING else None

    def _open_some(self, now: float) -> None:
        """Open as many holes as may be in one tick; over UDP the first one alone, and plain."""
        is_first_udp = self._transport == "udp" and self._opened == 0
        count = 1 if is_first_udp else FLOWS_PER_TICK
        holes = range(self._opened, min(self._opened + count, self._holes))
        self._opened = holes.stop
        self._events.append(OpenHoles(holes, self._target, self._transport, low=not is_first_udp))
        self._opens_at = next_tick(self._opens_at, now) if self._opened < self._holes else math.inf
        if holes.start < min(BIRTHDAY_HOLES_FIRST, self._holes) <= holes.stop:
            self._invites_at = now

    def _move(self, trigger: HardTrigger) -> None:
        try:
            self.state = TRANSITIONS[self.state, trigger]
        except KeyError:
            raise LocalProtocolError(f"a hard side that is {self.state.value} takes no {trigger.value}") from None
