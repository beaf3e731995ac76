"""A matrix as text: grids for the terminal and for the page.  Rule: no I/O."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from p2ptunnel.testing.chaos.report import percentile
from p2ptunnel.testing.natlab.matrix.cells import Cell, Matrix

__all__ = ["LETTERS", "letters", "render", "render_failures", "render_grid", "render_misses", "render_summary"]

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

_WORDS: Final = {"T": "direct over TCP", "Q": "direct over QUIC", "r": "relayed", "x": "failed"}

_COLUMN: Final = 7  # of the grid; what is wider makes its column wider


def render(matrix: Matrix) -> str:
    """Return everything about a matrix: grids, what they come to, what went wrong, and what was relayed and why."""
    parts = [
        "T direct TCP, Q direct QUIC, r relay, x failed; median ms to the direct path, by relay to the stream:",
        render_grid(matrix, _settled),
        "Median ms until the first byte was back:",
        render_grid(matrix, lambda cell: _milliseconds(cell.first_byte)),
    ]
    if matrix.has_spread:
        parts += [
            "Ms in which nine of ten calls were on the direct path, by relay had the stream:",
            render_grid(matrix, lambda cell: _milliseconds(cell.settled_p90)),
            "Ms in which the first byte was back for nine of ten:",
            render_grid(matrix, lambda cell: _milliseconds(cell.first_byte_p90)),
        ]
    grids = "\n\n".join(f"{title}\n{grid}" for title, grid in zip(parts[::2], parts[1::2], strict=True))
    head = f"One way {matrix.delay * 1000:g} ms a line, rows call columns.\n"
    return (
        "\n".join([head, grids, "", render_summary(matrix), *render_failures(matrix.cells), *render_misses(matrix.able)]) + "\n"
    )


def render_grid(matrix: Matrix, show: Callable[[Cell], str] | None = None) -> str:
    """Return a grid of the kinds with a text for each cell; None: its paths and how long they took."""
    rows = [["", *matrix.kinds]]
    rows += [[cells[0].caller, *map(show or _settled, cells)] for cells in matrix.rows()]
    widths = [max(_COLUMN if place else 5, *(len(row[place]) + 1 for row in rows)) for place in range(len(rows[0]))]
    return "\n".join("".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows)


def render_summary(matrix: Matrix) -> str:
    """Return in three lines how many pairs and calls connected, over what, and how fast."""
    cells, calls = matrix.cells, matrix.attempts
    ways = Counter(LETTERS[attempt.path] for attempt in calls)
    how = ", ".join(f"{ways[letter]} {words}" for letter, words in _WORDS.items() if ways[letter])
    connected, direct = (sum(cell.is_connected for cell in cells), sum(cell.is_direct for cell in matrix.able))
    mostly = sum(2 * cell.direct > len(cell.attempts) for cell in matrix.able)
    over_tcp = sum(cell.is_tcp for cell in cells)
    return "\n".join(
        [
            f"{connected} of {len(cells)} pairs connect.  "
            f"Of {len(matrix.able)} that can do without a relay {direct} always did, {over_tcp} over TCP alone; "
            f"{mostly} did in most of their calls.",
            f"{len(calls)} calls: {how}.  {matrix.seconds:.0f} s.",
            f"First byte back: {_spread(attempt.first_byte for attempt in calls)}; "
            f"direct path: {_spread(attempt.direct_after for attempt in calls)}.",
        ]
    )


def render_failures(cells: Sequence[Cell]) -> list[str]:
    """Return a line for each reason of failed calls, with the pairs."""
    pairs: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for cell in cells:
        for attempt in cell.attempts:
            if attempt.error:
                pairs[attempt.error][f"{cell.caller}-{cell.callee}"] = None
    return [f"  {_some(of_reason)}: {reason}" for reason, of_reason in pairs.items()]


def render_misses(cells: Sequence[Cell]) -> list[str]:
    """Return a line for each cell and reason of calls that connected, and not directly."""
    lines: list[str] = []
    for cell in cells:
        reasons = Counter(attempt.reason for attempt in cell.attempts if not (attempt.is_direct or attempt.error))
        of = f"of {len(cell.attempts)} relayed"
        lines += [f"  {cell.caller}-{cell.callee}, {count} {of}: {reason}" for reason, count in reasons.items()]
    return lines


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


def _spread(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return (
        f"p50 {_milliseconds(percentile(known, 0.5))} ms, p90 {_milliseconds(percentile(known, 0.9))} ms" if known else "never"
    )


def _milliseconds(seconds: float) -> str:
    return "-" if math.isinf(seconds) else f"{seconds * 1000:.0f}"
