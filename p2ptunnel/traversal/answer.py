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
from functools import partial
from typing import Final, TypeAlias

from p2ptunnel.abc import Pipe
from p2ptunnel.defaults import (
    APART_CALLS_MAX,
    CALLS_MAX,
    FRUITLESS_CALLS,
    PENDING_CONNECTIONS,
    PREAMBLE_TIMEOUT,
    RECONNECT_CAP,
    RELAY_JOIN_TIMEOUT,
    RENEWAL_PAUSE,
    TRANSACTION_TIMEOUT,
)
from p2ptunnel.errors import (
    BindError,
    ChannelClosedError,
    P2PTunnelError,
    RateLimitedError,
    RendezvousError,
    RendezvousTimeoutError,
    ServerKeyError,
    ServerPrivateError,
    TagInUseError,
)
from p2ptunnel.identity.keys import PublicKey
from p2ptunnel.net.backoff import Backoff
from p2ptunnel.net.tcp import Listener, reset_close
from p2ptunnel.net.udp import UdpDriver, UdpSocket
from p2ptunnel.protocol.approach import Birthdays
from p2ptunnel.protocol.birthday import BirthdayEnded, OpenHoles, SendProbes
from p2ptunnel.protocol.callee import AnswerApart, CallAnswered, CalleeAgent, CalleePort, OtherPort, Refusal
from p2ptunnel.protocol.intent import IntentJudge
from p2ptunnel.protocol.machine import Event, Hole
from p2ptunnel.protocol.punch import Dial, HoleHeard, ObserveRow, StopDialing, TakePort
from p2ptunnel.protocol.registration import (
    AddressChanged,
    Credentials,
    Displaced,
    Left,
    Registered,
    RegistrationLost,
    RegistrationRefused,
    ServerUnproven,
)
from p2ptunnel.protocol.rounds import Rounds
from p2ptunnel.trace import Tracer
from p2ptunnel.transports.quic import QuicPipe
from p2ptunnel.transports.quicport import QuicPort
from p2ptunnel.transports.relay import RelayPipe
from p2ptunnel.transports.tcp import TcpPipe, read_preamble
from p2ptunnel.traversal.apart import CallApart
from p2ptunnel.traversal.attempt import AttemptSockets, NextRound
from p2ptunnel.traversal.port import OpenPort, PunchPort, another_port
from p2ptunnel.traversal.quic import QuicAnswers
from p2ptunnel.traversal.report import ConnectedBy, path_of
from p2ptunnel.types import Address, Tag, format_address
from p2ptunnel.wire.messages import PunchNotice, RelayOffer

__all__ = ["Admit", "AdmitRaw", "AnsweringPort", "JoinAsCallee"]

Admit: TypeAlias = Callable[[Pipe, str, PublicKey], Awaitable[None]]
JoinAsCallee: TypeAlias = Callable[[str, RelayOffer | None], Awaitable[RelayPipe]]
AdmitRaw: TypeAlias = Callable[[Pipe], Awaitable[None]]
_dice: Final = random.SystemRandom()

_ServerNews: TypeAlias = Registered | RegistrationRefused | RegistrationLost | ServerUnproven | Displaced


class AnsweringPort:
    """A port that is registered under a tag and answers calls.

    Args:
        port: Taken over, and closed by `close`.
        tag: Ours, an attribute as well.
        credentials: Sign the registration.
        judge: Judges who calls; ports of one machine share it, so that no call is let in twice.
        admit: Makes a channel on a pipe: `(pipe, conkey, key)`; the key has signed the call and nobody else's is to be let in.
            It is admitted, or pairing was open.  Returns when the channel stands, raises an error of ours if it does not.
            What comes over the relay is admitted in the same way, with the attempt's selector in the place of a conkey.
        join: Joins the relay for a call that is answered, by its token; None: nobody reaches us there.
        is_punching: Whether to punch; else callers reach us over the relay only.
        is_mapping: Whether to ask our router for a way in as well, if we punch.
        birthdays: What this machine has for them; None: there will be none.
        rounds: What earlier attempts have shown, and these add to; None: nothing.
        open_other: Opens another port at the same server, for a call for whose caller this one is burnt; None: there is none.
        on_server: Called with the reason when the server is lost after all had been well, and with nothing when it is back.

    Attributes:
        admit_raw: The same for callers that speak the founding protocol only; None refuses such callers.
    """

    def __init__(
        self,
        port: PunchPort,
        tag: Tag,
        credentials: Credentials,
        judge: IntentJudge,
        admit: Admit,
        *,
        join: JoinAsCallee | None = None,
        is_punching: bool = True,
        is_mapping: bool = False,
        birthdays: Birthdays | None = None,
        rounds: Rounds | None = None,
        open_other: OpenPort | None = None,
        on_server: Callable[[str], None] | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._on_server = on_server
        self._is_found = True
        self.admit_raw: AdmitRaw | None = None
        self._port = port
        self.tag: Final = tag
        self._admit = admit
        self._join = join
        self._is_punching = is_punching
        self._is_mapping = is_mapping and is_punching
        self._trace = tracer or Tracer()
        self._machine = CalleePort(
            tag,
            port.server,
            credentials,
            _dice,
            udp_port=port.address[1],
            screen=self._screen,
            judge=judge,
            is_punching=is_punching,
            birthdays=birthdays,
            rounds=rounds,
            has_others=open_other is not None,
        )
        self._open_other = open_other
        self._opening: set[asyncio.Task[None]] = set()
        self._apart: dict[str, CallApart] = {}
        quic = QuicPort(port.udp, tracer=self._trace)
        self._quic = QuicAnswers(quic, self._trace)
        self._driver = UdpDriver(self._machine, port.udp, self._on_event, aside=quic)
        self._driver.hole_of = self._hole_of
        port.serve(self._driver)
        self._listeners: tuple[Listener, ...] = ()
        self._sockets: dict[str, AttemptSockets] = {}
        self._asked_for = 0  # other ports that are about to be there
        self._greetings: set[asyncio.Task[None]] = set()
        self._relayed: set[asyncio.Task[None]] = set()
        self._watching: asyncio.Task[None] | None = None
        self._connections = 0
        self._registered: asyncio.Future[Address] | None = None
        self._left = asyncio.Event()
        self._is_closing = False
        self._renewed_at = -RENEWAL_PAUSE
        self._is_renewing = False
        self._fruitless = 0  # calls answered since the last one that came to a channel
        self._renewal: asyncio.TimerHandle | None = None

    @property
    def observed(self) -> Address | None:
        """Our UDP address as the server sees it, None before registration."""
        return self._machine.registration.observed

    @property
    def is_worn(self) -> bool:
        """Whether callers have tried in vain for a while: our NAT may map this port in more than one way by now."""
        return self._fruitless >= FRUITLESS_CALLS

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
            ServerPrivateError: It serves its members only.
            ServerKeyError: It did not prove the key that was given for it.
            RendezvousError: It refused.
            BindError: The port cannot be listened on.
        """
        self._registered = asyncio.get_running_loop().create_future()
        self._registered.add_done_callback(_retrieve)  # whoever waits may have been cancelled in this very turn
        if self._is_punching:
            self._listeners = self._port.listen(self._on_accepted, is_limited=False)
        self._take_control()
        self._driver.start()
        self._machine.registration.start(time.monotonic())
        self._driver.wake()
        observed = await self._registered
        self._watching = asyncio.create_task(self._watch_control())
        if self._is_mapping:
            self._port.ask_router(self.take_view)
        return observed

    def network_changed(self) -> None:
        """Register anew at once, and look anew at how we are seen: our address may be another."""
        self._port.is_udp_silent = False  # as far as anybody knows
        self._register_anew()

    def _register_anew(self) -> None:
        if self._watching is not None and not self._is_closing:
            self._renewed_at = time.monotonic()
            self._is_renewing = True
            self._port.forget_control()
            self._port.ask_router_anew()
            self._machine.registration.network_changed(self._renewed_at)
            self._driver.wake()

    def path_suspected(self) -> None:
        """Do as when the network has changed, now or soon: a NAT that forgot one path of ours has forgotten all of them."""
        if self._renewal is None:
            pause = max(0.0, self._renewed_at + RENEWAL_PAUSE - time.monotonic())
            self._renewal = asyncio.get_running_loop().call_later(pause, self._renew)

    def _renew(self) -> None:
        self._renewal = None
        self._register_anew()

    async def close(self) -> None:
        """Answer nobody any more, leave server and router (waits two seconds at most), close every socket.

        Cancelling skips the leaving; closing twice is fine.
        """
        is_registered = self._registered is not None and not self._is_closing
        attempts, apart = tuple(self._sockets.values()), tuple(self._apart.values())
        self._stop_answering()
        try:
            if is_registered:
                self._machine.registration.leave(time.monotonic())
                self._driver.wake()
                await asyncio.gather(self._left.wait(), self._port.leave_router())
        finally:
            self.abort()
            watching = () if self._watching is None else (self._watching,)
            quics = (self._quic.close(), *(call.quic.close() for call in apart))
            tasks = (*self._greetings, *self._relayed, *self._opening, *watching)
            await asyncio.gather(*tasks, *quics, return_exceptions=True)
            await asyncio.gather(*(sockets.wait_closed() for sockets in attempts))

    def abort(self) -> None:
        """Close every socket at once; the server forgets us when it has heard nothing for long enough."""
        self._stop_answering()
        self._driver.close()
        self._port.close()

    def _stop_answering(self) -> None:
        self._is_closing = True
        if self._renewal is not None:
            self._renewal.cancel()
        for listener in self._listeners:
            listener.close()
        for agent in self._machine.agents:
            agent.abandon()
        for sockets in self._sockets.values():
            sockets.close()
        self._quic.cancel()
        for token in tuple(self._apart):
            self._leave(token)
        for task in (*self._greetings, *self._relayed, *self._opening, self._watching):
            if task is not None:
                task.cancel()

    # --- the control connection ---------------------------------------------------------------------------------------

    def take_view(self) -> None:
        """Tell whoever calls from now on what is known of our port by now, and who is calling what more there is of ways in."""
        self._machine.view_changed(self._port.view, time.monotonic())
        self._driver.wake()

    def _take_control(self) -> None:
        self._machine.view = self._port.view
        self._machine.registration.cookie = self._port.cookie
        self._machine.registration.server_key = self._port.server_key

    async def _watch_control(self) -> None:
        """Keep the standing TCP connection open; what ended it may have ended the registration or changed our address."""
        opened, backoff = time.monotonic(), Backoff()
        while True:
            await self._port.wait_control_lost()
            if time.monotonic() - opened > RECONNECT_CAP:  # it stood: this is new trouble
                backoff = Backoff()
            is_ours, self._is_renewing = self._is_renewing, False
            if not (is_ours and await self._port.observe()):  # no herd here: and the next call comes soon
                await backoff.until_done(self._port.observe)
            opened = time.monotonic()
            self._take_control()
            self._machine.registration.network_changed(opened)
            self._driver.wake()

    # --- events -------------------------------------------------------------------------------------------------------

    def _screen(self, notice: PunchNotice) -> Refusal | None:
        if self._is_closing:
            return (404, "it has just left")
        if not notice.extra.v and self.admit_raw is None:
            return (403, "authentication needed")
        return None

    def _on_event(self, event: Event) -> None:
        self._trace("punch", type(event).__name__, **event.facts())
        match event:
            case Dial() | TakePort() | ObserveRow() | OpenHoles() | SendProbes() | BirthdayEnded() if not self._is_closing:
                self._sockets_of(event.token).take(event)
            case HoleHeard():
                self._expect_at_hole(event)
            case AnswerApart():
                self._answer_apart(event.token)
            case StopDialing():
                self._quic_of(event.token).forget(event.token)
                if event.token in self._sockets:
                    self._sockets.pop(event.token).close()
                if event.token in self._apart:  # later: the connection that was chosen may be about to say so
                    asyncio.get_running_loop().call_soon(self._leave, event.token)
            case Registered() | RegistrationRefused() | RegistrationLost() | ServerUnproven() | Displaced():
                if isinstance(event, RegistrationLost):
                    self._port.udp_lost()
                self._on_registration(event)
            case AddressChanged():
                self._port.forget_control()  # the NAT forgot us: what it showed of TCP is old as well
                self._port.ask_router_anew()  # so may be the outside address of its ways in
            case CallAnswered():
                self._fruitless += 1
                self._expect_relayed(event)
                self._expect_quic(event)
            case Left():
                self._left.set()
            case _:
                pass

    def _sockets_of(self, token: str) -> AttemptSockets:
        raw_hosts = [agent.caller[0] for agent in self._machine.agents if agent.is_seed_only]
        for listener in self._listeners if raw_hosts else ():  # whose own side we know nothing of
            listener.expect(raw_hosts)
        if token not in self._sockets:
            on_row = partial(self._on_row, token)
            taken, burnt = partial(self._on_taken, token), partial(self._on_burnt, token)
            later = NextRound(self._other_port, self._on_accepted, taken, burnt)
            port = self._apart[token].port if token in self._apart else self._port
            on_hole = partial(self._on_hole, token)
            self._sockets[token] = AttemptSockets(port, self._greet_soon, on_row, later, on_hole=on_hole, tracer=self._trace)
        return self._sockets[token]

    def _on_row(self, token: str, port: int | None) -> None:
        agent = self._machine.agent(token)
        if agent is not None:
            agent.observed(port, time.monotonic())
            self._wake()

    # --- calls with a port of their own -------------------------------------------------------------------------------

    def _answer_apart(self, token: str) -> None:
        """Answer a call from another port; or let it answer once more."""
        if token in self._apart:
            self._apart[token].wake()
        elif not self._is_closing:
            opening = asyncio.create_task(self._open_apart(token))
            self._opening.add(opening)
            opening.add_done_callback(self._opening.discard)

    async def _open_apart(self, token: str) -> None:
        """Open a port for one call, and answer from there; from the registered one, where none is to be had in time."""
        port = await self._other_port()
        other = None if port is None else OtherPort(port.view, port.address[1])
        agent = self._machine.answer_apart(token, other, time.monotonic())
        if port is not None and agent is not None:
            self._run_apart(agent, port)
        elif port is not None:
            port.close()
        self._driver.wake()

    def _run_apart(self, agent: CalleeAgent, port: PunchPort) -> None:
        try:
            call = CallApart(port, agent, self._on_event, self._on_accepted, self._hole_of, self._trace)
        except BindError as error:  # a foreign socket has the number
            self._trace("traversal", "port_lost", reason=str(error))
            agent.abandon()
            agent.give_up()
            port.close()
            return
        self._apart[agent.token] = call
        self._trace("traversal", "answered_apart", port=port.address[1])
        call.start()

    async def _other_port(self) -> PunchPort | None:
        """Return another port at the server, where our peers know us; None if there is none, or too many are used already."""
        used = len(self._apart) + sum(sockets.has_other for sockets in self._sockets.values()) + self._asked_for
        if self._open_other is None or self.observed is None or used >= APART_CALLS_MAX:
            return None
        self._asked_for += 1
        try:
            return await another_port(self._open_other, self.observed[0], self._trace)
        finally:
            self._asked_for -= 1

    def _on_taken(self, token: str, port: PunchPort) -> None:
        agent = self._machine.agent(token)
        if agent is not None:
            agent.port_taken(port.address[1], port.view.candidates, time.monotonic())
            self._wake()

    def _on_burnt(self, token: str) -> None:
        agent = self._machine.agent(token)
        if agent is not None:
            agent.port_lost(time.monotonic())
            self._wake()

    def _leave(self, token: str) -> None:
        call = self._apart.pop(token, None)
        if call is not None:
            call.close()

    def _quic_of(self, token: str) -> QuicAnswers:
        return self._apart[token].quic if token in self._apart else self._quic

    def _wake(self) -> None:
        """Do what any machine wants done since somebody has called an agent."""
        self._driver.wake()
        for call in tuple(self._apart.values()):
            call.wake()

    def _hole_of(self, hole: Hole) -> UdpSocket | None:
        sockets = self._sockets.get(hole.token)
        return None if sockets is None else sockets.hole(hole.number)

    def _on_hole(self, token: str, number: int, data: bytes, source: Address) -> None:
        agent = self._machine.agent(token)
        if agent is not None:
            agent.receive_at_hole(Hole(token, number), data, source, time.monotonic())
            self._wake()

    def _on_registration(self, event: _ServerNews) -> None:
        if self._registered is None or self._registered.done() or isinstance(event, Displaced):
            self._tell_server(event)
            return
        server = format_address(self._port.server)
        match event:
            case Registered():
                self._registered.set_result(event.observed)
            case RegistrationRefused(code=409):
                self._registered.set_exception(TagInUseError(self.tag, server))
            case RegistrationRefused(code=407):
                self._registered.set_exception(ServerPrivateError(server))
            case ServerUnproven():
                self._registered.set_exception(ServerKeyError(server))
            case RegistrationRefused(code=429):
                self._registered.set_exception(RateLimitedError(server, event.retry_after))
            case RegistrationRefused():
                self._registered.set_exception(RendezvousError(server, event.text, event.code))
            case RegistrationLost():
                self._registered.set_exception(RendezvousTimeoutError(server, TRANSACTION_TIMEOUT, self._port.silent_over))

    def _tell_server(self, event: _ServerNews) -> None:
        """Say that nobody finds us any more, or that they do again; once each."""
        is_found = isinstance(event, Registered)
        if self._on_server is None or is_found == self._is_found or self._is_closing:
            return
        self._is_found = is_found
        match event:
            case Registered():
                self._on_server("")
            case RegistrationRefused(code=code, text=text):
                self._on_server(f"{text} ({code})")
            case RegistrationLost():
                self._on_server("no answer")
            case ServerUnproven():
                self._on_server("whoever answers has not proved the server's key")
            case Displaced():
                self._on_server(f"another program has registered {self.tag} by this machine's key; is its profile a copy?")

    # --- connections --------------------------------------------------------------------------------------------------

    def _on_accepted(self, sock: socket.socket, remote: Address) -> None:
        self._greet_soon(sock, remote, "accept")

    def _greet_soon(self, sock: socket.socket, remote: Address, how: ConnectedBy) -> None:
        agents = self._machine.agents
        is_expected = any(agent.expects(remote[0]) for agent in agents)
        if self._is_closing or not is_expected or len(self._greetings) >= PENDING_CONNECTIONS * len(agents):
            self._trace("traversal", "stranger_cut_off", remote=format_address(remote))
            reset_close(sock)
            return
        self._trace("traversal", "connection_up", remote=format_address(remote), how=how)
        pipe = TcpPipe(sock, path_of(sock, remote, how))
        greeting = asyncio.create_task(self._greet(pipe, sock, remote))
        self._greetings.add(greeting)
        greeting.add_done_callback(self._greetings.discard)
        greeting.add_done_callback(lambda _: pipe.abort())  # also of one that was cancelled before it began

    async def _greet(self, pipe: TcpPipe, sock: socket.socket, remote: Address) -> None:
        """Find out which call a connection belongs to, and make the channel."""
        tried = [agent for agent in self._machine.agents if agent.caller[0] == remote[0]]
        for agent in tried:
            agent.connection_up()
        try:
            async with asyncio.timeout(PREAMBLE_TIMEOUT):
                chosen = await self._admit_connection(pipe, sock, remote)
        except (P2PTunnelError, OSError) as error:  # a stranger, a withdrawn connection, a peer we do not admit
            reason = str(error) or f"not admitted in {PREAMBLE_TIMEOUT:g} s"  # the end of the time has no text of its own
            self._trace("traversal", "connection_refused", remote=format_address(remote), reason=reason)
            for agent in tried:
                agent.connection_failed(time.monotonic())
            self._wake()
            return
        self._accepted(chosen)

    def _accepted(self, agent: CalleeAgent) -> None:
        """A channel stands on a connection of the call."""
        self._connections += 1
        self._fruitless = 0
        if not agent.is_over:
            agent.channel_accepted(self._connections)
            self._wake()

    def _expect_quic(self, call: CallAnswered) -> None:
        agent = self._machine.agent(call.token)
        if agent is not None and agent.expects_quic and not self._is_closing:
            self._quic_of(agent.token).expect(agent, self._admit_quic)

    def _expect_at_hole(self, heard: HoleHeard) -> None:
        """Be there, should the caller turn to QUIC through a hole of ours."""
        agent, sockets = self._machine.agent(heard.token), self._sockets.get(heard.token)
        quic = None if sockets is None else sockets.quic_at(heard.hole)
        if agent is not None and quic is not None and agent.expects_quic and not self._is_closing:
            self._quic_of(agent.token).expect(agent, self._admit_quic, quic)

    async def _admit_quic(self, pipe: QuicPipe, agent: CalleeAgent) -> None:
        assert agent.key is not None  # a program of the founding protocol knows no QUIC
        await self._admit(pipe, agent.conkey, agent.key)
        self._accepted(agent)

    async def _admit_connection(self, pipe: TcpPipe, sock: socket.socket, remote: Address) -> CalleeAgent:
        raw_agent = self._raw_agent(remote)
        if raw_agent is not None and self.admit_raw is not None:
            await self.admit_raw(pipe)
            return raw_agent
        agent = self._agent_of(await read_preamble(sock, PREAMBLE_TIMEOUT), remote[0])
        assert agent.key is not None  # a preamble names no call of the founding protocol
        await self._admit(pipe, agent.conkey, agent.key)
        return agent

    def _expect_relayed(self, call: CallAnswered) -> None:
        """Be there, should the caller come over the relay; punching goes on beside."""
        if self._join is None or call.key is None or self._is_closing or len(self._relayed) >= CALLS_MAX:
            return
        waiting = asyncio.create_task(self._take_relayed(partial(self._join, call.token, call.offer), call.selector, call.key))
        self._relayed.add(waiting)
        waiting.add_done_callback(self._relayed.discard)

    async def _take_relayed(self, join: Callable[[], Awaitable[RelayPipe]], selector: str, key: PublicKey) -> None:
        """Join the relay for one call, and make the channel if its caller speaks there."""
        try:
            pipe = await join()
            try:
                async with asyncio.timeout(RELAY_JOIN_TIMEOUT):
                    await pipe.wait_heard()
                await self._admit(pipe, selector, key)
            finally:
                pipe.abort()  # unless a transport has it by now
        except (P2PTunnelError, OSError) as error:  # most callers come directly
            self._trace("traversal", "relay_unused", reason=str(error) or "nobody spoke there")

    def _agent_of(self, selector: bytes, host: str) -> CalleeAgent:
        """Return the call from that host whose conkey this is; compared in constant time."""
        for agent in self._machine.agents:
            is_from_there = not agent.is_seed_only and agent.expects(host)
            if is_from_there and hmac.compare_digest(bytes.fromhex(agent.conkey), selector):
                return agent
        raise ChannelClosedError("us: a preamble of no call of ours")

    def _raw_agent(self, remote: Address) -> CalleeAgent | None:
        """Return the founding protocol's call from there; where one of ours comes from the same host, its port must fit."""
        agents = [agent for agent in self._machine.agents if agent.caller[0] == remote[0]]
        exact = next((agent for agent in agents if agent.is_seed_only and remote in agent.targets), None)
        if exact is not None or not agents or not all(agent.is_seed_only for agent in agents):
            return exact
        return agents[0]


def _retrieve(outcome: asyncio.Future[Address]) -> None:
    if not outcome.cancelled():
        outcome.exception()
