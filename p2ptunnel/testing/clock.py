"""A clock that stands still until it is told to go on, and the calls that wait for it.  Rule: no thread, no real time."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

__all__ = ["FakeClock"]


class FakeClock:
    """Monotonic seconds under a test's control; call it where `time.monotonic` is wanted.

    Calls due at one instant run in the order in which they were asked for.  There is no way to cancel one: what may have
    become pointless looks for itself when its time has come.

    Attributes:
        now: Seconds; reading it moves nothing.
    """

    __slots__ = ("_heap", "_numbers", "now")

    def __init__(self, now: float = 0.0) -> None:
        """Start at `now`."""
        self.now = now
        self._heap: list[tuple[float, int, Callable[..., object], tuple[object, ...]]] = []
        self._numbers = count()

    def __call__(self) -> float:
        """Return the present second."""
        return self.now

    def call_at(self, when: float, callback: Callable[..., object], *arguments: object) -> None:
        """Call `callback` when the clock gets to `when`; what lies in the past is called next."""
        heapq.heappush(self._heap, (when, next(self._numbers), callback, arguments))

    def call_later(self, seconds: float, callback: Callable[..., object], *arguments: object) -> None:
        """Call `callback` in so many seconds."""
        heapq.heappush(self._heap, (self.now + seconds, next(self._numbers), callback, arguments))

    def next_at(self) -> float | None:
        """Return when the next call is due, None if nothing waits."""
        return self._heap[0][0] if self._heap else None

    def step(self) -> bool:
        """Go to the next call and make it; return False if nothing waits."""
        if not self._heap:
            return False
        when, _, callback, arguments = heapq.heappop(self._heap)
        if when > self.now:
            self.now = when
        callback(*arguments)
        return True

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass, making every call that falls into them, those of the last instant included."""
        self.run_until(self.now + seconds)

    def run_until(self, until: float, done: Callable[[], bool] | None = None) -> bool:
        """Run to the second `until`, or until `done` says so after a call; return whether it did.

        Without `done`, or if it never says so, the clock stands at `until` afterwards.
        """
        heap = self._heap
        while heap and heap[0][0] <= until:  # step(), in place: simulations spend their time here
            when, _, callback, arguments = heapq.heappop(heap)
            if when > self.now:
                self.now = when
            callback(*arguments)
            if done is not None and done():
                return True
        self.now = max(self.now, until)
        return False
