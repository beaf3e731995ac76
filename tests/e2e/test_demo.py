"""The demonstration does what the README says of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

STEPS = ("t=4", "t=-4", "t=10", "t=30", "t=-10", "t=11", "t=-11", "t=31", "t=-31", "TCP", "TLS")


def demo(*options: str) -> str:
    """Run the demonstration with a small file, and return what it prints."""
    argv = [sys.executable, "-m", "p2ptunnel.testing.demo", "--size", "2", *options]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=80, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check(output: str) -> None:
    at = [re.search(rf"ms +{re.escape(step)} ", output) for step in STEPS]
    assert all(at), output
    assert re.search(r"ms +t=-4 +200: the callee is being asked", output)
    assert "Linux" in output or "Darwin" in output  # ssh ran uname
    assert re.search(r"scp of 2 MiB in [0-9.]+ s with login; sha256 equal on both sides", output)
    assert "<h1>This page came from behind two NATs.</h1>" in output


@pytest.mark.natlab
def test_two_homes_behind_two_nats_in_the_laboratory() -> None:
    output = demo()
    assert "Two homes, each behind a port-restricted NAT" in output
    check(output)
    assert output.index("t=4 ") < output.index("t=10 ") < output.index("t=-4 ") < output.index("t=-10 ")


def test_without_a_laboratory_the_same_runs_on_loopback_and_says_so() -> None:
    output = demo("--loopback")
    assert "everything runs on loopback, without NATs" in output
    check(output)


def programs_of(profiles: str) -> list[str]:
    """The command lines of all programs that name a directory of the demonstration."""
    found: list[str] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:  # it has ended
                continue
            found += [word.decode(errors="replace") for word in words if profiles in word.decode(errors="replace")]
    return found


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_no_program_and_no_file(sent: signal.Signals, tmp_path: Path) -> None:
    argv = [sys.executable, "-u", "-m", "p2ptunnel.testing.demo", "--size", "2", "--loopback"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as program:
        assert program.stdout is not None
        for line in program.stdout:
            if "serving" in line:  # server, sshd, web server and peer are all up
                break
        assert programs_of(str(tmp_path))
        program.send_signal(sent)
        _, errors = program.communicate(timeout=20)
    assert (program.returncode, errors) == (130, "interrupted\n")
    assert programs_of(str(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []


def test_a_failure_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    """ssh is there, but cannot do its work."""
    broken = tmp_path / "bin"
    broken.mkdir()
    (broken / "ssh").write_text("#!/bin/sh\necho no luck today >&2\nexit 7\n")
    (broken / "ssh").chmod(0o755)
    files = tmp_path / "files"
    files.mkdir()
    environment = {**os.environ, "TMPDIR": str(files), "PATH": f"{broken}{os.pathsep}{os.environ['PATH']}"}
    argv = [sys.executable, "-m", "p2ptunnel.testing.demo", "--size", "2", "--loopback"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 1
    assert re.search(r"FAILED: .*no luck today", done.stdout, re.DOTALL), done.stdout + done.stderr
    assert programs_of(str(files)) == []
    assert list(files.iterdir()) == []


def test_without_openssh_it_says_what_to_install(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": str(tmp_path)}
    argv = [sys.executable, "-m", "p2ptunnel.testing.demo", "--loopback"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False, env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert "ssh, scp, ssh-keygen" in done.stderr
    assert "apt install openssh-client openssh-server" in done.stderr
