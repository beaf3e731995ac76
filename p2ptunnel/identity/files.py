"""Files that only their owner can read or replace.  Rule: a write happens whole or not at all, whatever fails in it."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Final

from p2ptunnel.errors import InsecureKeyFileError, StoreError

__all__ = [
    "OTHERS_READ_OR_WRITE",
    "OTHERS_WRITE",
    "exclusive",
    "make_private_directory",
    "make_private_file",
    "read_private",
    "write_private",
]

OTHERS_READ_OR_WRITE: Final = 0o077  # not on a secret
OTHERS_WRITE: Final = 0o022  # not on a list that decides who may do what
_NOFOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)  # Windows has neither
_CLOEXEC: Final = getattr(os, "O_CLOEXEC", 0)


def make_private_directory(directory: Path) -> None:
    """Make the directory with mode 0700 if it is missing, and check that nobody else can put files into it.

    Raises:
        InsecureKeyFileError: It belongs to somebody else, or others may write in it.
        StoreError: It cannot be made.
    """
    with _as_store_error(directory):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check(directory, directory.stat(), OTHERS_WRITE, mode="700")


def make_private_file(path: Path) -> None:
    """Make the file with mode 0600 if it is missing, and check that nobody else can read or replace it.

    Raises:
        InsecureKeyFileError: It is a symlink, belongs to somebody else, or others may read or write it.
        StoreError: It cannot be made.
    """
    with _as_store_error(path), open(path, "ab", opener=open_private) as file:
        _check(path, os.fstat(file.fileno()), OTHERS_READ_OR_WRITE, mode="600")


def read_private(path: Path, forbidden: int) -> bytes:
    """Return the bytes of a file of ours, through no symlink.

    Args:
        path: The file.
        forbidden: Permission bits that it must not have, such as `OTHERS_WRITE`.

    Raises:
        FileNotFoundError: There is none.
        InsecureKeyFileError: It is a symlink, belongs to somebody else, or has a forbidden bit.
        StoreError: It cannot be read.
    """
    with _as_store_error(path), open(path, "rb", opener=open_private) as file:
        _check(path, os.fstat(file.fileno()), forbidden, mode="600")
        return file.read()


def write_private(path: Path, data: bytes) -> None:
    """Put `data` in the place of the file, mode 0600; it is on the disk when this returns.

    Raises:
        StoreError: It failed; the old file is intact.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with _as_store_error(path):
        try:
            with open(temporary, "xb", opener=open_private) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_directory(path.parent)


@contextlib.contextmanager
def exclusive(directory: Path) -> Generator[None]:
    """Keep other processes out of a change that reads, then writes; a killed holder frees it.

    Raises:
        StoreError: The lock file cannot be had.
    """
    if sys.platform == "win32":  # two changes at the same instant: the later one wins, no file is ever torn
        yield
        return
    import fcntl

    path = directory / ".lock"
    with _as_store_error(path):
        file = open(path, "ab", opener=open_private)  # noqa: SIM115 - errors of the block are not the file's
    with file:
        with _as_store_error(path):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def open_private(path: str, flags: int) -> int:
    """Open a file of ours, made with mode 0600, through no symlink: an `opener` for `open`."""
    return os.open(path, flags | _NOFOLLOW | _CLOEXEC, 0o600)


def _check(path: Path, status: os.stat_result, forbidden: int, mode: str) -> None:
    if sys.platform == "win32":  # access lists rule there; the profile directory inherits the user's
        return
    if status.st_uid != os.geteuid():
        raise InsecureKeyFileError(str(path), "it belongs to another user", f"sudo chown {os.geteuid()} {path}")
    if status.st_mode & forbidden:
        shown = f"its mode is {stat.S_IMODE(status.st_mode):04o}: others could read or replace it"
        raise InsecureKeyFileError(str(path), shown, f"chmod {mode} {path}")


def _sync_directory(directory: Path) -> None:
    if sys.platform == "win32":
        return
    descriptor = os.open(directory, os.O_RDONLY | _CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _as_store_error(path: Path) -> Generator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno == errno.ELOOP:
            hint = f"put the file itself in place of the link: mv $(readlink -f {path}) {path}"
            raise InsecureKeyFileError(str(path), "it is a symbolic link", hint) from error
        raise StoreError(str(path), error.strerror or type(error).__name__) from error
