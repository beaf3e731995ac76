"""A matrix as text: grids for the terminal and for the page.  Rule: no I/O."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from p2ptunnel.testing.natlab.matrix.cells import Cell, Matrix

__all__ = ["LETTERS", "letters", "render", "render_failures", "render_grid", "render_summary"]

LETTERS: Final = {
    "direct tcp": "T",
    "lan tcp": "T",
    "direct quic": "Q",
    "lan quic": "Q",
    "relay tcp": "r",
    "relay quic": "r",
    "": "x",
}
"""By path: T direct over TCP, Q direct over QUIC, r relayed, x failed."""

_COLUMN: Final = 7  # of the grid; what is wider makes its column wider


def render(matrix: Matrix) -> str:
    """Return everything about a matrix: two grids, what they come to, and what went wrong."""
    delay = f"One way {matrix.delay * 1000:g} ms a line, rows call columns."
    parts = [
        f"{delay}  T direct TCP, Q direct QUIC, r relay, x failed; median ms to the direct path, by relay to the stream:",
        render_grid(matrix, _settled),
        "",
        f"{delay}  Median ms to the first byte:",
        render_grid(matrix, lambda cell: _milliseconds(cell.first_byte)),
        "",
        render_summary(matrix),
        *render_failures(matrix.cells),
    ]
    return "\n".join(parts) + "\n"


def render_grid(matrix: Matrix, show: Callable[[Cell], str] | None = None) -> str:
    """Return a grid of the kinds with a text for each cell; None: its paths and how long they took."""
    rows = [["", *matrix.kinds]]
    rows += [[cells[0].caller, *map(show or _settled, cells)] for cells in matrix.rows()]
    widths = [max(_COLUMN if place else 5, *(len(row[place]) + 1 for row in rows)) for place in range(len(rows[0]))]
    return "\n".join("".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows)


def render_summary(matrix: Matrix) -> str:
    """Return in a line how many pairs and calls connected, and how."""
    calls = sum(len(cell.attempts) for cell in matrix.cells)
    connected = sum(cell.connected for cell in matrix.cells)
    able = [cell for cell in matrix.cells if cell.can_be_direct]
    direct = sum(cell.direct == len(cell.attempts) for cell in able)
    return (
        f"{len(matrix.cells) - len(matrix.unconnected)} of {len(matrix.cells)} pairs connect, {connected} of {calls} calls; "
        f"of the {len(able)} pairs that can do without a relay {direct} always did.  {matrix.seconds:.0f} s."
    )


def render_failures(cells: Sequence[Cell]) -> list[str]:
    """Return a line for each reason of failed calls, with the pairs."""
    pairs: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for cell in cells:
        for attempt in cell.attempts:
            if attempt.error:
                pairs[attempt.error][f"{cell.caller}-{cell.callee}"] = None
    return [f"  {_some(of_reason)}: {reason}" for reason, of_reason in pairs.items()]


def letters(cell: Cell) -> str:
    """Return over what the calls of a cell went: `T`, or `7T3r` where they did not all go one way."""
    counts: defaultdict[str, int] = defaultdict(int)
    for path, count in cell.paths.items():
        counts[LETTERS[path]] += count
    if len(counts) == 1:
        return next(iter(counts))
    return "".join(f"{counts[letter]}{letter}" for letter in "TQrx" if letter in counts)


def _some(pairs: Iterable[str], most: int = 8) -> str:
    named = list(pairs)
    return " ".join(named[:most]) + (f" and {len(named) - most} more" if len(named) > most else "")


def _settled(cell: Cell) -> str:
    return f"{letters(cell)} {_milliseconds(cell.settled_after)}"


def _milliseconds(seconds: float) -> str:
    return "-" if math.isinf(seconds) else f"{seconds * 1000:.0f}"
