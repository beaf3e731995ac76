"""Every kind of NAT against every other, measured, printed, and written into docs/nat-matrix.md with its picture.

    python -m bench.matrix [-n 10] [--delay 25] [--kinds pr symR] [--json]

The page is written when all kinds were measured; of some of them only the tables are printed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bench.contest import BenchError
from bench.install import environment
from bench.machine import describe_machine, machine_line
from bench.results import Machine
from p2ptunnel.errors import P2PTunnelError
from p2ptunnel.testing.natlab import MATRIX_KINDS
from p2ptunnel.testing.natlab.matrix import Matrix, command
from p2ptunnel.testing.natlab.matrix.text import letters, render

__all__ = ["main", "render_page"]

_ROOT: Final = Path(__file__).parents[1]
_DOCS: Final = _ROOT / "docs"
_PICTURE: Final = "nat-matrix.png"
_PLOT_TIMEOUT: Final = 120.0

_PAGE: Final = """\
# Which NATs connect

This page is written by `make natlab-matrix`: real peers call each other through real NATs of every kind, in the
[laboratory](laboratory.md), on one machine.

{machine} {attempts}

![Share of direct calls, times and transport of every ordered pair of kinds]({picture})

Each call is from a fresh peer to a fresh peer, both of them ready, and has two sites of their kinds for itself; that the
[kinds](laboratory.md#the-kinds) are what their names say is proved before each run. Both sides have pinned the other's key, and
the server has two addresses and a relay. A call has connected when a stream to the callee's echo service was confirmed, and
random bytes came back over the path that the stream had in the end. The direct path may take over from the relay for
{patience:g} s. A delay is of the line of each site, one way. Many calls went on at the same time, of both sides of which this
one machine does the work: times at 0 ms are the processor's, and the others contain some of it.

Three of the 169 ordered pairs have no direct path at all, since neither side can know or guess a port of the other: symR-symR,
symR-symS, symS-symR. Whatever else was relayed is named below its tables, with what the caller knew of each direct way.
[NATs, and how holes are punched](explanation/nat.md) tells how the others are opened.
{tables}"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 if a kind is not what its name says, a pair did not connect, or nothing could be drawn."""
    parser = argparse.ArgumentParser(prog="python -m bench.matrix", description=(__doc__ or "").partition("\n")[0])
    command.add_arguments(parser)
    options = parser.parse_args(arguments)
    try:
        if not command.are_proved(options.kinds):
            return 1
        machine = describe_machine()
        matrices = list(command.measure(options))
        if tuple(options.kinds) == MATRIX_KINDS:
            _write(matrices, machine, options)
    except (P2PTunnelError, BenchError) as error:
        print(f"natlab-matrix: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 1 if any(matrix.unconnected for matrix in matrices) else 0


def render_page(matrices: Sequence[Matrix], machine: Machine, options: argparse.Namespace) -> str:
    """Return the page."""
    tables = "".join(f"\n## {matrix.delay * 1000:g} ms\n\n```text\n{render(matrix)}```\n" for matrix in matrices)
    return _PAGE.format(
        machine=machine_line(machine),
        attempts=f"{options.attempts} calls of each pair." if options.attempts > 1 else "One call of each pair.",
        picture=_PICTURE,
        patience=options.patience,
        tables=tables,
    )


def _write(matrices: Sequence[Matrix], machine: Machine, options: argparse.Namespace) -> None:
    """Write the picture and the page.

    Raises:
        BenchError: The picture cannot be drawn; the page has not been written.
    """
    python = Path(sys.executable) if importlib.util.find_spec("matplotlib") else environment(("matplotlib",))
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "grids.json")
        file.write_text(json.dumps([_grids(matrix) for matrix in matrices]))
        argv: list[str | Path] = [python, "-m", "bench.plot_matrix", file, _DOCS / _PICTURE]
        drawn = subprocess.run(argv, cwd=_ROOT, capture_output=True, text=True, timeout=_PLOT_TIMEOUT, check=False)
    if drawn.returncode:
        said = drawn.stderr.strip().splitlines() or [f"status {drawn.returncode}"]
        raise BenchError(f"no picture: {said[-1]}")
    (_DOCS / "nat-matrix.md").write_text(render_page(matrices, machine, options), encoding="utf-8")


def _grids(matrix: Matrix) -> dict[str, Any]:
    """Return what is drawn, a row a caller: shares of calls, milliseconds (null for none), and letters."""
    rows = matrix.rows()
    p90 = {"p90_ms": [[_milliseconds(cell.settled_p90) for cell in row] for row in rows]} if matrix.has_spread else {}
    return {
        "delay_ms": matrix.delay * 1000,
        "kinds": matrix.kinds,
        "direct": [[cell.direct / len(cell.attempts) for cell in row] for row in rows],
        "median_ms": [[_milliseconds(cell.settled_after) for cell in row] for row in rows],
        **p90,
        "paths": [[letters(cell) for cell in row] for row in rows],
    }


def _milliseconds(seconds: float) -> float | None:
    return None if math.isinf(seconds) else seconds * 1000


if __name__ == "__main__":
    sys.exit(main())
