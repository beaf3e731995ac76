"""The demonstration does what the README says of it."""

import re
import subprocess
import sys

import pytest

STEPS = ("t=4", "t=-4", "t=10", "t=30", "t=-10", "t=11", "t=-11", "t=31", "t=-31", "t=32", "t=-32", "TCP", "TLS")


def demo(*options: str) -> str:
    """Run the demonstration with a small file, and return what it prints."""
    argv = [sys.executable, "-m", "p2ptunnel.testing.demo", "--size", "2", *options]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=80, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check(output: str) -> None:
    at = [re.search(rf"ms +{re.escape(step)} ", output) for step in STEPS]
    assert all(at), output
    assert "Linux" in output or "Darwin" in output  # ssh ran uname
    assert re.search(r"scp of 2 MiB in [0-9.]+ s with login; sha256 equal on both sides", output)
    assert "<h1>This page came from behind two NATs.</h1>" in output


@pytest.mark.natlab
def test_two_homes_behind_two_nats_in_the_laboratory() -> None:
    output = demo()
    assert "Two homes, each behind a port-restricted NAT" in output
    check(output)


def test_without_a_laboratory_the_same_runs_on_loopback_and_says_so() -> None:
    output = demo("--loopback")
    assert "everything runs on loopback, without NATs" in output
    check(output)
