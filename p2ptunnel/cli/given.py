"""Codes and tickets that do not stand on the command line, where every user of this machine could read them."""

from __future__ import annotations

import sys
from typing import Final

import click

from p2ptunnel.errors import ConfigError

__all__ = ["FROM_STDIN", "given"]

FROM_STDIN: Final = "-"
_MAX_CHARACTERS: Final = 16_384


def given(words: tuple[str, ...], what: str) -> str:
    """Return what was given: the words of the command line, or for `-` what stands on stdin, which a terminal does not show.

    Raises:
        ConfigError: Stdin holds nothing.
    """
    if words != (FROM_STDIN,):
        return " ".join(words)
    if sys.stdin.isatty():
        text: str = click.prompt(f"{what} (what you type is not shown)", hide_input=True, err=True, prompt_suffix=": ")
    else:
        text = sys.stdin.read(_MAX_CHARACTERS)
    if not text.strip():
        raise ConfigError(f"no {what} stands on stdin", "For instance: p2ptunnel pair - < ticket.txt")
    return text
