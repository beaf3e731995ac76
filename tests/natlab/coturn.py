"""A second opinion on NATs: coturn's server in the laboratory, and its own client's RFC 5780 questions."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2ptunnel.testing.natlab import Host, Lab

__all__ = ["coturn", "discover", "require"]

_PROGRAMS = ("turnserver", "turnutils_natdiscovery")
_PORT = 3478
_PATIENCE = 30.0
_VERDICT = re.compile(r"NAT with (.+) (Mapping|Filtering)!")
_SHORT = {"Endpoint Independent": "EI", "Address Dependent": "AD", "Address and Port Dependent": "APD"}


def require() -> None:
    """Skip the test where coturn is not installed, or fail it if the laboratory is required."""
    if all(shutil.which(program) for program in _PROGRAMS):
        return
    if os.environ.get("P2PTUNNEL_REQUIRE_NATLAB") == "1":
        pytest.fail("not installed: coturn", pytrace=False)
    pytest.skip("not installed: coturn")


@contextlib.contextmanager
def coturn(lab: Lab, directory: Path) -> Iterator[None]:
    """Have a STUN server at both addresses of the laboratory's server, and two ports of each, while the block lasts."""
    one, other = lab.server.ips
    options = ["-n", "--no-cli", "--no-tls", "--no-dtls", "--stun-only", "--no-auth", "--realm", "lab"]
    places = ["--listening-port", str(_PORT), "-L", one, "-L", other, "-E", one]
    files = ["--log-file", "stdout", "--pidfile", str(directory / "pid"), "--userdb", str(directory / "db")]
    argv = ["turnserver", *options, *places, *files]
    program = lab.server.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert program.stdout is not None
    said: list[str] = []
    for line in program.stdout:
        said.append(line)
        if "Total General servers" in line:
            break
    else:
        raise AssertionError("".join(said))
    yield  # the program ends with the laboratory


def discover(lab: Lab, host: Host) -> tuple[str, str]:
    """Return mapping and filtering of UDP as coturn's client names them there, in short: EI, AD, APD; else its last words."""
    argv = ["turnutils_natdiscovery", "-m", "-f", "-p", str(_PORT), lab.server.ip]
    output = host.run(argv, check=False, timeout=_PATIENCE).stdout
    found = {what: _SHORT[how] for how, what in _VERDICT.findall(output)}
    return found.get("Mapping", output[-200:]), found.get("Filtering", output[-200:])
