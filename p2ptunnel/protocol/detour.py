"""When a caller turns to QUIC: as soon as UDP passes both ways where TCP cannot, and else once TCP has had its phases.

Rule: only where both sides have said that they can; nobody tries in vain.  Source: docs/explanation/nat.md.
"""

from __future__ import annotations

import math
from typing import Final

from p2ptunnel.defaults import PHASES
from p2ptunnel.protocol.machine import Event
from p2ptunnel.protocol.punch import phase_length
from p2ptunnel.protocol.strategy import Method, choose
from p2ptunnel.types import Address
from p2ptunnel.wire.messages import NatHints

__all__ = ["Detour", "OpenQuic", "QuicRuledOut"]

_NOT_HERE: Final = "not tried: this side lacks the extra `quic`"
_NOT_THERE: Final = "not tried: the other side lacks the extra `quic`"


class OpenQuic(Event, frozen=True):
    """Connect by QUIC, through the hole that is open to `remote`; the callee expects whoever knows `conkey`.

    hole: From that one of a birthday; None: from our port.
    """

    token: str
    remote: Address
    conkey: str
    hole: int | None = None


class QuicRuledOut(Event, frozen=True):
    """QUIC is not tried in this attempt, and why."""

    token: str
    reason: str


class Detour:
    """Knows for one call when QUIC's turn has come."""

    def __init__(self) -> None:
        self._begins_at = math.inf
        self._refusal = ""
        self._remote: Address | None = None
        self._hole: int | None = None
        self._conkey = ""

    def start(self, own: NatHints, other: NatHints, now: float) -> None:
        """Plan by what both sides have said."""
        if not (own.quic and other.quic):
            self._refusal = _NOT_THERE if own.quic else _NOT_HERE
        is_ruled_out = choose("tcp", "caller", own, other).method is Method.NONE
        length = PHASES * phase_length(own.rtt / 1000, other.rtt / 1000)
        self._begins_at = now if is_ruled_out else now + length

    @property
    def is_open(self) -> bool:
        """Whether UDP passes both ways somewhere."""
        return self._remote is not None

    def opened(self, remote: Address, hole: int | None = None) -> None:
        """UDP passes both ways to `remote`, from our port or from that hole of a birthday."""
        self._remote, self._hole = remote, hole

    def told(self, conkey: str) -> None:
        """The callee has said by what it takes a connection."""
        self._conkey = conkey

    def due(self, token: str, now: float) -> list[Event]:
        """Return the one request, or why there is none, when all is there and its turn has come; nothing afterwards."""
        if self._remote is None or not self._conkey or now < self._begins_at:
            return []
        self._begins_at = math.inf
        if self._refusal:
            return [QuicRuledOut(token, self._refusal)]
        return [OpenQuic(token, self._remote, self._conkey, self._hole)]

    def stop(self) -> None:
        """The attempt is over."""
        self._begins_at = math.inf

    def next_deadline(self) -> float | None:
        """Return when its turn comes; None where that does not depend on time."""
        is_ready = self._remote is not None and self._conkey
        return self._begins_at if is_ready and self._begins_at < math.inf else None
