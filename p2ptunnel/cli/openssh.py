"""How the system's ssh is found, and how it finds us again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Final

from p2ptunnel.errors import ConfigError
from p2ptunnel.ssh.openssh import Launcher, has_known_hosts_command

if TYPE_CHECKING:
    from p2ptunnel.cli.settings import Settings

__all__ = ["find_ssh", "launcher"]

_VERSION_TIMEOUT: Final = 5.0


def find_ssh() -> str:
    """Return the path of the system's ssh.

    Raises:
        ConfigError: There is none.
    """
    found = shutil.which("ssh")
    if found is None:
        raise ConfigError("no ssh program is installed here", "Install OpenSSH's client; from Python, Peer.ssh needs none.")
    return found


def launcher(settings: Settings, service: str) -> Launcher:
    """Return how this system's ssh starts us, in the form that its version understands.

    Raises:
        ConfigError: There is no ssh.
    """
    version = subprocess.run(  # noqa: S603  # the user's own ssh
        [find_ssh(), "-V"], capture_output=True, text=True, timeout=_VERSION_TIMEOUT, check=False
    ).stderr
    known_hosts = None if has_known_hosts_command(version) else str(settings.profile.directory / "ssh_known_hosts")
    return Launcher(_absolute(settings.for_ssh), sys.executable, service, known_hosts)


def _absolute(flags: tuple[str, ...]) -> tuple[str, ...]:
    """Return the flags with absolute paths: ssh may start us in another directory later."""
    paths = {index + 1 for index, flag in enumerate(flags) if flag in ("--profile", "--trace")}
    return tuple(os.path.abspath(flag) if index in paths else flag for index, flag in enumerate(flags))
