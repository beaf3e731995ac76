"""How far a matrix has come, on stderr: one line that changes on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import Final

from p2ptunnel.testing.natlab.attempt import Attempt
from p2ptunnel.testing.natlab.matrix.text import LETTERS

__all__ = ["Progress"]

_TERMINAL_PACE: Final = 0.2
_PACE: Final = 10.0


class Progress:
    """Counts attempts, and says so.

    Args:
        title: Of the line.
        total: How many attempts there will be.
    """

    def __init__(self, title: str, total: int) -> None:
        self._title = title
        self._total = total
        self._letters: Counter[str] = Counter()
        self._began = time.monotonic()
        self._is_terminal = sys.stderr.isatty()
        self._due = self._began + (_TERMINAL_PACE if self._is_terminal else _PACE)

    def __call__(self, caller: str, callee: str, made: Attempt) -> None:
        """Count one more."""
        self._letters[LETTERS[made.path]] += 1
        now, done = time.monotonic(), self._letters.total()
        if now >= self._due or done == self._total:
            self._due = now + (_TERMINAL_PACE if self._is_terminal else _PACE)
            self._say(now - self._began, done)

    def _say(self, seconds: float, done: int) -> None:
        kinds = ", ".join(f"{self._letters[letter]} {letter}" for letter in "TQrx" if self._letters[letter])
        left = seconds / done * (self._total - done)
        line = f"{self._title}: {done} of {self._total} calls, {kinds}; {seconds:.0f} s, about {left:.0f} s left"
        is_last = done == self._total
        if self._is_terminal:
            print(f"\r\x1b[K{line}", end="\n" if is_last else "", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)
