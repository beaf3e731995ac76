"""The question in the terminal: which answer is meant for it."""

from __future__ import annotations

import asyncio
import sys
from types import SimpleNamespace

import pytest

from p2ptunnel.asking import AccessRequest, Decision
from p2ptunnel.cli import ask
from p2ptunnel.cli.ask import TerminalAsk
from p2ptunnel.cli.output import Output
from p2ptunnel.types import Path
from tests.helpers import run
from tests.helpers.peers import CALLER

PATH = Path(kind="direct", transport="tcp", local=("192.0.2.1", 1), remote=("203.0.113.7", 2))


class Terminal(Output):
    """Keeps what is asked, and has somebody at the keyboard."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[str] = []
        self.asks = TerminalAsk(self)
        self.keyboard = asyncio.StreamReader()
        self.reading = asyncio.create_task(self.asks._read(self.keyboard))

    def question(self, text: str) -> None:
        self.shown.append(text)

    def put(self, number: int, tag: str = "laptop", service: str = "ssh", grants: str = "ssh") -> asyncio.Task[Decision]:
        return asyncio.create_task(self.asks.ask(AccessRequest(number, tag, CALLER.public, service, PATH, grants)))

    async def type(self, *lines: str) -> None:
        for line in lines:
            self.keyboard.feed_data(f"{line}\n".encode())
        await settled()


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def has_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(ask, "_READING", 0.0)


def test_a_letter_answers_the_question_that_stands_there() -> None:
    async def scenario() -> None:
        terminal = Terminal()
        for number, (line, decision) in enumerate(
            {"y": "once", " H ": "hour", "always": "always", "no": "no", "y 4": "once"}.items()
        ):
            asking = terminal.put(number)
            await settled()
            await terminal.type(line)
            assert await asking == decision
        assert terminal.shown[0].endswith("wants ssh via direct tcp 203.0.113.7. [y] once  [h] 1 hour  [a] always  [n] no")
        terminal.reading.cancel()

    run(scenario())


def test_what_is_no_answer_shows_the_choice_again() -> None:
    async def scenario() -> None:
        terminal = Terminal()
        await terminal.type("y")  # nothing stands there
        asking = terminal.put(1)
        await settled()
        await terminal.type("perhaps", "y 2", "")
        assert terminal.shown[1:] == ["[y] once  [h] 1 hour  [a] always  [n] no"] * 3
        assert not asking.done()
        await terminal.type("n")
        assert await asking == "no"
        terminal.reading.cancel()

    run(scenario())


def test_what_was_typed_before_the_question_can_have_been_read_answers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask, "_READING", 3600.0)

    async def scenario() -> None:
        terminal = Terminal()
        asking = terminal.put(1)
        await settled()
        await terminal.type("a")
        assert not asking.done()
        assert len(terminal.shown) == 2
        asking.cancel()
        terminal.reading.cancel()

    run(scenario())


def test_behind_a_question_that_has_gone_the_next_one_wants_its_number() -> None:
    """The owner's Enter may come just as mallory's question takes the place of laptop's."""

    async def scenario() -> None:
        terminal = Terminal()
        gone = terminal.put(7)
        await settled()
        gone.cancel()
        await settled()
        assert terminal.shown[1] == "Nobody wants to know any more whether laptop may open ssh."
        asking = terminal.put(8, "mallory")
        await settled()
        await terminal.type("a", "a 7")
        assert not asking.done()
        assert terminal.shown[-1] == "[y 8] once  [h 8] 1 hour  [a 8] always  [n 8] no"
        await terminal.type("n 8")
        assert await asking == "no"
        following = terminal.put(9)
        await settled()
        await terminal.type("y")
        assert await following == "once"
        terminal.reading.cancel()

    run(scenario())


def test_a_question_that_grants_more_than_was_asked_for_says_so() -> None:
    async def scenario() -> None:
        terminal = Terminal()
        asking = terminal.put(1, service="lan (10.0.0.5:22)", grants="lan")
        await settled()
        assert (
            " wants lan (10.0.0.5:22) via direct tcp 203.0.113.7; an hour or always means all of lan. [y] " in terminal.shown[0]
        )
        asking.cancel()
        terminal.reading.cancel()

    run(scenario())


def test_the_question_stands_below_whatever_is_said_meanwhile(capsys: pytest.CaptureFixture[str]) -> None:
    """A reason that a peer gives may look like a question about another peer."""

    async def scenario() -> None:
        terminal = Terminal()
        asking = terminal.put(1)
        await settled()
        terminal.say("phone lost web: work-pc wants web via lan tcp 192.168.1.20. [y] once  [h] 1 hour  [a] always  [n] no")
        assert terminal.shown[1] == terminal.shown[0]
        await terminal.type("n")
        assert await asking == "no"
        terminal.say("and now nothing stands there")
        assert len(terminal.shown) == 2
        terminal.reading.cancel()

    run(scenario())
    assert capsys.readouterr().err.count("\n") == 2
