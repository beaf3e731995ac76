"""The terminal face of `serve --ask`: puts the question on stderr, and takes the answer from the keyboard."""

from __future__ import annotations

import asyncio
import importlib
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from p2ptunnel.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from p2ptunnel.asking import AccessRequest, Decision
    from p2ptunnel.cli.output import Output

__all__ = ["TerminalAsk"]

_READING: Final = 1.0  # seconds: what comes sooner was typed before anybody could read the question
_ANSWERS: Final[dict[str, Decision]] = {
    "y": "once",
    "yes": "once",
    "once": "once",
    "h": "hour",
    "hour": "hour",
    "a": "always",
    "always": "always",
    "n": "no",
    "no": "no",
}


class TerminalAsk:
    """Asks one question at a time, while the block lasts; `ask` is the callback.

    What is typed while no question stands there answers none, and neither does what is typed before it can have been read.
    Where a question has gone without an answer, the next one wants its number beside the letter: the letter may have been meant
    for the one before.

    Args:
        output: Where the questions go.

    Raises:
        ConfigError: There is no terminal.
    """

    def __init__(self, output: Output) -> None:
        if not sys.stdin.isatty():
            raise ConfigError("--ask needs a terminal to ask on", "Without one: p2ptunnel peers allow PEER SERVICE.")
        self._output = output
        self._question: _Question | None = None
        self._has_lapsed = False  # the last question went without an answer
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        try:
            aioconsole: Any = importlib.import_module("aioconsole")  # it has no types
        except ImportError:
            raise MissingExtraError("--ask", "console") from None
        reader, _ = await aioconsole.get_standard_streams(use_stderr=True)
        self._reading = asyncio.create_task(self._read(reader))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def ask(self, request: AccessRequest) -> Decision:
        """Put the question; no other stands meanwhile."""
        question = self._question = _Question(request, wants_number=self._has_lapsed)
        try:
            with self._output.asking(f"{request}. {question.choice}"):
                decision = await question.answer
        except asyncio.CancelledError:
            self._has_lapsed = True
            self._output.question(f"Nobody wants to know any more whether {request.tag} may open {request.service}.")
            raise
        finally:
            self._question = None
        self._has_lapsed = False
        return decision

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            if self._question is not None and not self._question.take(line.decode("utf-8", "replace")):
                self._output.question(self._question.choice)


class _Question:
    """One that stands there."""

    def __init__(self, request: AccessRequest, *, wants_number: bool) -> None:
        loop = asyncio.get_running_loop()
        self.answer: Final[asyncio.Future[Decision]] = loop.create_future()
        self._now: Final = loop.time
        self._readable_at: Final = loop.time() + _READING
        self._number: Final = str(request.id)
        self._wants_number: Final = wants_number

    @property
    def choice(self) -> str:
        """What can be typed, and what it means."""
        number = f" {self._number}" if self._wants_number else ""
        return f"[y{number}] once  [h{number}] 1 hour  [a{number}] always  [n{number}] no"

    def take(self, line: str) -> bool:
        """Take what was typed; tell whether it was an answer to this question, or none was wanted any more."""
        if self.answer.done():
            return True
        letter, _, number = line.strip().lower().partition(" ")
        decision = _ANSWERS.get(letter)
        is_meant = number.strip() == self._number or not (number or self._wants_number)
        if decision is None or not is_meant or self._now() < self._readable_at:
            return False
        self.answer.set_result(decision)
        return True
