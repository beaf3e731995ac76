"""docs/performance.md and its picture, made from a report."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from bench.contest import BenchError, Kind
from bench.install import environment
from bench.machine import machine_line
from bench.results import Report
from bench.table import render_spread, render_table, render_trouble
from bench.visit import FULL, QUICK

__all__ = ["render_page", "write_docs"]

_ROOT: Final = Path(__file__).parents[1]
_DOCS: Final = _ROOT / "docs"
_PICTURE: Final = "performance.png"
_PLOT_TIMEOUT: Final = 120.0

_HEADINGS: Final[tuple[tuple[Kind, str, str], ...]] = (
    (
        "forward",
        "Through a local port",
        "A program on the near machine connects to a port there, and the bytes come out at a service of the far machine. "
        "CPU seconds are those of the tunnel's own programs.",
    ),
    (
        "stream",
        "From Python to Python",
        "Both programs speak to the contestant's own API. CPU seconds and memory are those of the whole programs, sender and "
        "receiver included.",
    ),
)

_PAGE: Final = """\
# Performance

This page is written by `make bench`: p2ptunnel and what people use instead, on the same work, in the same run, on one machine.

{machine}

![Throughput and CPU time of each contestant]({picture})
{tables}
## What follows

Nothing here has a delay, and nothing is lost: the processor decides. So MB/s and CPU seconds say what a byte costs, not how
fast a line between two homes would be. Where that line is slower than the figure, the line is the limit, and what remains of
the difference is CPU time; what windows do on a long path does not show here. To the milliseconds come the round trips of your
own path: one for an echo. Choose by other things first: whether an address that can be reached is needed, and what happens
when the connection breaks. Where neither matters, take the row with the best figures for your work.

## What is measured

Two network namespaces, joined by one cable without delay, are the far machine and the near one. Each contestant starts there
afresh in each of {rounds} rounds, in turn; figures are medians. In parentheses: how many times better p2ptunnel is, as the
median of the ratios of each round, which neighbours on a shared machine disturb less than the figures. Below 1 it is worse.

- **MB/s**: an upload in writes of 256 KiB for {effort} s, then the end of our direction; the clock stops when the far side has
  answered with the count of bytes. A tunnel that loses that answer, or answers with another count, is out.
- **CPU seconds**: user and system time of the contestant's programs on each side with their children, during the upload.
- **Echo**: 64 bytes there and back on a stream that is open; **beside bulk**: while another stream of the session uploads.
- **One more**: another stream (or connection to the local port) on a live session, up to the first echo.
- **Connect**: from nothing but loaded modules and stored keys to the first echo: both keys proved, the stream open. In that
  time p2ptunnel and aiortc also exchange messages over a server and try paths; the others are told an address.
- **Idle stream**: memory of both sides together that each of {idle} open streams adds (of 240 with py-libp2p, which
  opens no more); pages that processes share count once.

OpenSSH, asyncssh and p2ptunnel carry all streams in one encrypted connection; stunnel makes one for each stream; the relays
encrypt nothing, and show what the rest costs. asyncssh lets everybody in here; the others prove a key or a certificate.

[The way of a byte](explanation/data-path.md) says where our time goes. `python -m bench --help` tells how to run a part of
this. It needs root for the namespaces, and installs what contestants need: Python packages into environments of their own
under `.bench/`, Debian packages where they are missing.
"""


def write_docs(report: Report) -> None:
    """Write the page and the picture.

    Raises:
        BenchError: The picture cannot be drawn; the page has not been written.
    """
    python = Path(sys.executable) if importlib.util.find_spec("matplotlib") else environment(("matplotlib",))
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "report.json")
        report.save(file)
        argv: list[str | Path] = [python, "-m", "bench.plot", file, _DOCS / _PICTURE]
        drawn = subprocess.run(argv, cwd=_ROOT, capture_output=True, text=True, timeout=_PLOT_TIMEOUT, check=False)
    if drawn.returncode:
        said = drawn.stderr.strip().splitlines() or [f"status {drawn.returncode}"]
        raise BenchError(f"no picture: {said[-1]}")
    (_DOCS / "performance.md").write_text(render_page(report), encoding="utf-8")


def render_page(report: Report) -> str:
    """Return the page."""
    effort = QUICK if report.is_quick else FULL
    tables = ""
    for kind, heading, text in _HEADINGS:
        if results := report.of_kind(kind):
            tables += f"\n## {heading}\n\n{text}\n\n{render_table(results)}\n"
            if any(len(result.rounds) > 1 for result in results):
                tables += f"\nSmallest and largest of the rounds:\n\n{render_spread(results)}\n"
            if trouble := render_trouble(results):
                tables += f"\nMissing figures:\n\n```text\n{trouble}\n```\n"
    return _PAGE.format(
        machine=machine_line(report.machine),
        picture=_PICTURE,
        tables=tables,
        rounds=max((len(result.rounds) for result in report.results), default=0),
        effort=f"{effort.seconds:g}",
        idle=effort.idle,
    )
