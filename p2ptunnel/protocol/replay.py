"""What was sent and is not acknowledged: kept in pieces, so that it can be sent again over another channel.

Rule: offsets count the sequenced bytes of one direction from the session's beginning; a piece holds whole frames only, so
that whatever `at` returns may be followed by a frame of the channel.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

from p2ptunnel.errors import LocalProtocolError
from p2ptunnel.wire.frames import HEADER, FrameType

__all__ = ["PIECE_BYTES", "Replay"]

PIECE_BYTES: Final = 256 * 1024  # sealed and written at a time; more costs latency, less costs calls
_ROOM_MIN_BYTES: Final = 1024  # more than any frame but DATA, which fits everywhere
_SPARE_PIECES: Final = 8  # kept for the next bytes: fresh memory costs more than the copy into it


class _Piece:
    __slots__ = ("data", "start", "used")

    def __init__(self, data: bytearray, start: int) -> None:
        self.data = data
        self.start = start  # offset of its first byte
        self.used = 0

    @property
    def end(self) -> int:
        return self.start + self.used


class Replay:
    """The unacknowledged bytes of one direction.

    Args:
        capacity: Bytes, at most; what an unacknowledging peer can cost.

    Attributes:
        start: Offset of the first byte that is kept.
        end: Offset behind the last one.
    """

    def __init__(self, capacity: int) -> None:
        self.start = 0
        self.end = 0
        self._capacity: Final = capacity
        self._pieces: Final[deque[_Piece]] = deque()
        self._spare: Final[list[bytearray]] = []

    def __len__(self) -> int:
        """Return how many bytes wait for their acknowledgement."""
        return self.end - self.start

    def room(self, limit: int) -> memoryview:
        """Return where the next frames may be written, at most `limit` bytes; empty while too much is unacknowledged."""
        free = min(limit, self._capacity - len(self))
        if free < _ROOM_MIN_BYTES:
            return memoryview(b"")
        piece = self._pieces[-1] if self._pieces else None
        if piece is None or PIECE_BYTES - piece.used < _ROOM_MIN_BYTES:
            piece = _Piece(self._spare.pop() if self._spare else bytearray(PIECE_BYTES), self.end)
            self._pieces.append(piece)
        return memoryview(piece.data)[piece.used : piece.used + free]

    def commit(self, count: int) -> None:
        """Keep the `count` bytes that have been written at the beginning of the last `room`: whole frames."""
        if count:
            self._pieces[-1].used += count
            self.end += count

    def at(self, offset: int) -> memoryview:
        """Return what is kept from `offset`, the beginning of a frame, to the end of its piece; empty at the very end.

        Raises:
            LocalProtocolError: Nothing is kept from there.
        """
        if not self.start <= offset <= self.end:
            raise LocalProtocolError("an offset that is not kept")
        for piece in reversed(self._pieces):
            if piece.start <= offset:
                return memoryview(piece.data)[offset - piece.start : piece.used]
        return memoryview(b"")

    def acknowledge(self, offset: int) -> None:
        """Forget what is below `offset`.

        Raises:
            LocalProtocolError: It was never sent.
        """
        if offset > self.end:
            raise LocalProtocolError("an acknowledgement of what was never sent")
        if offset <= self.start:
            return
        self.start = offset
        pieces = self._pieces
        while pieces and pieces[0].end <= offset:
            self._recycle(pieces.popleft())

    def shrink(self) -> None:
        """Give back the memory that nothing needs now."""
        self._spare.clear()

    def clear(self) -> None:
        """Forget everything: it will not be sent again."""
        self._pieces.clear()
        self._spare.clear()
        self.start = self.end

    def unacknowledged(self) -> dict[int, int]:
        """Return how many bytes of each stream wait for their acknowledgement."""
        counts: dict[int, int] = {}
        for kind, length, stream_id in self._headers():
            if kind == FrameType.DATA:
                counts[stream_id] = counts.get(stream_id, 0) + length
        return counts

    def _headers(self) -> Iterator[tuple[int, int, int]]:
        for piece in self._pieces:
            at = max(self.start - piece.start, 0)
            while at + HEADER.size <= piece.used:  # a peer that acknowledges half a frame must not lead us astray
                kind, _, length, stream_id = HEADER.unpack_from(piece.data, at)
                at += HEADER.size + length
                yield kind, length, stream_id

    def _recycle(self, piece: _Piece) -> None:
        if len(self._spare) < _SPARE_PIECES:
            self._spare.append(piece.data)
