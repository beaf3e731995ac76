"""OpenSSH's `ssh -L`: what people use."""

from __future__ import annotations

import getpass
import subprocess
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.contest import FAR, FORWARD_PORT, LOOPBACK, SINK_PORT, STREAM_PORT, Contestant
from bench.install import which

if TYPE_CHECKING:
    from bench.rig import Program, Rig

_NEEDS: Final = {"ssh": "openssh-client", "sshd": "openssh-server"}


def _start(rig: Rig, _: Path, cipher: str | None) -> Program:
    rig.sink()
    host_key, user_key = rig.directory / "host", rig.directory / "user"
    for key in (host_key, user_key):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    config = rig.directory / "sshd_config"
    config.write_text(
        f"Port {STREAM_PORT}\nListenAddress {FAR}\nHostKey {host_key}\nAuthorizedKeysFile {user_key}.pub\n"
        "PidFile none\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)  # where its unprivileged half lives; packages make it at boot
    far = rig.far.start([str(which("sshd")), "-D", "-e", "-f", config])
    rig.far.wait_for_port(STREAM_PORT, far)
    known = rig.directory / "known_hosts"
    known.write_text(f"[{FAR}]:{STREAM_PORT} {host_key.with_suffix('.pub').read_text()}")
    options: list[str | Path] = [
        "-F",
        "none",
        "-N",
        "-p",
        str(STREAM_PORT),
        "-i",
        user_key,
        *(["-c", cipher] if cipher else []),
    ]
    for option in ("ExitOnForwardFailure=yes", "BatchMode=yes", f"UserKnownHostsFile={known}"):
        options += ["-o", option]
    forward = f"{LOOPBACK}:{FORWARD_PORT}:{LOOPBACK}:{SINK_PORT}"
    return rig.probe(rig.near.start(["ssh", *options, "-L", forward, f"{getpass.getuser()}@{FAR}"]))


CONTESTANTS: Final = (
    Contestant(
        "openssh",
        "forward",
        "OpenSSH -L, aes128-gcm",
        partial(_start, cipher="aes128-gcm@openssh.com"),
        programs=_NEEDS,
    ),
    Contestant("openssh-default", "forward", "OpenSSH -L, its default cipher", partial(_start, cipher=None), programs=_NEEDS),
)
