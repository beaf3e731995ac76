"""TCP connections of the rendezvous server: the wire's messages, one JSON object a line.

Rule: a connection costs bounded memory, and one that says nothing does not stay.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from p2ptunnel.defaults import CONTROL_CONNECTIONS_MAX, CONTROL_FIRST_LINE, CONTROL_IDLE, DATAGRAM_MAX_BYTES
from p2ptunnel.types import Address

__all__ = ["ControlConnection", "ControlConnections"]


class ControlConnections:
    """The TCP connections of one listener, by number.

    Args:
        on_line: `(line without its end, source, connection)`.
        on_closed: `(connection)`.
    """

    def __init__(self, on_line: Callable[[bytes, Address, int], None], on_closed: Callable[[int], None]) -> None:
        self.refused = 0
        self._on_line = on_line
        self._on_closed = on_closed
        self._last = 0
        self._open: dict[int, ControlConnection] = {}

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
        """Close every connection."""
        for protocol in tuple(self._open.values()):
            protocol.abort()

    def opened(self, protocol: ControlConnection) -> bool:
        """Take note of a connection; False if there are too many."""
        if len(self._open) >= CONTROL_CONNECTIONS_MAX:
            self.refused += 1
            return False
        self._open[protocol.number] = protocol
        return True

    def received(self, line: bytes, protocol: ControlConnection) -> None:
        """Hand a line on."""
        self._on_line(line, protocol.source, protocol.number)

    def closed(self, protocol: ControlConnection) -> None:
        """Forget a connection."""
        if self._open.pop(protocol.number, None) is not None:
            self._on_closed(protocol.number)


class ControlConnection(asyncio.Protocol):
    """One connection: splits lines, cuts off who is silent, sends junk or does not read."""

    _WRITE_BUFFER_BYTES: Final = 64 * 1024

    def __init__(self, connections: ControlConnections, number: int) -> None:
        self.number = number
        self.source: Address = ("", 0)
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, unless there are too many."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        host, port = transport.get_extra_info("peername")[:2]
        self.source = (host.removeprefix("::ffff:"), port)
        if self._connections.opened(self):
            self._wait(CONTROL_FIRST_LINE)
        else:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """Hand on whole lines; a line longer than a datagram may be ends the connection."""
        self._buffer += data
        *lines, rest = self._buffer.split(b"\n")
        for line in lines:
            if len(line) <= DATAGRAM_MAX_BYTES:
                self._connections.received(bytes(line), self)
        self._buffer = rest
        if len(rest) > DATAGRAM_MAX_BYTES:
            self.abort()
        elif lines:
            self._wait(CONTROL_IDLE)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        if self._timer is not None:
            self._timer.cancel()
        self._connections.closed(self)

    def send(self, line: bytes) -> None:
        """Write a line; who does not read for 64 KiB is cut off."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if transport.get_write_buffer_size() > self._WRITE_BUFFER_BYTES:
            transport.abort()
        else:
            transport.write(line + b"\n")

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def _wait(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self.abort)
