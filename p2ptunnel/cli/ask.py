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

_CHOICE: Final = "[y] once  [h] 1 hour  [a] always  [n] no"
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

    What is typed while no question stands there answers none: a late answer is not the next one's.

    Args:
        output: Where the questions go.

    Raises:
        ConfigError: There is no terminal.
    """

    def __init__(self, output: Output) -> None:
        if not sys.stdin.isatty():
            raise ConfigError("--ask needs a terminal to ask on", "Without one: p2ptunnel peers allow PEER SERVICE.")
        self._output = output
        self._turn = asyncio.Lock()
        self._answer: asyncio.Future[Decision] | None = None
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
        """Put the question; whoever asks meanwhile waits for its turn."""
        async with self._turn:
            self._answer = asyncio.get_running_loop().create_future()
            self._output.question(f"{request}. {_CHOICE}")
            try:
                return await self._answer
            finally:
                self._answer = None

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            if self._answer is None or self._answer.done():
                continue
            decision = _ANSWERS.get(line.decode("utf-8", "replace").strip().lower())
            if decision is None:
                self._output.question(_CHOICE)
            else:
                self._answer.set_result(decision)
