"""Packets as a machine of the laboratory sees them."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import IO, Final

from p2ptunnel.errors import LaboratoryError
from p2ptunnel.testing.natlab.host import Host
from p2ptunnel.testing.natlab.programs import end_program

__all__ = ["Capture", "capture"]

_LISTENING: Final = "listening on"
_DROPPED: Final = re.compile(r"^([1-9]\d*) packets? dropped", re.MULTILINE)
_MARK_ADDRESS: Final = ("127.0.0.1", 9)
_MARK: Final = "udp dst port 9 and dst host 127.0.0.1"
_MARK_INTERVAL, _PATIENCE = 0.05, 10.0
_MARK_TEXT: Final = "> 127.0.0.1.9: UDP"
_BUFFER_KIB: Final = 16_384
"""A slot of the kernel's buffer is as large as a snapshot; by default it has eight slots, which a burst fills."""


class Capture:
    """What was recorded.

    Attributes:
        lines: One text a packet, as tcpdump prints it; complete when the block has ended.
        path: The file, if one was asked for; its last packets are marks of our own.
    """

    def __init__(self, path: Path | None) -> None:
        self.lines: list[str] = []
        self.path = path


@contextlib.contextmanager
def capture(machine: Host, expression: str, write: str | Path | None, snapshot_bytes: int) -> Generator[Capture, None, None]:
    """Record packets of a machine while the block lasts; see `Lab.capture`."""
    if shutil.which("tcpdump") is None:
        raise LaboratoryError("the program tcpdump is not on the PATH")
    found = Capture(None if write is None else Path(write))
    pipe = subprocess.PIPE
    program = machine.popen(
        _arguments(expression, found.path, snapshot_bytes), stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe
    )
    assert program.stdout is not None
    assert program.stderr is not None
    reader = threading.Thread(target=_read_until_mark, args=(program.stdout, found.lines), name="natlab-capture")
    reader.start()  # or tcpdump would wait for a reader, and lose packets meanwhile
    try:
        _wait_until_it_listens(program.stderr)
        yield found
        _mark_until_read(machine, reader)
        program.send_signal(signal.SIGINT)
        _check_that_all_is_there(program.stderr)
    finally:
        program.kill()
        reader.join()
        end_program(program)


def _arguments(expression: str, path: Path | None, snapshot_bytes: int) -> list[str]:
    size = ["-s", str(snapshot_bytes), "-B", str(_BUFFER_KIB)]
    file = [] if path is None else ["-w", str(path), "-U", "--print"]
    wanted = [f"({expression}) or ({_MARK})"] if expression else []
    return ["tcpdump", "-i", "any", "-nn", "-l", "--immediate-mode", "-Z", "root", *size, *file, *wanted]


def _wait_until_it_listens(errors: IO[str]) -> None:
    said: list[str] = []
    for line in errors:
        if _LISTENING in line:
            return
        said.append(line.strip())
    raise LaboratoryError(f"tcpdump says {' '.join(said)}")


def _mark_until_read(machine: Host, reader: threading.Thread) -> None:
    """Send marks until the reader has met one: a mark is lost too, if the buffer is full."""
    deadline = time.monotonic() + _PATIENCE
    with machine.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        while reader.is_alive():
            if time.monotonic() > deadline:
                raise LaboratoryError(f"tcpdump on {machine.name} has stopped recording")
            sender.sendto(b"", _MARK_ADDRESS)
            reader.join(_MARK_INTERVAL)


def _read_until_mark(output: IO[str], lines: list[str]) -> None:
    for line in output:
        if _MARK_TEXT in line:
            return
        lines.append(line.rstrip("\n"))


def _check_that_all_is_there(errors: IO[str]) -> None:
    if lost := _DROPPED.search(errors.read()):
        raise LaboratoryError(f"the capture is incomplete: {lost[1]} packets were too many")
