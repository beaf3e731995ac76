"""The UDP sockets of a birthday's hard side, each with a port of its own and so, behind its NAT, with a hole of its own.

Rule: all are closed by `close`, but those on which a connection stands, which then has a socket of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from p2ptunnel.errors import BindError
from p2ptunnel.net.udp import Aside, UdpSocket
from p2ptunnel.net.watch import Watch
from p2ptunnel.trace import Tracer
from p2ptunnel.types import Address

__all__ = ["UdpHoles"]


class UdpHoles:
    """Sockets by number.

    Args:
        host: Numeric; where they are bound.
        opener_ttl: TTL of what is to die on the way.
        on_datagram: Gets the number of a socket, what has come there, and from where.
        tracer: Told how many there were.
    """

    def __init__(
        self,
        host: str,
        opener_ttl: int,
        on_datagram: Callable[[int, bytes, Address], None],
        *,
        tracer: Tracer | None = None,
    ) -> None:
        self._host: Final = host
        self._opener_ttl: Final = opener_ttl
        self._on_datagram: Final = on_datagram
        self._trace: Final = tracer or Tracer()
        self._open: Final[dict[int, tuple[UdpSocket, Watch]]] = {}
        self._asides: Final[dict[int, Aside]] = {}

    def __len__(self) -> int:
        """Return how many are open."""
        return len(self._open)

    def open(self, numbers: range) -> None:
        """Open some more; those for which the system has no descriptor or port are left out."""
        for number in numbers:
            try:
                udp = UdpSocket((self._host, 0), shared=False, opener_ttl=self._opener_ttl, tracer=self._trace)
            except (BindError, OSError) as error:
                self._trace("net", "hole_missing", reason=str(error))
                return
            self._open[number] = udp, Watch(udp.socket, partial(self._read, number, udp))

    def socket(self, number: int) -> UdpSocket | None:
        """Return the socket of that number, None if it is not open."""
        found = self._open.get(number)
        return None if found is None else found[0]

    def share(self, number: int, aside: Aside) -> None:
        """Let `aside` have each datagram of a socket first."""
        self._asides[number] = aside

    def close(self) -> None:
        """Close all; what stands beside one goes on alone if it needs to.  Closing twice is fine."""
        if self._open:
            self._trace("net", "holes_closed", holes=len(self._open))
        for number, (udp, watch) in self._open.items():
            watch.stop()
            if number in self._asides:
                self._asides[number].outlive()
            udp.close()
        self._open.clear()
        self._asides.clear()

    def _read(self, number: int, udp: UdpSocket) -> None:
        for data, source in udp.receive():
            aside = self._asides.get(number)
            if aside is None or not aside.take(data, source):
                self._on_datagram(number, data, source)
