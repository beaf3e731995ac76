"""The command: `python -m bench`."""

from __future__ import annotations

import argparse
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench.contest import BenchError, Contestant, Kind, say
from bench.contestants import find_contestants
from bench.install import prepare, version
from bench.machine import describe_machine
from bench.page import write_docs
from bench.results import Report, Result
from bench.rig import Rig
from bench.table import render_table, render_trouble
from bench.visit import FULL, QUICK, visit

__all__ = ["main"]

_LIMIT: Final = 90.0
_KINDS: Final[tuple[Kind, ...]] = ("forward", "stream")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark, print the tables, write the documentation; return the exit status."""
    options = _parse(argv)
    try:
        _require_namespaces()
        contestants = find_contestants(options.only)
        report = _run(contestants, quick=options.quick, rounds=options.rounds, limit=options.limit)
        _show(report)
        if options.json:
            report.save(options.json)
        if options.docs:
            write_docs(report)
    except BenchError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="p2ptunnel and what people use instead, on the same work in one run; writes docs/performance.md.",
        epilog="Needs root, for network namespaces. What contestants need is installed on first use, and named before: "
        "Python packages into .bench/, missing Debian packages by apt-get.",
    )
    parser.add_argument("--quick", action="store_true", help="little work, for a look; the documentation is not written")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="how often each contestant starts (default 3)")
    parser.add_argument("--only", type=lambda text: text.split(","), default=[], metavar="NAME,...", help="only these")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure of every round")
    parser.add_argument("--limit", type=float, default=_LIMIT, metavar="S", help="seconds for one start (default %(default)g)")
    parser.add_argument("--no-docs", dest="docs", action="store_false", help="leave docs/performance.md as it is")
    options = parser.parse_args(argv)
    options.docs = options.docs and not options.quick and not options.only  # half a table is none
    return options


def _require_namespaces() -> None:
    try:
        Rig(1.0).close()
    except OSError as error:
        raise BenchError(f"no network namespaces can be made: {error} (be root)") from None
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a thousand idle streams have twice as many descriptors


def _run(contestants: Sequence[Contestant], *, quick: bool, rounds: int, limit: float) -> Report:
    """Let all of them start in turn, round after round."""
    report = Report(describe_machine(), quick, [Result.of(contestant) for contestant in contestants])
    ready = [
        (contestant, result, python)
        for contestant, result in zip(contestants, report.results, strict=True)
        if (python := _prepare(contestant, result))
    ]
    for number in range(1, rounds + 1):
        for contestant, result, python in ready:
            say(f"round {number} of {rounds}: {contestant.label}")
            found, trouble = visit(contestant, python, QUICK if quick else FULL, limit)
            result.rounds.append(found)
            for reason in trouble:
                say(f"{contestant.label}: {reason}")
                result.complain(reason)
    return report


def _prepare(contestant: Contestant, result: Result) -> Path | None:
    try:
        python = prepare(contestant)
        result.version = version(contestant)
    except BenchError as error:
        say(f"{contestant.label}: {error}")
        result.complain(str(error))
        return None
    return python


def _show(report: Report) -> None:
    for kind in _KINDS:
        if results := report.of_kind(kind):
            print(f"\n{render_table(results)}\n{render_trouble(results)}".rstrip())


if __name__ == "__main__":
    sys.exit(main())
