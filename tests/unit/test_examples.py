"""Every example runs, offline, and prints what it promises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PRINTS = {
    "forward_web.py": "3 connections, 0 failed",
    "hello_stream.py": "HELLO THROUGH THE HOLE",
    "netcheck.py": "No NAT",
    "rendezvous_server.py": "the peer says: welcome",
    "ssh_run.py": "ran 'uptime' for pi",
    "watch_connection.py": "ARE YOU THERE?",
}


@pytest.mark.e2e
@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_an_example_runs_and_prints_what_it_promises(path: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path)], env=environment, capture_output=True, text=True, timeout=20, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert PRINTS[path.name] in done.stdout
    assert not list(tmp_path.iterdir())  # nothing is left in the user's home
