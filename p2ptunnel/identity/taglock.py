"""The lock by which one program at a time is registered under a tag: the server would give it to whoever comes last.

Rule: the lock dies with its holder; where files cannot be locked, nobody is kept from anything.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import IO, Final, Literal, Self, TypeAlias

from p2ptunnel.errors import TagBusyError
from p2ptunnel.identity.files import open_private
from p2ptunnel.types import Tag

__all__ = ["RUN_DIRECTORY", "Doing", "TagLock"]

RUN_DIRECTORY: Final = "run"
"""Where the programs of a profile tell that they run."""

Doing: TypeAlias = Literal["serve", "pair"]
"""What a tag is held for; the two do not get into each other's way."""

_PID_MAX_CHARACTERS: Final = 20
_HINTS: Final[dict[Doing, str]] = {
    "serve": "One program serves several: p2ptunnel serve ssh 8888. Or end the other one first.",
    "pair": "Its code and its ticket are good for this; or end it first.",
}


class TagLock:
    """A tag of a profile, held until `release` or the end of the process."""

    def __init__(self, file: IO[str] | None) -> None:
        self._file = file

    @classmethod
    def take(cls, profile: Path, tag: Tag, doing: Doing) -> Self:
        """Hold a tag.

        Args:
            profile: Its directory.
            tag: Ours.
            doing: What for.

        Raises:
            TagBusyError: Another program, or another `Peer` of this one, holds it.
        """
        if sys.platform == "win32":
            return cls(None)
        import fcntl

        path = profile / RUN_DIRECTORY / f"{doing}-{tag}.lock"
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            file = open(path, "a+", encoding="ascii", opener=open_private)  # noqa: SIM115 - it stays open while it is held
        except OSError:  # a disk that is read-only
            return cls(None)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            with file:
                raise TagBusyError(tag, doing, _read_pid(file), _HINTS[doing]) from error
        except OSError:  # a network disk without locks
            file.close()
            return cls(None)
        _write_pid(file)
        return cls(file)

    def release(self) -> None:
        """Let others have it.  Twice is fine."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


def _read_pid(file: IO[str]) -> int | None:
    file.seek(0)
    text = file.read(_PID_MAX_CHARACTERS)
    return int(text) if text.isascii() and text.isdigit() else None


def _write_pid(file: IO[str]) -> None:
    """Say who holds it; a full disk keeps nobody from holding it."""
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
