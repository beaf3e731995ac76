"""Notes every secret that this process makes or sends while a test runs, and finds them in a text, however they are spelt."""

from __future__ import annotations

import base64
import json
import os
import random
import secrets
import socket
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from p2ptunnel.identity.keys import Identity

__all__ = ["Issued"]

_SHORTEST: Final = 16
"""Bytes; what is shorter is no secret, and would be found by chance."""

_MEMBERS: Final = frozenset({"token", "conkey", "cookie", "sig", "nonce", "intent", "join", "rekey", "sealed", "m"})


class Issued:
    """The secrets of one test."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._known: dict[str, str] = {}
        for module, name in ((os, "urandom"), (secrets, "token_bytes"), (Identity, "sign")):
            self._watch(patch, module, name)
        self._watch_dice(patch)
        for name in ("send", "sendto"):
            self._watch_sending(patch, name)

    def __len__(self) -> int:
        return len(self._known)

    def add(self, secret: bytes | str, what: str) -> None:
        """Note a secret."""
        for spelling in _spellings(secret):
            self._known[spelling] = what

    def found_in(self, text: str) -> set[str]:
        """Return what of all that stands in `text`."""
        return {what for spelling, what in self._known.items() if spelling in text}

    def _watch(self, patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        real: Callable[..., bytes] = getattr(owner, name)

        def noting(*arguments: Any) -> bytes:
            made = real(*arguments)
            self.add(made, name)
            return made

        patch.setattr(owner, name, noting)

    def _watch_dice(self, patch: pytest.MonkeyPatch) -> None:
        real = random.SystemRandom.getrandbits

        def noting(dice: random.SystemRandom, k: int) -> int:
            made = real(dice, k)
            if k >= _SHORTEST * 8:
                self.add(made.to_bytes((k + 7) // 8, "big"), f"{k} random bits")
            return made

        patch.setattr(random.SystemRandom, "getrandbits", noting)

    def _watch_sending(self, patch: pytest.MonkeyPatch, name: str) -> None:
        real = getattr(socket.socket, name)

        def noting(sock: socket.socket, data: bytes, *rest: Any) -> Any:
            for member, value in _members(bytes(data)):
                self.add(value, member)
            return real(sock, data, *rest)

        patch.setattr(socket.socket, name, noting)


def _members(data: bytes) -> Iterator[tuple[str, str]]:
    """The members of a message that are nobody's business, at any depth."""
    try:
        waiting: list[Any] = [json.loads(data)]
    except ValueError:
        return
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            for member, inner in value.items():
                if member in _MEMBERS and isinstance(inner, str) and len(inner) >= _SHORTEST:
                    yield member, inner
                waiting.append(inner)


def _spellings(secret: bytes | str) -> Iterator[str]:
    if isinstance(secret, str):
        yield secret
        return
    if len(secret) < _SHORTEST:
        return
    yield secret.hex()
    yield repr(secret)[2:-1]
    yield str(int.from_bytes(secret, "big"))
    yield base64.b64encode(secret).decode().rstrip("=")
    yield base64.urlsafe_b64encode(secret).decode().rstrip("=")
    yield base64.b32encode(secret).decode().rstrip("=").lower()
