"""What routers tell everybody in the local network: that they have restarted (RFC 6887 14.1, RFC 6886 3.2.1)."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Final

from p2ptunnel.defaults import PORTMAP_NEWS_PORT
from p2ptunnel.net.watch import Watch
from p2ptunnel.trace import Tracer
from p2ptunnel.types import Address

__all__ = ["Announcements"]

_EVERYBODY: Final = "224.0.0.1"
_BATCH: Final = 16
_RECEIVE_BYTES: Final = 2048


class Announcements:
    """Calls back with each announcement and its source until closed; where they cannot be heard, never.

    Args:
        local: Numeric; the address of the interface to listen on.  IPv4 only: others are not heard.
        on_news: Anybody may have said it: who listens looks at the source.
        tracer: Told why they cannot be heard.
    """

    def __init__(self, local: str, on_news: Callable[[bytes, Address], None], tracer: Tracer) -> None:
        self._on_news = on_news
        self._socket: socket.socket | None = None
        if ":" in local:
            return
        try:
            self._socket = _listen(local)
        except OSError as error:  # another program keeps the port to itself
            tracer("net", "announcements_unavailable", reason=str(error))
        else:
            self._watch = Watch(self._socket, self._read)

    def close(self) -> None:
        """Call no more; closing twice is fine."""
        if self._socket is not None:
            self._watch.stop()
            self._socket.close()
            self._socket = None

    def _read(self) -> None:
        for _ in range(_BATCH):
            if self._socket is None:
                return
            try:
                data, source = self._socket.recvfrom(_RECEIVE_BYTES)
            except OSError:
                return
            self._on_news(data, source[:2])


def _listen(local: str) -> socket.socket:
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # every program here that maps ports listens there
        sock.bind((_EVERYBODY, PORTMAP_NEWS_PORT))  # to the group: what is sent to us alone is nobody's news
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(_EVERYBODY) + socket.inet_aton(local))
        stack.pop_all()
    return sock
