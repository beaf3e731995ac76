"""A QUIC connection over a punched UDP port as a pipe: what is left where no TCP gets through.

It carries what a TCP connection would carry, the pinned TLS of a channel included; QUIC's own proves nothing and hides nothing.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

from p2ptunnel.abc import Pipe
from p2ptunnel.defaults import PREAMBLE_TIMEOUT
from p2ptunnel.errors import LocalProtocolError, RemoteProtocolError
from p2ptunnel.net.transport import ProtocolTransport
from p2ptunnel.types import Path
from p2ptunnel.wire.frames import PREAMBLE_BYTES, parse_preamble

if TYPE_CHECKING:
    from p2ptunnel.transports.quiclink import Link

__all__ = ["QuicPipe", "can_quic"]

_HIGH_BYTES: Final = 64 * 1024


def can_quic() -> bool:
    """Tell whether the library that QUIC needs is installed; it is not loaded by that."""
    return importlib.util.find_spec("aioquic") is not None


class QuicPipe(Pipe):
    """A connection that is up.

    Args:
        link: Opened; the pipe owns it from now on.
        path: How it came to be.
    """

    def __init__(self, link: Link, path: Path) -> None:
        self.path = path
        self._link: Final = link
        self._early = b""
        self._is_spent = False

    async def read_preamble(self, timeout: float = PREAMBLE_TIMEOUT) -> bytes:
        """Read the preamble of a connection that was accepted, and return its selector (16 bytes).

        What has come behind it is for whoever attaches.

        Args:
            timeout: Seconds for the whole preamble.

        Raises:
            RemoteProtocolError: Something else came, or nothing in time, or the end.
        """
        try:
            async with asyncio.timeout(timeout):
                while (selector := parse_preamble(self._early[:PREAMBLE_BYTES])) is None:
                    if not await self._read_more():
                        raise RemoteProtocolError("the connection ended before its preamble")
        except TimeoutError:
            raise RemoteProtocolError(f"no preamble in {timeout:g} s") from None
        self._early = self._early[PREAMBLE_BYTES:]
        return selector

    async def _read_more(self) -> bool:
        await self._link.wait_arrived()
        data = self._link.take()
        self._early += data
        return bool(data)

    async def attach(self, factory: Callable[[], asyncio.BaseProtocol]) -> asyncio.Transport:
        """Hand the bytes to a protocol and return its transport, which owns the connection.

        Raises:
            LocalProtocolError: The pipe was attached or aborted already.
            OSError: The connection broke before.
        """
        if self._is_spent:
            raise LocalProtocolError("a pipe is attached once")
        self._is_spent = True
        if self._link.is_over:
            raise self._link.error or ConnectionResetError("it has ended")
        return QuicTransport(self._link, factory(), self._early, self.path)

    def abort(self) -> None:
        """End the connection at once, unless a transport has it; ending twice is fine."""
        if not self._is_spent:
            self._is_spent = True
            self._link.abort()


class QuicTransport(ProtocolTransport[asyncio.BaseProtocol]):
    """Carries a protocol over a link.

    Rule: the protocol is called from the loop, except for `pause_writing`, which it may be told while it writes.

    Args:
        link: Owned from now on.
        protocol: Told `connection_made` at once.
        early: What was read of the link, and is the protocol's.
        path: Of the pipe.
    """

    def __init__(self, link: Link, protocol: asyncio.BaseProtocol, early: bytes, path: Path) -> None:
        super().__init__(protocol)
        self._link: Final = link
        self._unread: bytes | memoryview = early
        self._path: Final = path
        self._high_bytes, self._low_bytes = _HIGH_BYTES, _HIGH_BYTES // 4
        self._is_eof_written = self._is_end_told = False
        protocol.connection_made(self)
        link.join(self)

    # --- what a protocol calls ----------------------------------------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return `sockname` and `peername`; there is no socket that is ours alone."""
        return {"sockname": self._path.local, "peername": self._path.remote}.get(name, default)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set how much may wait to be sent before the protocol is asked to pause, and at how little it may go on.

        Raises:
            ValueError: Not `high >= low >= 0`.
        """
        if high is None:
            high = _HIGH_BYTES if low is None else 4 * low
        low = high // 4 if low is None else low
        if not high >= low >= 0:
            raise ValueError(f"high ({high}) must be >= low ({low}) must be >= 0")
        self._high_bytes, self._low_bytes = high, low

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Return `(low, high)`."""
        return (self._low_bytes, self._high_bytes)

    def get_write_buffer_size(self) -> int:
        """Return how many bytes wait to be sent for the first time."""
        return 0 if self._link.is_over else self._link.connection.unsent_bytes

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes, which are copied; dropped when it is closed.

        Raises:
            LocalProtocolError: `write_eof` was called.
        """
        if self._is_closing:
            return
        if self._is_eof_written:
            raise LocalProtocolError("nothing is written behind the end")
        if data:
            self._link.write(data)
            if not self._has_paused and self.get_write_buffer_size() > self._high_bytes:
                self._pause_writer()

    def write_eof(self) -> None:
        """End our direction behind what was written."""
        if not self._is_eof_written:
            self._is_eof_written = True
            self._link.write_eof()

    def close(self) -> None:
        """End behind what was written; what still comes is dropped."""
        if not self._is_closing:
            self._is_closing = self._is_eof_written = True
            self._unread = b""
            self._link.finish()

    def abort(self) -> None:
        """End at once, which the peer sees as a reset."""
        self._is_closing = True
        self._unread = b""
        self._link.abort()
        self._lose(None)

    # --- what the link calls ------------------------------------------------------------------------------------------

    def arrived(self) -> None:
        """Hand on what has come, unless the protocol has paused meanwhile, and behind all of it how it ended."""
        while self.is_reading() and (self._unread or self._refill()):
            self._unread = self._hand_on(self._unread)
        if self._unread and not self._is_closing:
            return
        if self._link.is_end_known and not (self._is_end_told or self._is_closing or self._is_paused):
            self._is_end_told = True
            if not self._stream_protocol.eof_received():
                self.close()
        if self._link.is_over and (self._is_closing or not self._is_paused):
            self._is_closing = True
            self._lose(self._link.error)

    def left(self) -> None:
        """Let the protocol write on, if it waits for that and there is room."""
        if self._has_paused and self.get_write_buffer_size() <= self._low_bytes:
            self._resume_writer()

    # --- inside -------------------------------------------------------------------------------------------------------

    @property
    def _stream_protocol(self) -> asyncio.Protocol:
        return cast("asyncio.Protocol", self._protocol)

    def _refill(self) -> bool:
        self._unread = self._link.take()
        return bool(self._unread)

    def _hand_on(self, data: bytes | memoryview) -> bytes | memoryview:
        """Give the protocol bytes; return what it has no room for in this turn."""
        if not isinstance(self._protocol, asyncio.BufferedProtocol):
            self._stream_protocol.data_received(bytes(data))
            return b""
        view = memoryview(data)
        room = memoryview(self._protocol.get_buffer(len(view)))
        count = min(len(room), len(view))
        room[:count] = view[:count]
        self._protocol.buffer_updated(count)
        return view[count:] if not self._is_closing else b""

    def _read_on(self) -> None:
        self.arrived()
