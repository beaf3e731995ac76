"""What happens when: descriptors that become readable, and packets that become due."""

from __future__ import annotations

import heapq
import itertools
import select
import time
from collections.abc import Callable
from typing import Final

__all__ = ["Loop"]

_NEVER: Final = -1


class Loop:
    """Calls back for descriptors and for times, until `stop`."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._readers: dict[int, Callable[[], None]] = {}
        self._due: list[tuple[float, int, Callable[[bytes], None], bytes]] = []
        self._order = itertools.count()
        self._runs = True

    def watch(self, descriptor: int, reader: Callable[[], None]) -> None:
        """Call `reader` whenever the descriptor is readable."""
        self._readers[descriptor] = reader
        self._poll.register(descriptor, select.EPOLLIN)

    def forget(self, descriptor: int) -> None:
        """Watch a descriptor no longer."""
        self._poll.unregister(descriptor)
        del self._readers[descriptor]

    def deliver(self, when: float, receiver: Callable[[bytes], None], packet: bytes) -> None:
        """Give a packet to its receiver at monotonic second `when`; equal times keep their order."""
        heapq.heappush(self._due, (when, next(self._order), receiver, packet))

    def stop(self) -> None:
        """Return from `run` after the present callbacks."""
        self._runs = False

    def close(self) -> None:
        """Let go of what `run` needs."""
        self._poll.close()

    def run(self) -> None:
        """Run until `stop`."""
        while self._runs:
            wait = self._deliver_due()
            if wait is not None and wait > 0:
                select.select([self._poll], [], [], wait)  # epoll alone counts in whole milliseconds
            for descriptor, _ in self._poll.poll(_NEVER if wait is None else 0):
                if descriptor in self._readers:
                    self._readers[descriptor]()

    def _deliver_due(self) -> float | None:
        """Deliver what is due and return the seconds to the next packet, None if none waits."""
        due = self._due
        while due:
            wait = due[0][0] - time.monotonic()
            if wait > 0:
                return wait
            _, _, receiver, packet = heapq.heappop(due)
            receiver(packet)
        return None
