"""What was measured, as values, and the statistics over it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Literal

from bench.contest import Contestant, Kind

__all__ = ["METRICS", "OURS", "Machine", "Metric", "Report", "Result", "median", "ratio"]

OURS: Final = "ours"


@dataclass(frozen=True)
class Metric:
    """One column of the tables.

    Attributes:
        title: Its head.
        keys: What it shows; several are added where one figure is needed.
        better: Which end is the good one.
    """

    title: str
    keys: tuple[str, ...]
    better: Literal["more", "less"] = "less"

    def value(self, found: dict[str, float]) -> float | None:
        """Return the figure of one round, None if the round has none."""
        return sum(found[key] for key in self.keys) if all(key in found for key in self.keys) else None


METRICS: Final = (
    Metric("MB/s", ("throughput",), "more"),
    Metric("CPU-s/GB, near + far", ("cpu_near", "cpu_far")),
    Metric("echo p50, ms", ("echo_p50",)),
    Metric("echo p99, ms", ("echo_p99",)),
    Metric("echo beside bulk p99, ms", ("fair_p99",)),
    Metric("one more + echo, ms", ("open",)),
    Metric("connect + echo, ms", ("connect",)),
    Metric("KiB an idle stream", ("idle",)),
)


@dataclass(frozen=True)
class Machine:
    """What the figures were taken on."""

    cpu: str
    cores: int
    memory_gib: float
    kernel: str
    python: str
    openssl: str
    load: float
    date: str


@dataclass
class Result:
    """One contestant.

    Attributes:
        rounds: What each round found, by the keys of the metrics; empty where it did not start.
        trouble: Why figures are missing, each reason once.
    """

    name: str
    kind: Kind
    label: str
    version: str = ""
    rounds: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    trouble: list[str] = field(default_factory=list[str])

    @classmethod
    def of(cls, contestant: Contestant) -> Result:
        """Return the result of a contestant who has not begun."""
        return cls(contestant.name, contestant.kind, contestant.label)

    def complain(self, reason: str) -> None:
        """Note why figures are missing."""
        if reason not in self.trouble:
            self.trouble.append(reason)

    def median(self, *keys: str) -> float | None:
        """Return the median of a figure over the rounds that have it, None if no round has."""
        metric = Metric("", keys)
        return median(metric.value(found) for found in self.rounds)


@dataclass
class Report:
    """One run of the benchmark."""

    machine: Machine
    is_quick: bool
    results: list[Result]

    def of_kind(self, kind: Kind) -> list[Result]:
        """Return the results of one table."""
        return [result for result in self.results if result.kind == kind]

    def save(self, path: Path) -> None:
        """Write everything as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Report:
        """Read what `save` wrote."""
        read = json.loads(path.read_text(encoding="utf-8"))
        return cls(Machine(**read["machine"]), read["is_quick"], [Result(**result) for result in read["results"]])


def median(values: Iterable[float | None]) -> float | None:
    """Return the median of the values that are there."""
    present = [value for value in values if value is not None]
    return statistics.median(present) if present else None


def ratio(metric: Metric, ours: Result, theirs: Result) -> float | None:
    """Return how many times better ours is: the median over the rounds of what both did in the same one.

    Rounds are compared one by one since neighbours on a shared machine slow both down.
    """
    ratios: list[float | None] = []
    for our_round, their_round in zip(ours.rounds, theirs.rounds, strict=False):
        our, their = metric.value(our_round), metric.value(their_round)
        if our and their and our > 0 and their > 0:
            ratios.append(our / their if metric.better == "more" else their / our)
    return median(ratios)
