"""The way over the relay, beside a call: joined as soon as there is a token, and used as soon as the callee has signed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeAlias, TypeVar

from p2ptunnel.abc import Pipe
from p2ptunnel.identity.keys import PublicKey
from p2ptunnel.trace import Tracer
from p2ptunnel.traversal.call import Abortable, Establish
from p2ptunnel.traversal.tries import Tries, Trying
from p2ptunnel.types import format_address

__all__ = ["Join", "RelayedCall"]

T = TypeVar("T", bound=Abortable)
Join: TypeAlias = Callable[[str], Awaitable[Pipe]]
"""Joins the relay as the caller, for a token."""


class RelayedCall(Generic[T]):
    """The companion of one call that makes of it a connection over the relay.

    Args:
        join: Joins it.
        establish: Makes a channel, as for `Call`.
        head_start: Seconds that the direct call has from the callee's answer on.
        tries: Where what comes of it is noted.
        tracer: Told why nothing came of it.

    Attributes:
        outcome: What `establish` made, or why nothing came of it; never done where the call never got so far.
        on_up: Called with what `establish` made, in the very turn.
    """

    def __init__(
        self,
        join: Join,
        establish: Establish[T],
        *,
        head_start: float = 0.0,
        tries: Tries | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self.outcome: Final[asyncio.Future[T]] = asyncio.get_running_loop().create_future()
        self.outcome.add_done_callback(_retrieve)  # a direct call that came up first makes it nobody's business
        self.on_up: Callable[[T], None] = lambda _: None
        self._join: Final = join
        self._establish: Final = establish
        self._head_start: Final = head_start
        self._tries: Final = tries or Tries()
        self._trace: Final = tracer or Tracer()
        self._proof: Final[asyncio.Future[tuple[str, PublicKey]]] = asyncio.get_running_loop().create_future()
        self._tasks: Final[list[asyncio.Task[None]]] = []  # the last one counts
        self._is_closed = False

    @property
    def is_under_way(self) -> bool:
        """Whether something may still come of it, the callee having answered."""
        return bool(self._tasks) and self._proof.done() and not self.outcome.done()

    def offered(self, token: str) -> None:
        """Join the relay; a renewed call has another token, for which it is joined anew."""
        if self._is_closed:  # the call has not learnt yet that it is cancelled
            return
        for task in self._tasks:
            task.cancel()
        self._tasks.append(asyncio.create_task(self._run(token)))
        self._tasks[-1].add_done_callback(self._ended)

    def proved(self, selector: str, key: PublicKey) -> None:
        """Go on: whoever holds `key` takes a connection with this selector."""
        if not self._proof.done():
            self._proof.set_result((selector, key))

    async def close(self) -> None:
        """End what is under way; what is up stays."""
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, token: str) -> None:
        with self._tries.begin("relay", "t=6, and TLS through it", kind="relay") as trying:
            await self._come_up(token, trying)

    async def _come_up(self, token: str, trying: Trying) -> None:
        pipe = await self._join(token)
        try:
            selector, key = await asyncio.shield(self._proof)
            await asyncio.sleep(self._head_start)
            made = await self._establish(pipe, selector, key)
        finally:
            pipe.abort()  # unless a transport has it by now
        trying.end("connected", f"by way of {format_address(pipe.path.remote)}")
        if self.outcome.done():  # an earlier join was refused, and the call has been given up for that
            made.abort("too late")
            return
        self.outcome.set_result(made)
        self.on_up(made)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if (
            task is self._tasks[-1]
            and not task.cancelled()
            and (error := task.exception()) is not None
            and not self.outcome.done()
        ):
            self._trace("traversal", "relay_failed", reason=str(error))
            self.outcome.set_exception(error)


def _retrieve(outcome: asyncio.Future[T]) -> None:
    if not outcome.cancelled():
        outcome.exception()
