"""Where a server keeps its tags: a copy of what it knows, so that a restarted one knows it again.

Rule: the truth is in memory; a disk that is slow, full or gone costs what happens meanwhile and nothing else.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from p2ptunnel.errors import StoreError
from p2ptunnel.identity.files import make_private_directory, make_private_file
from p2ptunnel.protocol.tags import TagRecord
from p2ptunnel.types import Tag

__all__ = ["SqliteTags", "TagStore"]

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS tags (
    tag TEXT PRIMARY KEY, key TEXT NOT NULL, seen_at REAL NOT NULL,
    host TEXT, port INTEGER, epoch INTEGER NOT NULL, ts INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS freed (tag TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS saved (at REAL NOT NULL);
"""
_BUSY: Final = 2.0  # seconds to wait for the operator's command, which holds the file for milliseconds


class TagStore(Protocol):
    """A place to keep tags.  Its methods may block, are called from threads, one at a time, and raise StoreError only."""

    def load(self) -> tuple[Sequence[TagRecord], float]:
        """Return every tag that is owned, the longest unseen first, and when they were saved: seconds since 1970 or 0."""
        ...

    def save(self, changes: Mapping[Tag, TagRecord | None]) -> frozenset[Tag]:
        """Write what has changed (None: free); return the tags that an operator has freed since the last `load` or `save`."""
        ...

    def close(self) -> None:
        """Let go of it; nothing is called afterwards."""
        ...


class SqliteTags:
    """A TagStore in one SQLite file, 0600, which `p2ptunnel rendezvous tags` reads beside the server.

    All methods raise StoreError when the file cannot be read or written, InsecureKeyFileError when others could.
    """

    def __init__(self, path: Path) -> None:
        self._path: Final = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def load(self) -> tuple[Sequence[TagRecord], float]:
        """Return the tags, and when they were saved; what has been freed until now is not among them any more."""
        with self._transaction() as sql:
            sql.execute("DELETE FROM freed")  # or whoever has the tag by the first `save` would lose it
            saved = sql.execute("SELECT max(at) FROM saved").fetchone()[0]
            return _records(sql), saved or 0.0

    def records(self) -> Sequence[TagRecord]:
        """Return the tags, beside a server that runs."""
        with self._transaction() as sql:
            return _records(sql)

    def save(self, changes: Mapping[Tag, TagRecord | None]) -> frozenset[Tag]:
        """Write the changes, but none of a tag that the operator has just freed."""
        with self._transaction() as sql:
            freed = frozenset(tag for (tag,) in sql.execute("SELECT tag FROM freed"))
            sql.execute("DELETE FROM freed")
            sql.executemany("DELETE FROM tags WHERE tag = ?", [(tag,) for tag in changes])
            kept = [_row(record) for tag, record in changes.items() if record is not None and tag not in freed]
            sql.executemany("INSERT INTO tags VALUES (?, ?, ?, ?, ?, ?, ?)", kept)
            sql.execute("DELETE FROM saved")
            sql.execute("INSERT INTO saved VALUES (?)", (time.time(),))
        return freed

    def free(self, tag: Tag) -> bool:
        """Free a tag, also at a server that runs; return whether it was owned."""
        with self._transaction() as sql:
            was_owned = sql.execute("DELETE FROM tags WHERE tag = ?", (tag,)).rowcount > 0
            sql.execute("INSERT OR IGNORE INTO freed VALUES (?)", (tag,))
        return was_owned

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()

    @contextlib.contextmanager
    def _transaction(self) -> Generator[sqlite3.Connection]:
        with self._lock:
            try:
                connection = self._connection = self._connection or self._open()
                with connection:
                    yield connection
            except (sqlite3.Error, OSError) as error:
                raise StoreError(str(self._path), str(error) or type(error).__name__) from error

    def _open(self) -> sqlite3.Connection:
        make_private_directory(self._path.parent)
        make_private_file(self._path)
        connection = sqlite3.connect(self._path, timeout=_BUSY, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.executescript(_SCHEMA)
        except sqlite3.Error:
            connection.close()
            raise
        return connection


def _records(sql: sqlite3.Connection) -> Sequence[TagRecord]:
    rows = sql.execute("SELECT tag, key, seen_at, host, port, epoch, ts FROM tags ORDER BY seen_at").fetchall()
    return [_record(row) for row in rows]


def _record(row: tuple[str, str, float, str | None, int | None, int, int]) -> TagRecord:
    tag, key, seen_at, host, port, epoch, ts = row
    return TagRecord(tag, key, seen_at, None if host is None else (host, port or 0), epoch, ts)


def _row(record: TagRecord) -> tuple[str, str, float, str | None, int | None, int, int]:
    host, port = record.address or (None, None)
    return (record.tag, record.key, record.seen_at, host, port, record.epoch, record.ts)
