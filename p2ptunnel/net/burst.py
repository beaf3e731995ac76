"""The many dials of one birthday: holes, each from a port of its own, and guesses from the punched port.

They are counted, not listed: of a thousand dials only those that connect are of interest to anybody.

Rule: what is not handed over is reset and closed, at the latest by `close`.  Source: docs/explanation/nat.md.
"""

from __future__ import annotations

import random
import socket
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from p2ptunnel.net.dial import Dial
from p2ptunnel.net.tcp import How
from p2ptunnel.protocol.machine import Entropy
from p2ptunnel.trace import Tracer
from p2ptunnel.types import Address, format_address

__all__ = ["Burst"]


class Burst:
    """Dials that run beside each other, each once.

    Args:
        local: The punched port: where guesses leave from, and the host that holes have.
        on_connected: Gets each connection that comes up, to own it.
        rng: For the dials.
        tracer: Told how many dials ended how.
    """

    def __init__(
        self,
        local: Address,
        on_connected: Callable[[socket.socket, Address, How], None],
        *,
        rng: Entropy | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self.outcomes: Final[Counter[str]] = Counter()
        """How dials ended that have ended by themselves, by `DialOutcome`."""
        self._local: Final = local
        self._on_connected: Final = on_connected
        self._rng: Final = rng or random.SystemRandom()
        self._trace: Final = tracer or Tracer()
        self._running: dict[Dial, None] = {}

    def __len__(self) -> int:
        """Return how many are under way."""
        return len(self._running)

    def open_holes(self, count: int, target: Address, *, low_ttl: int | None, patience: float) -> None:
        """Send a SYN to `target` from each of `count` fresh ports; the arguments are those of `Dial`."""
        for _ in range(count):
            self._dial((self._local[0], 0), target, low_ttl, patience)

    def probe(self, host: str, ports: Iterable[int], *, patience: float) -> None:
        """Send a plain SYN to each of `ports`."""
        for port in ports:
            self._dial(self._local, (host, port), None, patience)

    def close(self) -> None:
        """Reset all that is under way; connections handed over stay.  Closing twice is fine."""
        running, self._running = self._running, {}
        for dial in running:
            dial.close()
        if running or self.outcomes:
            self._trace("net", "burst_ended", local=format_address(self._local), given_up=len(running), **self.outcomes)
            self.outcomes.clear()

    def _dial(self, local: Address, target: Address, low_ttl: int | None, patience: float) -> None:
        dial = Dial(local, target, self._on_end, rng=self._rng, low_ttl=low_ttl, patience=patience, redials=0)
        self._running[dial] = None
        dial.connect()

    def _on_end(self, ended: Dial) -> None:
        del self._running[ended]
        record = ended.record
        self.outcomes[str(record.outcome)] += 1
        if record.outcome == "connected":
            self._on_connected(ended.take(), record.target, "connect" if record.low_ttl is None else "opener")
