"""Matrices of NATs as a picture: direct calls, times and transport of every pair, a column of panels for each delay.

    python -m bench.plot_matrix GRIDS.json PICTURE.png

Runs wherever matplotlib is: see `bench.install`.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

__all__ = ["draw"]

_PANEL_INCHES: Final = 6.4
_TRANSPORTS: Final = {
    "T": ("direct TCP", "#2a9d8f"),
    "Q": ("direct QUIC", "#457b9d"),
    "r": ("relay", "#e9c46a"),
    "x": ("failed", "#d1495b"),
}
_DARK: Final = 0.55  # of a panel's range: above it the text is white


def draw(grids: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the picture."""
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    panels = 4 if any("p90_ms" in grid for grid in grids) else 3
    size = (_PANEL_INCHES * len(grids), _PANEL_INCHES * panels)
    figure, axes = pyplot.subplots(panels, len(grids), figsize=size, squeeze=False, layout="constrained")
    for place, grid in enumerate(grids):
        delay, kinds = f"{grid['delay_ms']:g} ms one way a line", grid["kinds"]
        percent = [[100 * share for share in row] for row in grid["direct"]]
        _heat(axes[0][place], kinds, percent, f"Calls that end on a direct path, percent; {delay}", "RdYlGn", (0, 100))
        _heat(axes[1][place], kinds, grid["median_ms"], f"Median ms to the path that stays; {delay}", "YlGnBu")
        if "p90_ms" in grid:
            _heat(axes[2][place], kinds, grid["p90_ms"], f"Ms in which nine of ten calls were on it; {delay}", "YlGnBu")
        _transports(axes[-1][place], kinds, grid["paths"], f"Where the bytes go; {delay}")
    figure.savefig(path, dpi=80)


def _heat(
    axis: Any,
    kinds: Sequence[str],
    rows: Sequence[Sequence[float | None]],
    title: str,
    colours: str,
    span: Sequence[float] = (),
) -> None:
    """Draw numbers, each on its colour; cells without one stay white."""
    known = [value for row in rows for value in row if value is not None]
    low, high = span or ((min(known), max(known)) if known else (0, 1))
    axis.imshow(
        [[float("nan") if value is None else value for value in row] for row in rows], cmap=colours, vmin=low, vmax=high
    )
    for at_y, row in enumerate(rows):
        for at_x, value in enumerate(row):
            is_dark = colours == "YlGnBu" and value is not None and value > low + _DARK * (high - low)
            text = "" if value is None else f"{value:.0f}"
            axis.text(at_x, at_y, text, ha="center", va="center", fontsize=8, color="white" if is_dark else "black")
    _frame(axis, kinds, title)


def _transports(axis: Any, kinds: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> None:
    """Draw letters, each on the colour of the way that most calls of its cell went."""
    colours: Any = importlib.import_module("matplotlib.colors")
    patches: Any = importlib.import_module("matplotlib.patches")
    letters = list(_TRANSPORTS)
    palette = colours.ListedColormap([colour for _, colour in _TRANSPORTS.values()])
    axis.imshow(
        [[letters.index(_main(text)) for text in row] for row in rows], cmap=palette, vmin=-0.5, vmax=len(letters) - 0.5
    )
    for at_y, row in enumerate(rows):
        for at_x, text in enumerate(row):
            axis.text(at_x, at_y, text, ha="center", va="center", fontsize=8 if len(text) < 3 else 6)
    handles = [patches.Patch(color=colour, label=f"{letter}  {word}") for letter, (word, colour) in _TRANSPORTS.items()]
    axis.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=len(letters), frameon=False, fontsize=9)
    _frame(axis, kinds, title)


def _main(text: str) -> str:
    """Return the letter with the greatest count of `7T3r`, or the only one."""
    counted: list[tuple[int, str]] = []
    digits = ""
    for sign in text:
        if sign.isdigit():
            digits += sign
        else:
            counted.append((int(digits or 1), sign))
            digits = ""
    return max(counted)[1]


def _frame(axis: Any, kinds: Sequence[str], title: str) -> None:
    axis.set_xticks(range(len(kinds)), kinds, rotation=45, fontsize=9)
    axis.set_yticks(range(len(kinds)), kinds, fontsize=9)
    axis.xaxis.tick_top()
    axis.set_ylabel("caller")
    axis.set_title(f"{title}\ncallee", fontsize=10)
    axis.spines[:].set_visible(False)


if __name__ == "__main__":
    importlib.import_module("matplotlib").use("Agg")
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
