"""py-libp2p over TCP with Noise and Yamux, on trio.

python -m bench.contestants.libp2p far
python -m bench.contestants.libp2p near PEER-ID
"""

from __future__ import annotations

import contextlib
import importlib
import json
import secrets
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from bench import probe
from bench.contest import FAR, STREAM_PORT, Contestant

if TYPE_CHECKING:
    from bench.rig import Program, Rig

T = TypeVar("T")
_MODULE: Final = "bench.contestants.libp2p"
_PROTOCOL: Final = "/bench/0"


def _start(rig: Rig, python: Path) -> Program:
    far = rig.far.start([python, "-m", _MODULE, "far"])
    identity: str = json.loads(far.line())
    rig.far.wait_for_port(STREAM_PORT, far)
    return rig.near.start([python, "-m", _MODULE, "near", identity])


CONTESTANTS: Final = (
    Contestant(
        "libp2p",
        "stream",
        "py-libp2p, Noise, Yamux",
        _start,
        requirements=("libp2p==0.8.1",),
        streams_max=240,  # at 256, some of them its own, Yamux waits for one to be closed
    ),
)


class _Duplex:
    """A Yamux stream, whose `read` raises at its end."""

    def __init__(self, stream: Any, end: type[Exception]) -> None:
        self._stream = stream
        self._end = end
        self.write: Callable[[bytes], Awaitable[None]] = stream.write
        self.write_eof: Callable[[], Awaitable[None]] = stream.close_write
        self.close: Callable[[], Awaitable[None]] = stream.close

    async def read(self, n: int) -> bytes:
        try:
            data: bytes = await self._stream.read(n)
        except self._end:
            return b""
        return data


def _lib(name: str) -> Any:
    return importlib.import_module(name)


def _new_host() -> Any:
    return _lib("libp2p").new_host(key_pair=_lib("libp2p.crypto.ed25519").create_new_key_pair(secrets.token_bytes(32)))


async def _far() -> None:
    host = _new_host()
    exceptions = _lib("libp2p.network.stream.exceptions")

    async def serve(stream: Any) -> None:
        with contextlib.suppress(exceptions.StreamError):  # whoever uploads beside an echo just goes
            await probe.serve(_Duplex(stream, exceptions.StreamEOF))

    host.set_stream_handler(_PROTOCOL, serve)
    async with host.run(listen_addrs=[_lib("multiaddr").Multiaddr(f"/ip4/{FAR}/tcp/{STREAM_PORT}")]):
        probe.tell(str(host.get_id()))
        await _lib("trio").sleep_forever()


@contextlib.asynccontextmanager
async def _session(identity: str) -> AsyncGenerator[Callable[[], Awaitable[_Duplex]]]:
    host = _new_host()
    address = _lib("multiaddr").Multiaddr(f"/ip4/{FAR}/tcp/{STREAM_PORT}/p2p/{identity}")
    peer = _lib("libp2p.peer.peerinfo").info_from_p2p_addr(address)
    end = _lib("libp2p.network.stream.exceptions").StreamEOF

    async def open_stream() -> _Duplex:
        return _Duplex(await host.new_stream(peer.peer_id, [_PROTOCOL]), end)

    async with host.run(listen_addrs=[]):
        await host.connect(peer)
        yield open_stream


async def _beside(background: Callable[[], Awaitable[None]], foreground: Callable[[], Awaitable[T]]) -> T:
    async with _lib("trio").open_nursery() as nursery:
        nursery.start_soon(background)
        result = await foreground()
        nursery.cancel_scope.cancel()
    return result


async def _near(identity: str) -> None:
    await probe.obey(partial(_session, identity), _beside)


if __name__ == "__main__":
    roles: dict[str, Callable[..., Any]] = {"far": _far, "near": _near}
    _lib("trio").run(roles[sys.argv[1]], *sys.argv[2:])
