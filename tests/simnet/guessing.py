"""Port prediction and birthdays on the network in memory: the machines, the signals and the plan, wired as agents will.

Two sites look around, tell each other what they saw, choose their plans, go through the phases, and, where the plan says so,
begin a birthday.  What is not here: introduction, nomination, TLS; a connection counts once both ends of it stand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from msgspec import Struct

from p2ptunnel.defaults import BIRTHDAY_HOLES, PHASES, PLAIN_MARGIN
from p2ptunnel.protocol.birthday import BirthdayEnded, OpenHoles, SendProbes, Tell
from p2ptunnel.protocol.guessing import EasySide
from p2ptunnel.protocol.holes import HardSide
from p2ptunnel.protocol.machine import Event
from p2ptunnel.protocol.nat import NatProfile, classify
from p2ptunnel.protocol.punch import phase_length
from p2ptunnel.protocol.strategy import Method, Plan, choose
from p2ptunnel.testing.simnet import SYN, Network, Segment, Socket, TcpStack, find_kind
from p2ptunnel.testing.simnet.network import TTL
from p2ptunnel.types import Address, Role
from p2ptunnel.wire.messages import NatHints
from p2ptunnel.wire.signal import FreshPort, GoAhead, SignalFault, SignalReceiver, SignalSender

OBSERVERS: Final[tuple[Address, ...]] = (("203.0.113.1", 7000), ("203.0.113.1", 7001), ("203.0.113.2", 7000))
SITES: Final[dict[Role, str]] = {"caller": "198.51.100.1", "callee": "198.51.100.2"}
KEYS: Final[dict[Role, bytes]] = {"caller": b"caller's sealing".ljust(32), "callee": b"callee's sealing".ljust(32)}
PORT: Final = 40_000
FIRST_HOLE: Final = 50_000


class Damage(Struct, frozen=True, kw_only=True):
    """What is taken away, to see what it was good for; `holes` is how many the hard side opens."""

    minds_repetitions: bool = True
    invitations: int = 1000
    holes: int = BIRTHDAY_HOLES


class Result(Struct, frozen=True, kw_only=True):
    """What became of an attempt; `seconds` from its start, `probes` to random ports in the last round."""

    method: Method
    connected: bool
    seconds: float
    rounds: int
    probes: int


class Site:
    """One side: its sockets, its plan, and its part in a birthday."""

    def __init__(self, network: Network, kind: str, role: Role, delay: float, damage: Damage) -> None:
        self.network, self.role, self.damage = network, role, damage
        self.host = network.add(SITES[role], PORT, delay=delay, kind=find_kind(kind))
        self.opener_ttl = self.host.routers + 1
        self.established: set[Socket] = set()
        self.signals: list[object] = []
        self.probes = 0
        self.sent_at: list[float] = []
        self.other: Site
        self.plan: Plan
        self.machine: HardSide | EasySide | None = None
        self.on_up: Callable[[], None] = lambda: None
        self._clock = network.clock
        self._sender, self._receiver = (
            SignalSender(KEYS[role]),
            SignalReceiver(KEYS["callee" if role == "caller" else "caller"]),
        )
        self._holes: dict[int, TcpStack] = {}
        self._invitations = 0
        self.new_port(PORT + 1)

    # --- what a peer knows before it calls ------------------------------------------------------------------------------

    def new_port(self, port: int) -> None:
        """Punch from a port that nothing has been sent from."""
        self.port = port
        self.stack = TcpStack(self.network, self.host, self, port=port)
        self.stack.listening = True

    def look_around(self) -> NatHints:
        """Ask three observers, and return what the other side is told."""
        self.seen = tuple(self._seen_by(observer) for observer in OBSERVERS)
        self.profile = NatProfile(tcp=classify(*self.seen))
        return self.profile.hints(can_open_low=True, rtt=self.server_rtt)

    @property
    def named(self) -> tuple[Address, ...]:
        """Where the other side may find us, as observed."""
        return (self.seen[-1],)

    @property
    def server_rtt(self) -> float:
        return 2 * self.host.delay

    def _seen_by(self, observer: Address) -> Address:
        if self.host.nat is None:
            return (self.host.address, self.port)
        segment = Segment(SYN, next(self.network.numbers))
        outside = self.host.nat.tcp_out(self.port, observer, segment, self._clock.now)
        assert outside is not None
        return (self.host.address, outside)

    # --- signals ----------------------------------------------------------------------------------------------------------

    def tell(self, body: FreshPort | GoAhead) -> None:
        """Send a signal: it takes the way by the server."""
        delay = self.host.delay + self.other.host.delay
        self._clock.call_later(delay, self.other.hear, self._sender.seal(body))

    def hear(self, sealed: str) -> None:
        """Take a signal."""
        body = self._receiver.open(sealed)
        assert not isinstance(body, SignalFault)
        self.signals.append(body)
        if isinstance(body, FreshPort):
            self.plan = self.plan.with_row(body)
        elif isinstance(body, GoAhead) and isinstance(self.machine, EasySide):
            self.machine.receive(body, self._clock.now)
            self.flush()

    # --- phases -----------------------------------------------------------------------------------------------------------

    def begin_phase(self, phase: int, round_number: int) -> None:
        """Drop what waits for an answer, and dial what the plan says."""
        for socket in self.stack.sockets:
            if socket.state == "syn-sent":
                self.stack.reset(socket)
        if self.plan.dials(phase):
            ttl = self.opener_ttl if self.plan.sends_low(phase) else TTL
            for target in self.plan.targets(self.other.named, round_number):
                self.stack.connect(target, ttl=ttl)

    # --- birthday ---------------------------------------------------------------------------------------------------------

    def begin_birthday(self, round_number: int) -> None:
        """Take our part; what phase 0 has sent is of no use any more."""
        self.close()
        target, round_trip = self.other.named[0], 2 * (self.host.delay + self.other.host.delay)
        if self.plan.part == "hard":
            ports = [port for _, port in self.seen]
            self.machine = HardSide(target, round_trip, ports=ports, holes=self.damage.holes, round_number=round_number)
        else:
            self.machine = EasySide(target[0], round_trip, self.network.random, round_number=round_number)
        self.machine.start(self._clock.now)
        self.flush()

    def flush(self) -> None:
        """Do what our machine wants done."""
        assert self.machine is not None
        for event in self.machine.events():
            self._handle(event)
        deadline = self.machine.next_deadline()
        if deadline is not None:
            self._clock.call_at(deadline, self._wake, self.machine)

    def _wake(self, machine: HardSide | EasySide) -> None:
        deadline = machine.next_deadline()
        if machine is self.machine and deadline is not None and deadline <= self._clock.now:  # else asked for once more
            machine.handle_timer(self._clock.now)
            self.flush()

    def _handle(self, event: Event) -> None:
        match event:
            case OpenHoles():
                self._open(event)
            case SendProbes():
                self._probe(event)
            case Tell() if self._invitations < self.damage.invitations:
                self._invitations += 1
                assert isinstance(event.body, GoAhead)
                self.tell(event.body)
            case BirthdayEnded():
                self.close()
            case _:
                pass

    def _open(self, event: OpenHoles) -> None:
        for hole in event.holes:
            stack = self._holes[hole] = TcpStack(self.network, self.host, self, port=FIRST_HOLE + hole)
            socket = stack.connect(event.target, ttl=self.opener_ttl)
            assert socket is not None
            if not self.damage.minds_repetitions:
                socket.ttl = TTL

    def _probe(self, event: SendProbes) -> None:
        self.probes += len(event.ports)
        self.sent_at += [self._clock.now] * len(event.ports)
        for port in event.ports:
            socket = self.stack.connect((event.host, port))
            if socket is not None:
                self._clock.call_later(event.patience, self._give_up, socket)

    def _give_up(self, socket: Socket) -> None:
        if socket.state == "syn-sent":
            self.stack.reset(socket)

    def close(self) -> None:
        """Reset everything that is not up."""
        for stack in (self.stack, *self._holes.values()):
            for socket in stack.sockets:
                if socket not in self.established:
                    stack.reset(socket)

    # --- sockets ----------------------------------------------------------------------------------------------------------

    def socket_up(self, socket: Socket) -> None:
        self.established.add(socket)
        if self.machine is not None and self.machine.state.name in {"INVITING", "WAITING", "GUESSING", "HOLDING"}:
            self.machine.connection_up()
        self.on_up()

    def socket_down(self, socket: Socket) -> None:
        self.established.discard(socket)

    def received(self, socket: Socket, payload: str) -> None:
        pass


class Attempt:
    """A caller and a callee of two kinds of NAT, who try round after round."""

    def __init__(
        self, caller: str, callee: str, *, seed: int, delay: float = 0.025, damage: Damage | None = None, busy: float = 0.0
    ) -> None:
        """Place them; `busy` is how many new flows others begin each second behind either NAT."""
        self.network = Network(seed=seed)
        self.clock = self.network.clock
        self.caller = Site(self.network, caller, "caller", delay, damage or Damage())
        self.callee = Site(self.network, callee, "callee", delay, damage or Damage())
        self.sites = (self.caller, self.callee)
        self.caller.other, self.callee.other = self.callee, self.caller
        self.connected_at: float | None = None
        for site in self.sites:
            site.on_up = self._judge
            if busy:
                self._disturb(site, busy, 0)

    def run(self, rounds: int = 1) -> Result:
        """Try up to so many rounds; a birthday has one, since the next may not begin for a while."""
        began = self.clock.now
        for number in range(rounds):
            self.run_round(number)
            if self.connected_at is not None or self.caller.plan.method is Method.BIRTHDAY:
                break
        return Result(
            method=self.caller.plan.method,
            connected=self.connected_at is not None,
            seconds=(self.connected_at or self.clock.now) - began,
            rounds=number + 1,
            probes=self.caller.probes + self.callee.probes,
        )

    def run_round(self, number: int) -> None:
        """Look around from fresh ports, tell, go through the phases, and through the birthday if there is one."""
        for site in self.sites:
            site.close()
            site.new_port(PORT + 1 + number)
        hints = {site.role: site.look_around() for site in self.sites}
        for site in self.sites:
            site.plan = choose("tcp", site.role, hints[site.role], hints[site.other.role])
        self._tell_rows(number)
        length = phase_length(self.caller.server_rtt, self.callee.server_rtt)
        for phase in range(1 if self.caller.plan.method is Method.BIRTHDAY else PHASES):
            self._begin_phase(phase, number)
            if self._wait(length):
                return
        if self.caller.plan.method is Method.BIRTHDAY:
            for site in self.sites:
                site.begin_birthday(number)
            self._wait(30.0, lambda: all(site.machine is not None and site.machine.state.name == "OVER" for site in self.sites))

    def _tell_rows(self, number: int) -> None:
        for site in self.sites:
            row = site.profile.tcp.row
            if row is not None:
                site.tell(FreshPort(proto="tcp", row=row, round=number))
        self.clock.advance(self.caller.server_rtt)

    def _begin_phase(self, phase: int, number: int) -> None:
        """The callee starts half an introduction before the caller, unless its SYNs must not be the first."""
        head_start = self.caller.host.delay + self.callee.host.delay
        late = head_start + PLAIN_MARGIN if self.callee.plan.waits(phase) else 0.0
        self.clock.call_later(late, self.callee.begin_phase, phase, number)
        self.clock.call_later(head_start, self.caller.begin_phase, phase, number)

    def _wait(self, seconds: float, done: Callable[[], bool] = lambda: False) -> bool:
        self.clock.run_until(self.clock.now + seconds, lambda: self.connected_at is not None or done())
        return self.connected_at is not None

    def _judge(self) -> None:
        """See whether both ends of one connection stand; then both sides stop."""
        ends = {(socket.peer, socket.number) for socket in self.callee.established}
        if self.connected_at is None and any((socket.number, socket.peer) in ends for socket in self.caller.established):
            self.connected_at = self.clock.now
            for site in self.sites:
                if site.machine is not None:
                    site.machine.stop()
                    site.flush()

    def _disturb(self, site: Site, rate: float, number: int) -> None:
        if site.host.nat is not None:
            site.host.nat.tcp_out(1024 + number % 30_000, ("192.0.2.1", 443), Segment(SYN, number + 1), self.clock.now)
        self.clock.call_later(self.network.random.expovariate(rate), self._disturb, site, rate, number + 1)
