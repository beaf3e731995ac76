"""A malicious carrier: it sees the TLS records between two peers as whole pieces, and does with them what a test says."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

from p2ptunnel.wire.frames import PREAMBLE_BYTES
from tests.helpers.peers import tcp_pair

__all__ = ["FROM_CALLEE", "FROM_CALLER", "Carrier", "Meddle"]

FROM_CALLER, FROM_CALLEE = 0, 1
_HEADER: Final = 5
Meddle: TypeAlias = Callable[[int, int, bytes], Iterable[bytes]]
"""From a direction, a record's number in it and the record to what is sent in its place."""


def honestly(_direction: int, _number: int, record: bytes) -> Iterable[bytes]:
    """Carry it as it is."""
    return (record,)


class Carrier:
    """What a relay is: a pipe of bytes between two connections.

    Attributes:
        client: For the caller.
        server: For the callee.
        meddle: What to do with each record; asked anew for every one.
        seen: Every byte that came in, by direction.
        records: How many records came in, by direction.
    """

    def __init__(self) -> None:
        self.client, near = tcp_pair()
        far, self.server = tcp_pair()
        self.meddle: Meddle = honestly
        self.seen = (bytearray(), bytearray())
        self.records = [0, 0]
        self._ends = (near, far)
        self._tasks = [
            asyncio.ensure_future(self._carry(FROM_CALLER, near, far)),
            asyncio.ensure_future(self._carry(FROM_CALLEE, far, near)),
        ]

    async def _carry(self, direction: int, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if direction == FROM_CALLER:
                await self._hand_on(direction, await _exactly(source, PREAMBLE_BYTES), target)
            while header := await _exactly(source, _HEADER):
                record = header + await _exactly(source, int.from_bytes(header[3:5], "big"))
                self.records[direction] += 1
                for piece in self.meddle(direction, self.records[direction] - 1, record):
                    await self._hand_on(direction, piece, target, record)
                    record = b""
            target.shutdown(socket.SHUT_WR)

    async def _hand_on(self, direction: int, piece: bytes, target: socket.socket, came: bytes | None = None) -> None:
        self.seen[direction].extend(piece if came is None else came)
        await asyncio.get_running_loop().sock_sendall(target, piece)

    async def inject(self, direction: int, piece: bytes) -> None:
        """Send bytes of one's own behind the last record of that direction."""
        await asyncio.get_running_loop().sock_sendall(self._ends[1 - direction], piece)

    async def close(self) -> None:
        """Close everything of the carrier's own."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for end in self._ends:
            end.close()


async def _exactly(source: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = await asyncio.get_running_loop().sock_recv(source, count - len(data))
        if not part:
            return b""
        data += part
    return data
