"""The answering side: a registered port over real sockets, and what comes up on it.

One port serves all callers.  A TCP connection on it counts only once its first bytes name a call under way (the conkey of its
-32); who it is proves itself afterwards, in the channel.
"""

from __future__ import annotations

import asyncio
import hmac
import random
import socket
import time
from collections.abc import Awaitable, Callable

from p2ptunnel.abc import Pipe
from p2ptunnel.defaults import CONTROL_REOPEN, PENDING_CONNECTIONS, PREAMBLE_TIMEOUT, TRANSACTION_TIMEOUT
from p2ptunnel.errors import (
    ChannelClosedError,
    P2PTunnelError,
    RateLimitedError,
    RendezvousError,
    RendezvousTimeoutError,
    TagInUseError,
)
from p2ptunnel.net.tcp import Dialer, How, Listener, reset_close
from p2ptunnel.net.udp import UdpDriver
from p2ptunnel.protocol.callee import CalleeAgent, CalleePort, Refusal
from p2ptunnel.protocol.machine import Event
from p2ptunnel.protocol.punch import Dial, StopDialing
from p2ptunnel.protocol.registration import (
    AddressChanged,
    Credentials,
    Left,
    Registered,
    RegistrationLost,
    RegistrationRefused,
)
from p2ptunnel.trace import Tracer
from p2ptunnel.transports.tcp import TcpPipe, read_preamble
from p2ptunnel.traversal.port import PunchPort
from p2ptunnel.traversal.report import path_of
from p2ptunnel.types import Address, Tag, format_address
from p2ptunnel.wire.messages import PunchNotice

__all__ = ["AnsweringPort"]


class AnsweringPort:
    """A port that is registered under a tag and answers calls.

    Args:
        port: Taken over, and closed by `close`.
        tag: Ours.
        credentials: Sign the registration.
        admit: Makes a channel on a pipe: `(pipe, conkey)`; returns when it stands, raises an error of ours if it does not.
        admit_raw: The same for a caller that speaks the founding protocol only; None refuses such callers.
    """

    def __init__(
        self,
        port: PunchPort,
        tag: Tag,
        credentials: Credentials,
        admit: Callable[[Pipe, str], Awaitable[None]],
        *,
        admit_raw: Callable[[Pipe], Awaitable[None]] | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._port = port
        self._tag = tag
        self._admit = admit
        self._admit_raw = admit_raw
        self._trace = tracer or Tracer()
        self._machine = CalleePort(
            tag, port.server, credentials, random.SystemRandom(), udp_port=port.address[1], screen=self._screen
        )
        self._driver = UdpDriver(self._machine, port.udp, self._on_event)
        self._listener: Listener | None = None
        self._dialers: dict[str, Dialer] = {}
        self._greetings: set[asyncio.Task[None]] = set()
        self._watching: asyncio.Task[None] | None = None
        self._last_connection = 0
        self._registered: asyncio.Future[Address] | None = None
        self._left = asyncio.Event()

    @property
    def observed(self) -> Address | None:
        """Our UDP address as the server sees it, None before registration."""
        return self._machine.registration.observed

    @property
    def rtt(self) -> float | None:
        """Seconds to the server and back, None while unknown."""
        return self._machine.registration.rtt

    async def start(self) -> Address:
        """Register and begin to answer; return the address the server sees.

        Later silence of the server is not an error: the registration is renewed when it is back.

        Raises:
            TagInUseError: Another key owns the tag.
            RendezvousTimeoutError: The server does not answer.
            RendezvousError: It refused.
        """
        self._registered = asyncio.get_running_loop().create_future()
        self._listener = Listener(self._port.address, self._on_accepted, tracer=self._trace)
        self._machine.view = self._port.view
        self._machine.registration.cookie = self._port.cookie
        self._driver.start()
        self._machine.registration.start(time.monotonic())
        self._driver.wake()
        observed = await self._registered
        self._watching = asyncio.create_task(self._watch_control())
        return observed

    async def close(self) -> None:
        """Leave the server (waits at most a second), close every socket; cancelling skips the leaving."""
        try:
            if self._listener is not None:
                self._listener.close()
                self._machine.registration.leave(time.monotonic())
                self._driver.wake()
                await self._left.wait()
        finally:
            self._listener = None
            self._driver.close()
            self._port.close()
            for dialer in self._dialers.values():
                dialer.close()
            tasks = [*self._greetings, *([self._watching] if self._watching else [])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # --- the control connection ---------------------------------------------------------------------------------------

    async def _watch_control(self) -> None:
        """Keep the standing TCP connection, whose outside view callers are told, open."""
        while True:
            await self._port.wait_control_lost()
            await self._port.observe()
            self._machine.view = self._port.view
            if self._port.control is None:
                await asyncio.sleep(CONTROL_REOPEN)

    # --- events -------------------------------------------------------------------------------------------------------

    def _screen(self, notice: PunchNotice) -> Refusal | None:
        if not notice.extra.v and self._admit_raw is None:
            return (403, "authentication needed")
        return None

    def _on_event(self, event: Event) -> None:
        self._trace("punch", type(event).__name__, **event.facts())
        match event:
            case Dial():
                dialer = self._dialers.get(event.token)
                if dialer is None:
                    dialer = Dialer(self._port.address, self._on_connected, tracer=self._trace)
                    self._dialers[event.token] = dialer
                ttl = self._port.udp.opener_ttl if event.low else None
                dialer.start(event.targets, low_ttl=ttl, patience=event.patience)
            case StopDialing():
                if event.token in self._dialers:
                    self._dialers.pop(event.token).close()
            case Registered() | RegistrationRefused() | RegistrationLost():
                self._on_registration(event)
            case AddressChanged():
                self._port.forget_control()  # the NAT forgot us: what it showed of TCP is old as well
            case Left():
                self._left.set()
            case _:
                pass

    def _on_registration(self, event: Registered | RegistrationRefused | RegistrationLost) -> None:
        if self._registered is None or self._registered.done():
            return
        server = format_address(self._port.server)
        match event:
            case Registered():
                self._registered.set_result(event.observed)
            case RegistrationRefused(code=409):
                self._registered.set_exception(TagInUseError(self._tag, server))
            case RegistrationRefused(code=429):
                self._registered.set_exception(RateLimitedError(server, event.retry_after))
            case RegistrationRefused():
                self._registered.set_exception(RendezvousError(server, event.text, event.code))
            case RegistrationLost():
                self._registered.set_exception(RendezvousTimeoutError(server, TRANSACTION_TIMEOUT))

    # --- connections --------------------------------------------------------------------------------------------------

    def _on_connected(self, sock: socket.socket, remote: Address, how: How) -> None:
        self._greet_soon(sock, remote, how)

    def _on_accepted(self, sock: socket.socket, remote: Address) -> None:
        self._greet_soon(sock, remote, "accept")

    def _greet_soon(self, sock: socket.socket, remote: Address, how: str) -> None:
        expected = any(agent.caller[0] == remote[0] or remote in agent.targets for agent in self._machine.agents)
        if not expected or len(self._greetings) >= PENDING_CONNECTIONS * max(1, len(self._machine.agents)):
            self._trace("traversal", "stranger_cut_off", remote=format_address(remote))
            reset_close(sock)
            return
        self._trace("traversal", "connection_up", remote=format_address(remote), how=how)
        task = asyncio.create_task(self._greet(sock, remote, how))
        self._greetings.add(task)
        task.add_done_callback(self._greetings.discard)

    async def _greet(self, sock: socket.socket, remote: Address, how: str) -> None:
        """Find out which call a connection belongs to, and make the channel."""
        try:
            async with asyncio.timeout(PREAMBLE_TIMEOUT):
                await self._admit_connection(sock, remote, how)
        except (P2PTunnelError, OSError) as error:  # a stranger, a withdrawn connection, a peer we do not admit
            self._trace("traversal", "connection_refused", remote=format_address(remote), reason=str(error))

    async def _admit_connection(self, sock: socket.socket, remote: Address, how: str) -> None:
        pipe = TcpPipe(sock, path_of(sock, remote, how))
        try:
            raw_agent = self._raw_agent(remote)
            if raw_agent is not None and self._admit_raw is not None:
                await self._admit_raw(pipe)
                self._accepted(raw_agent)
                return
            conkey = await read_preamble(sock, PREAMBLE_TIMEOUT)
            agent = self._agent_of(conkey)
            await self._admit(pipe, agent.conkey)
            self._accepted(agent)
        except BaseException:
            pipe.abort()
            raise

    def _accepted(self, agent: CalleeAgent) -> None:
        self._last_connection += 1
        if not agent.is_over:
            agent.channel_accepted(self._last_connection)
            self._driver.wake()

    def _agent_of(self, selector: bytes) -> CalleeAgent:
        """Return the call whose conkey this is; compared in constant time."""
        for agent in self._machine.agents:
            if hmac.compare_digest(bytes.fromhex(agent.conkey), selector):
                return agent
        raise ChannelClosedError("a preamble of no call of ours")

    def _raw_agent(self, remote: Address) -> CalleeAgent | None:
        for agent in self._machine.agents:
            if agent.is_seed_only and agent.caller[0] == remote[0]:
                return agent
        return None
