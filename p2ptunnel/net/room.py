"""Knowing when the kernel has sent most of what it was given, without trying.

Rule: the second descriptor is closed when the first one is, else the connection stays open.

Who writes until it is refused gives the kernel 64 KiB beyond the limit of what it may queue, since what fits into the last
buffer of its queue is never refused; and on a fast path megabytes, before anything that has come meanwhile is looked at.

Source: tcp_sendmsg_locked() in Linux; tcp(7), TCP_NOTSENT_LOWAT.
"""

from __future__ import annotations

import contextlib
import socket
from asyncio.trsock import TransportSocket
from collections.abc import Callable
from typing import Final

from p2ptunnel.net.sockets import TELLS_UNSENT, limit_unsent
from p2ptunnel.net.watch import Watch

__all__ = ["Room"]


class Room:
    """The room that the kernel has for what goes out over a connection of somebody else's.

    Args:
        sock: An asyncio transport's, which allows nobody to watch its own descriptor; None where there is none.
        on_room: Called once after each `wait`.
    """

    def __init__(self, sock: TransportSocket | None, on_room: Callable[[], None]) -> None:
        self._on_room: Final = on_room
        self._watch: Watch | None = None
        self._sock: socket.socket | None = None
        if sock is not None and TELLS_UNSENT:
            with contextlib.suppress(OSError):  # out of descriptors, or gone: then the transport alone tells, later
                self._sock = sock.dup()

    @property
    def is_awaited(self) -> bool:
        """Whether `on_room` will be called."""
        return self._watch is not None

    def limit(self, unsent_bytes: int) -> None:
        """Let the kernel queue no more than this beyond what the path takes; half of it is room."""
        if self._sock is not None:
            with contextlib.suppress(OSError):  # it broke: the transport tells
                limit_unsent(self._sock, unsent_bytes)

    def wait(self) -> bool:
        """Wait for room; False where nobody can tell."""
        if self._sock is not None and self._watch is None:
            self._watch = Watch(self._sock, self._found, for_writing=True)
        return self.is_awaited

    def close(self) -> None:
        """Wait no more, and let go of the connection; closing twice is fine."""
        self._stop()
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _found(self) -> None:
        self._stop()
        self._on_room()

    def _stop(self) -> None:
        if self._watch is not None:
            self._watch.stop()
            self._watch = None
