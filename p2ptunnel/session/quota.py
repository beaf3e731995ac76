"""How many streams a peer may have, of one service and in all, and how fast it may open them.

Rule: what counts is the peer's key, whatever sessions it has.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from p2ptunnel.defaults import OPENS_BURST, OPENS_PER_SECOND, STREAMS_MAX
from p2ptunnel.identity.keys import PublicKey
from p2ptunnel.protocol.limits import Buckets, Rate

__all__ = ["StreamQuota"]


class StreamQuota:
    """The streams that peers have opened here.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._opens: Final = Buckets(Rate(OPENS_PER_SECOND, OPENS_BURST))
        self._streams: Final[Counter[PublicKey]] = Counter()
        self._of_service: Final[Counter[tuple[PublicKey, str]]] = Counter()

    def may_ask(self, key: PublicKey) -> bool:
        """Count that a peer asks for a stream, of whatever service; tell whether it may now."""
        return self._opens.take(key, self._clock())

    def enter(self, key: PublicKey, service: str, most: int) -> str:
        """Count one more stream; return why there can be none, in words that may be told to the peer, else nothing.

        Args:
            key: The peer's.
            service: The name under which it is served.
            most: Streams of this service.
        """
        if self._streams[key] >= STREAMS_MAX or self._of_service[key, service] >= most:
            return "too many streams are open"
        self._streams[key] += 1
        self._of_service[key, service] += 1
        return ""

    def leave(self, key: PublicKey, service: str) -> None:
        """Count one less."""
        self._streams[key] -= 1
        self._of_service[key, service] -= 1
        if not self._of_service[key, service]:  # peers are few, what they can ask for is not
            del self._of_service[key, service]
