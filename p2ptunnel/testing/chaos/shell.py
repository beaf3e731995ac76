"""An unmodified `ssh` that follows a growing file, and an `scp` beside it, both through `p2ptunnel pipe`."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import threading
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Final

from p2ptunnel.testing.chaos.bytes import chunks
from p2ptunnel.testing.chaos.flow import Flow, Ledger, wait_for_program
from p2ptunnel.testing.chaos.workload import Load, Running
from p2ptunnel.testing.chaos.world import World
from p2ptunnel.testing.natlab.programs import end_program, kill_program

__all__ = ["ssh"]

_LINE_INTERVAL: Final = 0.1
_LOOK_INTERVAL: Final = 0.05
_PATIENCE: Final = 30.0


@contextlib.contextmanager
def ssh(world: World, ledger: Ledger, load: Load) -> Generator[Running]:
    """Have `ssh` run `tail -f` on a file that gets a numbered line ten times a second, while `scp` copies to home."""
    login, config = world.start_sshd()
    with _following(world, ledger, ["ssh", "-n", "-F", str(config), login]) as journal:
        journal.lines.wait_beyond(0, _PATIENCE)  # else a fault could come before the login
        with _copying(world, ledger, load, ["scp", "-q", "-F", str(config)], login) as copy:

            def finish(timeout: float) -> bool:
                is_equal = copy.finish(timeout)
                journal.finish()
                return is_equal

            yield Running(copy.flow, (journal.lines,), finish)


class _Journal:
    """A file at home that grows line by line, and who follows it from afar."""

    def __init__(self, path: Path, tail: subprocess.Popen[str], ledger: Ledger) -> None:
        self.lines: Final = ledger.flow("lines")
        self._path = path
        self._tail = tail
        self._ledger = ledger
        self._is_complete = threading.Event()

    def write(self) -> None:
        """Append lines until told to end."""
        with self._path.open("a", buffering=1) as file:
            while not self._is_complete.wait(_LINE_INTERVAL):
                self.lines.write(1)
                file.write(f"{self.lines.written}\n")

    def follow(self) -> None:
        """Read what arrives; each line must be the one after the last."""
        assert self._tail.stdout is not None
        for line in self._tail.stdout:
            if line != f"{self.lines.arrived + 1}\n":
                self._ledger.fail(f"lines: {line!r} came where {self.lines.arrived + 1} was due")
            self.lines.arrive(1)
        self._ledger.fail(f"lines: ssh ended after line {self.lines.arrived}")

    def stop(self) -> None:
        """Write no more."""
        self._is_complete.set()

    def finish(self) -> None:
        """Write no more, and wait until all has arrived.

        Raises:
            ChaosError: It does not.
        """
        self.stop()
        self.lines.wait_beyond(self.lines.written - 1, _PATIENCE)


@contextlib.contextmanager
def _following(world: World, ledger: Ledger, ssh: Sequence[str]) -> Generator[_Journal]:
    path, log = world.stage.home.directory / "journal.txt", world.stage.laptop.directory / "ssh.txt"
    path.touch()
    with log.open("w") as errors:
        argv = [*ssh, "tail", "-n", "+1", "-f", str(path)]
        tail = world.cafe.host.popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)
    journal = _Journal(path, tail, ledger)
    threads = [threading.Thread(target=body, daemon=True) for body in (journal.write, journal.follow)]
    try:
        for thread in threads:
            thread.start()
        yield journal
    finally:
        ledger.over.set()
        journal.stop()
        kill_program(tail)
        for thread in threads:
            thread.join()
        end_program(tail)


class _Copy:
    """A running scp, watched by the size of what has arrived."""

    def __init__(self, program: subprocess.Popen[str], target: Path, digest: str, flow: Flow, ledger: Ledger) -> None:
        self.flow: Final = flow
        self._program = program
        self._target = target
        self._digest = digest
        self._ledger = ledger

    def watch(self) -> None:
        """Count what arrives until scp has ended."""
        while (status := self._program.poll()) is None:
            self._ledger.over.wait(_LOOK_INTERVAL)
            self._count()
        self._count()
        if status:
            self._ledger.fail(f"scp: it ended with status {status} after {self.flow.arrived} bytes")

    def finish(self, timeout: float) -> bool:
        """Wait for the end, and tell whether the copy is equal."""
        if wait_for_program(self._program, "scp", timeout):
            return False
        with self._target.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == self._digest

    def _count(self) -> None:
        if self._target.exists() and (grown := self._target.stat().st_size - self.flow.arrived):
            self.flow.arrive(grown)


@contextlib.contextmanager
def _copying(world: World, ledger: Ledger, load: Load, scp: Sequence[str], login: str) -> Generator[_Copy]:
    source, target = world.stage.laptop.directory / "sent.bin", world.stage.home.directory / "arrived.bin"
    digest = _make_file(source, load.size_bytes, load.seed)
    limit = ["-l", str(max(1, int(load.rate * 8 / 1000)))] if load.rate else []
    with (world.stage.laptop.directory / "scp.txt").open("w") as log:
        argv = [*scp, *limit, str(source), f"{login}:{target}"]
        program = world.cafe.host.popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    copy = _Copy(program, target, digest, ledger.flow("scp", load.size_bytes), ledger)
    watching = threading.Thread(target=copy.watch, daemon=True)
    try:
        watching.start()
        yield copy
    finally:
        ledger.over.set()
        end_program(program)
        watching.join()


def _make_file(path: Path, size_bytes: int, seed: int) -> str:
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for chunk in chunks(size_bytes, seed):
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()
