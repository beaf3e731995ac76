"""Bars on a line of time, as SVG.  Rule: every text is escaped; the picture loads nothing and runs nothing."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Final, TypeAlias

from p2ptunnel.types import clean

__all__ = ["Bar", "draw"]

Bar: TypeAlias = tuple[str, float, float | None, str, str]
"""Label, start and end in milliseconds (None: it goes on), outcome in one word, reason in words."""

_WIDTH: Final = 960
_LEFT, _RIGHT = 280, 24  # beside the line of time
_TOP, _ROW, _BAR = 60, 30, 10
_TICKS_MAX: Final = 6
_REASON_MAX: Final = 110  # characters beneath a bar, to stay in the picture
_LABEL_MAX: Final = 36
_STYLE: Final = (  # of this picture only: a page has others, and takes every style for its own
    ".p2p-bars{--paper:#fff;--ink:#1f2328;--dim:#59636e;--line:#d1d9e0;--good:#1a7f37;--bad:#cf222e;--idle:#818b98;--busy:#0969da}"
    "@media(prefers-color-scheme:dark){.p2p-bars{--paper:#0d1117;--ink:#f0f6fc;--dim:#9198a1;--line:#3d444d;--good:#3fb950;"
    "--bad:#f85149;--idle:#656c76;--busy:#4493f8}}"
    ".p2p-bars text{font:12px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;fill:var(--ink)}"
    ".p2p-bars .dim{fill:var(--dim);font-size:11px}.p2p-bars .title{font-size:14px;font-weight:600}"
)
_COLOURS: Final = {
    "connected": "good",
    "answered": "good",
    "under way": "busy",
    "replaced": "idle",
    "given up": "idle",
    "taken": "idle",
}
"""By outcome; every other is a failure."""


def draw(title: str, bars: Sequence[Bar]) -> str:
    """Return the picture.

    Args:
        title: Above it.
        bars: From top to bottom.
    """
    end = max((start if stop is None else stop for _, start, stop, _, _ in bars), default=0.0) or 1.0
    height = _TOP + _ROW * len(bars) + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="p2p-bars" role="img"'
        f' viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}">',
        f"<title>{_text(title)}</title><style>{_STYLE}</style>",
        f'<rect width="{_WIDTH}" height="{height}" style="fill:var(--paper)"/>',
        f'<text class="title" x="12" y="24">{_text(title)}</text>',
        *_axis(end, height),
        *(part for row, bar in enumerate(bars) for part in _row(row, bar, end)),
        "</svg>",
    ]
    return "".join(parts)


def _axis(end: float, height: int) -> list[str]:
    step = _step(end)
    parts: list[str] = []
    for number in range(int(end / step) + 1):
        x = _x(number * step, end)
        parts += [
            f'<line x1="{x}" y1="{_TOP - 8}" x2="{x}" y2="{height - 8}" style="stroke:var(--line)"/>',
            f'<text class="dim" x="{x}" y="{_TOP - 14}" text-anchor="middle">{number * step:g} ms</text>',
        ]
    return parts


def _row(row: int, bar: Bar, end: float) -> list[str]:
    label, start, stop, outcome, reason = bar
    y = _TOP + row * _ROW
    left, right = _x(start, end), _x(end if stop is None else stop, end)
    colour = _COLOURS.get(outcome, "bad")
    width = max(round(right - left, 1), 2)
    told = f"{outcome}: {reason}" if reason and reason != outcome else outcome
    anchor, at = ("start", left) if left < (_LEFT + _WIDTH) / 2 else ("end", left + width)
    shown = _text(_cut(told, _room(anchor, at)))
    return [
        f"<g><title>{_text(f'{label}, {told}')}</title>",
        f'<text x="12" y="{y + 10}">{_text(_cut(label, _LABEL_MAX))}</text>',
        f'<rect x="{left}" y="{y}" width="{width}" height="{_BAR}" rx="2" style="fill:var(--{colour})"/>',
        f'<text class="dim" x="{at}" y="{y + _BAR + 11}" text-anchor="{anchor}">{shown}</text></g>',
    ]


def _room(anchor: str, at: float) -> int:
    """Return how many characters of a told reason fit between where it begins and the edge, or a label."""
    room = _WIDTH - at if anchor == "start" else at - _LEFT
    return min(_REASON_MAX, int(room / 6.7))


def _x(ms: float, end: float) -> float:
    return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * ms / end, 1)


def _step(end: float) -> float:
    """Return the distance of two ticks: 1, 2 or 5 times a power of ten, so that there are few."""
    step = 1.0
    while True:
        for factor in (1, 2, 5):
            if end / (step * factor) <= _TICKS_MAX:
                return step * factor
        step *= 10


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _text(text: str) -> str:
    return html.escape(clean(text))
