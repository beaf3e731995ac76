"""What a command says and where: data on stdout, talk on stderr, with --json one object a line.

Rule: nothing else in this package writes to stdout or stderr.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Generator
from typing import Final

import click

from p2ptunnel.errors import P2PTunnelError

__all__ = ["SCHEMA", "Output", "ReaderGoneError", "hush_stdout", "in_words", "occupy_standard_descriptors"]

SCHEMA: Final = 1
"""The version of every JSON object on stdout; a field that goes away or changes its meaning makes it one more."""


_STDOUT, _STDERR = 1, 2
_ERRNO: Final = re.compile(r"\[Errno -?[0-9]+\] ")


class ReaderGoneError(Exception):
    """Whoever read our stdout has closed it; nothing is left to say."""


class Output:
    """Writes for one command.

    Args:
        as_json: Objects instead of text on stdout.
        quiet: No talk; errors are still told.
        verbose: 1 and more: details as well.
        color: None: on a terminal only.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False, verbose: int = 0, color: bool | None = None) -> None:
        self.as_json = as_json
        self._color = color
        self._quiet = quiet
        self._verbose = verbose
        self._standing = ""  # the question that waits for an answer

    def data(self, text: str, /, **facts: object) -> None:
        """Write `text` to stdout, or with --json the facts that say the same.

        Raises:
            ReaderGoneError: Nobody reads it.
        """
        try:
            click.echo(json.dumps({"schema": SCHEMA, **facts}) if self.as_json else text)
        except BrokenPipeError as error:
            raise ReaderGoneError from error

    def say(self, text: str) -> None:
        """Tell the person at the keyboard; an empty text is nothing to tell."""
        if text and not self._quiet:
            with contextlib.suppress(BrokenPipeError):  # a tunnel does not end because nobody listens to its talk
                click.echo(in_words(text), err=True)
                if self._standing:
                    self.question(self._standing)

    def question(self, text: str) -> None:
        """Ask the person at the keyboard, whatever -q says."""
        click.echo(text, err=True)

    @contextlib.contextmanager
    def asking(self, question: str) -> Generator[None]:
        """Put a question that stands below all talk as long as the block lasts: no text of a peer's can pass for one."""
        self._standing = question
        self.question(question)
        try:
            yield
        finally:
            self._standing = ""

    def detail(self, text: str) -> None:
        """Tell what only -v asks for."""
        if self._verbose:
            self.say(text)

    def failure(self, error: P2PTunnelError) -> None:
        """Tell why the command failed, and the next step."""
        self.problem(str(error), error.hint, kind=type(error).__name__, layer=error.layer, code=error.code)

    def problem(self, message: str, hint: str = "", *, kind: str, layer: str, code: int) -> None:
        """Tell a failure by its parts: the text on stderr, the object on stdout."""
        click.echo(f"{click.style('p2ptunnel:', fg='red', bold=True)} {in_words(message)}", err=True, color=self._color)
        if hint:
            click.echo(f"{click.style('hint:', bold=True)} {hint}", err=True, color=self._color)
        if self.as_json:
            self.data("", error={"type": kind, "layer": layer, "code": code, "message": message, "hint": hint})


def in_words(text: str) -> str:
    """Return the text without the numbers that kernels give their errors; the words behind them say the same."""
    return _ERRNO.sub("", text)


def hush_stdout() -> None:
    """Close stdout for whoever reads it, and point it nowhere: the interpreter's last flush finds no broken pipe."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, _STDOUT)
    os.close(nowhere)


def occupy_standard_descriptors() -> None:
    """Put /dev/null in the place of closed standard streams, before a socket gets the number that everybody writes to."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        pass
    os.close(descriptor)
