"""A datagram that dies where a SYN does and leaves right behind it: when word of its death is here, so is word of the SYN's.

Source: ipv6(7) on IPV6_RECVERR.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Final

from p2ptunnel.net.sockets import RECVERR, set_ttl
from p2ptunnel.net.watch import Watch
from p2ptunnel.types import Address

__all__ = ["Witness"]

_MSG_ERRQUEUE: Final = 0x2000


class Witness:
    """One such datagram on its way, until `stop`.

    Attributes:
        is_back: Whether word of it came while it was sent, as it does from a router next door; then nobody is called.
    """

    def __init__(self, source: str, target: Address, ttl: int, on_word: Callable[[], None]) -> None:
        """Send it.

        Args:
            source: Numeric host that the SYN left from: word to another one may come later.
            target: Numeric; where the SYN went.
            ttl: The SYN's.
            on_word: Called once, in a later turn, when a router has told of its death; never where none does.

        Raises:
            OSError: There is no socket to be had.
        """
        self._on_word: Final = on_word
        self._watch: Watch | None = None
        self._socket: Final = socket.socket(socket.AF_INET6 if ":" in target[0] else socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self.is_back: Final = self._send(source, target, ttl)
            if not self.is_back:
                self._watch = Watch(self._socket, self._hear)
        except BaseException:
            self._socket.close()
            raise

    def stop(self) -> None:
        """Hear no more; stopping twice is fine."""
        if self._watch is not None:
            self._watch.stop()
        self._socket.close()

    def _send(self, source: str, target: Address, ttl: int) -> bool:
        self._socket.setblocking(False)
        with contextlib.suppress(OSError):  # no route, a local firewall, no word yet
            self._socket.setsockopt(*RECVERR[self._socket.family], 1)
            set_ttl(self._socket, ttl)
            self._socket.bind((source, 0))
            self._socket.connect(target)
            self._socket.send(b"")
            self._socket.recvmsg(1, 0, _MSG_ERRQUEUE)
            return True
        return False

    def _hear(self) -> None:
        self.stop()
        self._on_word()
