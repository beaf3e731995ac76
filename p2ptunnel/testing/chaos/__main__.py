"""Move bytes through this package's programs, destroy the path under them again and again, and see whether anybody noticed.

    python -m p2ptunnel.testing.chaos [--workload forward|pipe|ssh] [--size SIZE] [--kills N] [--seed N] [--json FILE]

Status 0: everything arrived as it was sent and no application met an error; 1: not so; 2: misuse; 130: interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import re
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from p2ptunnel.errors import P2PTunnelError
from p2ptunnel.testing.chaos.bulk import forward, pipe
from p2ptunnel.testing.chaos.faults import KINDS
from p2ptunnel.testing.chaos.report import Report
from p2ptunnel.testing.chaos.run import Options, run
from p2ptunnel.testing.chaos.shell import ssh
from p2ptunnel.testing.chaos.workload import Workload
from p2ptunnel.testing.demo import DemoError

__all__ = ["main", "parse"]

_MIB: Final = 1 << 20
_ALL_KINDS: Final = tuple(KINDS)
_WORKLOADS: Final[dict[str, tuple[Workload, int, int, tuple[str, ...]]]] = {
    "forward": (forward, 1024 * _MIB, 20, _ALL_KINDS),
    "pipe": (pipe, 1024 * _MIB, 20, _ALL_KINDS),
    "ssh": (ssh, 512 * _MIB, 5, ("cut",)),
}
"""Each workload with its usual size in bytes, number of faults, and their kinds."""
_SIZE: Final = re.compile(r"([0-9]+)([KMG]?)", re.ASCII)
_UNITS: Final = {"": 1, "K": 1 << 10, "M": _MIB, "G": 1 << 30}
_SECONDS_BETWEEN: Final = 6.0
"""Between two faults, by the usual rate."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one workload; return the exit status."""
    options = parse(arguments)
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        report = _run(options, None if options.keep is None else Path(options.keep))
    except (P2PTunnelError, DemoError) as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # by then everything has ended
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    print(report)
    if options.json is not None:
        Path(options.json).write_text(json.dumps(report.as_json(), indent=1) + "\n")
    return 0 if report.is_good else 1


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the words of a command line; what is misuse ends the program."""
    parser = argparse.ArgumentParser(prog="python -m p2ptunnel.testing.chaos", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workload", choices=_WORKLOADS, default="forward", help="[forward]")
    parser.add_argument("--size", type=_size, metavar="SIZE", help="in all: 200M, 1G [1G, half each way; ssh: 512M by scp]")
    parser.add_argument("--kills", type=int, metavar="N", help="how many faults [20; ssh: 5]")
    parser.add_argument("--kinds", metavar="A,B", help=f"of faults, in turn [{','.join(KINDS)}; ssh: cut]")
    parser.add_argument("--rate", type=float, metavar="BYTES", help="per second, in all [6 s between faults]; 0: no limit")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the sides and the content [1]")
    parser.add_argument("--delay", type=float, default=0.02, metavar="S", help="one way, on each access line [0.02]")
    parser.add_argument("--json", metavar="FILE", help="write the report to a file")
    parser.add_argument("--keep", metavar="DIR", help="leave all logs and traces in this empty directory")
    options = parser.parse_args(arguments)
    _, size, kills, kinds = _WORKLOADS[options.workload]
    options.size = size if options.size is None else options.size
    options.kills = kills if options.kills is None else options.kills
    options.kinds = kinds if options.kinds is None else tuple(options.kinds.split(","))
    if unknown := [kind for kind in options.kinds if kind not in KINDS]:
        parser.error(f"there is no kind {unknown[0]!r}; there are {', '.join(KINDS)}")
    if options.size < 2 or options.kills < 0:
        parser.error("--size is at least 2 and --kills is not negative")
    _check_files(parser, options)
    if options.rate is None:
        options.rate = options.size / options.kills / _SECONDS_BETWEEN if options.kills else 0.0
    for name in ("rate", "delay"):
        if not 0 <= getattr(options, name) < math.inf:
            parser.error(f"--{name} is 0 or more")
    return options


def _size(text: str) -> int:
    """Return the bytes that `text` stands for: a number of them, or of KiB, MiB or GiB by K, M, G."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; examples: 200000000, 200M, 1G")
    return int(found[1]) * _UNITS[found[2]]


def _check_files(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse places that would be found useless only when the run is over, or half-way."""
    if options.json is not None and not Path(options.json).parent.is_dir():
        parser.error(f"--json: there is no directory {Path(options.json).parent}")
    kept = None if options.keep is None else Path(options.keep)
    if kept is not None and kept.exists() and not (kept.is_dir() and not any(kept.iterdir())):
        parser.error(f"--keep: {kept} is not an empty directory")


def _run(options: argparse.Namespace, kept: Path | None) -> Report:
    chosen = Options(
        workload=options.workload,
        size_bytes=options.size,
        rate=options.rate,
        faults=options.kills,
        kinds=options.kinds,
        seed=options.seed,
        delay=options.delay,
    )
    with contextlib.ExitStack() as stack:
        if kept is None:
            kept = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="p2ptunnel-chaos-")))
        kept.mkdir(parents=True, exist_ok=True)
        return run(kept, _WORKLOADS[options.workload][0], chosen)


def _interrupt(*_: object) -> None:
    """Take SIGTERM for Ctrl-C: both end what runs before we go."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
