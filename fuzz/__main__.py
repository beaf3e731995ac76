"""`python -m fuzz`: every target in turn, for a while; guided by coverage where atheris is installed."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import random
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Final

from fuzz.mutation import CORPUS, Escaped, Run, corpus_of
from fuzz.targets import TARGETS

_GUIDED: Final = "guided"


def main() -> int:
    """Fuzz; 1 if a reader raised what it may not."""
    arguments = _arguments()
    seed = arguments.seed if arguments.seed is not None else random.randrange(2**32)
    names = arguments.targets or list(TARGETS)
    can_guide = importlib.util.find_spec("atheris") is not None and not arguments.blind
    print(f"seed {seed}, {arguments.seconds:g} s for each of {len(names)} targets, {_GUIDED if can_guide else 'by mutation'}")
    return max(_fuzz(name, seed, arguments.seconds, guided=can_guide, keep=arguments.keep) for name in names)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", choices=[*TARGETS, []], help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=float, default=5.0, help="for each target")
    parser.add_argument("--seed", type=int, help="to see the same inputs again")
    parser.add_argument("--blind", action="store_true", help="by mutation, even where atheris is there")
    parser.add_argument("--keep", action="store_true", help="add what was new to tests/security/corpus")
    return parser.parse_args()


def _fuzz(name: str, seed: int, seconds: float, *, guided: bool, keep: bool) -> int:
    run = Run(name, TARGETS[name], seed)
    try:
        run.go_on(seconds / 2 if guided else seconds)
    except Escaped as found:
        print(f"{name}: ESCAPED\n{traceback.format_exc()}")
        _keep(name, found.data)
        return 1
    cost, data = run.slowest
    print(f"{name}: {run.inputs} inputs, {len(run.outcomes)} outcomes, dearest {cost * 1e6:.0f} us: {data[:60]!r}", flush=True)
    if keep:
        for new in run.found:
            _keep(name, new)
    return _guided(name, seed, seconds / 2) if guided else 0


def _keep(name: str, data: bytes) -> None:
    (CORPUS / name).mkdir(parents=True, exist_ok=True)
    (CORPUS / name / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


def _guided(name: str, seed: int, seconds: float) -> int:
    """Run atheris in a process of its own, since it ends the process."""
    with tempfile.TemporaryDirectory() as directory:
        for number, data in enumerate((*TARGETS[name].seeds, *corpus_of(name))):
            Path(directory, str(number)).write_bytes(data)
        limits = [
            f"-max_total_time={max(round(seconds), 1)}",
            f"-seed={seed or 1}",
            "-max_len=4096",
            f"-artifact_prefix={directory}/x-",
        ]
        command = [sys.executable, "-m", "fuzz.guided", name, *limits, directory]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        for path in Path(directory).glob("x-*"):
            _keep(name, path.read_bytes())
    said = [line for line in done.stderr.splitlines() if line.startswith(("Done", "stat::"))]
    print(f"{name}: guided: {' '.join(said) if done.returncode == 0 else done.stderr[-2000:]}", flush=True)
    return int(done.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
