"""Results as a picture: throughput and CPU time of each contestant, ours in colour.

    python -m bench.plot REPORT.json PICTURE.png

Runs wherever matplotlib is: see `bench.install`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bench.contest import Kind
from bench.results import OURS, Report, Result
from bench.table import render_figure

__all__ = ["draw"]

_OURS: Final = "#d1495b"
_OTHERS: Final = "#8d99ae"
_PALE: Final = 0.5
_LINEAR_RANGE: Final = 50.0  # of the longest bar to the shortest; beyond it the short ones cannot be seen
_KINDS: Final[tuple[tuple[Kind, str], ...]] = (("forward", "through a local port"), ("stream", "from Python to Python"))
_ROW_INCHES: Final = 0.36


def draw(report: Report, path: Path) -> None:
    """Write the picture: a row of panels for each kind that has figures, throughput at the left, CPU time at the right."""
    shown = [(title, rows) for kind, title in _KINDS if (rows := _with_figures(report.of_kind(kind)))]
    heights = [len(rows) for _, rows in shown]
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    size = (12, _ROW_INCHES * sum(heights) + 1.3 * len(shown))
    figure, axes = pyplot.subplots(len(shown), 2, figsize=size, height_ratios=heights, squeeze=False, layout="constrained")
    for (title, rows), (left, right) in zip(shown, axes, strict=True):
        _panel(left, rows, ("throughput",), f"Upload {title}, MB/s: more is better")
        _panel(right, rows, ("cpu_near", "cpu_far"), "CPU seconds per GB: less is better")
        right.set_yticklabels([])
    figure.savefig(path, dpi=110)


def _with_figures(results: Sequence[Result]) -> list[Result]:
    return [result for result in results if result.median("throughput") is not None]


def _panel(axis: Any, rows: Sequence[Result], keys: Sequence[str], title: str) -> None:
    """Draw one panel of bars, the sum at the end of each, the first part darker unless the scale is logarithmic."""
    places = range(len(rows))
    colours = [_OURS if row.name == OURS else _OTHERS for row in rows]
    parts = [[row.median(key) or 0.0 for row in rows] for key in keys]
    sums = [sum(of_row) for of_row in zip(*parts, strict=True)]
    is_logarithmic = 0 < _LINEAR_RANGE * min(sums) < max(sums)
    shows_parts = len(parts) > 1 and not is_logarithmic
    axis.barh(places, sums, color=colours, alpha=_PALE if shows_parts else 1.0)
    if shows_parts:
        axis.barh(places, parts[0], color=colours)
        title += "; near, and far in pale"
    if is_logarithmic:
        axis.set_xscale("log")
        title += "; logarithmic"
    for place, total in zip(places, sums, strict=True):
        text = render_figure(total)
        axis.annotate(text, (total, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9)
    axis.set_yticks(places, [row.label for row in rows])
    axis.invert_yaxis()
    axis.set_title(title, fontsize=10, loc="left")
    axis.margins(x=0.12)
    axis.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    importlib.import_module("matplotlib").use("Agg")
    draw(Report.load(Path(sys.argv[1])), Path(sys.argv[2]))
