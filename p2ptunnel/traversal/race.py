"""An attempt over every way at once: the direct call, and the relay beside it.  Rule: what is up first is what is returned.

Where that came over the relay, the direct call goes on for whoever wants it; where it did not, the relay is of no use.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Generic, TypeAlias, TypeVar

from p2ptunnel.errors import NoPathError, P2PTunnelError, PeerKeyChangedError
from p2ptunnel.traversal.call import Abortable, Call
from p2ptunnel.traversal.relayed import RelayedCall

__all__ = ["Keep", "Race"]

T = TypeVar("T", bound=Abortable)
Keep: TypeAlias = Callable[[T, asyncio.Task[Any]], None]
"""Given what came up over the relay, and the direct call that goes on: whose it is from then on."""


class Race(Generic[T]):
    """One attempt to reach a peer.

    Args:
        call: The direct one.
        relayed: Its companion.
        keep: Takes the direct call over where the relay was faster; None: that ends it.
    """

    def __init__(self, call: Call[T], relayed: RelayedCall[T], keep: Keep[T] | None = None) -> None:
        self._call: Final = call
        self._relayed: Final = relayed
        self._keep: Final = keep
        self._is_kept = False

    async def run(self) -> T:
        """Return what `establish` made, of whichever connection was up first.

        Cancelling leaves no socket and no task.

        Raises:
            P2PTunnelError: As `Call.run`; the attempts of a NoPathError name what the relay said.
            PeerKeyChangedError: There is no direct path, and who came over the relay has another key than the pinned one.
        """
        calling = asyncio.create_task(self._call.run())
        self._relayed.on_up = lambda made: self._on_relay_up(made, calling)
        try:
            made = await self._first(calling)
            await self._tidy(calling)
        except asyncio.CancelledError:
            for work in (calling, self._relayed.outcome):
                if _is_up(work):  # in the very turn in which nobody wanted it any more
                    work.result().abort("cancelled")
            await self._tidy(calling)
            raise
        except BaseException:
            await self._tidy(calling)
            raise
        return made

    async def _tidy(self, calling: asyncio.Task[T]) -> None:
        """End what is of no use any more, and wait for that."""
        if not self._is_kept:
            calling.cancel()
        await self._relayed.close()
        if calling.done() or calling.cancelling():
            await asyncio.gather(calling, return_exceptions=True)

    def _on_relay_up(self, made: T, calling: asyncio.Task[T]) -> None:
        if self._keep is not None and self._call.is_punching and not calling.done():
            self._is_kept = True
            self._keep(made, calling)

    async def _first(self, calling: asyncio.Task[T]) -> T:
        outcome = self._relayed.outcome
        await asyncio.wait({calling, outcome}, return_when=asyncio.FIRST_COMPLETED)
        if outcome.done() and not isinstance(outcome.exception(), (P2PTunnelError, OSError)):
            return outcome.result()  # or raise what is a fault of ours
        if not (calling.done() or self._call.is_punching):
            raise self._without_path(())
        try:
            return await calling
        except NoPathError as error:
            if self._relayed.is_under_way:
                await asyncio.wait({outcome})
            if _is_up(outcome):
                return outcome.result()
            raise self._without_path(error.attempts) from None

    def _without_path(self, attempts: tuple[str, ...]) -> P2PTunnelError:
        """Return the error of an attempt in which nothing came up."""
        error = self._relayed.failure
        if isinstance(error, PeerKeyChangedError):
            return error
        return NoPathError(self._call.wanted, attempts if error is None else (*attempts, f"relay: {error}"))


def _is_up(work: asyncio.Future[T]) -> bool:
    return work.done() and not work.cancelled() and work.exception() is None
