"""Keyed datagrams: a counter and a MAC as the last members of a message between two peers.

`…,"extra":{…,"s":7,"m":"<22 characters>"}}`: the MAC (BLAKE2s-128, keyed) covers every byte before its own characters, so
nothing has to be brought into a canonical form; who does not know of it reads the message as if it were not there.

Rule: no message is decoded here; what is not keyed right is told by False.  Source: docs/protocol/intents.md.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from typing import Final

__all__ = ["KeyedReceiver", "KeyedSender", "ReplayWindow"]

_MAC_BYTES: Final = 16
_MAC_CHARACTERS: Final = 22
_END: Final = b'"}}'
_WINDOW: Final = 64
_COUNTER: Final = re.compile(rb'[{,]"s":([1-9][0-9]{0,15}),"m":"\Z')


class ReplayWindow:
    """Which of the last 64 counters have been seen; each is let through once, older ones never."""

    def __init__(self) -> None:
        self._highest = 0
        self._seen = 0  # bit n: highest - n

    def take(self, counter: int) -> bool:
        """Tell whether `counter` is new, and remember it."""
        ahead = counter - self._highest
        if ahead > 0:
            self._seen = (self._seen << min(ahead, _WINDOW) | 1) & ((1 << _WINDOW) - 1)
            self._highest = counter
            return True
        if -ahead >= _WINDOW or self._seen >> -ahead & 1:
            return False
        self._seen |= 1 << -ahead
        return True


class KeyedSender:
    """Keys what leaves in one direction; each datagram gets the next counter, a repetition too."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._counter = 0

    def seal(self, message: bytes) -> bytes:
        """Return the encoded message with counter and MAC."""
        self._counter += 1
        covered = _opened(message) + b'"s":%d,"m":"' % self._counter
        return covered + _mac(self._key, covered) + _END


class KeyedReceiver:
    """Judges what comes in the other direction.

    Attributes:
        is_replay: Whether what was refused last was genuine, but not for the first time.
    """

    def __init__(self, key: bytes) -> None:
        self.is_replay = False
        self._key = key
        self._window = ReplayWindow()

    def open(self, datagram: bytes) -> bool:
        """Tell whether the datagram is by who holds the key, and comes for the first time."""
        self.is_replay = False
        covered, mac, end = _split(datagram)
        found = _COUNTER.search(covered[-28:])
        if found is None or end != _END or not hmac.compare_digest(mac, _mac(self._key, covered)):
            return False
        self.is_replay = not self._window.take(int(found[1]))
        return not self.is_replay


def _split(datagram: bytes) -> tuple[bytes, bytes, bytes]:
    tail = _MAC_CHARACTERS + len(_END)
    return datagram[:-tail], datagram[-tail : -len(_END)], datagram[-len(_END) :]


def _opened(message: bytes) -> bytes:
    """Return the message up to where another member of its `extra` may follow."""
    if message.endswith(b',"extra":null}'):
        return message[: -len(b"null}")] + b"{"
    if message.endswith(b"}}"):
        return message[: -len(b"}}")] + b","
    return message[: -len(b"}")] + b',"extra":{'


def _mac(key: bytes, covered: bytes) -> bytes:
    digest = hashlib.blake2s(covered, key=key, digest_size=_MAC_BYTES).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=")
