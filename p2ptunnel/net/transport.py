"""Asyncio transports that stand on no socket: what they have in common, and the one over a stream, for libraries' protocols.

Rule: the protocol's `connection_lost` comes once, behind all that was taken from the stream unless the protocol closed it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, Generic, TypeVar, cast

from p2ptunnel.abc import Spliceable
from p2ptunnel.errors import LocalProtocolError, StreamResetError

__all__ = ["ProtocolTransport", "StreamTransport", "Tunnel"]

_HIGH_BYTES: Final = 256 * 1024  # written and not taken: the protocol is asked to pause
P = TypeVar("P", bound=asyncio.BaseProtocol)
C = TypeVar("C", bound=asyncio.Protocol)


class ProtocolTransport(asyncio.Transport, Generic[P]):
    """What every transport of ours keeps of its protocol: whether it reads, whether it may write, and how it hears of the end.

    Args:
        protocol: Told nothing yet.
    """

    def __init__(self, protocol: P) -> None:
        super().__init__()
        self._loop: Final = asyncio.get_running_loop()
        self._protocol: P = protocol
        self._is_paused = False  # by the protocol: it reads nothing for now
        self._has_paused = False  # the protocol was told to write no more for now
        self._is_closing = False
        self._is_lost = False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Hand everything to another protocol from now on."""
        self._protocol = cast("P", protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the protocol."""
        return self._protocol

    def is_closing(self) -> bool:
        """Whether it was closed, or has ended."""
        return self._is_closing

    def is_reading(self) -> bool:
        """Whether the protocol gets what comes."""
        return not self._is_paused and not self._is_closing

    def pause_reading(self) -> None:
        """Keep what comes; the peer stops when the window is full."""
        self._is_paused = True

    def resume_reading(self) -> None:
        """Hand on what was kept, soon."""
        if self._is_paused:
            self._is_paused = False
            self._loop.call_soon(self._read_on)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Write bytes, joined."""
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        """Return True: each direction ends by itself."""
        return True

    def _read_on(self) -> None:
        """Hand on what was kept while the protocol had paused."""
        raise NotImplementedError

    def _pause_writer(self) -> None:
        if not self._has_paused:
            self._has_paused = True
            self._protocol.pause_writing()

    def _resume_writer(self) -> None:
        if self._has_paused:
            self._has_paused = False
            self._loop.call_soon(self._protocol.resume_writing)

    def _lose(self, error: Exception | None) -> None:
        """Tell the protocol of the end, once."""
        if not self._is_lost:
            self._is_lost = True
            self._loop.call_soon(self._protocol.connection_lost, error)


class StreamTransport(ProtocolTransport[asyncio.Protocol]):
    """Carries a protocol over a stream, which is spent by it.

    Args:
        stream: Neither read nor written by anybody else.
        protocol: Told `connection_made` at once.

    Raises:
        P2PTunnelError: The stream is over; the protocol has been told nothing.
    """

    def __init__(self, stream: Spliceable, protocol: asyncio.Protocol) -> None:
        super().__init__(protocol)
        self._stream: Final = stream
        self._waiting: Final[deque[memoryview]] = deque()
        self._waiting_bytes = 0
        self._came: Final[deque[bytes]] = deque()  # taken from the stream, and soon the protocol's
        self._error: Exception | None = None  # behind what came
        self._is_eof = False  # nothing more is written
        self._is_end_sent = False
        self._is_end_known = False  # the peer writes no more
        self._is_end_told = False
        self._is_stopped = False  # the peer takes no more
        stream.splice(self)
        protocol.connection_made(self)  # what it writes goes into the splice; what has come is handed on in a later turn

    # --- what a protocol calls ----------------------------------------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return `default`: there is no socket to tell of."""
        return default

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Hand everything to another protocol from now on.

        Raises:
            TypeError: It is none that takes bytes; a BufferedProtocol is such a one.
        """
        if not isinstance(protocol, asyncio.Protocol):
            raise TypeError(f"{type(protocol).__name__} is no asyncio.Protocol")
        super().set_protocol(protocol)

    def get_write_buffer_size(self) -> int:
        """Return how many bytes wait to be taken by the stream."""
        return self._waiting_bytes

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Queue bytes; they are not copied here, so bytearrays must stay as they are.  Dropped when it is closed.

        Raises:
            LocalProtocolError: `write_eof` was called.
        """
        if self._is_closing:
            return
        if self._is_eof:
            raise LocalProtocolError("nothing is written behind the end")
        view = memoryview(data)
        if self._is_stopped and view.nbytes:  # as a TCP connection breaks at the next write
            self._is_closing = True
            self._lose(StreamResetError("the peer takes no more"))
        elif view.nbytes:
            self._waiting.append(view.cast("B"))
            self._waiting_bytes += view.nbytes
            self._stream.source_ready()
            if self._waiting_bytes > _HIGH_BYTES:
                self._pause_writer()

    def write_eof(self) -> None:
        """End our direction behind what is written."""
        self._is_eof = True
        self._stream.source_ready()

    def close(self) -> None:
        """End behind what is written; what still comes is dropped."""
        if not self._is_closing:
            self._is_closing = self._is_eof = True
            if self._is_end_sent:  # it is not asked for again
                self._loop.call_soon(self._stream.finish)
            else:
                self._stream.source_ready()
            self._lose(None)

    def abort(self) -> None:
        """Reset the stream at once."""
        self._is_closing = self._is_eof = True
        self._waiting.clear()
        self._lose(None)
        self._stream.abort("the connection was aborted")

    # --- what the stream calls ----------------------------------------------------------------------------------------

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Put what was written into `buffer`."""
        used = 0
        while self._waiting and used < len(buffer):
            part = self._waiting[0]
            count = min(len(part), len(buffer) - used)
            buffer[used : used + count] = part[:count]
            used += count
            if count == len(part):
                self._waiting.popleft()
            else:
                self._waiting[0] = part[count:]
        self._waiting_bytes -= used
        if self._waiting_bytes <= _HIGH_BYTES // 4:
            self._resume_writer()
        if used and self._is_eof and not self._waiting:
            self._loop.call_soon(self._stream.source_ready)  # for the end, which is asked for by itself
        if used or not self._is_eof:
            return used or None
        self._is_end_sent = True
        if self._is_closing:
            self._loop.call_soon(self._stream.finish)
        return 0

    def take(self, data: memoryview, /) -> int:
        """Keep bytes for the protocol, unless it has paused."""
        if self._is_closing:
            return len(data)
        if self._is_paused:
            return 0
        self._came.append(bytes(data))
        self._loop.call_soon(self._hand_on)
        return len(data)

    def stopped(self) -> None:
        """The peer takes no more: what was written is of no use, and nobody needs to wait for room."""
        self._is_stopped = True
        self._waiting.clear()
        self._waiting_bytes = 0
        self._resume_writer()

    def ended(self) -> None:
        """Pass the peer's end on, behind what came."""
        self._is_end_known = True
        self._loop.call_soon(self._hand_on)

    def broke(self, error: Exception) -> None:
        """Pass the error on, behind what came."""
        self._is_closing = True
        self._error = error
        self._loop.call_soon(self._hand_on)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _read_on(self) -> None:
        self._hand_on()
        if self.is_reading():
            self._stream.sink_ready()

    def _hand_on(self) -> None:
        """Give the protocol what came, unless it has paused meanwhile, and behind all of it how it ended."""
        while self._came and not self._is_paused and not self._is_lost:
            self._protocol.data_received(self._came.popleft())
        if self._came or self._is_lost:
            return
        if self._error is not None:
            self._lose(self._error)
        elif self._is_end_known and not self._is_end_told:
            self._is_end_told = True
            if not self._protocol.eof_received():
                self.close()

    def _lose(self, error: Exception | None) -> None:
        self._came.clear()
        super()._lose(error)


class Tunnel:
    """What asyncssh wants of a `tunnel=`: something that makes a connection to where the stream leads."""

    def __init__(self, stream: Spliceable) -> None:
        self._stream: Final = stream

    async def create_connection(self, session_factory: Callable[[], C], remote_host: str, remote_port: int) -> tuple[Any, C]:
        """Carry the protocol that `session_factory` makes over the stream, wherever asyncssh believes that it goes."""
        protocol = session_factory()
        return StreamTransport(self._stream, protocol), protocol

    def close(self) -> None:
        """Reset the stream, if nothing has."""
        self._stream.abort()

    async def wait_closed(self) -> None:
        """Return: a stream that was reset is closed."""
