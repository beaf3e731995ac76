"""The world of a chaos run: two homes behind two NATs, a rendezvous server, and this package's programs on each machine."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Final

from p2ptunnel.testing.chaos.flow import ChaosError
from p2ptunnel.testing.demo import Machine, Stage
from p2ptunnel.testing.natlab import Lab, Site

__all__ = ["SINK", "SINK_PORT", "SSH", "World", "world"]

SINK: Final = "sink"
SINK_PORT: Final = 9000
SSH: Final = "ssh"
_SSHD_PORT: Final = 2222
_SSHD_PLACES: Final = "/usr/local/sbin:/usr/sbin:/sbin"


class World:
    """Two sites whose machines know each other's keys; the home serves what the caller may open.

    Attributes:
        stage: Its machines and programs.
        home: The site of the peer that serves.
        cafe: The site of the caller.
    """

    def __init__(self, stage: Stage, lab: Lab) -> None:
        self.stage = stage
        self.home, self.cafe = lab.sites
        self._server = f"{lab.server.ip}:7000"

    @property
    def tag(self) -> str:
        """The tag of the peer that serves."""
        return self.stage.home.name

    def sides(self, number: int) -> tuple[Site, Site]:
        """Return the site of that number, 0 for home and 1 for the caller's, and the other one."""
        return (self.cafe, self.home) if number else (self.home, self.cafe)

    def p2ptunnel(self, machine: Machine, *arguments: str) -> list[str]:
        """Return the command line of our program on a machine."""
        return machine.p2ptunnel("--rendezvous", self._server, *arguments)

    def begin(self) -> None:
        """Start the server, introduce the two to each other, and serve a sink and SSH."""
        stage, listen = self.stage, self._server
        stage.start(stage.server, stage.server.p2ptunnel("rendezvous", "--listen", listen), lambda line: listen in line)
        keys = [json.loads(side.run(side.p2ptunnel("--json", "id")))["key"] for side in (stage.home, stage.laptop)]
        home, laptop = stage.home, stage.laptop
        home.run(home.p2ptunnel("peers", "add", laptop.name, keys[1], "--services", f"{SINK},{SSH}"))
        laptop.run(laptop.p2ptunnel("peers", "add", home.name, keys[0]))
        serve = self.p2ptunnel(home, "serve", f"{SINK}={SINK_PORT}", f"{SSH}=ssh:127.0.0.1:{_SSHD_PORT}")
        stage.start(home, serve, lambda line: line.startswith("serving"))

    def start_sshd(self) -> tuple[str, Path]:
        """Start OpenSSH's server at home; return the options file of the caller's ssh, and who may log in as `user@host`."""
        home, laptop = self.stage.home, self.stage.laptop
        host_key, user_key = home.directory / "host_key", laptop.directory / "id_ed25519"
        for path in (host_key, user_key):
            home.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "chaos", "-f", str(path)])
        self._run_sshd(host_key, user_key.with_suffix(".pub"))
        config = laptop.directory / "ssh_config"
        config.write_text(f"IdentityFile {user_key}\n" + laptop.run(self.p2ptunnel(laptop, "ssh-config")))
        return f"{getpass.getuser()}@{self.tag}.p2p", config

    def _run_sshd(self, host_key: Path, authorized: Path) -> None:
        sshd = shutil.which("sshd", path=os.pathsep.join((os.environ.get("PATH", os.defpath), _SSHD_PLACES)))
        if sshd is None:
            raise ChaosError("sshd is not installed (package openssh-server)")
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where its unprivileged half lives; packages make it at boot
        config = host_key.with_name("sshd_config")
        config.write_text(
            f"Port {_SSHD_PORT}\nListenAddress 127.0.0.1\nHostKey {host_key}\nAuthorizedKeysFile {authorized}\nPidFile none\n"
            "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\nSubsystem sftp internal-sftp\n"
        )
        errors_to_output = ["sh", "-c", 'exec "$0" "$@" 2>&1', sshd, "-D", "-e", "-f", str(config)]
        self.stage.start(self.stage.home, errors_to_output, lambda line: "Server listening" in line)


@contextlib.contextmanager
def world(directory: Path, delay: float) -> Generator[World]:
    """Build the world below a directory, and end it with the block.

    Args:
        directory: Empty; profiles, logs and traces of all programs stay there.
        delay: Seconds one way on each access line, the server's included.

    Raises:
        LaboratoryError: No laboratory can be built here.
        DemoError: A program did not come up.
    """
    with Lab(server_delay=delay) as lab:
        stage = Stage(directory, lab, delay)
        try:
            made = World(stage, lab)
            made.begin()
            yield made
        finally:
            stage.close()
