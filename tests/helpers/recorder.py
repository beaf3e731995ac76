"""Protocols of asyncio that keep what comes."""

from __future__ import annotations

import asyncio

__all__ = ["Portions", "Recorder", "write_all"]


class Recorder(asyncio.Protocol):
    """Keeps what comes, and how it ends; writes on after the other side's end if it `stays`."""

    def __init__(self, *, stays: bool = False) -> None:
        self.came = bytearray()
        self.stays = stays
        self.ended = asyncio.Event()
        self.room = asyncio.Event()
        self.room.set()
        self.gone = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.came += data

    def eof_received(self) -> bool:
        self.ended.set()
        return self.stays

    def pause_writing(self) -> None:
        self.room.clear()

    def resume_writing(self) -> None:
        self.room.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.room.set()
        self.gone.set_result(exc)


class Portions(asyncio.BufferedProtocol):
    """Takes bytes in small portions."""

    def __init__(self) -> None:
        self.buffer = bytearray(1000)
        self.came = bytearray()
        self.gone = asyncio.get_running_loop().create_future()

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.came += self.buffer[:nbytes]

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set_result(exc)


async def write_all(transport: asyncio.Transport, protocol: Recorder, data: bytes) -> None:
    for start in range(0, len(data), 65536):
        transport.write(data[start : start + 65536])
        await protocol.room.wait()
