"""How a test runs the command line: in this process for speed, as a program where signals and descriptors matter."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import IO

import pytest

from p2ptunnel.cli.main import main

__all__ = ["Result", "call", "environment", "program", "started"]

ROOT = Path(__file__).parents[3]


class Result:
    """What a command left: its exit code and what it wrote."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

    def __iter__(self) -> Generator[int | str]:
        yield from (self.code, self.out, self.err)


def call(capsys: pytest.CaptureFixture[str], *words: object) -> Result:
    """Run a command in this process."""
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return Result(code, captured.out, captured.err)


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a program that runs from this checkout, and keeps out of the network that the test runs in."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "P2PTUNNEL_LAN": "0", **more}


def program(*words: object) -> list[str]:
    """Return the argument vector of the program."""
    return [sys.executable, "-P", "-m", "p2ptunnel", *map(str, words)]


@contextlib.contextmanager
def started(*words: object, stderr: IO[str] | None = None) -> Generator[subprocess.Popen[str]]:
    """Start the program with pipes, and end it by SIGTERM if it still runs."""
    with subprocess.Popen(
        program(*words), env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait(timeout=10)
