"""What an application has sent and what has arrived: the one truth about whether bytes flow.

A `Ledger` is the account of one run: its flows, the errors its application met, and whether it is over.  Rule: threads meet
here and nowhere else.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import Any, Final

__all__ = ["ChaosError", "Flow", "Ledger", "wait_for_program"]


class ChaosError(Exception):
    """The application met an error, or nothing moved any more."""


class Ledger:
    """The flows of one run, and what went wrong.

    Attributes:
        errors: What the application met, in its words; any ends the run.
        over: Set when the run is to end, well or not.
    """

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.over: Final = threading.Event()
        self.changed: Final = threading.Condition()

    def fail(self, problem: str) -> None:
        """Note an error, unless the run is over: then errors are ours."""
        with self.changed:
            if not self.over.is_set():
                self.errors.append(problem)
                self.changed.notify_all()

    def flow(self, name: str, size: int = sys.maxsize) -> Flow:
        """Open a flow of that size; as it stands, one without end."""
        return Flow(self, name, size)


class Flow:
    """One way of one application, in bytes or lines.

    Attributes:
        name: For messages.
        size: How much it will have been in the end.
        written: How much the application has handed over.
        arrived: How much has come out at the far end.
    """

    def __init__(self, ledger: Ledger, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self.written = 0
        self.arrived = 0
        self._ledger = ledger

    def write(self, count: int) -> None:
        """Count what the application is about to hand over."""
        self.written += count  # one thread writes a flow, and whoever waits waits for arrivals

    def arrive(self, count: int) -> None:
        """Count what has come out."""
        with self._ledger.changed:
            self.arrived += count
            self._ledger.changed.notify_all()

    def wait_beyond(self, count: int, patience: float) -> float:
        """Wait until more than `count` has arrived, or all there will be; return the monotonic time at which it had.

        Args:
            count: Of bytes or lines since the beginning.
            patience: Seconds without any arrival, after which waiting is in vain.

        Raises:
            ChaosError: The application met an error, or nothing arrived for `patience` seconds.
        """
        wanted = min(count + 1, self.size)
        with self._ledger.changed:
            while self.arrived < wanted and not self._ledger.errors:
                if not self._wait_for_more(patience):
                    raise ChaosError(f"{self.name}: nothing arrived for {patience:g} s, after {self.arrived} of {self.written}")
            if self._ledger.errors:
                raise ChaosError(self._ledger.errors[0])
            return time.monotonic()

    def _wait_for_more(self, patience: float) -> bool:
        before, ledger = self.arrived, self._ledger
        return ledger.changed.wait_for(lambda: self.arrived > before or bool(ledger.errors), patience)


def wait_for_program(program: subprocess.Popen[Any], name: str, timeout: float) -> int:
    """Wait so many seconds for a program of the application to end; return its status.

    Raises:
        ChaosError: It does not end.
    """
    try:
        return program.wait(timeout)
    except subprocess.TimeoutExpired as error:
        raise ChaosError(f"{name} did not end in {timeout:g} s") from error
