"""Two machines and a cable: network namespaces, the programs in them, and what these programs use.

The namespaces have no names: they end with the last program in them, however the benchmark ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from bench.contest import FAR, FORWARD_PORT, LOOPBACK, NEAR, SINK_PORT, BenchError
from p2ptunnel.testing.natlab import Host
from p2ptunnel.testing.natlab.processes import descendants, stat_fields

__all__ = ["Program", "Rig", "Side"]

_CABLE: Final = "cable"
_ROOT: Final = Path(__file__).parents[1]
_POLL: Final = 0.01  # seconds between two looks at the listening sockets of a side
_LISTENING: Final = "0A"  # state of a socket in /proc/net/tcp
_TICKS: Final = os.sysconf("SC_CLK_TCK")


class Program:
    """A program on one side."""

    def __init__(self, rig: Rig, process: subprocess.Popen[bytes], log: Path) -> None:
        self._rig = rig
        self._process = process
        self._log = log

    @property
    def pids(self) -> list[int]:
        """Its process and all that descend from it; none when it has ended, since its number may be another's by then."""
        return [] if self._process.poll() is not None else list(descendants(self._process.pid))

    def check(self) -> None:
        """See that it still runs.

        Raises:
            BenchError: It does not.
        """
        if self._process.poll() is not None:
            raise BenchError(self._last_words())

    def line(self) -> str:
        """Wait for its next line on stdout and return it.

        Raises:
            BenchError: It ended, or the contestant's time is up.
        """
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], self._rig.remaining())[0]:
            raise BenchError("time limit")
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise BenchError(self._last_words())
        return line.decode().rstrip("\n")

    def ask(self, work: str, **order: float) -> dict[str, float]:
        """Have a near side do a work of `probe.Near`, and return what it found.

        Raises:
            BenchError: It ended, talks of something else, or the contestant's time is up.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: `line` says why
            self._process.stdin.write(json.dumps({"work": work, **order}).encode() + b"\n")
        said = self.line()
        try:
            found: dict[str, float] = json.loads(said)
        except ValueError:
            raise BenchError(f"said {said[:80]!r} where its figures should be") from None
        return found

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip() and not line.startswith((" ", "\t"))]
        return said[-1] if said else f"ended with status {self._process.returncode}"


class Side:
    """One of the two machines."""

    def __init__(self, rig: Rig, name: str, address: str) -> None:
        self.host = Host(name, address)
        self._rig = rig
        self._contestants: list[Program] = []

    def start(self, argv: Sequence[str | Path], *, counts: bool = True, env: Mapping[str, str] | None = None) -> Program:
        """Start a program here.

        Args:
            argv: The program and its arguments.
            counts: Whether what it uses is the contestant's.
            env: More of its environment.
        """
        log = self._rig.directory / f"log-{time.monotonic_ns()}"
        environment = {**os.environ, "PYTHONPATH": str(_ROOT), "PYTHONUNBUFFERED": "1", **(env or {})}
        with log.open("wb") as errors:
            process = self.host.popen(
                [str(word) for word in argv],
                text=False,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                cwd=self._rig.directory,
            )
        program = Program(self._rig, process, log)
        if counts:
            self._contestants.append(program)
        return program

    def wait_for_port(self, port: int, program: Program) -> None:
        """Wait until `program` listens here; connects to nobody.

        Raises:
            BenchError: It ended, or the contestant's time is up.
        """
        while port not in self._listening():
            program.check()
            self._rig.remaining()
            time.sleep(_POLL)

    def _listening(self) -> set[int]:
        with self.host.inside():
            tables = [Path("/proc/thread-self/net", table).read_text() for table in ("tcp", "tcp6")]
        sockets = [line.split() for table in tables for line in table.splitlines()[1:]]
        return {int(fields[1].rpartition(":")[2], 16) for fields in sockets if fields[3] == _LISTENING}

    def cpu_seconds(self) -> float:
        """User and system time of the contestant's programs here, with their children, those that have ended among them."""
        return sum(_cpu_seconds(pid) for program in self._contestants for pid in program.pids)

    def memory_kib(self) -> int:
        """Memory of the contestant's programs here; pages that processes share count once."""
        return sum(_memory_kib(pid) for program in self._contestants for pid in program.pids)


class Rig:
    """Both machines, for one visit of one contestant: `with Rig(limit) as rig: rig.far, rig.near`.

    Args:
        limit: Seconds that the visit may take.

    Raises:
        OSError: This process may not make network namespaces.
    """

    def __init__(self, limit: float) -> None:
        self._deadline = time.monotonic() + limit
        with contextlib.ExitStack() as stack:
            self.directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True)))
            self.directory.chmod(0o755)  # programs that give up root keep reading what is here
            self.far = Side(self, "far", FAR)
            stack.callback(self.far.host.close)
            self.near = Side(self, "near", NEAR)
            stack.callback(self.near.host.close)
            self._plug_in()
            self._closing = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End every program, and with them the two machines.  Closing twice is fine."""
        self._closing.close()

    def remaining(self) -> float:
        """Return how many seconds of the visit are left.

        Raises:
            BenchError: None are.
        """
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise BenchError("time limit")
        return remaining

    def sink(self) -> None:
        """Start the service on the far side that forwards lead to."""
        program = self.far.start([sys.executable, "-m", "bench.probe", "far", str(SINK_PORT)], counts=False)
        self.far.wait_for_port(SINK_PORT, program)

    def probe(self, forward: Program) -> Program:
        """Start what takes the orders at the near end of a forward, when `forward` listens there."""
        self.near.wait_for_port(FORWARD_PORT, forward)
        argv = [sys.executable, "-m", "bench.probe", "near", LOOPBACK, str(FORWARD_PORT)]
        return self.near.start(argv, counts=False)

    def _plug_in(self) -> None:
        sides = ((self.far.host, FAR), (self.near.host, NEAR))
        self.far.host.namespace.netlink.add_cable(_CABLE, self.near.host.namespace.descriptor, _CABLE)
        for host, _ in sides:
            host.namespace.netlink.set_up(_CABLE)
        for host, address in sides:
            host.namespace.netlink.settle(_CABLE)
            host.namespace.netlink.add_address(_CABLE, f"{address}/24")


# --- what /proc says of processes -------------------------------------------------------------------------------------


def _cpu_seconds(pid: int) -> float:
    return sum(map(int, stat_fields(pid)[11:15])) / _TICKS


def _memory_kib(pid: int) -> int:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0
