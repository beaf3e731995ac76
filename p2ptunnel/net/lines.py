"""The wire's messages on a TCP connection: one JSON object a line.  Rule: whatever the bytes, nothing is raised."""

from __future__ import annotations

from p2ptunnel.defaults import DATAGRAM_MAX_BYTES
from p2ptunnel.wire.messages import MalformedMessageError, Message, decode

__all__ = ["MessageLines"]


class MessageLines:
    """Turns received bytes, cut anywhere, into messages; keeps at most one line of them.

    Attributes:
        malformed: Lines dropped so far, for being too long or no message.
    """

    def __init__(self) -> None:
        self.malformed = 0
        self._rest = b""
        self._is_skipping = False

    def feed(self, data: bytes) -> list[Message]:
        """Return the messages whose lines `data` ends."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if lines and self._is_skipping:
            del lines[0]  # the end of a line that was too long, and counted
            self._is_skipping = False
        messages = [message for line in lines if (message := self._decode(line)) is not None]
        if len(self._rest) > DATAGRAM_MAX_BYTES or self._is_skipping:
            self.malformed += not self._is_skipping
            self._is_skipping = True
            self._rest = b""
        return messages

    def _decode(self, line: bytes) -> Message | None:
        try:
            return decode(line)
        except MalformedMessageError:
            self.malformed += 1
            return None
