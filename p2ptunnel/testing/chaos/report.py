"""What a run has shown: every fault with its recovery, and the verdict.  Rule: values and text, no I/O."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Recovery", "Report", "percentile"]


@dataclass(frozen=True, slots=True)
class Recovery:
    """One fault, and how long the application felt it.

    Attributes:
        number: From 1.
        kind: Of the fault.
        site: Where it happened.
        seconds: From the moment the path was back until what was written after the fault arrived, both ways.
        backlog: How much was under way when it happened, in bytes or lines, both ways: a part of `seconds` is its transfer.
    """

    number: int
    kind: str
    site: str
    seconds: float
    backlog: int

    def __str__(self) -> str:
        return f"fault {self.number:3}  {self.kind:7} at {self.site:5}  bytes again after {self.seconds:6.2f} s"


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run.

    Attributes:
        workload: Its name.
        size_bytes: What the application moved, or was to move.
        seed: Of sides and content.
        delay: Seconds one way on each line.
        seconds: Of the transfer, faults included.
        is_equal: Whether everything that arrived is what was sent; False if it did not get that far.
        errors: What the application met.
        recoveries: In order.
        planned: How many faults there were to be.
    """

    workload: str
    size_bytes: int
    seed: int
    delay: float
    seconds: float
    is_equal: bool
    errors: Sequence[str]
    recoveries: Sequence[Recovery]
    planned: int

    @property
    def is_good(self) -> bool:
        """Whether all faults were made, nothing was lost and nobody complained."""
        return self.is_equal and not self.errors and len(self.recoveries) == self.planned

    def __str__(self) -> str:
        faults = f"{len(self.recoveries)} of {self.planned} faults survived"
        verdict = f"sha256 {'equal' if self.is_equal else 'NOT EQUAL'}; errors: {'; '.join(self.errors) or 'none'}"
        rows = [f"{name:7} {_row(summary)}" for name, summary in self.summaries().items()]
        head = ["by kind of fault, how long after the path was back bytes flowed again both ways:"] if rows else []
        return "\n".join([f"{self.size_bytes} bytes, {self.seconds:.1f} s; {faults}", verdict, *head, *rows])

    def summaries(self) -> dict[str, dict[str, float]]:
        """Return count, p50, p95 and maximum of the recoveries in seconds, per kind and of all."""
        kinds = dict.fromkeys(recovery.kind for recovery in self.recoveries)
        chosen = {kind: [r.seconds for r in self.recoveries if r.kind == kind] for kind in kinds}
        if self.recoveries:
            chosen["all"] = [r.seconds for r in self.recoveries]
        return {name: _summary(seconds) for name, seconds in chosen.items()}

    def as_json(self) -> dict[str, Any]:
        """Return all of it for a file."""
        return {**asdict(self), "is_good": self.is_good, "summaries": self.summaries()}


def percentile(values: Iterable[float], share: float) -> float:
    """Return the smallest value that at least this share of them does not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _summary(seconds: Sequence[float]) -> dict[str, float]:
    return {
        "count": len(seconds),
        "p50": percentile(seconds, 0.5),
        "p95": percentile(seconds, 0.95),
        "max": max(seconds),
    }


def _row(summary: dict[str, float]) -> str:
    count = int(summary["count"])
    return f"{count:3} recoveries  p50 {summary['p50']:.2f} s  p95 {summary['p95']:.2f} s  max {summary['max']:.2f} s"
