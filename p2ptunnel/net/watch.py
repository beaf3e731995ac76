"""Being called when a socket is ready.

Rule: a watch is stopped before its socket is closed.  Otherwise the selector keeps a stale entry, the next socket with the
same number is never watched at all, and its callback never comes.

Source: docs/explanation/nat.md.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final

__all__ = ["Watch"]

_POLL: Final = 0.01  # seconds; only for loops that cannot watch sockets


class Watch:
    """Calls back, from the loop that runs, whenever a socket can be read, or with `for_writing` written, until stopped.

    On a loop that cannot watch sockets (Windows' proactor) it calls every 10 ms, so the callback must bear being wrong.
    """

    def __init__(self, sock: socket.socket, callback: Callable[[], None], *, for_writing: bool = False) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = sock
        self._callback = callback
        self._remove = self._loop.remove_writer if for_writing else self._loop.remove_reader
        self._timer: asyncio.TimerHandle | None = None
        self._is_stopped = False
        try:
            (self._loop.add_writer if for_writing else self._loop.add_reader)(sock, callback)
        except NotImplementedError:
            self._timer = self._loop.call_later(_POLL, self._poll)

    def stop(self) -> None:
        """Call no more; stopping twice is fine."""
        if self._is_stopped:
            return
        self._is_stopped = True
        if self._timer is not None:
            self._timer.cancel()
        else:
            self._remove(self._socket)

    def _poll(self) -> None:
        self._timer = self._loop.call_later(_POLL, self._poll)
        self._callback()
