"""One direction of a link: when does a packet come out at the far end, if at all?  Rule: time and dice come in.

Loss is independent, or in bursts after Gilbert and Elliott: a good and a bad state, everything lost in the bad one.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

__all__ = ["Direction", "LinkSettings"]

_SMALLEST_MTU: Final = 576


@dataclass(frozen=True)
class LinkSettings:
    """How one direction treats packets.

    Attributes:
        delay: Seconds, one way.
        jitter: Seconds; each packet takes up to so much longer, evenly distributed; the order is kept.
        loss: Share of packets lost, 0 to 1.
        burst: Mean number of packets lost in a row; up to 1 for independent losses.
        duplicate: Share of packets that arrive twice.
        reorder: Share of packets that overtake: they are not delayed.
        rate: Bits per second; 0 for no limit.
        queue: Packets that may wait for their turn at that rate; more are lost.
        mtu: Bytes of the largest packet that passes, 576 at least; 0 for no limit.  Who sent a larger one is told by ICMP.
        icmp: Whether ICMP passes.  Without it nobody is told of anything: a black hole for packets above the MTU.
        down: Whether the cable is out; what was sent before still arrives.

    Raises:
        ValueError: A value is out of range.
    """

    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    burst: float = 1.0
    duplicate: float = 0.0
    reorder: float = 0.0
    rate: float = 0.0
    queue: int = 1000
    mtu: int = 0
    icmp: bool = True
    down: bool = False

    def __post_init__(self) -> None:
        """Refuse what no link can do."""
        for name in ("loss", "duplicate", "reorder"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share from 0 to 1, not {getattr(self, name)!r}")
        for name in ("delay", "jitter", "burst", "rate", "queue"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is not negative: {getattr(self, name)!r}")
        if 0 < self.mtu < _SMALLEST_MTU or self.mtu < 0:
            raise ValueError(f"mtu is 0, or {_SMALLEST_MTU} at least: {self.mtu!r}")


class Direction:
    """One direction, with what is under way in it."""

    def __init__(self, settings: LinkSettings, dice: random.Random) -> None:
        self.settings = settings
        self.sent = 0
        self.lost = 0
        self._dice = dice
        self._is_bad = False
        self._last_arrival = 0.0
        self._waiting: deque[float] = deque()

    def change(self, changes: Mapping[str, Any]) -> None:
        """Change some settings for the packets to come.

        Raises:
            ValueError: A value is out of range.
            TypeError: There is no such setting.
        """
        self.settings = replace(self.settings, **changes)

    def admit(self, size_bytes: int, now: float) -> tuple[float, ...]:
        """Return the times at which a packet arrives: none if it is lost, two if it is duplicated."""
        if self.settings.down or self._is_lost() or not self._has_room(now):
            self.lost += 1
            return ()
        self.sent += 1
        arrival = self._arrival(self._departure(size_bytes, now))
        return (arrival, arrival) if self._happens(self.settings.duplicate) else (arrival,)

    def is_too_big(self, size_bytes: int) -> bool:
        """Tell whether a packet is too big to pass, and is lost."""
        if not 0 < self.settings.mtu < size_bytes:
            return False
        self.lost += 1
        return True

    def _happens(self, share: float) -> bool:
        return share > 0 and self._dice.random() < share

    def _is_lost(self) -> bool:
        settings = self.settings
        if settings.burst <= 1 or settings.loss in (0, 1):
            self._is_bad = False
            return self._happens(settings.loss)
        if self._is_bad:
            self._is_bad = not self._happens(1 / settings.burst)
        else:
            self._is_bad = self._happens(settings.loss / (settings.burst * (1 - settings.loss)))
        return self._is_bad

    def _has_room(self, now: float) -> bool:
        while self._waiting and self._waiting[0] <= now:
            self._waiting.popleft()
        return len(self._waiting) <= self.settings.queue

    def _departure(self, size_bytes: int, now: float) -> float:
        if not self.settings.rate:
            return now
        begin = self._waiting[-1] if self._waiting else now
        end = begin + size_bytes * 8 / self.settings.rate
        self._waiting.append(end)
        return end

    def _arrival(self, departure: float) -> float:
        if self._happens(self.settings.reorder):
            return departure
        extra = self._dice.random() * self.settings.jitter if self.settings.jitter else 0.0
        self._last_arrival = max(self._last_arrival, departure + self.settings.delay + extra)
        return self._last_arrival
