"""Programs that live in a namespace, or beside us, and die with us.

`setpriv --pdeathsig` kills a program when the *thread* that started it ends; so one thread, which lives as long as this
process, starts them all.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import IO, Any, Final, Self

from p2ptunnel.testing.natlab.namespace import Namespace
from p2ptunnel.testing.natlab.processes import descendants

__all__ = ["end_program", "kill_program", "start_program"]

_END_TIMEOUT: Final = 5.0  # seconds; a killed process may be writing to a disk


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

    starting: Future[subprocess.Popen[Any]] = Future()  # there before anything starts, so that no moment is without it

    def start() -> None:
        if not starting.set_running_or_notify_cancel():
            return
        try:
            with namespace.inside() if namespace is not None else contextlib.nullcontext():
                starting.set_result(subprocess.Popen(guarded, process_group=0, **options))
        except Exception as error:  # noqa: BLE001 - it is raised where it belongs, in the thread that waits
            starting.set_exception(error)

    try:
        _starter().submit(start)
        return starting.result()
    except KeyboardInterrupt:  # whoever is interrupted here never hears of it
        if not starting.cancel():
            with contextlib.suppress(OSError):
                kill_program(starting.result())
        raise


def end_program(program: subprocess.Popen[Any]) -> None:
    """Kill a program and its descendants, wait for them, and close our ends of its pipes.  Doing so twice is fine.

    A descendant whose parent has ended before cannot be told from a stranger, and stays.
    """
    kill_program(program)
    pipes: tuple[IO[Any] | None, ...] = (program.stdin, program.stdout, program.stderr)
    for pipe in pipes:
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):  # unsent input has nobody left to read it
                pipe.close()


def kill_program(program: subprocess.Popen[Any]) -> None:
    """Kill a program and what it started, and wait for them; who reads its pipes reads their end."""
    if program.poll() is None:
        with contextlib.ExitStack() as stack:
            family = [stack.enter_context(member) for member in _stop_family(program.pid)]
            with contextlib.suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
            for member in family:
                member.kill()
            program.wait()


class _Member:
    """A process, held by a descriptor: its number may be another's as soon as it has ended."""

    def __init__(self, pid: int) -> None:
        self._descriptor = os.pidfd_open(pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for its end, unless the kernel cannot end it now."""
        select.select([self._descriptor], [], [], _END_TIMEOUT)
        os.close(self._descriptor)

    def stop(self) -> None:
        self._send(signal.SIGSTOP)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, number)


def _stop_family(pid: int) -> list[_Member]:
    """Stop a process and its descendants, in whatever group or session, until nobody is left who could start another."""
    family: dict[int, _Member] = {}
    if sys.platform == "linux":
        while grown := [found for found in descendants(pid) if found not in family]:
            for found in grown:
                with contextlib.suppress(ProcessLookupError):
                    family[found] = _Member(found)
                    family[found].stop()
    return list(family.values())


@cache
def _starter() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="natlab-programs")
