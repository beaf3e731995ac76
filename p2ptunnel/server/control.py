"""TCP connections of the rendezvous server: the wire's messages, one JSON object a line.

Rule: a connection costs bounded memory and bounded time at once, and one that says nothing does not stay.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Final

from p2ptunnel.defaults import CONTROL_CONNECTIONS_MAX, CONTROL_FIRST_LINE, CONTROL_IDLE, DATAGRAM_MAX_BYTES
from p2ptunnel.types import Address

__all__ = ["ControlConnection", "ControlConnections"]

_LINES_AT_ONCE: Final = 64  # of one read; a peer has two under way, who sends more would hold up all others
_WRITE_BUFFER_BYTES: Final = 64 * 1024


class ControlConnections:
    """The TCP connections of one listener, by number.

    Args:
        on_line: `(line without its end, source, connection)`.
        on_closed: `(connection)`.

    Attributes:
        cut_off: How many connections were ended here, by reason.
    """

    def __init__(self, on_line: Callable[[bytes, Address, int], None], on_closed: Callable[[int], None]) -> None:
        self.cut_off: Counter[str] = Counter()
        self._on_line = on_line
        self._on_closed = on_closed
        self._last = 0
        self._open: dict[int, ControlConnection] = {}
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._open)

    def make(self) -> ControlConnection:
        """Return the protocol for one more connection: what `loop.create_server` wants."""
        self._last += 1
        return ControlConnection(self, self._last)

    def send(self, connection: int, line: bytes) -> None:
        """Write a line; a connection that is gone is no error."""
        protocol = self._open.get(connection)
        if protocol is not None:
            protocol.send(line)

    def close(self) -> None:
        """Close every connection, and those that asyncio is still about to hand over."""
        self._is_closed = True
        for protocol in tuple(self._open.values()):
            protocol.abort()

    def opened(self, protocol: ControlConnection) -> None:
        """Take note of a connection; cut it off if there are too many."""
        self._open[protocol.number] = protocol
        if self._is_closed:
            protocol.abort()
        elif len(self._open) > CONTROL_CONNECTIONS_MAX:
            protocol.cut_off("too many connections")

    def received(self, line: bytes, protocol: ControlConnection) -> None:
        """Hand a line on."""
        self._on_line(line, protocol.source, protocol.number)

    def closed(self, protocol: ControlConnection) -> None:
        """Forget a connection."""
        del self._open[protocol.number]
        self._on_closed(protocol.number)


class ControlConnection(asyncio.Protocol):
    """One connection: splits lines, cuts off who is silent, sends junk or does not read."""

    def __init__(self, connections: ControlConnections, number: int) -> None:
        self.number = number
        self.source: Address = ("", 0)
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, unless there are too many."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.source = transport.get_extra_info("peername")[:2]
        self._wait(CONTROL_FIRST_LINE)
        self._connections.opened(self)

    def data_received(self, data: bytes) -> None:
        """Hand on whole lines; one longer than a datagram may be, or too many at once, end the connection."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(lines) > _LINES_AT_ONCE:
            self.cut_off("too many lines")
        elif max(map(len, (*lines, self._rest))) > DATAGRAM_MAX_BYTES:
            self.cut_off("line too long")
        elif lines:
            self._wait(CONTROL_IDLE)
            for line in lines:
                self._connections.received(line, self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._stop_waiting()
        self._connections.closed(self)

    def send(self, line: bytes) -> None:
        """Write a line; who does not read for 64 KiB is cut off."""
        assert self._transport is not None
        if self._transport.is_closing():
            return
        if self._transport.get_write_buffer_size() > _WRITE_BUFFER_BYTES:
            self.cut_off("does not read")
        else:
            self._transport.write(line + b"\n")

    def cut_off(self, reason: str) -> None:
        """Close at once, and count why."""
        self._connections.cut_off[reason] += 1
        self.abort()

    def abort(self) -> None:
        """Close at once."""
        assert self._transport is not None
        self._transport.abort()

    def _wait(self, seconds: float) -> None:
        self._stop_waiting()
        self._timer = asyncio.get_running_loop().call_later(seconds, self.cut_off, "silent")

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
