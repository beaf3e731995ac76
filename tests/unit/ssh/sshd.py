"""A real sshd for one test: its own keys, a free port, gone afterwards."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Generator
from pathlib import Path

import pytest

__all__ = ["Sshd", "needs_openssh", "running_sshd"]

SEARCH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
SSHD = shutil.which("sshd", path=SEARCH)

needs_openssh = pytest.mark.skipif(
    SSHD is None or shutil.which("ssh") is None, reason="OpenSSH's client or server is not installed"
)


class Sshd:
    """One server: where it listens, its host key as `type base64`, and who may log in with which key file."""

    def __init__(self, directory: Path, listener: socket.socket) -> None:
        self.address: tuple[str, int] = listener.getsockname()
        self.host_key = _make_key(directory / "host")
        self.user = getpass.getuser()
        self.user_key = directory / "user"
        _make_key(self.user_key)
        config = directory / "sshd_config"
        config.write_text(
            f"HostKey {directory}/host\nAuthorizedKeysFile {directory}/user.pub\n"
            "StrictModes no\nUsePAM no\nPidFile none\nSubsystem sftp internal-sftp\n"
        )
        self._command = [str(SSHD), "-i", "-e", "-f", str(config)]
        self._listener = listener
        self.sessions: list[subprocess.Popen[bytes]] = []

    def serve(self) -> None:
        """Start an sshd for each connection, as inetd would: no port has to be guessed, no start be waited for."""
        with contextlib.suppress(OSError):  # the listener was shut down
            while True:
                connection, _ = self._listener.accept()
                with connection:
                    session = subprocess.Popen(self._command, stdin=connection, stdout=connection, stderr=subprocess.DEVNULL)
                self.sessions.append(session)

    def close(self) -> None:
        """Wait for the sessions, whose clients are gone."""
        for session in self.sessions:
            session.wait(timeout=10)


@contextlib.contextmanager
def running_sshd(directory: Path) -> Generator[Sshd]:
    """Serve on a free port of 127.0.0.1."""
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where root's sshd locks its unprivileged half up
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sshd = Sshd(directory, listener)
        thread = threading.Thread(target=sshd.serve, daemon=True)
        thread.start()
        try:
            yield sshd
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            sshd.close()


def _make_key(path: Path) -> str:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return " ".join(path.with_suffix(".pub").read_text().split()[:2])
