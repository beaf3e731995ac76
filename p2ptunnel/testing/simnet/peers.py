"""The two sides of a call: the real machines, and what `net` and `traversal` do for them, done with simulated sockets.

A channel is simulated by two payloads on the nominated connection: the conkey one way, the acceptance back.
"""

from __future__ import annotations

from typing import Final

import msgspec

from p2ptunnel.defaults import PHASES, PREAMBLE_TIMEOUT, REDIAL_MAX, REDIAL_MIN, REDIALS_PER_PHASE
from p2ptunnel.protocol.callee import CalleePort, CalleeState
from p2ptunnel.protocol.caller import CallerAgent
from p2ptunnel.protocol.machine import Event, Machine
from p2ptunnel.protocol.punch import CallFailed, ConnectionChosen, Dial, LocalView, Nominate, PunchStarted, StopDialing
from p2ptunnel.testing.simnet.driver import Credentials, Driver
from p2ptunnel.testing.simnet.network import Host, Network
from p2ptunnel.testing.simnet.segment import SYN, Segment
from p2ptunnel.testing.simnet.tcp import Socket, TcpStack
from p2ptunnel.types import Address, Candidate, Tag
from p2ptunnel.wire.messages import PunchNotice

__all__ = ["Habits", "SimCallee", "SimCaller"]

_ACCEPTED: Final = "accepted"
_REPEAT: Final = 0.3  # seconds beyond a round trip: what was written to a connection and got no answer is written again


class Habits(msgspec.Struct, frozen=True, kw_only=True):
    """What a side does; each default is what p2ptunnel does, each other value is a damage that some test must notice.

    Attributes:
        can_open_low: What the side says of itself: it can send SYNs that die on the way.
        lowers_ttl: Openers do die on the way.
        random_redials: Pauses after an RST differ from one to the next.
        tells_tcp_port: The port at which it asks to be dialled was seen over TCP, not over UDP.
        keeps_answered: A new phase replaces no dial that the other side has answered already.
        phases: After so many, nothing new is dialled.
        redials: Refusals that are answered by another SYN, in each phase.
    """

    can_open_low: bool = True
    lowers_ttl: bool = True
    random_redials: bool = True
    tells_tcp_port: bool = True
    keeps_answered: bool = True
    phases: int = PHASES
    redials: int = REDIALS_PER_PHASE


def _look_around(network: Network, host: Host, server: Address, habits: Habits) -> LocalView:
    """Return what a side knows of its port before any call: how the server sees it over UDP and over TCP."""
    nat, now = host.nat, network.clock.now
    udp = tcp = host.port
    if nat is not None:
        udp = nat.udp_out(host.port, server, now)
        seen = nat.tcp_out(host.port, server, Segment(SYN, next(network.numbers)), now)
        tcp = seen if habits.tells_tcp_port and seen is not None else udp
    candidates = (Candidate("srflx", "tcp", host.address, tcp), Candidate("srflx", "udp", host.address, udp))
    return LocalView(candidates, network.rtt(host, server), habits.can_open_low)


class _Attempt:
    """What is dialled for one token: the targets, with the redials that each has left in the present phase."""

    __slots__ = ("low", "phase", "redials")

    def __init__(self) -> None:
        self.phase = -1
        self.low = False
        self.redials: dict[Address, int] = {}


class _Peer(Driver):
    """A side of a call: listens, dials, dials again, stops.

    Attributes:
        stack: Its TCP.
        chosen: The connections on which channels stand, by token.
    """

    def __init__(self, machine: Machine, network: Network, host: Host, habits: Habits) -> None:
        super().__init__(machine, network, host, lowers_ttl=habits.lowers_ttl)
        self.stack = TcpStack(network, host, self)
        self.chosen: dict[str, Socket] = {}
        self._habits = habits
        self._attempts: dict[str, _Attempt] = {}

    def socket_up(self, socket: Socket) -> None:
        """Take note of a connection."""

    def socket_down(self, socket: Socket) -> None:
        """Dial again after a pause, if it was refused before it was up."""
        if not socket.dialled or socket.state == "established":
            return
        for attempt in self._attempts.values():
            if attempt.redials.get(socket.remote):
                attempt.redials[socket.remote] -= 1
                share = self.network.random.random() if self._habits.random_redials else 0.5
                pause = REDIAL_MIN + (REDIAL_MAX - REDIAL_MIN) * share
                self._clock.call_later(pause, self._redial, attempt, attempt.phase, socket.remote)

    def received(self, socket: Socket, payload: str) -> None:
        """Take what the other side wrote."""

    def _handle(self, event: Event) -> None:
        match event:
            case PunchStarted():
                self._attempts[event.token] = _Attempt()
                self.stack.listening = True
            case Dial():
                self._dial(event)
            case ConnectionChosen():
                [self.chosen[event.token]] = [s for s in self.stack.sockets if s.number == event.connection]
            case StopDialing():
                self._stop(event.token)
            case _:
                pass

    def _dial(self, event: Dial) -> None:
        attempt = self._attempts[event.token]
        attempt.phase += 1
        if attempt.phase >= self._habits.phases:
            return
        attempt.low = event.low and self._habits.lowers_ttl
        attempt.redials = dict.fromkeys(event.targets, self._habits.redials)
        for socket in self.stack.sockets:
            if socket.remote in attempt.redials and self._is_replaceable(socket):
                self.stack.reset(socket)
        for target in event.targets:
            self.stack.connect(target, low=attempt.low)

    def _is_replaceable(self, socket: Socket) -> bool:
        """Tell whether a new phase may drop it: what the other side has answered comes up if it is left alone."""
        return socket.state == "syn-sent" or (
            socket.state == "syn-received" and socket.dialled and not self._habits.keeps_answered
        )

    def _redial(self, attempt: _Attempt, phase: int, target: Address) -> None:
        if attempt.phase == phase:
            self.stack.connect(target, low=attempt.low)

    def _stop(self, token: str) -> None:
        stopped = self._attempts.pop(token, None)
        if stopped is not None:
            stopped.phase = -1
        wanted = {target for attempt in self._attempts.values() for target in attempt.redials}
        self.stack.listening = bool(self._attempts)
        for socket in self.stack.sockets:
            if socket.remote not in wanted and socket not in self.chosen.values():
                self.stack.reset(socket)


class SimCaller(_Peer):
    """The calling side.

    Attributes:
        agent: The real one.
        failure: Why the call failed, None unless it has.
        ended_at: When it ended, one way or the other.
    """

    def __init__(self, network: Network, host: Host, server: Address, wanted: Tag, habits: Habits) -> None:
        """Look around; `start` calls."""
        view = _look_around(network, host, server, habits)
        self.agent = CallerAgent("caller", wanted, server, view, network.random)
        self.failure: CallFailed | None = None
        self.ended_at: float | None = None
        self._nominated: Socket | None = None
        super().__init__(self.agent, network, host, habits)

    def start(self) -> None:
        """Call."""
        self.agent.start(self._clock.now)
        self.flush()

    def socket_up(self, socket: Socket) -> None:
        """Tell the agent, which decides whether it counts."""
        self.agent.connection_up(socket.number, self._clock.now)
        self.flush()

    def socket_down(self, socket: Socket) -> None:
        """Tell the agent, if it counts on this connection."""
        super().socket_down(socket)
        if socket is self._nominated:
            self._give_up(socket)

    def received(self, socket: Socket, payload: str) -> None:
        """Take the acceptance: the channel is up."""
        if socket is self._nominated and payload == _ACCEPTED:
            self._nominated = None
            self.agent.channel_up(self._clock.now)
            self.flush()

    def _handle(self, event: Event) -> None:
        super()._handle(event)
        match event:
            case Nominate():
                self._nominate(event)
            case CallFailed():
                self.failure, self.ended_at, self._nominated = event, self._clock.now, None
            case ConnectionChosen():
                self.ended_at = self._clock.now
            case _:
                pass

    def _nominate(self, event: Nominate) -> None:
        socket = next((s for s in self.stack.sockets if s.number == event.connection), None)
        if socket is None:  # it was reset while it waited for its turn
            socket = Socket(event.connection, ("", 0), dialled=False)
            self._clock.call_later(0.0, self._give_up, socket)
        self._nominated = socket
        if self.stack.is_open(socket):
            self._clock.call_later(PREAMBLE_TIMEOUT, self._give_up, socket)
            self._write(socket, event.conkey)

    def _write(self, socket: Socket, conkey: str) -> None:
        if socket is self._nominated:
            self.stack.send(socket, conkey)
            self._clock.call_later(_REPEAT + 4 * self.host.delay, self._write, socket, conkey)

    def _give_up(self, socket: Socket) -> None:
        if socket is self._nominated:
            self._nominated = None
            self.stack.reset(socket)
            self.agent.channel_failed(self._clock.now)
            self.flush()


class SimCallee(_Peer):
    """The called side.

    Attributes:
        port: The real machine.
    """

    def __init__(self, network: Network, host: Host, server: Address, tag: Tag, habits: Habits) -> None:
        """Look around; `start` registers."""
        self.port = CalleePort(tag, server, Credentials("callee's key"), network.random, udp_port=host.port, screen=_let_in)
        self.port.view = _look_around(network, host, server, habits)
        super().__init__(self.port, network, host, habits)

    def start(self) -> None:
        """Register."""
        self.port.registration.start(self._clock.now)
        self.flush()

    def received(self, socket: Socket, payload: str) -> None:
        """Take a conkey: accept the channel that it stands for, or close."""
        if socket not in self.chosen.values():
            for agent in self.port.agents:
                if agent.state is CalleeState.OPENED and agent.conkey == payload:
                    agent.channel_accepted(socket.number)
                    break
            else:
                self.stack.reset(socket)
                return
            self.flush()
        self.stack.send(socket, _ACCEPTED)


def _let_in(notice: PunchNotice) -> None:
    """Screen nobody: who calls is proved in the channel."""
