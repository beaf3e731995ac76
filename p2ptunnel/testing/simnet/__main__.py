"""Prints the matrix of kinds on the network in memory: `python -m p2ptunnel.testing.simnet --help`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from p2ptunnel.testing.simnet.kinds import KINDS
from p2ptunnel.testing.simnet.run import run_punch

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every ordered pair, print the share that connects in percent, and how fast the runs were; return 0."""
    options = _parser().parse_args(arguments)
    began, kinds = time.process_time(), tuple(KINDS)
    print("      " + " ".join(f"{kind:>5}" for kind in kinds) + "   callee")
    for caller in kinds:
        shares = [_share(caller, callee, options) for callee in kinds]
        print(f"{caller:>5} " + " ".join(f"{share:5.0f}" for share in shares))
    runs = len(kinds) ** 2 * options.seeds
    print(f"caller; {runs} calls, {runs / (time.process_time() - began):.0f} a second of CPU")
    return 0


def _share(caller: str, callee: str, options: argparse.Namespace) -> float:
    conditions = {"delay": options.delay / 1000, "jitter": options.jitter / 1000, "loss": options.loss / 100}
    runs = [run_punch(caller, callee, seed=seed, **conditions) for seed in range(options.seeds)]
    return 100 * sum(run.connected for run in runs) / len(runs)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m p2ptunnel.testing.simnet", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="calls a pair (default %(default)s)")
    parser.add_argument("--delay", type=float, default=25.0, help="of each access link, one way, in ms (default %(default)s)")
    parser.add_argument("--jitter", type=float, default=0.0, help="more, at most, in ms (default %(default)s)")
    parser.add_argument("--loss", type=float, default=0.0, help="of packets, in percent (default %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
