"""No tunnel: a relay in asyncio, which is what one hop through Python costs at least, and TCP from Python to Python.

python -m bench.contestants.plain
"""

from __future__ import annotations

import asyncio
import platform
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.contest import FAR, FORWARD_PORT, LOOPBACK, SINK_PORT, Contestant

if TYPE_CHECKING:
    from bench.rig import Program, Rig

_BUFFER_BYTES: Final = 256 * 1024


def _start_forward(rig: Rig, python: Path) -> Program:
    rig.sink()
    return rig.probe(rig.near.start([python, "-m", "bench.contestants.plain"]))


def _start_stream(rig: Rig, python: Path) -> Program:
    far = rig.far.start([python, "-m", "bench.probe", "far", str(SINK_PORT)])
    rig.far.wait_for_port(SINK_PORT, far)
    return rig.near.start([python, "-m", "bench.probe", "near", FAR, str(SINK_PORT)])


_VERSION: Final = f"Python {platform.python_version()}"
CONTESTANTS: Final = (
    Contestant("asyncio", "forward", "relay in asyncio, no tunnel", _start_forward, version=_VERSION),
    Contestant("asyncio", "stream", "TCP in asyncio, no tunnel", _start_stream, version=_VERSION),
)


async def _relay() -> None:
    """Relay every connection to the far side, for ever."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()
    with socket.create_server((LOOPBACK, FORWARD_PORT), backlog=1024) as listener:
        listener.setblocking(False)
        while True:
            client, _ = await loop.sock_accept(listener)
            task = asyncio.create_task(_carry(client))
            tasks.add(task)
            task.add_done_callback(tasks.discard)


async def _carry(client: socket.socket) -> None:
    with client, socket.socket() as server:
        server.setblocking(False)
        await asyncio.get_running_loop().sock_connect(server, (FAR, SINK_PORT))
        await asyncio.gather(_copy(client, server), _copy(server, client), return_exceptions=True)


async def _copy(source: socket.socket, sink: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    for end in (source, sink):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    while n := await loop.sock_recv_into(source, buffer):
        await loop.sock_sendall(sink, buffer[:n])
        if n == _BUFFER_BYTES:  # more is waiting, and neither call lets the others run
            await asyncio.sleep(0)
    sink.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    sys.exit(asyncio.run(_relay()))
