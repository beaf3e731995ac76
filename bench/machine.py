"""The machine that the figures are taken on."""

from __future__ import annotations

import datetime
import os
import platform
import re
import ssl
from pathlib import Path

from bench.results import Machine

__all__ = ["describe_machine", "machine_line"]


def describe_machine() -> Machine:
    """Return what this machine is, and how busy it is now."""
    return Machine(
        cpu=_first(r"model name\s*: (.+)", Path("/proc/cpuinfo")),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=int(_first(r"MemTotal:\s*(\d+)", Path("/proc/meminfo"))) / 2**20,
        kernel=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        openssl=ssl.OPENSSL_VERSION,
        load=os.getloadavg()[0],
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
    )


def machine_line(machine: Machine) -> str:
    """Return it in a sentence or two."""
    return (
        f"{machine.cpu}, {machine.cores} cores, {machine.memory_gib:.0f} GiB; {machine.kernel}; Python {machine.python} with "
        f"{machine.openssl}; {machine.date}, load {machine.load:.1f} at the beginning."
    )


def _first(pattern: str, path: Path) -> str:
    """Return what the pattern finds in a file; some processors have no model name."""
    found = re.search(pattern, path.read_text())
    return found[1] if found else platform.machine()
