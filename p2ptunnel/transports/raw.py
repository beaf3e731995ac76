"""A pipe without any security, for programs that speak the founding protocol only.

Rule: it is no `Stream`, so that no forward, session or file can take it by mistake; whoever wants it asks for it by name
(`Peer.connect_raw`, `Peer.listen_raw`) and has allowed it (`allow_unauthenticated=True`).
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final, Self

from p2ptunnel.abc import Pipe
from p2ptunnel.types import Path

__all__ = ["RawStream"]


class RawStream:
    """Bytes to and from whoever is at the other end: nobody has proved anything, everybody on the path can read and alter."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: Path) -> None:
        self.path: Final = path
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, pipe: Pipe) -> Self:
        """Take over a pipe.

        Raises:
            OSError: It broke before.
        """
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport = await pipe.attach(lambda: protocol)
        return cls(reader, asyncio.StreamWriter(transport, protocol, reader, loop), pipe.path)

    async def read(self, n: int = 65536) -> bytes:
        """Return 1 to `n` bytes, or `b""` at the end; a forged end looks the same."""
        return await self._reader.read(n)

    async def readexactly(self, n: int) -> bytes:
        """Return exactly `n` bytes.

        Raises:
            asyncio.IncompleteReadError: The end came before.
        """
        return await self._reader.readexactly(n)

    async def write(self, data: bytes) -> None:
        """Send `data`; returns when there is room for more."""
        self._writer.write(data)
        await self._writer.drain()

    async def write_eof(self) -> None:
        """Send no more; reading goes on."""
        self._writer.write_eof()

    async def close(self) -> None:
        """Close; closing twice is fine."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:  # it broke before: closed all the same
            return

    def abort(self, reason: str = "cancelled") -> None:
        """Close at once."""
        self._writer.transport.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
