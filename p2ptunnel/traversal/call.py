"""A call: the caller's agent over real sockets, from a tag to whatever `establish` makes of the connection."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Final, Generic, Protocol, TypeAlias, TypeVar

import msgspec

from p2ptunnel.abc import Pipe
from p2ptunnel.defaults import PENDING_CONNECTIONS, TRANSACTION_TIMEOUT
from p2ptunnel.errors import (
    AuthenticationError,
    ChannelError,
    NoPathError,
    P2PTunnelError,
    PeerKeyChangedError,
    PeerOfflineError,
    PeerRefusedError,
    RateLimitedError,
    RendezvousError,
    RendezvousTimeoutError,
    ServerKeyError,
    ServerPrivateError,
)
from p2ptunnel.identity.keys import PublicKey
from p2ptunnel.net.tcp import Listener, reset_close
from p2ptunnel.net.udp import UdpDriver, UdpSocket
from p2ptunnel.protocol.approach import Birthdays
from p2ptunnel.protocol.caller import CallerAgent, CallerState
from p2ptunnel.protocol.detour import OpenQuic, QuicRuledOut
from p2ptunnel.protocol.intent import CallSigner
from p2ptunnel.protocol.machine import Event, Hole
from p2ptunnel.protocol.punch import (
    AnswerProved,
    CallFailed,
    CallOffered,
    HoleOpened,
    Nominate,
)
from p2ptunnel.protocol.rounds import Rounds
from p2ptunnel.trace import Tracer
from p2ptunnel.transports.quicport import QuicPort
from p2ptunnel.transports.tcp import TcpPipe
from p2ptunnel.traversal.attempt import AttemptSockets, NextRound
from p2ptunnel.traversal.port import OpenPort, PunchPort, another_port
from p2ptunnel.traversal.quic import QuicCall
from p2ptunnel.traversal.report import ConnectedBy, path_of
from p2ptunnel.traversal.tries import Tries
from p2ptunnel.types import Address, Tag, format_address
from p2ptunnel.wire.messages import RelayOffer

__all__ = ["Abortable", "Call", "Companion", "Conkey", "Establish"]


class Abortable(Protocol):
    """What `establish` makes."""

    def abort(self, reason: str) -> None:
        """Close at once."""
        ...


class Companion(Protocol):
    """What goes beside a call, and learns of it what it needs; neither method may wait or raise."""

    def offered(self, token: str, offer: RelayOffer | None) -> None:
        """Learn the token of the call and which relay is for it, once more if the call was renewed; None: the server's own."""
        ...

    def proved(self, selector: str, key: PublicKey) -> None:
        """Learn who has answered, and the attempt's selector, 32 hex characters."""
        ...


T = TypeVar("T", bound=Abortable)
Conkey: TypeAlias = str | asyncio.Future[str]
"""What names the attempt to whoever takes a connection; over the relay it may become known during the handshake only."""

Establish: TypeAlias = Callable[[Pipe, Conkey, PublicKey | None], Awaitable[T]]
_KEY_CHANGED_PATIENCE: Final = 1.0
"""Seconds: somebody with another key answered; the right one may still come up beside it, but nobody waits long for that."""


class Call(Generic[T]):
    """One attempt to reach a peer, on a port of its own.

    Args:
        port: Used for this call only, and closed by its end.
        tag: Ours.
        wanted: The callee's.
        establish: Makes a channel: `(pipe, conkey, key) -> channel`; the key is that of whoever answered, which has signed with
            it, None for a program of the founding protocol.  ChannelError and OSError let the next connection try; so does
            PeerKeyChangedError, for a second; what else it raises ends the call.
        signer: Signs the call, and knows who is to answer; None: the callee speaks the founding protocol only.
        companion: Told what the call learns.
        is_punching: Whether to punch; else the call only finds out for its companion who answers.
        birthdays: What this machine has for them; None: there will be none.
        rounds: What earlier attempts have shown, and this one adds to; None: nothing.
        open_other: Opens another port at the same server, for a second round; None: there is none.
        meanwhile: Called once the server has been asked: there is time until it answers.
        tries: Where what it tries is noted.

    Attributes:
        wanted: As it was given.
        is_punching: As it was given.
    """

    def __init__(
        self,
        port: PunchPort,
        tag: Tag,
        wanted: Tag,
        establish: Establish[T],
        *,
        signer: CallSigner | None,
        companion: Companion | None = None,
        is_punching: bool = True,
        birthdays: Birthdays | None = None,
        rounds: Rounds | None = None,
        open_other: OpenPort | None = None,
        meanwhile: Callable[[], None] = lambda: None,
        tries: Tries | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._port = port
        self._meanwhile = meanwhile
        self.wanted: Final = wanted
        self._establish = establish
        self._trace = tracer or Tracer()
        self._companion = companion
        self.is_punching: Final = is_punching
        self._agent = CallerAgent(
            tag,
            wanted,
            port.server,
            port.view,
            random.SystemRandom(),
            signer=signer,
            cookie=port.cookie,
            server_key=port.server_key,
            join=port.join,
            is_punching=is_punching,
            birthdays=birthdays,
            rounds=rounds,
            port=port.address[1],
        )
        quic = QuicPort(port.udp, tracer=self._trace)
        self._open_other = open_other
        later = NextRound(self._other_port, self._on_accepted, self._on_taken, self._on_burnt)
        self._sockets = AttemptSockets(port, self._add, self._on_row, later, on_hole=self._on_hole, tracer=self._trace)
        self._tries = (tries or Tries()).call(port.server, port.address, lambda: self._sockets.records)
        self._quic = QuicCall(quic, self._keep, self._tries, self._trace)
        self._driver = UdpDriver(self._agent, port.udp, self._on_event, aside=quic)
        self._driver.hole_of = self._hole_of
        port.serve(self._driver)
        self._listeners: tuple[Listener, ...] = ()
        self._connections: dict[int, Pipe] = {}
        self._last_connection = 0
        self._rtt: float | None = None
        self._tried: Pipe | None = None
        self._nominating: asyncio.Task[None] | None = None
        self._result: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._pinned = signer.callee if signer else None
        self._is_raw = signer is None
        self._changed_key: PeerKeyChangedError | None = None
        self._patience: asyncio.TimerHandle | None = None

    async def run(self) -> T:
        """Punch; return what `establish` made.

        Cancelling leaves no socket and no task.

        Raises:
            PeerOfflineError: Nobody is registered under the tag.
            RendezvousTimeoutError: The server does not answer.
            RendezvousError: It refused.
            PeerRefusedError: The callee does not let us in.
            PeerKeyChangedError: Whoever answered has another key than the pinned one; nothing was sent there.
            AuthenticationError: The answer, or where it says the callee is, is not signed by the pinned key; nothing was sent.
            NoPathError: No connection came up; its `attempts` name each target tried.
        """
        try:
            if self.is_punching:
                self._listeners = self._port.listen(self._on_accepted, is_limited=self._is_raw)
            self._driver.start()
            self._tries.start()
            self._agent.start(time.monotonic())
            self._driver.wake()
            self._meanwhile()
            return await self._result
        except asyncio.CancelledError:
            if self._result.done() and not self._result.cancelled() and self._result.exception() is None:
                self._result.result().abort("cancelled")  # it came up in the very turn in which nobody wanted it any more
            raise
        finally:
            await self._close()

    async def _close(self) -> None:
        self._result.cancel()
        self._agent.abandon()
        self._sockets.close()
        self._tries.close()
        for listener in self._listeners:
            listener.close()
        if self._patience is not None:
            self._patience.cancel()
        self._quic.cancel()
        for pipe in self._connections.values():
            pipe.abort()
        self._driver.close()
        self._port.close()
        await self._quic.close()
        if self._nominating is not None and not self._nominating.done():
            self._nominating.cancel()
            await asyncio.gather(self._nominating, return_exceptions=True)
        await self._sockets.wait_closed()

    # --- connections --------------------------------------------------------------------------------------------------

    def _on_accepted(self, sock: socket.socket, remote: Address) -> None:
        self._add(sock, remote, "accept")

    def _add(self, sock: socket.socket, remote: Address, how: ConnectedBy) -> None:
        is_wanted = self._agent.state in {CallerState.PUNCHING, CallerState.NOMINATING} and remote[0] in self._agent.hosts
        if not is_wanted or len(self._connections) >= PENDING_CONNECTIONS:
            self._trace("traversal", "stranger_cut_off", remote=format_address(remote))
            reset_close(sock)
            return
        self._trace("traversal", "connection_up", remote=format_address(remote), how=how)
        self._keep(TcpPipe(sock, path_of(sock, remote, how)))

    def _keep(self, pipe: Pipe) -> None:
        self._last_connection += 1
        self._connections[self._last_connection] = pipe
        self._agent.connection_up(self._last_connection, time.monotonic())
        self._driver.wake()

    # --- what the agent wants -----------------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        self._trace("punch", type(event).__name__, **event.facts())
        self._tries.note(event)
        match event:
            case CallOffered() if self._companion is not None:
                self._companion.offered(event.token, event.offer)
            case AnswerProved() if self._companion is not None:
                self._companion.proved(event.selector, event.key)
            case HoleOpened():
                self._rtt = event.rtt
                if self._tried is not None:
                    self._tell_rtt(self._tried)
            case OpenQuic():
                at_hole = None if event.hole is None else self._sockets.quic_at(event.hole)
                self._quic.begin(event.conkey, self._agent.consent(event.remote), self._rtt, at_hole)
            case QuicRuledOut():
                self._quic.rule_out(event.reason)
            case Nominate():
                self._nominate_soon(self._connections.pop(event.connection), event.conkey)
            case CallFailed():
                error = self._error(event)
                self._tries.failed(event, error)
                self._fail(error)
            case _:
                self._sockets.take(event)

    def _on_row(self, port: int | None) -> None:
        self._agent.observed(port, time.monotonic())
        self._driver.wake()

    def _hole_of(self, hole: Hole) -> UdpSocket | None:
        return self._sockets.hole(hole.number)

    def _on_hole(self, number: int, data: bytes, source: Address) -> None:
        self._agent.receive_at_hole(Hole(self._agent.token, number), data, source, time.monotonic())
        self._driver.wake()

    async def _other_port(self) -> PunchPort | None:
        """Return another port, where the callee knows us already; None if there is none."""
        seen = next((candidate.host for candidate in self._port.view.candidates if candidate.kind == "srflx"), None)
        if self._open_other is None or seen is None:
            return None
        return await another_port(self._open_other, seen, self._trace)

    def _on_taken(self, port: PunchPort) -> None:
        self._agent.port_taken(port.address[1], port.view.candidates, time.monotonic())
        self._driver.wake()

    def _on_burnt(self) -> None:
        self._agent.port_lost(time.monotonic())
        self._driver.wake()

    def _nominate_soon(self, pipe: Pipe, conkey: str) -> None:
        self._tried = pipe
        self._tell_rtt(pipe)
        self._nominating = asyncio.create_task(self._nominate(pipe, conkey))
        self._nominating.add_done_callback(self._on_nominated)
        self._nominating.add_done_callback(lambda _: pipe.abort())  # also of one that was cancelled before it began

    def _tell_rtt(self, pipe: Pipe) -> None:
        pipe.path = msgspec.structs.replace(pipe.path, rtt=self._rtt)

    async def _nominate(self, pipe: Pipe, conkey: str) -> None:
        try:
            with self._tries.channel(pipe.path):
                channel = await self._establish(pipe, conkey, self._agent.peer_key)
        except PeerKeyChangedError as error:
            self._fail_soon(error)
        except (ChannelError, OSError) as error:
            self._trace("traversal", "channel_failed", reason=str(error))
        except P2PTunnelError as error:
            self._fail(error)
        else:
            self._succeed(channel)
        if not self._result.done() and self._agent.state is CallerState.NOMINATING:
            self._agent.channel_failed(time.monotonic())
            self._driver.wake()

    def _on_nominated(self, task: asyncio.Task[None]) -> None:
        """Hand a bug in `establish` to whoever waits for the call, rather than to nobody."""
        if not task.cancelled() and (error := task.exception()) is not None and not self._result.done():
            self._result.set_exception(error)

    # --- how it ends --------------------------------------------------------------------------------------------------

    def _succeed(self, channel: T) -> None:
        if self._result.done():  # it came up in the turn in which the time was up
            channel.abort("too late")
            return
        self._result.set_result(channel)
        self._agent.channel_up(time.monotonic())
        self._driver.wake()

    def _fail(self, error: P2PTunnelError) -> None:
        if not self._result.done():
            self._result.set_exception(error)

    def _fail_soon(self, error: PeerKeyChangedError) -> None:
        if self._changed_key is None:
            self._changed_key = error
            self._patience = asyncio.get_running_loop().call_later(_KEY_CHANGED_PATIENCE, self._fail, error)

    def _error(self, failed: CallFailed) -> P2PTunnelError:
        server = format_address(self._port.server)
        match failed.kind:
            case "offline":
                return PeerOfflineError(self.wanted, server)
            case "rendezvous-silent":
                return RendezvousTimeoutError(server, TRANSACTION_TIMEOUT, self._port.silent_over)
            case "another-server":
                return ServerKeyError(server)
            case "rate-limited":
                return RateLimitedError(server, failed.retry_after)
            case "timeout":
                return self._changed_key or NoPathError(self.wanted, self._tries.lines or (failed.text,))
            case "key-changed":
                assert self._pinned is not None
                return PeerKeyChangedError(self.wanted, str(self._pinned))
            case "forged":
                error = AuthenticationError(f"the answer in the name of {self.wanted} does not count: {failed.text}")
                error.hint = f"The server {server}, or somebody in its name, lies: use another one."
                return error
            case "refused" if failed.code == 407:
                return ServerPrivateError(server)
            case "refused" if failed.code == 404:
                return PeerOfflineError(self.wanted, server)
            case "refused" if failed.code == 403 and self._is_raw:
                return AuthenticationError(f"{self.wanted} lets in nobody without a key")
            case "refused" if failed.code == 403:
                return PeerRefusedError(self.wanted)
            case "refused":
                return RendezvousError(server, failed.text, failed.code)
