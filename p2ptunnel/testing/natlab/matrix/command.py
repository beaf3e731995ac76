"""`matrix`: proves the kinds, lets every kind call every other, and prints who connects, over what, and how fast."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Generator, Sequence
from typing import Final

import msgspec

from p2ptunnel.testing.natlab.behaviour import prove
from p2ptunnel.testing.natlab.kinds import MATRIX_KINDS
from p2ptunnel.testing.natlab.matrix.cells import Matrix
from p2ptunnel.testing.natlab.matrix.progress import Progress
from p2ptunnel.testing.natlab.matrix.run import run_matrix
from p2ptunnel.testing.natlab.matrix.text import render

__all__ = ["add_arguments", "are_proved", "measure", "run"]

_DELAYS: Final = (0.0, 25.0)
_AT_ONCE: Final = len(MATRIX_KINDS)  # twice as many do twice as much in the same time, and each waits for the processor
_AT_ONCE_UNDELAYED: Final = 4  # there a call is nothing but work, and many at once would time one another
_RELAYS: Final = ("auto", "never")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line of `matrix`."""
    parser.add_argument(
        "--kinds", nargs="+", default=MATRIX_KINDS, metavar="KIND", help=f"kinds of NAT [{' '.join(MATRIX_KINDS)}]"
    )
    parser.add_argument("-n", "--attempts", type=int, default=1, metavar="N", help="calls of each ordered pair [1]")
    parser.add_argument(
        "--delay", type=float, action="append", metavar="MS", help="one way, on each site's line; may be repeated [0 and 25]"
    )
    parser.add_argument("--at-once", type=int, metavar="N", help="calls at a time [13; 4 where nothing is delayed]")
    parser.add_argument("--relay", choices=_RELAYS, default="auto", help="whether callers use the server's relay [auto]")
    parser.add_argument(
        "--patience", type=float, default=12.0, metavar="S", help="for a direct path to take over from the relay [12]"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a delay instead of tables")


def run(arguments: argparse.Namespace) -> int:
    """Run the matrix and print it; 1 if a kind is not what its name says, or a pair did not connect."""
    if not are_proved(arguments.kinds):
        return 1
    matrices = list(measure(arguments))
    return 1 if any(matrix.unconnected for matrix in matrices) else 0


def are_proved(kinds: Sequence[str]) -> bool:
    """Tell whether all kinds behave as their names say; on a laboratory that is wrong nothing is measured."""
    wrong = [verdict for verdict in prove(kinds) if not verdict.is_proved]
    for verdict in wrong:
        print(f"{verdict.kind} does not behave as its name says: {'; '.join(verdict.differences)}", file=sys.stderr)
    return not wrong


def measure(arguments: argparse.Namespace) -> Generator[Matrix]:
    """Measure and print the matrix of each delay."""
    kinds = tuple(arguments.kinds)
    for delay in arguments.delay or _DELAYS:
        began = time.monotonic()
        cells = run_matrix(
            kinds,
            attempts=arguments.attempts,
            delay=delay / 1000,
            at_once=arguments.at_once or (_AT_ONCE if delay else _AT_ONCE_UNDELAYED),
            relay=arguments.relay,
            patience=arguments.patience,
            tell=Progress(f"{delay:g} ms", arguments.attempts * len(kinds) ** 2),
        )
        matrix = Matrix(delay / 1000, kinds, tuple(cells), time.monotonic() - began)
        print(msgspec.json.encode(matrix).decode() if arguments.json else render(matrix), flush=True)
        yield matrix
