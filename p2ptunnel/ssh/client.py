"""SSH from Python: asyncssh over a stream, told everything that it would otherwise look for on this machine.

Rule: asyncssh is imported when a connection is opened, never before; it alone takes longer than all the rest.

Source: asyncssh 2.24, SSHClientConnectionOptions; figures measured on two cores.
"""

from __future__ import annotations

import contextlib
import getpass
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from p2ptunnel.abc import Connector
from p2ptunnel.defaults import SSH_LOGIN_TIMEOUT, SSH_PACKET_BYTES, SSH_WINDOW_BYTES
from p2ptunnel.errors import ConfigError, MissingExtraError, SSHError
from p2ptunnel.types import Tag, clean

if TYPE_CHECKING:
    import asyncssh

__all__ = ["SSH", "open_ssh"]

_CIPHERS: Final = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com")
_CPU: Final = Path("/proc/cpuinfo")
_OURS: Final = frozenset({"host", "known_hosts", "port", "proxy_command", "sock", "tunnel"})


class SSH:
    """A login at a peer's SSH server; close it, or use it in `async with`."""

    def __init__(self, tag: Tag, connection: asyncssh.SSHClientConnection) -> None:
        self.tag = tag
        self._connection = connection

    def __repr__(self) -> str:
        return f"<SSH {self._connection.get_extra_info('username')}@{self.tag}>"

    @property
    def connection(self) -> asyncssh.SSHClientConnection:
        """The connection, for all that asyncssh can do."""
        return self._connection

    async def run(self, command: str, **options: Any) -> asyncssh.SSHCompletedProcess:
        """Run a command to its end; see `asyncssh.SSHClientConnection.run` for options such as `check` and `input`."""
        return await self._connection.run(command, **options)

    async def process(self, command: str | None = None, **options: Any) -> asyncssh.SSHClientProcess[Any]:
        """Start a command, or a shell without one, and return it with its streams."""
        return await self._connection.create_process(command, **options)

    async def sftp(self, **options: Any) -> asyncssh.SFTPClient:
        """Open an SFTP session."""
        return await self._connection.start_sftp_client(**options)

    async def close(self) -> None:
        """Log out; closing twice is fine."""
        self._connection.close()
        await self._connection.wait_closed()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def open_ssh(
    connector: Connector,
    tag: Tag,
    *,
    known_host_keys: Sequence[str],
    username: str | None = None,
    client_keys: Any = None,
    service: str = "ssh",
    **options: Any,
) -> SSH:
    """Log in to the SSH server that a peer serves.

    Neither `~/.ssh/config` nor an agent is used unless `options` say so (`config`, `agent_path`).

    Args:
        connector: What opens the stream.
        tag: The peer.
        known_host_keys: The server's host keys, lines of `type base64`; no other key is believed.
        username: None: the name of the user who runs this.
        client_keys: Keys to log in with, as asyncssh takes them; None: the files that ssh would try, such as
            `~/.ssh/id_ed25519`.
        service: The service that is the SSH server.
        options: For `asyncssh.connect`.

    Raises:
        MissingExtraError: asyncssh is not installed.
        ConfigError: An option is not the caller's to give.
        SSHError: The server has another host key, or did not let us in.
        P2PTunnelError: The service cannot be reached; see `Connector.connect`.
    """
    try:
        import asyncssh
    except ImportError as error:
        raise MissingExtraError("ssh", "ssh") from error
    settings = _settings(tag, known_host_keys, username, client_keys, options)
    stream = await connector.connect(tag, service)
    sock = stream.socket()
    try:
        with _typed_errors(tag, settings):
            return SSH(tag, await asyncssh.connect(sock=sock, **settings))
    except BaseException:
        sock.close()
        raise


def _settings(
    tag: Tag, known_host_keys: Sequence[str], username: str | None, client_keys: Any, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the options for `asyncssh.connect`."""
    if forbidden := _OURS & options.keys():
        raise ConfigError(f"{', '.join(sorted(forbidden))} cannot be given: the peer decides", "Leave the option out.")
    if not known_host_keys:
        raise SSHError(tag, "no host key of its server is known", "The peer tells the keys of what it serves as `ssh`.")
    settings: dict[str, Any] = {
        "host": tag,
        "config": None,
        "agent_path": None,
        "encryption_algs": _CIPHERS if _has_aes() else _CIPHERS[::-1],
        "compression_algs": "none",
        "window": SSH_WINDOW_BYTES,
        "max_pktsize": SSH_PACKET_BYTES,
        "keepalive_interval": 0,  # the channel below has its own
        "login_timeout": SSH_LOGIN_TIMEOUT,
        "known_hosts": _known_hosts(known_host_keys),
        "username": username or getpass.getuser(),
        **options,
    }
    if client_keys is not None:
        settings["client_keys"] = client_keys
    return settings


def _known_hosts(keys: Sequence[str]) -> tuple[list[asyncssh.SSHKey], list[asyncssh.SSHKey], list[asyncssh.SSHKey]]:
    """Return trusted host keys, trusted authorities, revoked keys; empty lists refuse, where None would believe anybody."""
    import asyncssh

    return ([asyncssh.import_public_key(key) for key in keys], [], [])


def _has_aes() -> bool:
    """Tell whether the CPU computes AES; where it does not say so, it most likely does."""
    try:
        return "aes" in _CPU.read_text("ascii", "replace").split()
    except OSError:
        return True


@contextlib.contextmanager
def _typed_errors(tag: Tag, settings: Mapping[str, Any]) -> Generator[None]:
    """Turn what asyncssh raises into what the caller of this package can tell apart."""
    import asyncssh

    try:
        yield
    except asyncssh.HostKeyNotVerifiable as error:
        hint = "Another server answers there than the peer said; connect again, and look at the peer if it happens again."
        raise SSHError(tag, "its host key is not the one that the peer told", hint) from error
    except asyncssh.PermissionDenied as error:
        hint = "Try another username, or other client_keys."
        raise SSHError(tag, f"{settings['username']} may not log in there", hint) from error
    except (asyncssh.Error, OSError) as error:
        raise SSHError(tag, clean(str(error)) or type(error).__name__) from error
