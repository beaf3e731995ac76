"""Programs of a laboratory leave nothing behind, whatever they start and wherever they put it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest

from p2ptunnel.testing.natlab.processes import descendants, stat_fields
from p2ptunnel.testing.natlab.programs import end_program, kill_program, start_program

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="descendants are found in /proc")

# A child in a session of its own, as sshd's are, holding stdout; it says who it is, and keeps a child as well.
_NEST = (
    "import os, subprocess, sys, time\nsubprocess.Popen(['sleep', '1000'])\nprint(os.getpid(), flush=True)\ntime.sleep(1000)"
)
_PROGRAM = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {_NEST!r}], start_new_session=True).wait()"


def started() -> tuple[subprocess.Popen[str], set[int]]:
    """Start a program that has a child and a grandchild; return it and all three."""
    program = start_program(None, [sys.executable, "-c", _PROGRAM], stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    nest = int(program.stdout.readline())
    family = set(descendants(program.pid))
    assert {program.pid, nest} < family
    assert len(family) == 3
    assert os.getpgid(nest) != os.getpgid(program.pid)
    return program, family


def lives(pid: int) -> bool:
    """Tell whether it runs; who waits to be reaped by init does not."""
    fields = stat_fields(pid)
    return bool(fields) and fields[0] != "Z"


def test_what_a_program_started_ends_with_it() -> None:
    program, family = started()
    end_program(program)
    assert [pid for pid in family if lives(pid)] == []
    assert program.stdout is not None
    assert program.stdout.closed
    end_program(program)


def test_a_thread_that_reads_its_output_reads_the_end() -> None:
    program, family = started()
    assert program.stdout is not None
    reading = threading.Thread(target=program.stdout.read, daemon=True)
    reading.start()
    kill_program(program)
    reading.join(10)
    assert not reading.is_alive()
    assert [pid for pid in family if lives(pid)] == []
    end_program(program)


def test_interrupted_while_it_starts_nobody_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C may come between the start and the return."""
    programs: list[subprocess.Popen[str]] = []

    class Interrupted(subprocess.Popen[str]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            programs.append(self)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        start_program(None, ["sleep", "1000"])
    assert programs[0].returncode == -signal.SIGKILL
