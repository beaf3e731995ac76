"""What contestants need: Python packages, each set in a virtual environment of its own, and Debian packages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from bench.contest import BenchError, Contestant, say

__all__ = ["environment", "prepare", "version", "which"]

_HOME: Final = Path(__file__).parents[1] / ".bench"
_SYSTEM_PATH: Final = "/usr/local/sbin:/usr/sbin:/sbin"  # where servers are, and not everybody's PATH leads
_PIP_TIMEOUT: Final = 600.0
_APT_TIMEOUT: Final = 300.0


def prepare(contestant: Contestant) -> Path:
    """See to all that it needs, saying what is installed; return the Python that it runs in.

    Raises:
        BenchError: Something is missing and could not be installed.
    """
    _install_programs(contestant.programs)
    return environment(contestant.requirements) if contestant.requirements else Path(sys.executable)


def environment(requirements: Sequence[str]) -> Path:
    """Return the Python of the virtual environment with these packages, made on first use.

    Raises:
        BenchError: pip could not install them.
    """
    home = _HOME / "-".join(requirements).replace("==", "-")
    python, stamp = home / "bin" / "python", home / "installed"
    if not stamp.exists():
        say(f"pip install {' '.join(requirements)} into {home.relative_to(_HOME.parent)}")
        _run([sys.executable, "-m", "venv", "--clear", str(home)], _PIP_TIMEOUT)
        _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements], _PIP_TIMEOUT)
        stamp.touch()
    return python


def which(program: str) -> str | None:
    """Return where a program is, servers included."""
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM_PATH}")


def version(contestant: Contestant) -> str:
    """Return the version of what is installed."""
    if contestant.version is not None:
        return contestant.version
    if contestant.requirements:
        return contestant.requirements[0].partition("==")[2]
    package = next(iter(contestant.programs.values()))
    debian = _run(["dpkg-query", "--show", "--showformat=${Version}", package], _APT_TIMEOUT)
    return debian.rpartition(":")[2].partition("-")[0]  # the makers' own: without Debian's epoch and revision


def _install_programs(programs: Mapping[str, str]) -> None:
    missing = sorted({package for program, package in programs.items() if which(program) is None})
    if not missing:
        return
    if os.geteuid() != 0 or which("apt-get") is None:
        raise BenchError(f"not installed: {', '.join(missing)}")
    say(f"apt-get install {' '.join(missing)}")
    _run(["apt-get", "update", "-qq"], _APT_TIMEOUT)
    _run(["apt-get", "install", "-qq", "--yes", "--no-install-recommends", *missing], _APT_TIMEOUT)


def _run(argv: Sequence[str], timeout: float) -> str:
    # Offline, so that installing a server does not start one on this machine.
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "SYSTEMD_OFFLINE": "1"}
    try:
        done = subprocess.run(argv, env=quiet, capture_output=True, text=True, timeout=timeout, check=True)
    except subprocess.CalledProcessError as error:
        said: list[str] = (error.stderr or error.stdout).strip().splitlines() or [f"status {error.returncode}"]
        raise BenchError(f"{Path(argv[0]).name} {argv[1]}: {said[-1]}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchError(str(error)) from None
    return done.stdout
