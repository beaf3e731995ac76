"""Packets as a machine of the laboratory sees them."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, Final

from p2ptunnel.errors import LaboratoryError
from p2ptunnel.testing.natlab.host import Host
from p2ptunnel.testing.natlab.programs import end_program

__all__ = ["Capture", "capture"]

_LISTENING: Final = "listening on"
_MARK_ADDRESS: Final = ("127.0.0.1", 9)
_MARK: Final = "udp port 9 and host 127.0.0.1"


class Capture:
    """What was recorded.

    Attributes:
        lines: One text a packet, as tcpdump prints it; complete when the block has ended.
        path: The file, if one was asked for.
    """

    def __init__(self, path: Path | None) -> None:
        self.lines: list[str] = []
        self.path = path


@contextlib.contextmanager
def capture(machine: Host, expression: str, write: str | Path | None) -> Generator[Capture, None, None]:
    """Record packets of a machine while the block lasts; see `Lab.capture`."""
    if shutil.which("tcpdump") is None:
        raise LaboratoryError("the program tcpdump is missing")
    found = Capture(None if write is None else Path(write))
    wanted = f"({expression}) or ({_MARK})" if expression else ""
    saved = [] if found.path is None else ["-w", str(found.path), "-U", "--print"]
    arguments = ["tcpdump", "-i", "any", "-nn", "-l", "--immediate-mode", "-Z", "root", *saved, wanted]
    program = machine.popen([word for word in arguments if word], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert program.stdout is not None
    assert program.stderr is not None
    try:
        _wait_until_it_listens(program.stderr)
        yield found
        with machine.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"", _MARK_ADDRESS)
        found.lines += _lines_before_mark(program.stdout)
    finally:
        end_program(program)


def _wait_until_it_listens(errors: IO[str]) -> None:
    said: list[str] = []
    for line in errors:
        if _LISTENING in line:
            return
        said.append(line.strip())
    raise LaboratoryError(f"tcpdump says {' '.join(said)}")


def _lines_before_mark(output: IO[str]) -> Iterator[str]:
    for line in output:
        if "127.0.0.1.9: UDP" in line:
            return
        yield line.rstrip("\n")
