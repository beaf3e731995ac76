"""iroh's Python wheel: QUIC in Rust behind a binding; no relay, no discovery.

python -m bench.contestants.iroh far
python -m bench.contestants.iroh near TICKET
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
from bench.contest import FAR, NEAR, STREAM_PORT, Contestant

if TYPE_CHECKING:
    from bench.rig import Program, Rig

_MODULE: Final = "bench.contestants.iroh"
_PROTOCOL: Final = b"bench/0"
_STREAMS_MAX: Final = 2000


def _start(rig: Rig, python: Path) -> Program:
    ticket: str = json.loads(rig.far.start([python, "-m", _MODULE, "far"]).line())
    return rig.near.start([python, "-m", _MODULE, "near", ticket])


CONTESTANTS: Final = (Contestant("iroh", "stream", "iroh wheel", _start, requirements=("iroh==1.2.0",)),)


class _Duplex:
    """A bidirectional QUIC stream."""

    def __init__(self, stream: Any) -> None:
        self._send = stream.send()
        self.read: Callable[[int], Awaitable[bytes]] = stream.recv().read
        self.write: Callable[[bytes], Awaitable[None]] = self._send.write_all

    async def write_eof(self) -> None:
        await self._send.finish()

    async def close(self) -> None:
        """Nothing is left to do: a stream ends with its two directions."""


async def _bind(iroh: Any, address: str) -> Any:
    iroh.iroh_ffi.uniffi_set_event_loop(asyncio.get_running_loop())
    return await iroh.Endpoint.bind(
        iroh.EndpointOptions(
            preset=iroh.preset_minimal(), bind_addr=address, alpns=[_PROTOCOL], relay_mode=iroh.RelayMode.disabled()
        )
    )


async def _far(iroh: Any) -> None:
    endpoint = await _bind(iroh, f"{FAR}:{STREAM_PORT}")
    probe.tell(str(iroh.EndpointTicket.from_addr(endpoint.addr())))
    async with asyncio.TaskGroup() as tasks:
        while incoming := await endpoint.accept_next():
            connection = await (await incoming.accept()).connect()
            tasks.create_task(_serve(iroh, connection))


async def _serve(iroh: Any, connection: Any) -> None:
    connection.set_max_concurrent_bi_streams(_STREAMS_MAX)
    async with asyncio.TaskGroup() as tasks:
        with contextlib.suppress(iroh.IrohError):  # the connection has ended
            while True:
                tasks.create_task(_serve_stream(iroh, await connection.accept_bi()))


async def _serve_stream(iroh: Any, stream: Any) -> None:
    with contextlib.suppress(iroh.IrohError):  # whoever uploads beside an echo just goes
        await probe.serve(_Duplex(stream))


@contextlib.asynccontextmanager
async def _session(iroh: Any, ticket: str) -> AsyncGenerator[Callable[[], Awaitable[_Duplex]]]:
    endpoint = await _bind(iroh, f"{NEAR}:0")
    connection = await endpoint.connect(iroh.EndpointTicket.from_string(ticket).endpoint_addr(), _PROTOCOL)

    async def open_stream() -> _Duplex:
        return _Duplex(await connection.open_bi())

    yield open_stream
    connection.close(0, b"")
    await endpoint.close()


async def _near(iroh: Any, ticket: str) -> None:
    await probe.obey(partial(_session, iroh, ticket))


if __name__ == "__main__":
    roles: dict[str, Callable[..., Any]] = {"far": _far, "near": _near}
    asyncio.run(roles[sys.argv[1]](importlib.import_module("iroh"), *sys.argv[2:]))
