"""What scenarios have found, as values and as text.  Rule: no I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec

from p2ptunnel.testing.chaos.report import percentile
from p2ptunnel.testing.natlab.attempt import Attempt

__all__ = ["Calls", "Switch", "Transfer"]


class Calls(msgspec.Struct, frozen=True):
    """All calls in one network."""

    name: str
    summary: str
    attempts: tuple[Attempt, ...]

    @property
    def connected(self) -> int:
        """How many carried their bytes."""
        return sum(not attempt.error for attempt in self.attempts)

    @property
    def is_good(self) -> bool:
        """Whether all did."""
        return self.connected == len(self.attempts)

    def __str__(self) -> str:
        paths = ", ".join(f"{count} {path}" for path, count in self._paths().most_common())
        lines = [
            f"{self.name}: {self.summary}",
            f"  {self.connected} of {len(self.attempts)} connected{': ' if paths else ''}{paths}",
            f"  first byte  {_spread(attempt.first_byte for attempt in self.attempts)}",
            f"  direct      {_spread(attempt.direct_after for attempt in self.attempts)}",
        ]
        errors = Counter(attempt.error for attempt in self.attempts if attempt.error)
        return "\n".join([*lines, *(f"  {count} x {error}" for error, count in errors.most_common())])

    def _paths(self) -> Counter[str]:
        return Counter(attempt.path for attempt in self.attempts if attempt.path)


class Switch(msgspec.Struct, frozen=True):
    """One change of path.

    Attributes:
        cause: What was done to the network just before.
        path: Kind and transport of the new path.
        at: Seconds since the transfer began.
        seconds: From the cause to the change.
        pause: Longest time without an arrival, from the cause until a second after the change.
    """

    cause: str
    path: str
    at: float
    seconds: float
    pause: float

    def __str__(self) -> str:
        return f"  {self.at:5.1f} s  {self.cause}: {self.path} after {self.seconds:.2f} s, longest pause {self.pause:.2f} s"


class Transfer(msgspec.Struct, frozen=True):
    """Bytes that flowed while their path changed.

    Attributes:
        size_bytes: How many there were to be.
        began_on: The path at the beginning.
        seconds: From the first byte to the callee's answer.
        is_equal: Whether what arrived is what was sent (SHA-256).
        switches: In order.
        error: What ended it, in words; empty if nothing did.
    """

    size_bytes: int
    began_on: str = ""
    seconds: float = 0.0
    is_equal: bool = False
    switches: tuple[Switch, ...] = ()
    error: str = ""

    @property
    def is_good(self) -> bool:
        """Whether everything arrived, and each change of the network was answered by one of path."""
        return self.is_equal and not self.error and [switch.path.split()[0] for switch in self.switches] == ["direct", "relay"]

    def __str__(self) -> str:
        verdict = self.error or f"sha256 {'equal' if self.is_equal else 'NOT EQUAL'}"
        lines = [
            f"transfer: {self.size_bytes / 1e6:.0f} MB while a direct path opens and is cut",
            f"  {self.seconds:.1f} s, {verdict}; began on {self.began_on or 'nothing'}",
        ]
        return "\n".join([*lines, *map(str, self.switches)])


def _spread(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"p50 {percentile(known, 0.5):.3f} s  p95 {percentile(known, 0.95):.3f} s  max {max(known):.3f} s  of {len(known)}"
