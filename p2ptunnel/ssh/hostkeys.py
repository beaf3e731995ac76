"""Host keys of the SSH servers behind services: found at the callee, told over the authenticated channel.

A callee that serves an SSH server as `ssh` also serves `ssh-host-keys/ssh` to whoever may open `ssh`: lines of `type base64`,
then FIN; no line if it cannot find out.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from asyncio.subprocess import DEVNULL, PIPE
from collections import defaultdict
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from p2ptunnel.abc import Connector, Stream
from p2ptunnel.defaults import HOST_KEYS_MAX_BYTES, HOST_KEYS_MEMORY, HOST_KEYS_SCAN_TIMEOUT
from p2ptunnel.errors import RemoteProtocolError
from p2ptunnel.ssh.knownhosts import host_keys_service, parse_host_keys
from p2ptunnel.types import Address, Tag

__all__ = ["HostKeys", "fetch_host_keys"]

_SSH_DIRECTORY: Final = Path("/etc/ssh")
_LOCAL_SSHD: Final = (("127.0.0.1", 22), ("::1", 22))
_SCANNED: Final = "ed25519,ecdsa,rsa"
_Stamp: TypeAlias = tuple[tuple[str, int, int, int], ...]
"""Of files: the name, when it was written, its inode and its size."""


class _Found(msgspec.Struct, frozen=True):
    """What was found out of one server, when, and how our own files looked then."""

    at: float
    files: _Stamp
    keys: tuple[str, ...]


class HostKeys:
    """What a callee knows of the SSH servers that it forwards to; remembered for `HOST_KEYS_MEMORY` seconds.

    Where the files of this machine's own sshd change, everything is asked anew.  And while that sshd shows other keys than are
    in the files, nothing of it is remembered: it is about to be started again.

    Args:
        directory: Where the keys of this machine's own sshd lie.
    """

    def __init__(self, directory: Path = _SSH_DIRECTORY) -> None:
        self._directory = directory
        self._found: dict[Address, _Found] = {}
        self._scanning: defaultdict[Address, asyncio.Lock] = defaultdict(asyncio.Lock)  # asking often starts no crowd of scans

    async def of(self, target: Address | str) -> tuple[str, ...]:
        """Return the host keys of the SSH server at `target`, lines of `type base64`; none if they cannot be found out.

        Asks the server itself, as `ssh-keyscan` does; a server on this machine's port 22 that cannot be asked has its keys read
        from their files. Nothing is known of a server behind the path of a unix socket.
        """
        if isinstance(target, str):
            return ()
        async with self._scanning[target]:
            before, known = self._stamp(), self._found.pop(target, None)
            if known is None or not known.keys or before != known.files or time.monotonic() - known.at > HOST_KEYS_MEMORY:
                known = _Found(time.monotonic(), before, await _scan(target) or self._read(target))
            if target not in _LOCAL_SSHD or set(known.keys) <= set(self._read(target)):
                self._found[target] = known
            return known.keys

    async def tell(self, stream: Stream, target: Address | str) -> None:
        """Write the host keys of the SSH server at `target` to a peer's stream, and close the stream."""
        async with stream:
            keys = await self.of(target)
            await stream.write("".join(f"{key}\n" for key in keys).encode("ascii"))

    def _files(self) -> list[Path]:
        return sorted(self._directory.glob("ssh_host_*_key.pub"))

    def _stamp(self) -> _Stamp:
        """Return what is another as soon as a file is."""
        seen: list[tuple[str, int, int, int]] = []
        for file in self._files():
            with contextlib.suppress(OSError):  # it has just been replaced: seen the next time
                status = file.stat()
                seen.append((file.name, status.st_mtime_ns, status.st_ino, status.st_size))
        return tuple(seen)

    def _read(self, target: Address) -> tuple[str, ...]:
        if target not in _LOCAL_SSHD:
            return ()
        texts: list[str] = []
        for file in self._files():
            with contextlib.suppress(OSError):
                texts.append(file.read_text("utf-8", "replace"))
        return parse_host_keys("".join(texts))


async def fetch_host_keys(connector: Connector, tag: Tag, service: str = "ssh") -> tuple[str, ...]:
    """Return the host keys, lines of `type base64`, that the peer tells of the SSH server behind its service.

    Raises:
        AccessDeniedError: It does not serve it to us, or does not take it for an SSH server.
        RemoteProtocolError: It tells more than host keys can be.
        P2PTunnelError: It cannot be reached; see `Connector.connect`.
    """
    async with await connector.connect(tag, host_keys_service(service)) as stream:
        text = bytearray()
        async for part in stream:
            text += part
            if len(text) > HOST_KEYS_MAX_BYTES:
                raise RemoteProtocolError(f"host keys of more than {HOST_KEYS_MAX_BYTES} bytes", tag)
    return parse_host_keys(text.decode("ascii", "replace"))


async def _scan(target: Address) -> tuple[str, ...]:
    """Ask the server at `target` for its keys; none if it does not answer in time or there is no ssh-keyscan."""
    host, port = target
    command = ("ssh-keyscan", "-T", f"{HOST_KEYS_SCAN_TIMEOUT:.0f}", "-t", _SCANNED, "-p", str(port), "--", host)
    try:
        process = await asyncio.create_subprocess_exec(*command, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL)
    except OSError:
        return ()
    try:
        async with asyncio.timeout(HOST_KEYS_SCAN_TIMEOUT):
            output, _ = await process.communicate()
    except TimeoutError:
        return ()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return parse_host_keys(output.decode("ascii", "replace"))
