"""socat, a relay without encryption: a process for each connection."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.contest import FAR, FORWARD_PORT, LOOPBACK, SINK_PORT, Contestant

if TYPE_CHECKING:
    from bench.rig import Program, Rig


def _start(rig: Rig, _: Path) -> Program:
    rig.sink()
    accept = f"TCP-LISTEN:{FORWARD_PORT},bind={LOOPBACK},fork,reuseaddr,nodelay,backlog=1024"
    return rig.probe(rig.near.start(["socat", accept, f"TCP:{FAR}:{SINK_PORT},nodelay"]))


CONTESTANTS: Final = (Contestant("socat", "forward", "socat, not encrypted", _start, programs={"socat": "socat"}),)
