"""Networks as they are met, measured, printed, and written into docs/nat-scenarios.md.

    python -m bench.scenarios [-n N] [--at-once 16] [NAME ...]

The page is written when all scenarios were measured; of some of them only the text is printed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from bench.machine import describe_machine, machine_line
from bench.results import Machine
from p2ptunnel.errors import P2PTunnelError
from p2ptunnel.testing.natlab.scenarios import Calls, Transfer, Warm, WarmCall, command
from p2ptunnel.testing.natlab.scenarios.command import NAMES, Found
from p2ptunnel.testing.natlab.scenarios.report import SHARES, summary

__all__ = ["main", "render_page"]

_PAGE: Final = Path(__file__).parents[1] / "docs" / "nat-scenarios.md"

_HEAD: Final = """\
# What connects how fast

This page is written by `make natlab-scenarios`: real peers call each other in networks as they are met, in the
[laboratory](laboratory.md), on one machine.

{machine} Command: `python -m bench.scenarios {command}`.

"""

_CALLS: Final = """\
## Calls

25 ms one way on the line of each home: 50 ms to the server and back, 100 between the peers. Each call is made by a fresh
peer that is ready: how it looks from outside is known, and a connection to the relay stands. It has come to something when
random bytes were back over the path that the stream had in the end; times are from `connect` until the first byte was back
from the other side, and until a direct path was in use, for which it was waited {patience:g} s. {at_once} calls went on at
the same time, of both sides of which this one machine does the work. Losses are on the caller's line, both ways.

| scenario | what it is | calls | path | first byte, p50 / p95 / max | direct, p50 / p95 / max |
| --- | --- | --- | --- | --- | --- |
"""

_WARM: Final = """
## Warm calls, one after the other

Nothing else goes on while a call is timed. `confirm=True` waits until the callee has accepted the stream, `confirm=False`
sends what is written with the request. The first byte is timed by the callee's clock, which is the caller's as well.

| figure | confirm | p50 | p95 | max | calls | goal |
| --- | --- | --- | --- | --- | --- | --- |
"""

_TRANSFER: Final = """
## A transfer whose path changes

Bytes go from one home to the other, which at first reach each other over the relay only; then the direct path opens, and
later it is cut without a word: {megabytes:.0f} MB, 10 ms a line, 160 Mbit/s; {verdict}.

| what happens | the path is then | after | longest pause |
| --- | --- | --- | --- |
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 if a call failed, or the transfer did not do what it should."""
    parser = argparse.ArgumentParser(prog="python -m bench.scenarios", description=(__doc__ or "").partition("\n")[0])
    command.add_arguments(parser)
    options = parser.parse_args(arguments)
    machine = describe_machine()
    try:
        found = list(command.measure(options))
    except P2PTunnelError as error:
        print(f"natlab-scenarios: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if tuple(options.names) == NAMES:
        _PAGE.write_text(render_page(found, machine, options), encoding="utf-8")
    return 0 if all(one.is_good for one in found) else 1


def render_page(found: Sequence[Found], machine: Machine, options: argparse.Namespace) -> str:
    """Return the page."""
    count = "" if options.attempts is None else f"-n {options.attempts} "
    said = f"{count}--at-once {options.at_once} --patience {options.patience:g} --size {options.size}"
    parts = [_HEAD.format(machine=machine_line(machine), command=said)]
    calls = [one for one in found if isinstance(one, Calls)]
    parts += [_CALLS.format(patience=options.patience, at_once=options.at_once), *map(_row, calls)]
    parts += [_failures(calls)]
    for one in found:
        if isinstance(one, Warm):
            parts += [_WARM, *_warm_rows(one, one.confirmed, "True"), *_warm_rows(one, one.unconfirmed, "False")]
        if isinstance(one, Transfer):
            parts += [_transfer(one)]
    return "".join(parts)


def _row(calls: Calls) -> str:
    first_byte = _spread(attempt.first_byte for attempt in calls.attempts)
    direct = _spread(attempt.direct_after for attempt in calls.attempts)
    made = f"{calls.connected} of {len(calls.attempts)}"
    return f"| `{calls.name}` | {calls.summary} | {made} | {calls.paths} | {first_byte} | {direct} |\n"


def _failures(calls: Iterable[Calls]) -> str:
    """Return which calls failed, and why."""
    lines = [f"- `{one.name}`, {count} x {error}\n" for one in calls for error, count in one.errors.most_common()]
    return "".join(["\nCalls that failed:\n\n", *lines]) if lines else ""


def _warm_rows(warm: Warm, calls: Sequence[WarmCall], confirm: str) -> list[str]:
    rows = (
        ("`connect` has returned", [call.connected for call in calls], None),
        ("the first byte is at the callee", [call.first_byte for call in calls], warm.first_byte_goal),
        ("the callee's key is seen on a direct path", [call.proved for call in calls], warm.proved_goal),
        ("a direct path is in use", [call.direct_after for call in calls], warm.direct_goal),
    )
    return [_warm_row(name, confirm, values, goal) for name, values, goal in rows]


def _warm_row(name: str, confirm: str, values: Sequence[float | None], goal: float | None) -> str:
    found = summary(values)
    times = " | ".join(f"{found[share] * 1000:.0f} ms" if share in found else "-" for share in SHARES)
    aim = "" if goal is None else f"{goal * 1000:.0f} ms"
    return f"| {name} | {confirm} | {times} | {found['count']} of {len(values)} | {aim} |\n"


def _transfer(transfer: Transfer) -> str:
    verdict = transfer.error or ("SHA-256 equal" if transfer.is_equal else "SHA-256 NOT EQUAL")
    rows = [
        f"| {switch.cause} | {switch.path} | {switch.seconds:.2f} s | {switch.pause:.2f} s |\n" for switch in transfer.switches
    ]
    return "".join([_TRANSFER.format(megabytes=transfer.size_bytes / 1e6, verdict=verdict), *rows])


def _spread(values: Iterable[float | None]) -> str:
    found = summary(values)
    return " / ".join(f"{found[share]:.2f}" for share in SHARES) + " s" if found["count"] else "-"


if __name__ == "__main__":
    sys.exit(main())
