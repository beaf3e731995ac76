"""One side of a call: what `net` does with sockets for either machine, done with simulated ones."""

from __future__ import annotations

from functools import partial
from itertools import count
from typing import Final

import msgspec

from p2ptunnel.defaults import BIRTHDAY_HOLES, PHASES, REDIAL_MAX, REDIAL_MIN, REDIALS_PER_PHASE
from p2ptunnel.protocol.approach import Birthdays
from p2ptunnel.protocol.birthday import BirthdayEnded, BirthdayGate, OpenHoles, SendProbes
from p2ptunnel.protocol.machine import Event, Hole, Machine
from p2ptunnel.protocol.nat import Mapping, NatProfile, classify
from p2ptunnel.protocol.punch import Dial, LocalView, ObserveRow, PunchStarted, StopDialing, TakePort
from p2ptunnel.testing.simnet.driver import Driver
from p2ptunnel.testing.simnet.network import TTL, Host, Network
from p2ptunnel.testing.simnet.segment import SYN, Segment
from p2ptunnel.testing.simnet.tcp import Socket, TcpStack
from p2ptunnel.types import Address, Candidate

__all__ = ["Habits", "Side", "look_around"]

_OTHER_OBSERVER: Final = "203.0.113.2"  # the server's other address
_FIRST_HOLE: Final = 50_000


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
        sockets: How many it could have in a birthday.
        has_tcp: TCP leads to others than the server, which the side knows.
        can_quic: What the side says of itself: it can do QUIC.
        has_ports: It has a fresh port for a second round.
    """

    can_open_low: bool = True
    ttl_error: int = 0
    random_redials: bool = True
    tells_tcp_port: bool = True
    keeps_answered: bool = True
    phases: int = PHASES
    redials: int = REDIALS_PER_PHASE
    sockets: int = BIRTHDAY_HOLES
    has_tcp: bool = True
    can_quic: bool = False
    has_ports: bool = True


def look_around(network: Network, host: Host, server: Address, habits: Habits, port: int | None = None) -> LocalView:
    """Return what a side knows of its port before any call: how the server's three observers see it over UDP and over TCP."""
    inside = host.port if port is None else port
    observers = (server, (server[0], server[1] + 1), (_OTHER_OBSERVER, server[1]))
    udp = [_udp_port(network, host, inside, observer) for observer in observers]
    tcp = [tcp_port(network, host, inside, observer) for observer in observers]
    told = tcp[0] if habits.tells_tcp_port else udp[0]
    candidates = (Candidate("srflx", "tcp", host.address, told), Candidate("srflx", "udp", host.address, udp[0]))
    over_tcp, over_udp = (classify(*[(host.address, port) for port in ports]) for ports in (tcp, udp))
    nat = NatProfile(tcp=over_tcp if habits.has_tcp else Mapping("none"), udp=over_udp)
    return LocalView(candidates, network.rtt(host, server), habits.can_open_low, nat, tuple(tcp), habits.can_quic)


def _udp_port(network: Network, host: Host, inside: int, observer: Address) -> int:
    return inside if host.nat is None else host.nat.udp_out(inside, observer, network.clock.now)


def tcp_port(network: Network, host: Host, inside: int, observer: Address) -> int:
    """Return how `observer` sees a new TCP flow from an inside port of `host`."""
    if host.nat is None:
        return inside
    seen = host.nat.tcp_out(inside, observer, Segment(SYN, next(network.numbers)), network.clock.now)
    assert seen is not None  # nobody has been there from that port
    return seen


class _Attempt:
    """What is dialled for one token: the targets, with the redials that each has left in the present phase."""

    __slots__ = ("phase", "redials", "ttl")

    def __init__(self) -> None:
        self.phase = -1
        self.ttl = TTL
        self.redials: dict[Address, int] = {}


class Side(Driver):
    """A side that listens, dials, dials again after an RST, has its part in birthdays, and stops.

    Attributes:
        stack: Its TCP on the port that is punched.
        chosen: The connections on which channels stand, by token.
        birthdays: What it has for them.
        probes: How many guesses it has sent.
        most_open: Sockets at one time.
    """

    def __init__(
        self, machine: Machine, network: Network, host: Host, server: Address, habits: Habits, port: int | None = None
    ) -> None:
        """Take what arrives at `host`, or at another `port` of it."""
        super().__init__(machine, network, host, ttl_error=habits.ttl_error, port=port)
        self.stack = TcpStack(network, host, self, port=port)
        self.chosen: dict[str, Socket] = {}
        self.probes = 0
        self.most_open = 0
        self._server = server
        self._habits = habits
        self._attempts: dict[str, _Attempt] = {}
        self._holes: dict[Socket, TcpStack] = {}
        self._ports = count(_FIRST_HOLE)
        self._udp_holes: dict[Hole, int] = {}
        self._next: dict[str, TcpStack] = {}  # of the second round, by token
        self._dialled: dict[Socket, TcpStack] = {}  # from there

    @staticmethod
    def birthdays(habits: Habits) -> Birthdays:
        """Return what a side has for birthdays."""
        return Birthdays(BirthdayGate(), lambda: habits.sockets)

    @property
    def sockets(self) -> tuple[Socket, ...]:
        """Every socket of the side, those of holes among them."""
        later = (socket for stack in self._next.values() for socket in stack.sockets)
        return (*self.stack.sockets, *later, *(socket for socket, stack in self._holes.items() if stack.is_open(socket)))

    def stack_of(self, socket: Socket) -> TcpStack:
        """Return the TCP that a socket belongs to."""
        later = (stack for stack in self._next.values() if stack.is_open(socket))
        return self._holes.get(socket) or self._dialled.get(socket) or next(later, self.stack)

    def socket_up(self, socket: Socket) -> None:
        """Take note of a connection."""

    def socket_down(self, socket: Socket) -> None:
        """Dial again after a pause, if it was refused before it was up; a hole is opened once."""
        if not socket.dialled or socket.state == "established" or socket in self._holes:
            return
        for attempt in self._attempts.values():
            if attempt.redials.get(socket.remote):
                attempt.redials[socket.remote] -= 1
                share = self.network.random.random() if self._habits.random_redials else 0.5
                pause = REDIAL_MIN + (REDIAL_MAX - REDIAL_MIN) * share
                stack = self.stack_of(socket)
                self._clock.call_later(pause, self._redial, stack, attempt, attempt.phase, socket.remote)

    def received(self, socket: Socket, payload: str) -> None:
        """Take what the other side wrote."""

    def port_of(self, hole: Hole) -> int | None:
        """Return the inside port of a hole over UDP."""
        return self._udp_holes.get(hole)

    def at_hole(self, hole: Hole, data: bytes, source: Address) -> None:
        """Take what has come to a hole over UDP."""

    def row_seen(self, token: str, port: int) -> None:
        """Tell the machine which port our NAT gave last."""

    def port_taken(self, token: str, number: int, view: LocalView) -> None:
        """Tell the machine which fresh port we have."""

    def _handle(self, event: Event) -> None:
        match event:
            case PunchStarted():
                self._attempts[event.token] = _Attempt()
                self.stack.listening = self._habits.has_tcp
            case Dial():
                self._dial(event)
            case ObserveRow():
                seen = tcp_port(self.network, self.host, next(self._ports), self._server)
                wait = 2 * self.network.rtt(self.host, self._server)  # a handshake and a question
                self._clock.call_later(wait, self.row_seen, event.token, seen)
            case OpenHoles(transport="udp"):
                self._open_udp_holes(event)
            case TakePort() if self._habits.has_ports:
                number = next(self._ports)
                self._next[event.token] = TcpStack(self.network, self.host, self, port=number)
                self._next[event.token].listening = True
                view = look_around(self.network, self.host, self._server, self._habits, number)
                self._clock.call_later(0.0, self.port_taken, event.token, number, view)
            case OpenHoles():
                self._open_holes(event)
            case SendProbes(transport="udp"):
                self.probes += len(event.ports)
            case SendProbes():
                self._probe(event)
            case BirthdayEnded():
                self._close_holes()
            case StopDialing():
                self._stop(event.token)
            case _:
                pass
        self.most_open = max(self.most_open, len(self.sockets) + len(self._udp_holes))

    def _dial(self, event: Dial) -> None:
        attempt = self._attempts[event.token]
        if not self._habits.has_tcp:
            return
        if event.is_added:
            attempt.redials |= dict.fromkeys(event.targets, self._habits.redials)
            for target in event.targets:
                self._connect(self._stack_from(event), target, TTL)
            return
        attempt.phase += 1
        if attempt.phase >= self._habits.phases * (event.round + 1):
            return
        stack = self._stack_from(event)
        attempt.ttl = self.opener_ttl if event.low else TTL
        replaced = {*attempt.redials, *event.targets}
        attempt.redials = dict.fromkeys(event.targets, self._habits.redials)
        for socket in stack.sockets:
            if socket.remote in replaced and self._is_replaceable(socket):
                stack.reset(socket)
        for target in event.targets:
            self._connect(stack, target, attempt.ttl)

    def _connect(self, stack: TcpStack, target: Address, ttl: int) -> None:
        socket = stack.connect(target, ttl=ttl)
        if socket is not None and stack is not self.stack:
            self._dialled[socket] = stack

    def _stack_from(self, event: Dial) -> TcpStack:
        """Return the TCP of the port that the round has."""
        return self._next[event.token] if event.round else self.stack

    def _is_replaceable(self, socket: Socket) -> bool:
        """Tell whether a new phase may drop it: what the other side has answered comes up if it is left alone."""
        is_answered = socket.state == "syn-received" and socket.dialled
        return socket.state == "syn-sent" or (is_answered and not self._habits.keeps_answered)

    def _redial(self, stack: TcpStack, attempt: _Attempt, phase: int, target: Address) -> None:
        if attempt.phase == phase:
            self._connect(stack, target, attempt.ttl)

    def _open_holes(self, event: OpenHoles) -> None:
        for _ in event.holes:
            stack = TcpStack(self.network, self.host, self, port=next(self._ports))
            socket = stack.connect(event.target, ttl=self.opener_ttl if event.low else TTL)
            assert socket is not None
            self._holes[socket] = stack

    def _open_udp_holes(self, event: OpenHoles) -> None:
        for number in event.holes:
            hole, port = Hole(event.token, number), next(self._ports)
            self._udp_holes[hole] = port
            self.host.more_udp[port] = partial(self.at_hole, hole)

    def _probe(self, event: SendProbes) -> None:
        self.probes += len(event.ports)
        for port in event.ports:
            socket = self.stack.connect((event.host, port))
            if socket is not None:
                self._clock.call_later(event.patience, self._give_up_probe, socket)

    def _give_up_probe(self, socket: Socket) -> None:
        if socket.state == "syn-sent":
            self.stack.reset(socket)

    def _close_holes(self) -> None:
        for port in self._udp_holes.values():
            del self.host.more_udp[port]
        self._udp_holes.clear()
        for socket, stack in self._holes.items():
            if socket.state != "established":
                stack.reset(socket)

    def _stop(self, token: str) -> None:
        stopped = self._attempts.pop(token, None)
        if stopped is not None:
            stopped.phase = -1
        wanted = {target for attempt in self._attempts.values() for target in attempt.redials}
        self.stack.listening = bool(self._attempts)
        if token in self._next:
            self._next[token].listening = False
        for socket in self.sockets:
            if socket.remote not in wanted and socket not in self.chosen.values():
                self.stack_of(socket).reset(socket)
