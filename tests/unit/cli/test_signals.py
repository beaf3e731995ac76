"""What each command that may run for long ends with when it is told to end: what the table of the reference says."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, Final

import pytest

from p2ptunnel.identity.keys import Identity
from p2ptunnel.identity.store import Profile
from tests.unit.cli.running import ROOT, environment, program, started

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are another matter there")
ROW: Final = re.compile(r"\| ([^|]+) \| (\d+) \| (\d+) \|")
HEAD: Final = re.compile(r"\| what ends it \| ([^|]+) \| ([^|]+) \|")
SIGNALS: Final = {"SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM, "SIGHUP": signal.SIGHUP}
KEY: Final = Identity.from_seed(bytes(32)).public


def page() -> tuple[tuple[list[str], list[str]], list[tuple[str, int, int]]]:
    """The two groups of commands, and the rows of the table: what ends them, and the codes."""
    text = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    head = HEAD.search(text)
    assert head
    rows = [(row[1], int(row[2]), int(row[3])) for row in ROW.finditer(text, head.end())]
    going_on, finishing = (re.findall(r"`([a-z]+)`", column) for column in head.groups())
    return (going_on, finishing), rows


GROUPS, ROWS = page()


class Machines:
    """A server, a machine that serves an echo, another that may open it; and a server that hears all and says nothing.

    Attributes:
        said: The first line of the command that was waited for last.
    """

    def __init__(self, directory: Path, server: str, mute: socket.socket) -> None:
        self._directory: Final = directory
        self._server: Final = server
        self._mute: Final = mute
        self.said = ""

    def words(self, machine: str, *words: object, server: str = "") -> list[str]:
        options = ["--profile", str(self._directory / machine), "--rendezvous", server or self._server, "--tag", machine]
        return [*options, *map(str, words)]

    def command(self, name: str) -> list[str]:
        """The words of a command that goes on until it is ended."""
        self._mute.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while self._mute.recv(2048):  # of the command before
                pass
        mute = "{}:{}".format(*self._mute.getsockname())
        anywhere = ("--listen", "127.0.0.1:0")
        return {
            "serve": self.words("other", "serve", "web=9"),
            "forward": self.words("laptop", "--json", "forward", "nas", "0:echo"),
            "rendezvous": self.words("rendezvous", "rendezvous", *anywhere),
            "relay": self.words("relay", "relay", *anywhere, "--server", KEY),
            "pair": self.words("pair", "pair", "--no-qr"),
            "ping": self.words("laptop", "ping", "nas", "-c", 1000),
            "pipe": self.words("laptop", "pipe", "nas", "echo"),
            **{asks: self.words(asks, asks, server=mute) for asks in ("netcheck", "status", "doctor")},
            "explain": self.words("laptop", "explain", "nas", server=mute),
        }[name]

    def wait_for(self, name: str, process: subprocess.Popen[str]) -> None:
        """Wait until a command is at what it is there for."""
        if name in {"netcheck", "status", "doctor", "explain"}:
            self._mute.settimeout(15)
            self._mute.recv(2048)
            return
        assert process.stdin is not None
        if name == "pipe":
            process.stdin.write("x")
            process.stdin.flush()
        self.said = line(process.stdout)


def line(stream: IO[str] | None) -> str:
    assert stream is not None
    said = stream.readline() if stream.fileno() >= 0 else ""
    assert said
    return said


ECHO: Final = """
import socket, threading
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
def answer(client):
    while part := client.recv(65536):
        client.sendall(part + b"\\n")
while True:
    threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()
"""


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    directory = tmp_path_factory.mktemp("machines")
    nas, laptop = (Profile(directory / name) for name in ("nas", "laptop"))
    nas.peers().add("laptop", laptop.identity().public, ("echo",))
    laptop.peers().add("nas", nas.identity().public)
    with contextlib.ExitStack() as stack:
        echo = stack.enter_context(subprocess.Popen([sys.executable, "-c", ECHO], stdout=subprocess.PIPE, text=True))
        stack.callback(echo.kill)
        words = ("--json", "--profile", directory / "server", "rendezvous", "--listen", "127.0.0.1:0")
        host, port = json.loads(line(stack.enter_context(started(*words)).stdout))["address"]
        mute = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        mute.bind(("127.0.0.1", 0))
        made = Machines(directory, f"{host}:{port}", mute)
        line(stack.enter_context(started(*made.words("nas", "serve", f"echo={int(line(echo.stdout))}"))).stdout)
        yield made


@contextlib.contextmanager
def running(machines: Machines, name: str) -> Generator[subprocess.Popen[str]]:
    """A command that is at what it is there for."""
    argv = program(*machines.command(name))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(argv, env=environment(), text=True, **pipes) as process:
        try:
            machines.wait_for(name, process)
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def test_the_page_has_all_commands_that_may_run_for_long() -> None:
    assert [ends.rpartition(" ")[2] for ends, _, _ in ROWS[:3]] == list(SIGNALS)
    assert {name for group in GROUPS for name in group} == {
        *("serve", "forward", "rendezvous", "relay"),
        *("pipe", "pair", "ping", "netcheck", "status", "doctor", "explain"),
    }


@pytest.mark.parametrize(
    ("name", "column"), [(name, column) for column, group in enumerate(GROUPS, 1) for name in group], ids=str
)
@pytest.mark.parametrize("row", ROWS[:3], ids=lambda row: str(row[0]).rpartition(" ")[2])
def test_a_command_that_is_told_to_end_ends_as_the_page_says(
    name: str, column: int, row: tuple[str, int, int], machines: Machines
) -> None:
    with running(machines, name) as process:
        process.send_signal(SIGNALS[row[0].rpartition(" ")[2]])
        assert process.wait(timeout=10) == row[column]


@pytest.mark.parametrize("name", ["ping", "pipe", "forward"])
def test_a_command_without_a_reader_ends_as_the_page_says(name: str, machines: Machines) -> None:
    [(_, *codes)] = [row for row in ROWS if "stdout" in row[0]]
    with running(machines, name) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.close()
        if name == "pipe":
            process.stdin.write("y")
            process.stdin.close()
        client = socket.create_connection(json.loads(machines.said)["address"]) if name == "forward" else socket.socket()
        with client:  # an event to tell
            assert process.wait(timeout=10) == codes[name in GROUPS[1]]


def test_the_end_of_its_input_ends_a_pipe_that_is_answered(machines: Machines) -> None:
    with running(machines, "pipe") as process:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=10) == 0
