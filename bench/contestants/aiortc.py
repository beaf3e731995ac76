"""aiortc: WebRTC's data channels in Python; offer and answer go over a TCP connection, where a browser would use a server.

python -m bench.contestants.aiortc far|near
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench import probe
from bench.contest import FAR, STREAM_PORT, Contestant

if TYPE_CHECKING:
    from bench.rig import Program, Rig

_MODULE: Final = "bench.contestants.aiortc"
_MESSAGE_BYTES: Final = 16 * 1024  # larger ones are not portable in WebRTC
_BUFFERED_BYTES: Final = 1024 * 1024
_LINE_BYTES: Final = 1024 * 1024
_END: Final = "end"


def _start(rig: Rig, python: Path) -> Program:
    rig.far.wait_for_port(STREAM_PORT, rig.far.start([python, "-m", _MODULE, "far"]))
    return rig.near.start([python, "-m", _MODULE, "near"])


CONTESTANTS: Final = (Contestant("aiortc", "stream", "aiortc data channel", _start, requirements=("aiortc==1.16.0",)),)


class _Duplex:
    """A data channel: messages of bytes are the flow, one of text is its end, since channels cannot be closed by halves."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._messages: asyncio.Queue[bytes | str] = asyncio.Queue()
        self._rest = b""
        self._has_room = asyncio.Event()
        channel.bufferedAmountLowThreshold = _BUFFERED_BYTES // 2
        channel.on("message", self._messages.put_nowait)
        channel.on("bufferedamountlow", self._has_room.set)

    async def read(self, n: int) -> bytes:
        if not self._rest:
            message = await self._messages.get()
            if isinstance(message, str):
                return b""
            self._rest = message
        data, self._rest = self._rest[:n], self._rest[n:]
        return data

    async def write(self, data: bytes) -> None:
        for start in range(0, len(data), _MESSAGE_BYTES):
            while self._channel.bufferedAmount > _BUFFERED_BYTES:
                self._has_room.clear()
                await self._has_room.wait()
            self._channel.send(data[start : start + _MESSAGE_BYTES])

    async def write_eof(self) -> None:
        self._channel.send(_END)

    async def close(self) -> None:
        """Stay open: closing throws away what has not been acknowledged."""


def _connection(aiortc: Any) -> Any:
    return aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[]))


def _send(writer: asyncio.StreamWriter, description: Any) -> None:
    writer.write(json.dumps({"sdp": description.sdp, "type": description.type}).encode() + b"\n")


async def _receive(aiortc: Any, reader: asyncio.StreamReader) -> Any:
    return aiortc.RTCSessionDescription(**json.loads(await reader.readline()))


async def _far(aiortc: Any) -> None:
    tasks: set[asyncio.Task[None]] = set()

    def serve(channel: Any) -> None:
        tasks.add(asyncio.ensure_future(probe.serve(_Duplex(channel))))

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _connection(aiortc)
        connection.on("datachannel", serve)
        await connection.setRemoteDescription(await _receive(aiortc, reader))
        await connection.setLocalDescription(await connection.createAnswer())
        _send(writer, connection.localDescription)
        await reader.read()
        writer.close()
        await connection.close()

    async with await asyncio.start_server(answer, FAR, STREAM_PORT, limit=_LINE_BYTES) as server:
        await server.serve_forever()


@contextlib.asynccontextmanager
async def _session(aiortc: Any) -> AsyncGenerator[Callable[[], Awaitable[_Duplex]]]:
    connection = _connection(aiortc)
    reader, writer = await asyncio.open_connection(FAR, STREAM_PORT, limit=_LINE_BYTES)
    first: list[Any] = [connection.createDataChannel("bench")]  # an offer needs one
    await connection.setLocalDescription(await connection.createOffer())
    _send(writer, connection.localDescription)
    await connection.setRemoteDescription(await _receive(aiortc, reader))

    async def open_stream() -> _Duplex:
        channel = first.pop() if first else connection.createDataChannel("bench")
        is_open = asyncio.Event()
        channel.on("open", is_open.set)
        if channel.readyState != "open":
            await is_open.wait()
        return _Duplex(channel)

    yield open_stream
    await connection.close()
    writer.close()


async def _near(aiortc: Any) -> None:
    await probe.obey(partial(_session, aiortc))


if __name__ == "__main__":
    roles = {"far": _far, "near": _near}
    asyncio.run(roles[sys.argv[1]](importlib.import_module("aiortc")))
