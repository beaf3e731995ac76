"""What a contestant is, and where things are on the two machines; imported on every side, so standard library only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from bench.rig import Program, Rig

__all__ = ["FAR", "FORWARD_PORT", "LOOPBACK", "NEAR", "SINK_PORT", "STREAM_PORT", "BenchError", "Contestant", "Kind", "say"]

FAR: Final = "10.89.0.1"
NEAR: Final = "10.89.0.2"
LOOPBACK: Final = "127.0.0.1"
SINK_PORT: Final = 7001
"""Where forwards lead to, on the far machine."""
FORWARD_PORT: Final = 8001
"""Where forwards begin, on the near machine's loopback."""
STREAM_PORT: Final = 7101
"""Where a contestant of its own on the far machine is reached by its other half."""

Kind: TypeAlias = Literal["forward", "stream"]
"""Whether the bytes go through a local port and two programs, or from Python to Python by the contestant's own API."""


class BenchError(Exception):
    """A contestant cannot take part, or stopped; the text is the reason that the table gives."""


@dataclass(frozen=True)
class Contestant:
    """One line of the table.

    Attributes:
        name: For `--only`; the part before a dash stands for all that share it.
        kind: Which table it is in.
        label: How the table calls it.
        start: Starts both sides on a rig, given the Python of its own environment; returns who takes the orders there.
        version: None: that of its first requirement, or of its first Debian package.
        requirements: Python packages, pinned.
        streams_max: How many streams it can keep open on one session; None: as many as we ask for.
        programs: Programs that it needs, each with its Debian package.
    """

    name: str
    kind: Kind
    label: str
    start: Callable[[Rig, Path], Program]
    version: str | None = None
    requirements: tuple[str, ...] = ()
    streams_max: int | None = None
    programs: Mapping[str, str] = field(default_factory=dict[str, str])


def say(text: str) -> None:
    """Tell who waits what goes on, beside the tables."""
    print(f"bench: {text}", file=sys.stderr, flush=True)
