"""One round of one contestant: every work, once, on a rig of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

from bench.contest import BenchError, Contestant
from bench.rig import Program, Rig

__all__ = ["FULL", "QUICK", "Effort", "visit"]

_GB: Final = 1e9
_MB: Final = 1e6
_WARM_UP_SECONDS: Final = 0.2

_Works: TypeAlias = Iterator[tuple[str, Callable[[], dict[str, float]]]]


@dataclass(frozen=True)
class Effort:
    """How much of each work is done; `seconds` is for bulk, and the most that a work of many repetitions takes."""

    seconds: float
    echoes: int
    opens: int
    connects: int
    idle: int


FULL: Final = Effort(seconds=3.0, echoes=400, opens=30, connects=10, idle=1000)
QUICK: Final = Effort(seconds=0.3, echoes=50, opens=5, connects=2, idle=200)


def visit(contestant: Contestant, python: Path, effort: Effort, limit: float) -> tuple[dict[str, float], list[str]]:
    """Return what was found, by the keys of the metrics, and the reasons why there is no more.

    Memory is measured on a rig of its own: what a bulk transfer leaves behind is not a stream's.

    Args:
        contestant: Who.
        python: Its own Python.
        effort: How much to do.
        limit: Seconds on each rig.
    """
    found: dict[str, float] = {}
    trouble: list[str] = []
    for works in (_speed, _memory):
        doing = "start"
        try:
            with Rig(limit) as rig:
                near = contestant.start(rig, python)
                for work_name, work in works(contestant, rig, near, effort):
                    doing = work_name
                    found |= work()
        except BenchError as error:
            trouble.append(f"{doing}: {error}")
    return found, trouble


def _speed(contestant: Contestant, rig: Rig, near: Program, effort: Effort) -> _Works:
    ask = partial(partial, near.ask)
    yield "warming up", lambda: _warm_up(near)
    yield "echo", ask("echo", count=effort.echoes, seconds=effort.seconds)
    yield "one more", ask("open", count=effort.opens, seconds=effort.seconds)
    yield "bulk", lambda: _bulk(rig, near, effort.seconds)
    if contestant.kind == "stream":
        yield "connect", ask("connect", count=effort.connects, seconds=effort.seconds)
    yield "echo beside bulk", ask("fairness", count=effort.echoes, seconds=effort.seconds)


def _memory(contestant: Contestant, rig: Rig, near: Program, effort: Effort) -> _Works:
    count = min(effort.idle, contestant.streams_max or effort.idle)
    yield "idle streams", lambda: _idle(rig, near, count)


def _warm_up(near: Program) -> dict[str, float]:
    near.ask("bulk", seconds=_WARM_UP_SECONDS)
    return {}


def _bulk(rig: Rig, near: Program, seconds: float) -> dict[str, float]:
    cpu_near, cpu_far = rig.near.cpu_seconds(), rig.far.cpu_seconds()
    found = near.ask("bulk", seconds=seconds)
    gigabytes = found["bytes"] / _GB
    return {
        "throughput": found["bytes"] / _MB / found["seconds"],
        "cpu_near": (rig.near.cpu_seconds() - cpu_near) / gigabytes,
        "cpu_far": (rig.far.cpu_seconds() - cpu_far) / gigabytes,
    }


def _idle(rig: Rig, near: Program, count: int) -> dict[str, float]:
    first = count // 10  # they load code, which is not a stream's
    near.ask("hold", count=first)
    before = rig.near.memory_kib() + rig.far.memory_kib()
    near.ask("hold", count=count - first)
    return {"idle": (rig.near.memory_kib() + rig.far.memory_kib() - before) / (count - first)}
