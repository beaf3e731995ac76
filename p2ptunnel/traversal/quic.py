"""QUIC beside the TCP connections of an attempt: what a caller turns to, and what a callee expects.

Rule: a connection that came up by QUIC is one more connection of its attempt, with the same preamble and the same rules.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from typing import Final

from p2ptunnel.defaults import PREAMBLE_TIMEOUT, PUNCH_TIMEOUT
from p2ptunnel.errors import ChannelClosedError, MissingExtraError, P2PTunnelError
from p2ptunnel.protocol.callee import CalleeAgent
from p2ptunnel.protocol.consent import Consent
from p2ptunnel.trace import Tracer
from p2ptunnel.transports.quic import QuicPipe
from p2ptunnel.transports.quicport import QuicPort, quic_name
from p2ptunnel.traversal.tries import CallTries
from p2ptunnel.types import format_address

__all__ = ["QuicAnswers", "QuicCall"]


class QuicCall:
    """The caller's side, for one call.

    Args:
        port: What lives beside the call's agent on its port.
        on_up: Called with a connection that is up.
        tries: Where what it tries is noted.
        tracer: Gets what happens.
    """

    def __init__(self, port: QuicPort, on_up: Callable[[QuicPipe], None], tries: CallTries, tracer: Tracer) -> None:
        self._tries: Final = tries
        self._port: Final = port
        self._on_up: Final = on_up
        self._trace: Final = tracer
        self._connecting: asyncio.Task[None] | None = None

    def rule_out(self, reason: str) -> None:
        """Note why nothing is tried."""
        self._tries.quic().end("dead", reason)

    def begin(self, conkey: str, consent: Consent, rtt: float | None) -> None:
        """Connect, beside whatever else is tried."""
        self._connecting = asyncio.create_task(self._connect(conkey, consent, rtt))

    def cancel(self) -> None:
        """Give up what is not up yet."""
        if self._connecting is not None:
            self._connecting.cancel()

    async def close(self) -> None:
        """Give up what is not up yet, and wait for the end of that."""
        self.cancel()
        if self._connecting is not None:
            await asyncio.gather(self._connecting, return_exceptions=True)

    async def _connect(self, conkey: str, consent: Consent, rtt: float | None) -> None:
        remote = format_address(consent.remote)
        try:
            with self._tries.quic(consent.remote):
                pipe = await self._port.connect(quic_name(conkey), consent, rtt)
        except (OSError, MissingExtraError) as error:
            self._trace("traversal", "quic_failed", remote=remote, reason=str(error) or "no answer")
        else:
            self._trace("traversal", "connection_up", remote=remote, how="quic")
            self._on_up(pipe)


class QuicAnswers:
    """The callee's side, for all calls on its port.

    Args:
        port: What lives beside the registered port's machine.
        tracer: Gets what happens.
    """

    def __init__(self, port: QuicPort, tracer: Tracer) -> None:
        self._port: Final = port
        self._trace: Final = tracer
        self._tasks: Final[set[asyncio.Task[None]]] = set()
        self._waiting: Final[dict[str, asyncio.Task[None]]] = {}  # of those, for whom nobody has come yet; by token

    def expect(self, agent: CalleeAgent, on_up: Callable[[QuicPipe, CalleeAgent], Awaitable[None]]) -> None:
        """Be there, should the caller turn to QUIC.

        Args:
            agent: Of the call.
            on_up: Makes a channel on a connection that has shown the call's conkey.
        """
        expected = asyncio.create_task(self._take(agent, on_up))
        self._tasks.add(expected)
        expected.add_done_callback(self._tasks.discard)
        self._waiting[agent.token] = expected

    def forget(self, token: str) -> None:
        """Expect the caller no more if it has not come by now: it has come otherwise, or the call is over."""
        waiting = self._waiting.pop(token, None)
        if waiting is not None:
            waiting.cancel()

    def cancel(self) -> None:
        """Expect nobody any more."""
        for expected in self._tasks:
            expected.cancel()

    async def close(self) -> None:
        """Expect nobody any more, and wait for the end of that."""
        self.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _take(self, agent: CalleeAgent, on_up: Callable[[QuicPipe, CalleeAgent], Awaitable[None]]) -> None:
        try:
            async with asyncio.timeout(PUNCH_TIMEOUT):
                pipe = await self._port.accept(quic_name(agent.conkey), agent.consent())
        except (P2PTunnelError, OSError) as error:  # most callers come by TCP
            self._trace("traversal", "quic_unused", reason=str(error) or "nobody came")
            return
        finally:
            self._waiting.pop(agent.token, None)
        remote = format_address(pipe.path.remote)
        self._trace("traversal", "connection_up", remote=remote, how="quic")
        try:
            async with asyncio.timeout(PREAMBLE_TIMEOUT):
                await self._check(pipe, agent)
                await on_up(pipe, agent)
        except (P2PTunnelError, OSError) as error:
            reason = str(error) or f"not admitted in {PREAMBLE_TIMEOUT:g} s"
            self._trace("traversal", "connection_refused", remote=remote, reason=reason)
        finally:
            pipe.abort()  # unless a transport has it by now

    async def _check(self, pipe: QuicPipe, agent: CalleeAgent) -> None:
        """See whether the connection is of this call; compared in constant time.

        Raises:
            ChannelClosedError: It is not.
            RemoteProtocolError: It does not begin with a preamble.
        """
        if not hmac.compare_digest(await pipe.read_preamble(), bytes.fromhex(agent.conkey)):
            raise ChannelClosedError("us: a preamble of no call of ours")
