"""The way over the relay, beside a call: joined as soon as there is a token, and used as soon as the callee has signed.

Where the callee's key is known, the handshake with it follows the request to join at once; all that waits for the callee's
answer is the HELLO, which says who calls and for which attempt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeAlias, TypeVar

from p2ptunnel.abc import Pipe
from p2ptunnel.errors import ChannelLostError, P2PTunnelError
from p2ptunnel.identity.keys import PublicKey
from p2ptunnel.trace import Tracer
from p2ptunnel.traversal.call import Abortable, Establish
from p2ptunnel.traversal.tries import Tries, Trying
from p2ptunnel.wire.messages import RelayOffer

__all__ = ["Join", "RelayedCall"]

T = TypeVar("T", bound=Abortable)
Join: TypeAlias = Callable[[str, RelayOffer | None], Awaitable[Pipe]]
"""Joins the relay as the caller, for a token: the one that is offered, or the server's own."""


class RelayedCall(Generic[T]):
    """The companion of one call that makes of it a connection over the relay.

    Args:
        join: Joins it.
        establish: Makes a channel, as for `Call`.
        callee: The only key that may answer; None: `establish` is told it when it has.
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
        callee: PublicKey | None = None,
        head_start: float = 0.0,
        tries: Tries | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self.outcome: Final[asyncio.Future[T]] = asyncio.get_running_loop().create_future()
        self.outcome.add_done_callback(_retrieve)  # a direct call that came up first makes it nobody's business
        self.on_up: Callable[[T], None] = lambda _: None
        self._join: Final = join
        self._establish: Final = establish
        self._callee: Final = callee
        self._head_start: Final = head_start
        self._tries: Final = tries or Tries()
        self._trace: Final = tracer or Tracer()
        self._key: PublicKey | None = None  # of who has answered
        self._conkey: Final[asyncio.Future[str]] = asyncio.get_running_loop().create_future()
        self._waiting: asyncio.TimerHandle | None = None
        self._tasks: Final[list[asyncio.Task[None]]] = []  # the last one counts
        self._is_closed = False
        self._failure: BaseException | None = None

    @property
    def is_under_way(self) -> bool:
        """Whether something may still come of it, the callee having answered."""
        return bool(self._tasks) and self._key is not None and not self.outcome.done()

    @property
    def failure(self) -> BaseException | None:
        """Why nothing came of it, as far as is known; a call that is renewed has another chance."""
        return self.outcome.exception() if self.outcome.done() else self._failure

    def offered(self, token: str, offer: RelayOffer | None = None) -> None:
        """Join the relay; a renewed call has another token, for which it is joined anew."""
        if self._is_closed:  # the call has not learnt yet that it is cancelled
            return
        for task in self._tasks:
            task.cancel()
        self._failure = None
        self._tasks.append(asyncio.create_task(self._run(token, offer)))
        self._tasks[-1].add_done_callback(self._ended)

    def proved(self, selector: str, key: PublicKey) -> None:
        """Go on: whoever holds `key` takes a connection with this selector."""
        if self._key is None and not self._is_closed:
            self._key = key
            self._waiting = asyncio.get_running_loop().call_later(self._head_start, self._conkey.set_result, selector)
        if self._failure is not None and not self.outcome.done():
            self.outcome.set_exception(self._failure)

    async def close(self) -> None:
        """End what is under way; what is up stays."""
        self._is_closed = True
        if self._waiting is not None:
            self._waiting.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, token: str, offer: RelayOffer | None) -> None:
        with self._tries.begin("relay", "t=6, and TLS through it", kind="relay") as trying:
            await self._come_up(token, offer, trying)

    async def _come_up(self, token: str, offer: RelayOffer | None, trying: Trying) -> None:
        pipe = await self._join(token, offer)
        try:
            if self._callee is None:
                conkey = await asyncio.shield(self._conkey)
                assert self._key is not None
                made = await self._establish(pipe, conkey, self._key)
            else:
                made = await self._establish(pipe, self._conkey, self._callee)
        finally:
            pipe.abort()  # unless a transport has it by now
        trying.end("connected", f"by way of {pipe.path.place}")
        if self.outcome.done():  # an earlier join was refused, and the call has been given up for that
            made.abort("too late")
            return
        self.outcome.set_result(made)
        self.on_up(made)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if (
            task is self._tasks[-1]
            and not task.cancelled()
            and (error := _reason(task)) is not None
            and not self.outcome.done()
        ):
            self._trace("traversal", "relay_failed", reason=str(error))
            if self._key is not None or not isinstance(error, (P2PTunnelError, OSError)):
                self.outcome.set_exception(error)
            else:  # the call may be renewed
                self._failure = error


def _reason(task: asyncio.Task[None]) -> BaseException | None:
    """Return why nothing came of it: the relay's own word, where that is what ended a handshake."""
    error = task.exception()
    refusal = error.__cause__ if isinstance(error, ChannelLostError) else None
    return refusal if isinstance(refusal, P2PTunnelError) else error


def _retrieve(outcome: asyncio.Future[T]) -> None:
    if not outcome.cancelled():
        outcome.exception()
