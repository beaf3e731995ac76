"""Results as text: a table of figures with ratios, and why figures are missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bench.results import METRICS, OURS, Metric, Result, ratio

__all__ = ["render_figure", "render_spread", "render_table", "render_trouble"]

_NOTHING: Final = "-"


def render_table(results: Sequence[Result]) -> str:
    """Return the results of one kind as a Markdown table whose columns are aligned, for a terminal too.

    Beside each figure stands how many times better ours is; columns that nobody has a figure for are left out.
    """
    ours = next((result for result in results if result.name == OURS), None)
    metrics = _measured(results)
    rows = [["", *(metric.title for metric in metrics)]]
    notes = _notes(results)
    for result in results:
        marks = "".join(f" [{notes.index((result, reason)) + 1}]" for reason in result.trouble)
        rows.append([_name(result) + marks, *(_cell(metric, result, ours) for metric in metrics)])
    return _aligned(rows)


def render_spread(results: Sequence[Result]) -> str:
    """Return the smallest and the largest figure of each result over its rounds, as a table like `render_table`'s."""
    metrics = _measured(results)
    rows = [["", *(metric.title.replace(" + far", " and far together") for metric in metrics)]]
    rows += [[_name(result), *(_range(metric, result) for metric in metrics)] for result in results]
    return _aligned(rows)


def _measured(results: Sequence[Result]) -> list[Metric]:
    return [metric for metric in METRICS if any(result.median(*metric.keys) is not None for result in results)]


def _name(result: Result) -> str:
    return f"{result.label}, {result.version}" if result.version else result.label


def _range(metric: Metric, result: Result) -> str:
    figures = [figure for found in result.rounds if (figure := metric.value(found)) is not None]
    return f"{render_figure(min(figures))} to {render_figure(max(figures))}" if figures else _NOTHING


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head, *body = [_line(row, widths) for row in rows]
    rule = "| " + " | ".join("-" * widths[0] if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)) + " |"
    return "\n".join([head, rule, *body])


def render_trouble(results: Sequence[Result]) -> str:
    """Return the notes that the table's marks point to, a line each; an empty string if nothing is missing."""
    return "\n".join(f"[{i}] {result.label}: {reason}" for i, (result, reason) in enumerate(_notes(results), 1))


def _notes(results: Sequence[Result]) -> list[tuple[Result, str]]:
    return [(result, reason) for result in results for reason in result.trouble]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(zip(cells, widths, strict=True))]
    return f"| {' | '.join(padded)} |"


def _cell(metric: Metric, result: Result, ours: Result | None) -> str:
    figures = [result.median(key) for key in metric.keys]
    present = [render_figure(figure) for figure in figures if figure is not None]
    if len(present) < len(figures):
        return _NOTHING
    text = " + ".join(present)
    better = None if ours is None or result is ours else ratio(metric, ours, result)
    return text if better is None else f"{text} ({render_figure(better)}x)"


def render_figure(value: float) -> str:
    """Return a figure with two or three digits that mean something."""
    decimals = 0 if abs(value) >= 99.5 else 1 if abs(value) >= 9.95 else 2
    return f"{value:.{decimals}f}"
