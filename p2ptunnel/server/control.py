"""TCP connections of the rendezvous server: the wire's messages, one JSON object a line.

Rule: a connection costs bounded memory and bounded time at once, and one that says nothing does not stay.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections import Counter
from collections.abc import Callable
from typing import Final

from p2ptunnel.defaults import (
    CLOSE_GRACE,
    CONTROL_FIRST_LINE,
    CONTROL_IDLE,
    CONTROL_LINE,
    CONTROL_QUIET,
    CONTROL_UNREAD,
    DATAGRAM_MAX_BYTES,
    RELAY_EARLY_BYTES,
    SOURCE_LINES_BURST,
    SOURCE_LINES_PER_SECOND,
)
from p2ptunnel.protocol.limits import Rate, SourceLimit
from p2ptunnel.server.doorman import Doorman
from p2ptunnel.types import Address

__all__ = ["ControlConnection", "ControlConnections"]

_LINES_AT_ONCE: Final = 64  # of one read; a peer has two under way, who sends more would hold up all others
_WRITE_BUFFER_BYTES: Final = 64 * 1024


class ControlConnections:
    """The TCP connections of one listener, by number.

    Args:
        on_line: `(line without its end, source, connection)`; returns whether it was a message.
        on_closed: `(connection)`.

    Attributes:
        cut_off: How many connections were ended here, and lines not taken, by reason.
        buffer: What one read fills, and what is behind a line in it belongs to who takes the connection over.
    """

    def __init__(self, on_line: Callable[[bytes, Address, int], bool], on_closed: Callable[[int], None]) -> None:
        self.cut_off: Counter[str] = Counter()
        self.buffer: Final = memoryview(bytearray(RELAY_EARLY_BYTES))
        self._on_line = on_line
        self._on_closed = on_closed
        self._doorman = Doorman(random.SystemRandom())
        self._lines_of_source = SourceLimit(Rate(SOURCE_LINES_PER_SECOND, SOURCE_LINES_BURST))
        self._last = 0
        self._open: dict[int, ControlConnection] = {}
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._open)

    def make(self, source: Address | None = None) -> ControlConnection:
        """Return the protocol for one more connection: what `loop.create_server` wants.

        Args:
            source: Where it comes from, where its socket does not tell.
        """
        self._last += 1
        return ControlConnection(self, self._last, source)

    def send(self, connection: int, line: bytes, *, is_last: bool = False) -> None:
        """Write a line, `is_last`: and close; a connection that is gone is no error."""
        protocol = self._open.get(connection)
        if protocol is not None:
            protocol.send(line)
            if is_last:
                protocol.finish()

    def take_over(self, connection: int, line: bytes) -> tuple[socket.socket, bytes] | None:
        """Write a line, and hand the connection over: its socket, and what has come behind the line that asked for it.

        It is closed for everybody here.  None: it is lost, or does not take the line at once.
        """
        protocol = self._open.get(connection)
        return None if protocol is None else protocol.take_over(line)

    def close(self) -> None:
        """Close every connection, and those that asyncio is still about to hand over."""
        self._is_closed = True
        for protocol in tuple(self._open.values()):
            protocol.abort()

    def opened(self, protocol: ControlConnection) -> None:
        """Take note of a connection; cut it off if it cannot stay."""
        self._open[protocol.number] = protocol
        refusal = self._doorman.enter(protocol.number, protocol.source[0], protocol.now)
        if self._is_closed:
            protocol.abort()
        elif refusal:
            protocol.cut_off(refusal)

    def fell_silent(self, protocol: ControlConnection) -> None:
        """Take note that a connection has not spoken yet; it, or another silent one, may have to go."""
        victim = self._doorman.fell_silent(protocol.number)
        if victim is not None:
            number, why = victim
            self._doorman.spoke(number)  # it is gone in the next turn only, and must not be drawn twice
            self._open[number].cut_off(why)

    def received(self, line: bytes, protocol: ControlConnection, *, is_first: bool) -> None:
        """Hand a line on; who begins with junk is cut off."""
        if not self._lines_of_source.take(protocol.source[0], protocol.now):
            self.cut_off["line over its source's rate"] += 1
        elif self._on_line(line, protocol.source, protocol.number) or not is_first:
            self._doorman.spoke(protocol.number)
        else:
            self.punish(protocol, "junk")

    def punish(self, protocol: ControlConnection, why: str) -> None:
        """Cut off a connection that does not speak our language, and its source for a while."""
        self._doorman.punish(protocol.number, protocol.now)
        protocol.cut_off(why)

    def closed(self, protocol: ControlConnection) -> None:
        """Forget a connection."""
        del self._open[protocol.number]
        self._doorman.leave(protocol.number)
        self._on_closed(protocol.number)


class ControlConnection(asyncio.BufferedProtocol):
    """One connection: splits lines, cuts off who is silent, slow, sends junk or does not read."""

    def __init__(self, connections: ControlConnections, number: int, source: Address | None = None) -> None:
        self.number = number
        self.source: Address = source or ("", 0)
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._has_spoken = False
        self._is_over = False
        self._timer: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    @property
    def now(self) -> float:
        """The loop's time."""
        return self._loop.time()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, unless it cannot stay."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=0)  # so that we hear of the first byte that is not taken
        if not self.source[0]:
            self.source = transport.get_extra_info("peername")[:2]
        self._timer = self._loop.call_later(CONTROL_QUIET, self._on_quiet)
        self._connections.opened(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the one buffer: it is read into, and looked at, in one step."""
        return self._connections.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Hand on whole lines; one longer than a datagram may be, or too many at once, end the connection."""
        if self._is_over:
            return
        had_rest = bool(self._rest)
        self._rest += self._connections.buffer[:nbytes]
        if self._take_lines():
            self._wait(*((CONTROL_LINE, "slow") if self._rest else (CONTROL_IDLE, "silent")))
        elif self._has_spoken and not had_rest and not self._is_over:  # only a whole line is a reason to wait longer
            self._wait(CONTROL_LINE, "slow")

    def _take_lines(self) -> bool:
        """Hand on the lines that have come, as long as the connection is one of lines; return whether to wait for more."""
        taken = 0
        while True:
            line, end, rest = self._rest.partition(b"\n")
            if len(line) > DATAGRAM_MAX_BYTES:
                self._connections.punish(self, "line too long")
            elif end and taken == _LINES_AT_ONCE:
                self.cut_off("too many lines")
            elif end:
                self._rest = rest
                is_first, self._has_spoken = not self._has_spoken, True
                self._connections.received(line, self, is_first=is_first)
                taken += 1
            if self._is_over:
                return False
            if not end:
                return taken > 0

    def pause_writing(self) -> None:
        """Begin to count: the kernel takes no more for this connection."""
        self._unread = self._loop.call_later(CONTROL_UNREAD, self.cut_off, "does not read")

    def resume_writing(self) -> None:
        """Stop counting: all has been taken."""
        if self._unread is not None:
            self._unread.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._stop_waiting()
        self.resume_writing()
        self._connections.closed(self)

    def send(self, line: bytes) -> None:
        """Write a line, unless the last one has been; who does not read for 64 KiB is cut off."""
        assert self._transport is not None
        if self._is_over or self._transport.is_closing():
            return
        if self._transport.get_write_buffer_size() > _WRITE_BUFFER_BYTES:
            self.cut_off("does not read")
        else:
            self._transport.write(line + b"\n")

    def finish(self) -> None:
        """Close once what was written is on its way; what still comes is not looked at.

        Closed with something unread, the connection would be reset, and that destroys what the other end has not read yet.
        """
        assert self._transport is not None
        if not self._is_over and not self._transport.is_closing():
            self._is_over = True
            self._transport.write_eof()
            self._wait(CLOSE_GRACE, "stays after it was refused")

    def take_over(self, line: bytes) -> tuple[socket.socket, bytes] | None:
        """Write a line, and give away the connection and what has come behind the last line; None if that cannot be."""
        assert self._transport is not None
        self.send(line)
        if self._transport.is_closing() or self._transport.get_write_buffer_size():
            self.abort()
            return None
        held = self._transport.get_extra_info("socket")
        try:
            sock = socket.fromfd(held.fileno(), held.family, held.type)
        except OSError:
            self.cut_off("out of descriptors")
            return None
        sock.setblocking(False)
        self.abort()  # closes one descriptor of two
        return sock, self._rest

    def cut_off(self, reason: str) -> None:
        """Close at once, and count why."""
        self._connections.cut_off[reason] += 1
        self.abort()

    def abort(self) -> None:
        """Close at once."""
        assert self._transport is not None
        self._is_over = True
        self._stop_waiting()
        self.resume_writing()
        self._transport.abort()

    def _on_quiet(self) -> None:
        self._wait(CONTROL_FIRST_LINE - CONTROL_QUIET, "silent")
        self._connections.fell_silent(self)

    def _wait(self, seconds: float, reason: str) -> None:
        self._stop_waiting()
        self._timer = self._loop.call_later(seconds, self.cut_off, reason)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
