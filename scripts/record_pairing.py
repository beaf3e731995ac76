"""Plays "Pair two machines" in the laboratory, and writes what was said into that page; `python -m scripts.record_pairing`.

Two machines, each behind a NAT of the kernel, that know nothing of each other; three commands, and no key typed by hand.  The
test that plays the same is tests/natlab/test_pairing.py.  Needs root.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import IO, Final, NamedTuple

from p2ptunnel.testing.demo import Machine, Stage, start_server, start_sshd
from p2ptunnel.testing.natlab import Lab
from p2ptunnel.testing.natlab.programs import end_program

__all__ = ["Command", "played", "rendered", "write"]

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "how-to" / "pair.md"
_PLACE: Final = re.compile(r"(<!-- recorded: [^>]*-->\n).*?(?=<!-- end -->)", re.DOTALL)
_TICKET_SHOWN: Final = 24  # letters; what is shown has been used anyway


class Command(NamedTuple):
    """One command of the play: where, what, what it said on stdout and stderr, and how long it took."""

    machine: str
    words: str
    said: str
    seconds: float


@contextlib.contextmanager
def stage(delay: float = 0.02) -> Generator[Stage]:
    """Give a laboratory with two homes behind port-restricted NATs, where nothing runs yet."""
    with tempfile.TemporaryDirectory(prefix="p2ptunnel-pair-") as directory, Lab(server_delay=delay) as lab:
        made = Stage(Path(directory), lab, delay)
        made.sshd_port = 22
        try:
            yield made
        finally:
            made.close()


def played(there: Stage, code_of: Callable[[str], str]) -> list[Command]:
    """Play it: a server, an sshd and `serve ssh` are there; then home pairs, the laptop pairs, the laptop logs in.

    Args:
        there: From `stage`.
        code_of: Finds in what `pair` says what the laptop is given: the code or the ticket.
    """
    server = start_server(there)
    user, key = start_sshd(there)
    for machine in (there.home, there.laptop):
        profile = machine.directory / "profile"
        profile.mkdir(mode=0o700)
        (profile / "config.toml").write_text(f'[peer]\ntag = "{machine.name}"\nrendezvous = "{server}"\n')
    there.start(there.home, there.home.p2ptunnel("serve", "ssh"), lambda line: line.startswith("serving"))
    since = time.monotonic()
    inviting = there.home.start(
        there.home.p2ptunnel("pair", "--services", "ssh"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        assert inviting.stdout is not None
        invited = _until(inviting.stdout, "on the other machine")
        invited_in = time.monotonic() - since
        given = code_of(invited)
        redeemed = _run(there.laptop, "pair", given)
        told, _ = inviting.communicate(timeout=20)
    finally:
        end_program(inviting)
    login = _run(there.laptop, "ssh", "-i", str(key), f"{user}@{there.home.name}", "echo hello from $(uname -s)")
    return [
        Command(there.home.name, "p2ptunnel pair --services ssh", invited, invited_in),
        redeemed,
        Command(there.home.name, "", told, redeemed.seconds),
        login._replace(words=f"p2ptunnel ssh {user}@{there.home.name} 'echo hello from $(uname -s)'"),
    ]


def rendered(commands: Sequence[Command]) -> str:
    """Return the play as a block of text."""
    lines: list[str] = []
    for command in commands:
        prompt = f"{command.machine}$ {command.words}" if command.words else f"{command.machine} goes on:"
        lines += [_shortened(prompt), *(_shortened(line) for line in command.said.strip().splitlines())]
        lines += [f"    [{command.seconds:.2f} s]", ""] if command.words else [""]
    return "\n".join(lines).rstrip()


def write() -> None:
    """Play it and renew the page."""
    with stage() as there:
        block = rendered(played(there, lambda said: _word_behind(said, "code")))
    text = PAGE.read_text(encoding="utf-8")
    renewed, places = _PLACE.subn(lambda match: f"{match[1]}\n```text\n{block}\n```\n\n", text)
    assert places == 1
    PAGE.write_text(renewed, encoding="utf-8")


def _word_behind(said: str, what: str) -> str:
    [found] = re.findall(rf"^{what} +(\S+)$", said, re.MULTILINE)
    return str(found)


def _run(machine: Machine, *words: str) -> Command:
    """Run our program to its end.

    Raises:
        subprocess.CalledProcessError: It failed; its `output` says why.
    """
    since = time.monotonic()
    program = machine.start(
        machine.p2ptunnel(*words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        said, _ = program.communicate(timeout=40)
    finally:
        end_program(program)
    if program.returncode:
        raise subprocess.CalledProcessError(program.returncode, words, said)
    return Command(machine.name, " ".join(("p2ptunnel", *words)), said, time.monotonic() - since)


def _until(output: IO[str], beginning: str) -> str:
    """Read lines up to one that begins so."""
    said = ""
    for line in output:
        said += line
        if line.startswith(beginning):
            return said
    raise RuntimeError(f"it ended before it said {beginning!r}: {said}")


def _shortened(line: str) -> str:
    return re.sub(rf"(p2pt1\w{{{_TICKET_SHOWN}}})\w+", r"\1…", line)


if __name__ == "__main__":
    write()
