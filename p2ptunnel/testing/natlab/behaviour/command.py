"""`python -m p2ptunnel.testing.natlab behaviour [KIND...]`: the proof as a table."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence

from p2ptunnel.testing.natlab.behaviour.expected import COLUMNS
from p2ptunnel.testing.natlab.behaviour.proof import Verdict, prove
from p2ptunnel.testing.natlab.kinds import KINDS

__all__ = ["add_arguments", "format_table", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what this command takes."""
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"one of {', '.join(KINDS)}; all of them if none is named")


def run(arguments: argparse.Namespace) -> int:
    """Print the table; return 1 if a kind does not behave as its name says."""
    verdicts = list(prove(arguments.kinds or KINDS))
    print(format_table(verdicts))
    failed = [verdict for verdict in verdicts if not verdict.is_proved]
    print(f"\n{len(verdicts) - len(failed)} of {len(verdicts)} kinds behave as their names say")
    return 1 if failed else 0


def format_table(verdicts: Iterable[Verdict]) -> str:
    """Return a table: one line a kind, what it did, and below it in which columns that is wrong."""
    judged = list(verdicts)
    rows = [("", "kind", *(column.replace("_", " ") for column in COLUMNS)), *map(_row, judged)]
    widths = [max(len(word) for word in column) for column in zip(*rows, strict=True)]
    header, *lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join([header, *_with_differences(lines, judged)])


def _row(verdict: Verdict) -> tuple[str, ...]:
    words = ("?",) * len(COLUMNS) if verdict.measured is None else verdict.measured.words()
    return ("ok" if verdict.is_proved else "BAD", verdict.kind, *words)


def _with_differences(lines: Sequence[str], verdicts: Sequence[Verdict]) -> Iterator[str]:
    for line, verdict in zip(lines, verdicts, strict=True):
        yield line
        yield from (f"     {difference}" for difference in verdict.differences)
