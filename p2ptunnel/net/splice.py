"""A socket that a stream is spliced to: received straight into what is sealed, sent straight from what was decrypted.

Rule: a socket is watched only while the last call on it has left something to wait for; else the loop would spin.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from p2ptunnel.abc import Spliceable
from p2ptunnel.net.watch import Watch

__all__ = ["SocketSplice"]


class SocketSplice:
    """One socket, non-blocking, of which the stream gets all that comes and which gets all of the stream.

    Attributes:
        sent_all: Done when the stream's end has been passed to the socket, or fails with what broke first.
        read_all: Done when the socket's end has been passed to the stream, or the stream takes no more.
    """

    def __init__(self, stream: Spliceable, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self.sent_all: Final[asyncio.Future[None]] = loop.create_future()
        self.read_all: Final[asyncio.Future[None]] = loop.create_future()
        self._loop: Final = loop
        self._stream: Final = stream
        self._sock: Final = sock
        self._reading: Watch | None = None
        self._writing: Watch | None = None
        self._is_empty = False  # the socket had less than was asked for

    def start(self) -> None:
        """Splice, and carry what is there already.

        Raises:
            P2PTunnelError: The stream is over.
        """
        self._stream.splice(self)
        self._watch_reading()

    def stop(self) -> None:
        """Touch the socket no more; stopping twice is fine."""
        for ending in (self.sent_all, self.read_all):
            if not ending.done():
                ending.cancel()
        self._stop_reading()
        self._stop_writing()

    # --- what the stream calls ----------------------------------------------------------------------------------------

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Receive into `buffer`."""
        if self.read_all.done():
            return None
        try:
            count = self._sock.recv_into(buffer)
        except (BlockingIOError, InterruptedError):
            count = None
        except OSError as error:
            self._fail(error)
            return None
        if count == 0:
            self._stop_reading()
            self.read_all.set_result(None)
        elif count is None or count < len(buffer):
            self._is_empty = True
            self._watch_reading()
        return count

    def take(self, data: memoryview, /) -> int:
        """Send what the socket takes of `data`; what comes after a failure is dropped."""
        if self.sent_all.done():
            return len(data)
        try:
            count = self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            count = 0
        except OSError as error:
            self._fail(error)
            return len(data)
        if count < len(data) and self._writing is None:
            self._writing = Watch(self._sock, self._on_writable, for_writing=True)
        return count

    def ended(self) -> None:
        """Pass the peer's end on."""
        if self.sent_all.done():
            return
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._fail(error)
        else:
            self.sent_all.set_result(None)

    def stopped(self) -> None:
        """Read no more; whether what the peer gave is complete is for the other direction to find out."""
        self._stop_reading()
        if not self.read_all.done():
            self.read_all.set_result(None)

    def broke(self, error: Exception) -> None:
        """End both directions."""
        self._fail(error)

    # --- what the loop calls ------------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        self._is_empty = False
        self._stream.source_ready()
        if not self._is_empty:  # there is more: the stream asks for it when its turn comes
            self._stop_reading()

    def _on_writable(self) -> None:
        if self._stream.sink_ready():
            self._stop_writing()

    # --- inside -------------------------------------------------------------------------------------------------------

    def _fail(self, error: Exception) -> None:
        if not self.sent_all.done():
            self.sent_all.set_exception(error)
        elif not self.read_all.done():
            self.read_all.set_exception(error)
        self._stop_reading()
        self._stop_writing()

    def _watch_reading(self) -> None:
        if self._reading is None and not self.read_all.done():
            self._reading = Watch(self._sock, self._on_readable)

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.stop()
            self._reading = None

    def _stop_writing(self) -> None:
        if self._writing is not None:
            self._writing.stop()
            self._writing = None
