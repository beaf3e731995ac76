"""asyncssh: SSH in Python, with a forward and with streams; nobody logs in, which costs it nothing but safety.

python -m bench.contestants.asyncssh far|forward|near [CIPHER]
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench import probe
from bench.contest import FAR, FORWARD_PORT, LOOPBACK, SINK_PORT, STREAM_PORT, Contestant

if TYPE_CHECKING:
    from bench.rig import Program, Rig

_MODULE: Final = "bench.contestants.asyncssh"
_REQUIREMENTS: Final = ("asyncssh==2.24.1",)
_CIPHER: Final = "aes128-gcm@openssh.com"
_STREAM_SERVICE_PORT: Final = 1
"""What near asks for to be served in the far program itself."""


def _start_forward(rig: Rig, python: Path, *cipher: str) -> Program:
    rig.sink()
    _start_far(rig, python)
    return rig.probe(rig.near.start([python, "-m", _MODULE, "forward", *cipher]))


def _start_stream(rig: Rig, python: Path) -> Program:
    _start_far(rig, python)
    return rig.near.start([python, "-m", _MODULE, "near", _CIPHER])


def _start_far(rig: Rig, python: Path) -> None:
    rig.far.wait_for_port(STREAM_PORT, rig.far.start([python, "-m", _MODULE, "far"]))


CONTESTANTS: Final = (
    Contestant(
        "asyncssh",
        "forward",
        "asyncssh forward, aes128-gcm",
        lambda rig, python: _start_forward(rig, python, _CIPHER),
        requirements=_REQUIREMENTS,
    ),
    Contestant(
        "asyncssh-default", "forward", "asyncssh forward, its default cipher", _start_forward, requirements=_REQUIREMENTS
    ),
    Contestant("asyncssh", "stream", "asyncssh channel, aes128-gcm", _start_stream, requirements=_REQUIREMENTS),
)


class _Duplex:
    """A channel of an SSH connection."""

    def __init__(self, reader: Any, writer: Any) -> None:
        self._writer = writer
        self.read: Callable[[int], Awaitable[bytes]] = reader.read

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def write_eof(self) -> None:
        self._writer.write_eof()

    async def close(self) -> None:
        self._writer.close()


async def _far(asyncssh: Any) -> None:
    async def serve(reader: Any, writer: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # whoever uploads beside an echo just goes
            await probe.serve(_Duplex(reader, writer))

    class Server(asyncssh.SSHServer):  # type: ignore[misc]
        def begin_auth(self, username: str) -> bool:
            return False

        def connection_requested(self, host: str, port: int, *_: object) -> object:
            return serve if port == _STREAM_SERVICE_PORT else True

    key = asyncssh.generate_private_key("ssh-ed25519")
    server = await asyncssh.listen(FAR, STREAM_PORT, server_factory=Server, server_host_keys=[key])
    await server.wait_closed()


def _connect(asyncssh: Any, *cipher: str) -> Any:
    options = {"encryption_algs": list(cipher)} if cipher else {}
    return asyncssh.connect(FAR, STREAM_PORT, username="bench", known_hosts=None, client_keys=None, config=None, **options)


async def _forward(asyncssh: Any, *cipher: str) -> None:
    async with _connect(asyncssh, *cipher) as connection:
        listener = await connection.forward_local_port(LOOPBACK, FORWARD_PORT, LOOPBACK, SINK_PORT)
        await listener.wait_closed()


@contextlib.asynccontextmanager
async def _session(asyncssh: Any, *cipher: str) -> AsyncGenerator[Callable[[], Awaitable[_Duplex]]]:
    async with _connect(asyncssh, *cipher) as connection:

        async def open_stream() -> _Duplex:
            return _Duplex(*await connection.open_connection(LOOPBACK, _STREAM_SERVICE_PORT))

        yield open_stream


async def _near(asyncssh: Any, *cipher: str) -> None:
    await probe.obey(partial(_session, asyncssh, *cipher))


if __name__ == "__main__":
    roles = {"far": _far, "forward": _forward, "near": _near}
    asyncio.run(roles[sys.argv[1]](importlib.import_module("asyncssh"), *sys.argv[2:]))
