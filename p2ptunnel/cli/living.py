"""The programs of this profile that run now, and their connections: each tells on a unix socket beside the key; `status` asks.

Rule: who asks loads no event loop, and nothing here keeps a tunnel from running.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from p2ptunnel.errors import StoreError
from p2ptunnel.identity.taglock import RUN_DIRECTORY
from p2ptunnel.types import Path as NetworkPath

if TYPE_CHECKING:
    import asyncio

    from p2ptunnel.cli.settings import Settings
    from p2ptunnel.peer import Peer

__all__ = ["Connection", "Program", "living", "telling_status"]

_SUFFIX: Final = ".sock"
_PATIENCE: Final = 1.0  # seconds; a program that is stopped answers nobody
_ANSWER_MAX_BYTES: Final = 1 << 20


class Connection(msgspec.Struct, frozen=True):
    """A session of a running program; the fields are those of `PeerStatus`."""

    peer: str
    state: str
    path: NetworkPath | None
    streams: int
    resumes: int
    suspended_for: float | None


class Program(msgspec.Struct, frozen=True):
    """A program that runs: what it was started as, its process, and its sessions."""

    command: str
    pid: int
    connections: tuple[Connection, ...]


@contextlib.asynccontextmanager
async def telling_status(peer: Peer, settings: Settings, command: str) -> AsyncGenerator[None]:
    """Answer `status` for a peer while the block lasts; where there is no place for that, only say so with -v."""
    import asyncio

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(StoreError, OSError):
            writer.write(msgspec.json.encode(_program(peer, command)))
            await writer.drain()
        writer.close()

    path = settings.profile.directory / RUN_DIRECTORY / f"{os.getpid()}{_SUFFIX}"
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        server = await asyncio.start_unix_server(answer, path)
    except (OSError, AttributeError) as error:  # a path too long, a disk read-only; no such sockets on Windows
        settings.output.detail(f"`p2ptunnel status` will not see this program: {error}")
        yield
        return
    try:
        yield
    finally:
        server.close()
        path.unlink(missing_ok=True)


def living(directory: Path) -> list[Program]:
    """Return the programs of a profile that run and answer, by their process numbers."""
    found = (_ask(path) for path in (directory / RUN_DIRECTORY).glob(f"*{_SUFFIX}"))
    return sorted((program for program in found if program is not None), key=lambda program: program.pid)


def _program(peer: Peer, command: str) -> Program:
    return Program(
        command,
        os.getpid(),
        tuple(
            Connection(known.tag, known.state, known.path, known.streams, known.resumes, known.suspended_for)
            for known in peer.snapshot().peers
            if known.state is not None
        ),
    )


def _ask(path: Path) -> Program | None:
    """Return what the program behind a socket tells; a socket that nobody listens on is removed."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(_PATIENCE)
        try:
            sock.connect(os.fspath(path))
            return msgspec.json.decode(_read(sock), type=Program)
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except (OSError, msgspec.DecodeError):  # it ended while it spoke, is stopped, or is of another version
            pass
    return None


def _read(sock: socket.socket) -> bytes:
    data = bytearray()
    while len(data) < _ANSWER_MAX_BYTES and (part := sock.recv(65536)):
        data += part
    return bytes(data)
