"""Programs that live in a namespace, or beside us, and die with us.

`setpriv --pdeathsig` kills a program when the *thread* that started it ends; so one thread, which lives as long as this
process, starts them all.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import IO, Any

from p2ptunnel.testing.natlab.namespace import Namespace

__all__ = ["end_program", "start_program"]


def start_program(namespace: Namespace | None, arguments: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
    """Start a program in a namespace, in a process group of its own; SIGKILL ends it when this process ends.

    Args:
        namespace: Where it lives; None: where we do, and then without `setpriv`, where that is missing, it may outlive us.
        arguments: The program and its arguments; no shell.
        **options: For `subprocess.Popen`.

    Raises:
        OSError: `setpriv` is missing; that the program is, shows as its exit status 127.
    """
    has_guard = namespace is not None or shutil.which("setpriv") is not None
    guarded = [*(("setpriv", "--pdeathsig", "KILL", "--") if has_guard else ()), *arguments]

    def start() -> subprocess.Popen[Any]:
        with namespace.inside() if namespace is not None else contextlib.nullcontext():
            return subprocess.Popen(guarded, process_group=0, **options)

    return _starter().submit(start).result()


def end_program(program: subprocess.Popen[Any]) -> None:
    """Kill a program and what it started, wait for it, and close our ends of its pipes.  Doing so twice is fine."""
    if program.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.wait()
    pipes: tuple[IO[Any] | None, ...] = (program.stdin, program.stdout, program.stderr)
    for pipe in pipes:
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):  # unsent input has nobody left to read it
                pipe.close()


@cache
def _starter() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="natlab-programs")
