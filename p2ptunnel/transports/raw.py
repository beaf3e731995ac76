"""A pipe without any security, for programs that speak the founding protocol only.

Rule: it is no `Stream`, so that no forward, session or file can take it by mistake; whoever wants it asks for it by name
(`Peer.connect_raw`, `Peer.listen_raw`) and has allowed it (`allow_unauthenticated=True`).
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final, Self

from p2ptunnel.abc import Pipe
from p2ptunnel.defaults import RAW_STREAMS_WAITING
from p2ptunnel.errors import ChannelBusyError
from p2ptunnel.types import Path

__all__ = ["RawStream", "RawStreams"]


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
        """Close when everything written has left; closing twice is fine."""
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
        if kind is None:
            await self.close()
        else:
            self.abort()


class RawStreams:
    """Streams that came in and wait to be taken, in order; at most a few, since anybody can make them."""

    def __init__(self) -> None:
        self._arrived: asyncio.Queue[RawStream | None] = asyncio.Queue()
        self._is_closed = False

    async def admit(self, pipe: Pipe) -> None:
        """Take over a pipe.

        Raises:
            ChannelBusyError: Nobody takes those that came before.
            OSError: It broke before.
        """
        if self._is_closed or self._arrived.qsize() >= RAW_STREAMS_WAITING:
            raise ChannelBusyError(RAW_STREAMS_WAITING)
        self._put(await RawStream.over(pipe))

    def close(self) -> None:
        """Let nobody in any more, end the iteration, and abort whoever waits; closing twice is fine."""
        self._is_closed = True
        while not self._arrived.empty():
            stream = self._arrived.get_nowait()
            if stream is not None:
                stream.abort()
        self._arrived.put_nowait(None)

    def _put(self, stream: RawStream) -> None:
        if self._is_closed:  # meanwhile
            stream.abort()
        else:
            self._arrived.put_nowait(stream)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RawStream:
        stream = await self._arrived.get()
        if stream is None:
            self._arrived.put_nowait(None)  # for whoever else waits
            raise StopAsyncIteration
        return stream
