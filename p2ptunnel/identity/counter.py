"""The counter in what this machine signs: it only grows, over restarts, crashes and clocks that go back.

Values look like microseconds since 1970, so that a lost file costs nothing while the clock is right.  The file holds a value
that no signature has reached: what is above is taken in steps, before it is used, so two processes of one profile never share
a value.  A process skips one step when it starts: what its predecessor used and could not save.

Rule: `next` never touches the disk.  Source: docs/protocol/intents.md.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from p2ptunnel.defaults import COUNTER_STEP
from p2ptunnel.errors import StoreError
from p2ptunnel.identity.files import OTHERS_WRITE, exclusive, make_private_directory, read_private, write_private
from p2ptunnel.wire.intent import COUNTER_END

__all__ = ["ProfileCounter"]

_log: Final = logging.getLogger("p2ptunnel.identity")


class ProfileCounter:
    """The counter of one profile.

    Args:
        path: Its file, in the profile's directory.
        clock: Microseconds since 1970, as far as anybody knows.
    """

    def __init__(self, path: Path, clock: Callable[[], int] = lambda: time.time_ns() // 1000) -> None:
        self._path: Final = path
        self._clock: Final = clock
        self._lock: Final = threading.Lock()  # `reserve` runs in threads
        self._last = 0
        self._end = 0
        self._is_unsaved = False

    def reserve(self) -> None:
        """See that values are at hand whose end is on the disk; blocks for some milliseconds, about once a second of calls.

        A disk that cannot be written is a warning: the values are used all the same.
        """
        with self._lock:
            if max(self._last, self._clock()) < self._end - COUNTER_STEP:
                return
            try:
                self._take_step()
            except StoreError as error:
                if not self._is_unsaved:
                    _log.warning("the counter of signed calls cannot be saved: %s", error)
                self._is_unsaved = True
            else:
                self._is_unsaved = False

    def next(self, at_least: int = 0) -> int:
        """Return a value above every one before, and above `at_least`."""
        self._last = max(self._last + 1, at_least + 1, self._clock())
        return self._last

    def _take_step(self) -> None:
        directory = self._path.parent
        make_private_directory(directory)
        with exclusive(directory):
            saved = _read(self._path)
            if not self._end:
                self._last = max(self._last, saved + COUNTER_STEP)
            elif saved != self._end:  # another process has taken what comes next
                self._last = max(self._last, saved)
            end = max(self._last, self._clock()) + 2 * COUNTER_STEP
            write_private(self._path, b"%d\n" % end)
        self._end = end


def _read(path: Path) -> int:
    """Return what the file holds; nonsense counts as nothing, since the clock and the callee's memory mend it.

    Nonsense is a counter at its end, too: whoever went on from there could sign no call that anybody takes.
    """
    try:
        text = read_private(path, OTHERS_WRITE).strip()
    except FileNotFoundError:
        return 0
    value = int(text) if text.isdigit() and len(text) < 20 else 0
    return value if value < COUNTER_END else 0
