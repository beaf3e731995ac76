"""One run: an application at work, faults at their time, and how long it takes until bytes flow again."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from p2ptunnel.testing.chaos.faults import KINDS, Fault, plan
from p2ptunnel.testing.chaos.flow import ChaosError, Ledger
from p2ptunnel.testing.chaos.report import Recovery, Report
from p2ptunnel.testing.chaos.workload import Load, Running, Workload
from p2ptunnel.testing.chaos.world import World, world

__all__ = ["Options", "run"]

_PATIENCE: Final = 60.0
"""Seconds without a byte after which an application is as good as dead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a run is to be.

    Attributes:
        workload: Its name, for the report.
        size_bytes: In all.
        rate: Bytes per second at most, in all; 0 for no limit.
        faults: How many, evenly spread over the bytes.
        kinds: Of faults, in turn.
        seed: Of the sides of faults, and of the content.
        delay: Seconds one way on each access line.
    """

    workload: str
    size_bytes: int
    rate: float
    faults: int
    kinds: Sequence[str]
    seed: int
    delay: float


@dataclass(slots=True)
class _Progress:
    """What a run has shown so far."""

    began: float = 0.0
    ended: float = 0.0
    is_equal: bool = False
    recoveries: list[Recovery] = field(default_factory=list[Recovery])


def run(directory: Path, workload: Workload, options: Options) -> Report:
    """Run a workload in a world below an empty directory; print a line for each fault.

    Raises:
        LaboratoryError: No laboratory can be built here, or a part of it broke.
        DemoError: A program did not come up.
    """
    ledger, progress = Ledger(), _Progress()
    with world(directory, options.delay) as made:
        what = f"{options.workload}: {options.size_bytes} bytes, {options.faults} faults, seed {options.seed}"
        made.stage.say(f"{what}; in front: the time since the beginning")
        try:
            with workload(made, ledger, Load(options.size_bytes, options.rate, options.seed)) as running:
                _go_through(made, running, options, progress)
        except ChaosError as error:
            ledger.errors[:1] = [str(error)]  # the first one of the application, and what had been done to it
    return Report(
        workload=options.workload,
        size_bytes=options.size_bytes,
        seed=options.seed,
        delay=options.delay,
        seconds=progress.ended - progress.began,
        is_equal=progress.is_equal,
        errors=ledger.errors,
        recoveries=progress.recoveries,
        planned=options.faults,
    )


def _go_through(made: World, running: Running, options: Options, progress: _Progress) -> None:
    """Make every fault at its time, and wait for the end."""
    progress.began = time.monotonic()
    try:
        for fault in plan(options.faults, options.seed, options.kinds):
            running.pace.wait_beyond(int(fault.after * running.pace.size), _PATIENCE)
            recovery = _suffer(made, running, fault)
            progress.recoveries.append(recovery)
            made.stage.say(str(recovery))
        running.pace.wait_beyond(running.pace.size - 1, _PATIENCE)
        progress.is_equal = running.finish(_PATIENCE)
    finally:
        progress.ended = time.monotonic()


def _suffer(made: World, running: Running, fault: Fault) -> Recovery:
    """Make a fault and wait until what was written after it arrives."""
    injector, (site, far) = KINDS[fault.kind], made.sides(fault.side)
    path_is_back = time.monotonic()
    with injector.inject(site, far):
        written = [flow.written for flow in running.flows]
        backlog = sum(written) - sum(flow.arrived for flow in running.flows)
        if injector.seconds:
            threading.Event().wait(injector.seconds)
    if injector.seconds:
        path_is_back = time.monotonic()
    try:
        arrived = [flow.wait_beyond(count, _PATIENCE) for flow, count in zip(running.flows, written, strict=True)]
    except ChaosError as error:
        raise ChaosError(f"{fault.kind} at {site.name} was not survived: {error}") from error
    return Recovery(fault.number, fault.kind, site.name, max(0.0, max(arrived) - path_is_back), backlog)
