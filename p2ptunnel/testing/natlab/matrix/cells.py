"""What a matrix has found, as values: cells of attempts, and what is expected of each pair.  Rule: no I/O."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable
from typing import Final

import msgspec

from p2ptunnel.testing.chaos.report import percentile
from p2ptunnel.testing.natlab.attempt import Attempt

__all__ = ["RELAY_ONLY", "Cell", "Matrix"]

RELAY_ONLY: Final = frozenset({("symR", "symR"), ("symR", "symS"), ("symS", "symR")})
"""The ordered pairs between which nothing but a relay helps: neither side can know or guess a port of the other."""


class Cell(msgspec.Struct, frozen=True):
    """All calls of one ordered pair of kinds."""

    caller: str
    callee: str
    attempts: tuple[Attempt, ...]

    @property
    def connected(self) -> int:
        """How many carried their bytes."""
        return sum(not attempt.error for attempt in self.attempts)

    @property
    def direct(self) -> int:
        """How many did so without the relay in the end."""
        return sum(attempt.is_direct for attempt in self.attempts)

    @property
    def is_connected(self) -> bool:
        """Whether all of them did."""
        return self.connected == len(self.attempts)

    @property
    def is_direct(self) -> bool:
        """Whether all went without the relay in the end."""
        return self.direct == len(self.attempts)

    @property
    def is_tcp(self) -> bool:
        """Whether all went so over TCP."""
        return self.is_direct and all(attempt.path.endswith("tcp") for attempt in self.attempts)

    @property
    def can_be_direct(self) -> bool:
        """Whether there is a way without a relay."""
        return (self.caller, self.callee) not in RELAY_ONLY

    @property
    def median(self) -> float:
        """Median seconds of the successful ones to the confirmed stream; infinite if there is none."""
        return _median(attempt.seconds for attempt in self.attempts if not attempt.error)

    @property
    def first_byte(self) -> float:
        """Median seconds until the first byte was back; infinite if none was."""
        return _median(attempt.first_byte for attempt in self.attempts)

    @property
    def first_byte_p90(self) -> float:
        """Seconds in which it was back for nine of ten of those for whom it was."""
        return _p90(attempt.first_byte for attempt in self.attempts)

    @property
    def direct_after(self) -> float:
        """Median seconds to a direct path of those that got one; infinite if none did."""
        return _median(attempt.direct_after for attempt in self.attempts)

    @property
    def settled_after(self) -> float:
        """Median seconds to the direct path or, where every call was relayed, to the stream; infinite if all failed."""
        return self.direct_after if self.direct else self.median

    @property
    def settled_p90(self) -> float:
        """Seconds in which nine of ten of these were there."""
        if self.direct:
            return _p90(attempt.direct_after for attempt in self.attempts)
        return _p90(attempt.seconds for attempt in self.attempts if not attempt.error)

    @property
    def paths(self) -> Counter[str]:
        """How many calls went over which path in the end: `direct tcp`; those that failed under the empty name."""
        return Counter(attempt.path for attempt in self.attempts)


class Matrix(msgspec.Struct, frozen=True):
    """All cells of one delay.

    Attributes:
        delay: Seconds, one way, on the line of each site; the server's has none.
        kinds: In the order of rows and columns.
        cells: Row by row.
        seconds: How long all of it took.
    """

    delay: float
    kinds: tuple[str, ...]
    cells: tuple[Cell, ...]
    seconds: float = 0.0

    def rows(self) -> list[list[Cell]]:
        """Return the cells, a list a caller, in the order of the kinds."""
        width = len(self.kinds)
        return [list(self.cells[start : start + width]) for start in range(0, len(self.cells), width)]

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """All calls."""
        return tuple(attempt for cell in self.cells for attempt in cell.attempts)

    @property
    def has_spread(self) -> bool:
        """Whether a cell has several calls, and so more than one figure."""
        return any(len(cell.attempts) > 1 for cell in self.cells)

    @property
    def unconnected(self) -> list[Cell]:
        """The cells in which a call failed: with a relay, none may."""
        return [cell for cell in self.cells if not cell.is_connected]

    @property
    def able(self) -> list[Cell]:
        """The cells that have a way without a relay."""
        return [cell for cell in self.cells if cell.can_be_direct]


def _p90(values: Iterable[float | None]) -> float:
    return percentile([value for value in values if value is not None] or [float("inf")], 0.9)


def _median(values: Iterable[float | None]) -> float:
    return statistics.median([value for value in values if value is not None] or [float("inf")])
