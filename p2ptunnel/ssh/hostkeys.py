"""Host keys of the SSH servers behind services: found at the callee, told over the authenticated channel.

A callee that serves an SSH server as `ssh` also serves `ssh-host-keys/ssh` to whoever may open `ssh`: lines of `type base64`,
then FIN; no line if it cannot find out.
"""

from __future__ import annotations

import asyncio
import time
from asyncio.subprocess import DEVNULL, PIPE
from collections import defaultdict
from pathlib import Path
from typing import Final

from p2ptunnel.abc import Connector, Stream
from p2ptunnel.defaults import HOST_KEYS_MAX_BYTES, HOST_KEYS_MEMORY, HOST_KEYS_SCAN_TIMEOUT
from p2ptunnel.errors import RemoteProtocolError
from p2ptunnel.ssh.knownhosts import host_keys_service, parse_host_keys
from p2ptunnel.types import Address, Tag

__all__ = ["HostKeys", "fetch_host_keys"]

_SSH_DIRECTORY: Final = Path("/etc/ssh")
_LOCAL_SSHD: Final = (("127.0.0.1", 22), ("::1", 22))
_SCANNED: Final = "ed25519,ecdsa,rsa"


class HostKeys:
    """What a callee knows of the SSH servers that it forwards to; remembered for `HOST_KEYS_MEMORY` seconds.

    Args:
        directory: Where the keys of this machine's own sshd lie.
    """

    def __init__(self, directory: Path = _SSH_DIRECTORY) -> None:
        self._directory = directory
        self._found: dict[Address, tuple[float, tuple[str, ...]]] = {}
        self._scanning: defaultdict[Address, asyncio.Lock] = defaultdict(asyncio.Lock)  # asking often starts no crowd of scans

    async def of(self, target: Address | str) -> tuple[str, ...]:
        """Return the host keys of the SSH server at `target`, lines of `type base64`; none if they cannot be found out.

        Asks the server itself, as `ssh-keyscan` does; a server on this machine's port 22 that cannot be asked has its keys read
        from their files. Nothing is known of a server behind the path of a unix socket.
        """
        if isinstance(target, str):
            return ()
        async with self._scanning[target]:
            found_at, keys = self._found.get(target, (0.0, ()))
            if not keys or time.monotonic() - found_at > HOST_KEYS_MEMORY:
                keys = await _scan(target) or self._read(target)
                self._found[target] = (time.monotonic(), keys)
            return keys

    async def tell(self, stream: Stream, target: Address | str) -> None:
        """Write the host keys of the SSH server at `target` to a peer's stream, and close the stream."""
        async with stream:
            keys = await self.of(target)
            await stream.write("".join(f"{key}\n" for key in keys).encode("ascii"))

    def _read(self, target: Address) -> tuple[str, ...]:
        if target not in _LOCAL_SSHD:
            return ()
        files = sorted(self._directory.glob("ssh_host_*_key.pub"))
        return parse_host_keys("".join(file.read_text("utf-8", "replace") for file in files))


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
