"""Keeps a server's tags: reads them at the start, writes what has changed every few seconds and at the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine
from typing import Any, Final

from p2ptunnel.defaults import REGISTRATION_TTL, SNAPSHOT_EVERY, TAG_SEEN_EVERY
from p2ptunnel.errors import StoreError
from p2ptunnel.net.threads import in_thread
from p2ptunnel.protocol.registrar import Registrar
from p2ptunnel.protocol.tags import TagBook, TagRecord
from p2ptunnel.server.registry import TagStore

__all__ = ["TagKeeper"]

_log: Final = logging.getLogger(__name__)
_LAST_WRITE: Final = 2.0  # seconds; a disk that hangs does not keep a server from ending


class TagKeeper:
    """Between the registrar and a store; whoever makes one closes it.

    Attributes:
        failures: How often the store could not be written.
    """

    def __init__(self, store: TagStore) -> None:
        self.failures = 0
        self._store = store
        self._recalled: list[TagRecord] = []
        self._writing: asyncio.Task[None] | None = None
        self._registrar: Registrar | None = None

    async def load(self, tags: TagBook) -> None:
        """Fill `tags` as they were left.

        Raises:
            StoreError: The store cannot be read.
        """
        records, saved_at = await in_thread(self._store.load)
        away = time.time() - saved_at if saved_at else 0.0
        if away < REGISTRATION_TTL:  # later, peers have come back by themselves, and ports have new owners
            self._recalled = [record for record in records if record.address is not None]
        tags.since_1970 = time.time() - time.monotonic()
        tags.load(records, away=away if abs(away) > TAG_SEEN_EVERY else 0.0)

    def start(self, registrar: Registrar) -> None:
        """Recall who was registered, and begin to write."""
        self._registrar = registrar
        registrar.recall(self._recalled, time.monotonic())
        self._recalled = []
        self._writing = asyncio.create_task(self._write_on())

    async def close(self) -> None:
        """Write what is left, for two seconds at most, and let go of the store; closing twice is fine."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            await _soon(self._write())
        await _soon(in_thread(self._store.close))

    async def _write_on(self) -> None:
        while True:
            await asyncio.sleep(SNAPSHOT_EVERY)
            await self._write()

    async def _write(self) -> None:
        assert self._registrar is not None
        changes = self._registrar.tags.changes()
        try:
            freed = await in_thread(self._store.save, changes)
        except StoreError as error:
            self.failures += 1
            self._registrar.tags.restore(changes)
            _log.warning("tags are not written: %s", error)
            return
        for tag in freed:
            self._registrar.free(tag)


async def _soon(work: Coroutine[Any, Any, None]) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LAST_WRITE):
            await work
