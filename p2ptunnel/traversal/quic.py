"""QUIC beside the TCP connections of an attempt: what a caller turns to, and what a callee expects.

Rule: a connection that came up by QUIC is one more connection of its attempt, with the same preamble and the same rules.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from typing import Final

from p2ptunnel.defaults import PREAMBLE_TIMEOUT
from p2ptunnel.errors import ChannelClosedError, MissingExtraError, P2PTunnelError
from p2ptunnel.protocol.callee import CalleeAgent
from p2ptunnel.protocol.consent import Consent
from p2ptunnel.trace import Tracer
from p2ptunnel.transports.quic import QuicPipe
from p2ptunnel.transports.quicport import QuicPort, quic_name
from p2ptunnel.traversal.tries import CallTries
from p2ptunnel.types import Address, format_address

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

    def begin(self, conkey: str, consent: Consent, rtt: float | None, port: QuicPort | None = None) -> None:
        """Connect, beside whatever else is tried; from `port`, where that is another than the call's."""
        self._connecting = asyncio.create_task(self._connect(port or self._port, conkey, consent, rtt))

    def cancel(self) -> None:
        """Give up what is not up yet."""
        if self._connecting is not None:
            self._connecting.cancel()

    async def close(self) -> None:
        """Give up what is not up yet, and wait for the end of that."""
        self.cancel()
        if self._connecting is not None:
            await asyncio.gather(self._connecting, return_exceptions=True)

    async def _connect(self, port: QuicPort, conkey: str, consent: Consent, rtt: float | None) -> None:
        remote = format_address(consent.remote)
        try:
            with self._tries.quic(consent.remote):
                pipe = await port.connect(quic_name(conkey), consent, rtt)
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
        self._names: Final[dict[str, list[tuple[QuicPort, bytes]]]] = {}  # of those who have not come, by token
        self._taking: Final[set[asyncio.Task[None]]] = set()

    def expect(
        self,
        agent: CalleeAgent,
        on_up: Callable[[QuicPipe, CalleeAgent], Awaitable[None]],
        port: QuicPort | None = None,
    ) -> None:
        """Be there, should the caller turn to QUIC, until it is forgotten: most callers come by TCP.

        It comes from where its probes came, or not at all, and has to answer a question there: a handshake is three times as
        long as what asks for it, and goes to no address that somebody may have made up.

        Args:
            agent: Of the call.
            on_up: Makes a channel on a connection that has shown the call's conkey.
            port: Where it may come as well; None: to the port of all calls.
        """
        at = port or self._port

        def begin(first: bytes, source: Address) -> bool:
            if not agent.has_heard_from(source):
                return False
            self.forget(agent.token)
            taking = asyncio.create_task(self._take(at, agent, first, source, on_up))
            self._taking.add(taking)
            taking.add_done_callback(self._taking.discard)
            return True

        name = quic_name(agent.conkey)
        self._names.setdefault(agent.token, []).append((at, name))
        at.expect(name, begin)

    def forget(self, token: str) -> None:
        """Expect the caller no more if it has not come by now: it has come otherwise, or the call is over."""
        for port, name in self._names.pop(token, ()):
            port.forget(name)

    def cancel(self) -> None:
        """Expect nobody any more."""
        for token in tuple(self._names):
            self.forget(token)
        for taking in self._taking:
            taking.cancel()

    async def close(self) -> None:
        """Expect nobody any more, and wait for the end of that."""
        self.cancel()
        await asyncio.gather(*self._taking, return_exceptions=True)

    async def _take(
        self,
        port: QuicPort,
        agent: CalleeAgent,
        first: bytes,
        source: Address,
        on_up: Callable[[QuicPipe, CalleeAgent], Awaitable[None]],
    ) -> None:
        consent = agent.consent()
        consent.doubt(source, asyncio.get_running_loop().time())
        try:
            pipe = await port.accept(quic_name(agent.conkey), consent, first)
        except (P2PTunnelError, OSError) as error:
            self._trace("traversal", "quic_failed", remote=format_address(source), reason=str(error) or "no handshake")
            return
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
