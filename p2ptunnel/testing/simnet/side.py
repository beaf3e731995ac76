"""One side of a call: what `net` does with sockets for either machine, done with simulated ones."""

from __future__ import annotations

import msgspec

from p2ptunnel.defaults import PHASES, REDIAL_MAX, REDIAL_MIN, REDIALS_PER_PHASE
from p2ptunnel.protocol.machine import Event, Machine
from p2ptunnel.protocol.punch import Dial, LocalView, PunchStarted, StopDialing
from p2ptunnel.testing.simnet.driver import Driver
from p2ptunnel.testing.simnet.network import TTL, Host, Network
from p2ptunnel.testing.simnet.segment import SYN, Segment
from p2ptunnel.testing.simnet.tcp import Socket, TcpStack
from p2ptunnel.types import Address, Candidate

__all__ = ["Habits", "Side", "look_around"]


class Habits(msgspec.Struct, frozen=True, kw_only=True):
    """What a side does; each default is what p2ptunnel does, each other value is a damage that some test must notice.

    Attributes:
        can_open_low: What the side says of itself: it can send SYNs that die on the way.
        ttl_error: Hops by which openers go too far, past the own NATs; if below zero, they do not even get there.
        random_redials: Pauses after an RST differ from one to the next.
        tells_tcp_port: The port at which it asks to be dialled was seen over TCP, not over UDP.
        keeps_answered: A new phase replaces no dial that the other side has answered already.
        phases: After so many, nothing new is dialled.
        redials: Refusals that are answered by another SYN, in each phase.
    """

    can_open_low: bool = True
    ttl_error: int = 0
    random_redials: bool = True
    tells_tcp_port: bool = True
    keeps_answered: bool = True
    phases: int = PHASES
    redials: int = REDIALS_PER_PHASE


def look_around(network: Network, host: Host, server: Address, habits: Habits) -> LocalView:
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

    __slots__ = ("phase", "redials", "ttl")

    def __init__(self) -> None:
        self.phase = -1
        self.ttl = TTL
        self.redials: dict[Address, int] = {}


class Side(Driver):
    """A side that listens, dials, dials again after an RST, and stops.

    Attributes:
        stack: Its TCP.
        chosen: The connections on which channels stand, by token.
    """

    def __init__(self, machine: Machine, network: Network, host: Host, habits: Habits) -> None:
        """Take what arrives at `host`."""
        super().__init__(machine, network, host, ttl_error=habits.ttl_error)
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
            case StopDialing():
                self._stop(event.token)
            case _:
                pass

    def _dial(self, event: Dial) -> None:
        attempt = self._attempts[event.token]
        attempt.phase += 1
        if attempt.phase >= self._habits.phases:
            return
        attempt.ttl = self.opener_ttl if event.low else TTL
        attempt.redials = dict.fromkeys(event.targets, self._habits.redials)
        for socket in self.stack.sockets:
            if socket.remote in attempt.redials and self._is_replaceable(socket):
                self.stack.reset(socket)
        for target in event.targets:
            self.stack.connect(target, ttl=attempt.ttl)

    def _is_replaceable(self, socket: Socket) -> bool:
        """Tell whether a new phase may drop it: what the other side has answered comes up if it is left alone."""
        is_answered = socket.state == "syn-received" and socket.dialled
        return socket.state == "syn-sent" or (is_answered and not self._habits.keeps_answered)

    def _redial(self, attempt: _Attempt, phase: int, target: Address) -> None:
        if attempt.phase == phase:
            self.stack.connect(target, ttl=attempt.ttl)

    def _stop(self, token: str) -> None:
        stopped = self._attempts.pop(token, None)
        if stopped is not None:
            stopped.phase = -1
        wanted = {target for attempt in self._attempts.values() for target in attempt.redials}
        self.stack.listening = bool(self._attempts)
        for socket in self.stack.sockets:
            if socket.remote not in wanted and socket not in self.chosen.values():
                self.stack.reset(socket)
