"""Whom a private server serves: who knows its join token, or whose key stands in a file."""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from typing import Final

from p2ptunnel.errors import ConfigError, InvalidKeyError, StoreError
from p2ptunnel.identity.files import OTHERS_READ_OR_WRITE, OTHERS_WRITE, read_private, write_private
from p2ptunnel.identity.keys import PublicKey
from p2ptunnel.trace import Tracer
from p2ptunnel.types import clean

__all__ = ["KeyList", "join_token"]

_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{16,64}")
_NEW_TOKEN_BYTES: Final = 16


def join_token(path: Path) -> str:
    """Return the token in the file; one that is missing is made, 0600, with a new token.

    Raises:
        ConfigError: It holds no token: 16 to 64 of `A-Z a-z 0-9 _ -`.
        InsecureKeyFileError: Others could read or replace it.
        StoreError: It cannot be read or made.
    """
    try:
        token = read_private(path, OTHERS_READ_OR_WRITE).decode("ascii", "replace").strip()
    except FileNotFoundError:
        token = secrets.token_urlsafe(_NEW_TOKEN_BYTES)
        write_private(path, f"{token}\n".encode())
    if not _TOKEN.fullmatch(token):
        raise ConfigError(f"{path} holds no join token", "16 to 64 of A-Z a-z 0-9 _ -; remove it to have one made.")
    return token


class KeyList:
    """The public keys in a file, one a line, with what stands behind a `#` left out; read again when it has changed.

    A file that cannot be read any more lists whom it listed last: a slip of an editor cuts nobody off.

    Args:
        path: The file.
        tracer: Told when it cannot be read, and when it can again.

    Raises:
        ConfigError: A line is no key.
        InsecureKeyFileError: Others could change it.
        StoreError: It cannot be read.
    """

    def __init__(self, path: Path, tracer: Tracer | None = None) -> None:
        self._path: Final = path
        self._trace: Final = tracer or Tracer()
        self._version = self._version_on_disk()
        self._keys = self._read()
        self._problem = ""

    def __contains__(self, key: object) -> bool:
        """Tell whether the key is listed."""
        self._refresh()
        return key in self._keys

    @property
    def problem(self) -> str:
        """Why the file cannot be read as it is now; empty if it can."""
        self._refresh()
        return self._problem

    def _refresh(self) -> None:
        version = self._version_on_disk()
        if version == self._version:
            return
        self._version, was = version, self._problem
        try:
            self._keys, self._problem = self._read(), ""
        except ConfigError as error:
            self._problem = str(error)
            self._trace("members", "unreadable", reason=self._problem)
        else:
            if was:
                self._trace("members", "readable")

    def _version_on_disk(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return (status.st_ino, status.st_size, status.st_mtime_ns)

    def _read(self) -> frozenset[str]:
        try:
            text = read_private(self._path, OTHERS_WRITE).decode("utf-8")
        except FileNotFoundError as error:
            raise StoreError(str(self._path), "there is no such file") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{self._path} is no text", "One key a line: p2p:…") from error
        lines = (line.partition("#")[0].strip() for line in text.splitlines())
        return frozenset(self._key(line) for line in lines if line)

    def _key(self, line: str) -> str:
        try:
            return str(PublicKey.parse(line))
        except InvalidKeyError as error:
            raise ConfigError(f"{self._path}: {clean(line)!r} is no key: {error.reason}", "One key a line: p2p:…") from error
