"""How one side of an attempt gets through to the other: the phases of its plan, what it tells on the way, and the birthday.

Both agents have one from the moment they know of each other.  The caller's and the callee's are alike but for this: the callee
sends t=30 with its SYNs, and nothing but what dies on the way before the caller has shown that it holds the attempt's key.

Rule: it decides when to send, never whom to believe or which connection counts.  Source: docs/explanation/nat.md.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Final

import msgspec

from p2ptunnel.defaults import (
    BIRTHDAY_HOLES,
    BIRTHDAY_PROBES,
    BIRTHDAY_PROBES_OPEN,
    BIRTHDAY_RENEWAL,
    CANDIDATES_MAX,
    PHASES,
    PLAIN_MARGIN,
    ROUNDS,
)
from p2ptunnel.protocol.birthday import BirthdayEnded, BirthdayGate, OpenHoles, SendProbes, Tell, birthday_wait
from p2ptunnel.protocol.guessing import EasySide, EasyState
from p2ptunnel.protocol.holes import HardSide, HardState
from p2ptunnel.protocol.inside import INSIDE_PATIENCE, inside_targets
from p2ptunnel.protocol.intent import AttemptKeys
from p2ptunnel.protocol.ipv6 import Ipv6Approach, ipv6_targets, ipv6_udp_target
from p2ptunnel.protocol.machine import Datagram, Entropy, Hole, MachineBase, new_mid
from p2ptunnel.protocol.punch import (
    Dial,
    LocalView,
    ObserveRow,
    TakePort,
    aimed_at,
    phase_length,
    tcp_targets,
    udp_targets,
)
from p2ptunnel.protocol.signals import Signals
from p2ptunnel.protocol.strategy import Method, Plan, choose, choose_birthday
from p2ptunnel.types import Address, Candidate, Role, Transport
from p2ptunnel.wire.messages import HoleProbe, NatHints, Opener, PortRow, Signal, SignalAnswer, encode
from p2ptunnel.wire.signal import Again, FreshPort, GoAhead, MoreCandidates, SignalBody, Swap, Sync

__all__ = ["Approach", "Birthdays"]

_NOT_BEGUN: Final = -1
_NO_TCP: Final[dict[Role, Plan]] = {
    "caller": Plan(method=Method.NONE, transport="tcp", role="caller"),
    "callee": Plan(method=Method.NONE, transport="tcp", role="callee"),
}
_SIGNAL_CANDIDATES: Final = 8  # one has no more


class Birthdays(msgspec.Struct, frozen=True):
    """What a machine has for birthdays: who says whether one may begin, and how many sockets it could have just now, or 0."""

    gate: BirthdayGate
    sockets: Callable[[], int]


class Approach(MachineBase):
    """One side's way through, from its start until somebody stops it.

    Args:
        role: Ours.
        token: The attempt's.
        server: Hands signals on.
        peer: The other side's UDP address, as `aim` returned it.
        candidates: The other side's.
        view: What we know of our own port.
        hints: What the other side says of its NATs; None: nothing.
        entropy: For what is drawn.
        keys: The attempt's; None: the other side speaks the founding protocol only, and nothing it says of itself counts.
        birthdays: What we have for one; None: there will be none.
        peer_key: Whose it would be with.
        is_swapped: Whether the caller opens first.  A callee learns it from the caller's `swap`.

    Attributes:
        plan: What is done.
        is_swapped: As it is by now.
        is_met: The other side has shown that it knows the attempt's key.
        next_birthday: Over what the next attempt's had better be: UDP, if it may, where one over TCP has missed.
        round: Which it is, from 0.
        targets: Where the other side's TCP is, but for IPv6.
        udp_targets: Where its UDP is.
        hosts: Where connections of the other side may come from.
    """

    def __init__(
        self,
        role: Role,
        token: str,
        server: Address,
        peer: Address,
        candidates: tuple[Candidate, ...],
        view: LocalView,
        hints: NatHints | None,
        entropy: Entropy,
        *,
        keys: AttemptKeys | None,
        birthdays: Birthdays | None = None,
        peer_key: Hashable = None,
        is_swapped: bool = False,
    ) -> None:
        super().__init__()
        hints = hints or NatHints()
        self.is_swapped = is_swapped and keys is not None
        self.is_met = False
        self.next_birthday: Transport = "tcp"
        self.round = 0
        self.plan: Plan = _founding_plan(role, view)
        if keys is not None:
            self.plan = choose("tcp", role, view.hints, hints, is_swapped=is_swapped)
        self.targets: tuple[Address, ...] = tcp_targets(candidates, peer, server) if keys is None or ":" not in peer[0] else ()
        self.udp_targets: Final = udp_targets(candidates, peer, server)
        self._birthday_plan: Final = choose_birthday(self.plan, view.hints, hints)
        self._role: Final = role
        self._token: Final = token
        self._peer: Final = peer
        self._view: Final = view
        self._hints: Final = hints
        self._entropy: Final = entropy
        self._birthdays: Final = birthdays
        self._peer_key: Final = peer_key
        self._round_trip: Final = view.rtt + hints.rtt / 1000
        ipv6 = () if keys is None else ipv6_targets(candidates, view.candidates, peer, server)
        self._ipv6: Final = Ipv6Approach(
            role,
            token,
            ipv6,
            ours=view.hints,
            theirs=hints,
            round_trip=self._round_trip,
            udp=ipv6_udp_target(candidates, ipv6, peer) if hints.quic and view.can_quic else None,
        )
        self._inside: Final = (
            inside_targets(candidates, view.candidates, peer, view.networks) if keys is not None and role == "caller" else ()
        )
        self.hosts: Final = frozenset((peer[0], *(host for host, _ in (*self._ipv6.targets, *self._inside))))
        self._signals: Final = None if keys is None else _signals(role, token, server, entropy, keys, self._round_trip)
        self._length: Final = phase_length(view.rtt, hints.rtt / 1000)
        # A program of the seed dials by itself, in one phase: it needs the hole; one that answers has to be dialled.
        self._phases: Final = 1 if keys is None and role == "callee" else PHASES
        self._phase = _NOT_BEGUN
        self._acts_at: float | None = None
        self._ends_at = 0.0
        self._is_trusted = role == "caller" or keys is None
        self._comes_directly = _is_known_port(self.plan) and _is_known_port(choose("udp", role, view.hints, hints))
        """Keyed datagrams get through: they show where the other side is, for which signals have the server's word only."""
        self._holds_back = False
        self._awaits_own_row = False
        self._awaits_other_row = False
        self._tried = 0
        self._is_running = False
        self._birthday: HardSide | EasySide | None = None
        self._guessed: dict[int, float] = {}  # when each t=31 of a birthday left, by its mid
        self._is_through = False
        self._may_be_over_udp: Final = keys is not None and choose_birthday(_NO_TCP[role], view.hints, hints).part is not None
        self._server: Final = server
        self._told = view.candidates
        self._swapped: set[int] = {0} if self.is_swapped else set()  # rounds in which the caller opens first
        self._wants_port = False
        self._has_port = False
        self._next_targets: tuple[Address, ...] = ()

    # --- input --------------------------------------------------------------------------------------------------------

    def start(self, now: float, *, ends_at: float) -> None:
        """Begin; nothing is dialled for longer than until `ends_at`."""
        self._ends_at = ends_at
        self._is_running = True
        if self._role == "caller" and self._signals is not None:
            if self.plan.openers != self._plan(is_swapped=False).openers:
                self._signals.tell(Swap(round=0), now)
            self._signals.tell(Sync(), now)
        self._ipv6.start(now, ends_at=ends_at)
        self._events += self._ipv6.events()
        if self._inside:
            patience = min(INSIDE_PATIENCE, ends_at - now)
            self._events.append(Dial(self._token, self._inside, False, patience, is_unseen=True, is_beside=True))
        if not self._await_rows(now):
            self._begin(now)
        if self._role == "callee":
            self._open_udp(low=True)
        self._collect(now)

    def prove(self, now: float) -> None:
        """The other side holds the attempt's key, and is where it says: what was held back may go."""
        self._is_trusted = self.is_met = True
        self._ipv6.prove(now)
        if self._holds_back:
            self._holds_back = False
            self._dial(now)
        self._collect(now)

    def hear(self, message: Signal | SignalAnswer, now: float) -> bool:
        """Take a t=12 or -12 from the server; return whether it was for us."""
        if self._signals is None:
            return False
        if isinstance(message, SignalAnswer):
            return self._signals.acknowledged(message)
        body = self._signals.open(message)
        if body is not None and self._is_running:
            self.is_met = True
            self._ipv6.prove(now)  # where the other side is there, no datagram would show either
            if not self._comes_directly:
                self.prove(now)
            self._take(body, now)
        self._collect(now)
        return True

    def observed(self, port: int | None, now: float) -> None:
        """Our NAT has just given `port` to a new TCP flow, or nobody knows: what `ObserveRow` asked for."""
        row = self._view.nat.tcp.row
        if not self._awaits_own_row or row is None:
            return
        self._awaits_own_row = False
        if port is not None and self._signals is not None:
            self._signals.tell(FreshPort(proto="tcp", row=PortRow(port, row.delta, row.busy)), now)
        self._begin_with_rows(now)
        self._collect(now)

    def passed(self) -> None:
        """UDP passes between us and the other side: a birthday over UDP has nothing to find any more."""
        self._is_through = True
        if self._birthday is not None and self._birthday_plan.transport == "udp":
            self._birthday.connection_up()

    def guessed(self, mid: int) -> float | None:
        """Return when the guess left that this answers, None if none does; once for each."""
        return self._guessed.pop(mid, None)

    def tell_more(self, candidates: tuple[Candidate, ...], now: float) -> None:
        """Tell the other side of ways in to our port that have turned up since: those of `candidates` it does not know."""
        new = tuple(candidate for candidate in candidates if candidate not in self._told)[:_SIGNAL_CANDIDATES]
        if new and self._is_running and self._signals is not None:
            self._told += new
            self._signals.tell(MoreCandidates(cands=new), now)
            self._collect(now)

    def port_lost(self, now: float) -> None:
        """Our port has turned out to be of no use: another round is to begin from a fresh one."""
        self._want_port()
        self._collect(now)

    def port_taken(self, candidates: tuple[Candidate, ...], now: float) -> None:
        """We have a fresh port and these are its candidates, or none: what `TakePort` asked for."""
        candidates = tuple(candidate for candidate in candidates if candidate.proto == "tcp")[:_SIGNAL_CANDIDATES]
        if not (self._is_running and self._wants_port and candidates) or self._has_port or self._signals is None:
            return
        self._has_port = True
        if self._role == "caller" and not self.is_swapped:
            self._swapped.add(1)
            self._signals.tell(Swap(round=1), now)
        self._signals.tell(Again(round=1, cands=candidates), now)
        self._begin_round(now)
        self._collect(now)

    def connection_up(self) -> None:
        """A connection is being tried: meanwhile there are no more guesses, and the caller begins no other phase."""
        self._tried += 1
        if self._birthday is not None:
            self._birthday.connection_up()

    def connection_failed(self, now: float) -> None:
        """It came to nothing."""
        self._tried -= 1
        if self._is_running and self._tried == 0 and self._birthday is not None and self._is_held:
            self._birthday.connection_failed(now)
            self._collect(now)

    def stop(self) -> None:
        """End everything, whichever way; stopping twice is fine."""
        self._is_running = False
        self._acts_at = None
        self._ipv6.stop()
        if self._signals is not None:
            self._signals.close()
        if self._birthday is not None:
            self._birthday.stop()
            self._events += [self._left(event) for event in self._birthday.events() if isinstance(event, BirthdayEnded)]

    def handle_timer(self, now: float) -> None:
        """Begin the next phase or the birthday, repeat, guess: whatever is due."""
        if self._signals is not None:
            self._signals.handle_timer(now)
        if not self._is_paused:
            self._ipv6.handle_timer(now)
        if self._birthday is not None:
            self._birthday.handle_timer(now)
        elif self._acts_at is not None and now >= self._acts_at and not self._is_paused:
            self._go_on(now)
        self._collect(now)

    def next_deadline(self) -> float | None:
        """Return when something is due."""
        waits = [] if self._is_paused else [self._acts_at, self._ipv6.next_deadline()]
        waits += [machine.next_deadline() for machine in (self._signals, self._birthday) if machine is not None]
        return min((at for at in waits if at is not None), default=None)

    # --- phases -------------------------------------------------------------------------------------------------------

    @property
    def _is_paused(self) -> bool:
        """The caller knows which connection it tries, and does not disturb it; the callee never does."""
        return self._tried > 0 and self._role == "caller"

    def _begin(self, now: float) -> None:
        if self.plan.waits(0):  # the other side opens, or nobody: our SYN must not get there before its own has left
            self._acts_at = now + self._half_way
        else:
            self._begin_phase(0, now)

    @property
    def _half_way(self) -> float:
        return self._round_trip / 2 + PLAIN_MARGIN

    def _go_on(self, now: float) -> None:
        if self._phase >= 0 and self._birthday_plan.part == "hard" and self._begin_birthday(now):
            return
        if self._phase < self._phases - 1:
            self._begin_phase(self._phase + 1, now)
        elif self._hopes_for_birthday:
            self._acts_at = now + BIRTHDAY_RENEWAL  # others have theirs now, or have just had one
        else:
            self._acts_at = None
            self._want_port()

    def _begin_phase(self, phase: int, now: float) -> None:
        self._phase = phase
        is_last = phase == self._phases - 1 and not (self._hopes_for_birthday or self._is_to_go_round)
        length = birthday_wait(self._round_trip) if phase == 0 and self._hopes_for_birthday else self._length
        self._acts_at = None if is_last else now + length
        is_first = phase == 0 and self.round == 0 and not self.is_swapped
        self._holds_back = not (is_first or self._is_trusted or self.plan.sends_low(phase))
        if not self._holds_back:
            self._dial(now)
        if phase > 0 and self._role == "callee" and self.round == 0:
            self._open_udp(low=False)

    def _dial(self, now: float) -> None:
        if self.targets and self.plan.dials(self._phase):
            targets = self.plan.targets(self.targets, 0)
            low, patience = self.plan.sends_low(self._phase), self._ends_at - now
            self._events.append(Dial(self._token, targets, low, patience, round=self.round))

    def _open_udp(self, *, low: bool) -> None:
        """Send t=30: first so that it dies on the way, which any system can do over UDP; later so that it does not."""
        self._datagrams += [Datagram(encode(Opener()), target, opener=low) for target in self.udp_targets]

    # --- prediction ---------------------------------------------------------------------------------------------------

    def _await_rows(self, now: float) -> bool:
        """Wait for where sequential NATs stand just now; no longer than a phase, then what the hints say must do."""
        if self._signals is None or self.plan.method is not Method.PREDICT:
            return False
        self._awaits_own_row = self._view.nat.tcp.row is not None
        self._awaits_other_row = self.plan.row is not None
        if self._awaits_own_row:
            self._events.append(ObserveRow(self._token))
        self._acts_at = now + self._length
        return True

    def _begin_with_rows(self, now: float) -> None:
        """Dial once both rows are known; who does not open waits until the other side knows, and has opened."""
        if self._phase != _NOT_BEGUN or self._awaits_own_row or self._awaits_other_row:
            return
        is_told = self._view.nat.tcp.row is not None
        if is_told and not self.plan.sends_low(0):
            self._acts_at = now + self._half_way
        else:
            self._begin_phase(0, now)

    def _take(self, body: SignalBody, now: float) -> None:
        match body:
            case Sync():
                pass
            case FreshPort(round=0) if self._awaits_other_row:
                self._awaits_other_row = False
                self.plan = self.plan.with_row(body)
                self._begin_with_rows(now)
            case Swap() if self._role == "callee" and body.round < ROUNDS and body.round not in self._swapped:
                self._swapped.add(body.round)
                if body.round == self.round:
                    self._swap(now)
            case MoreCandidates():
                self._add(body.cands, now)
            case Again(round=1) if self._can_go_round and not self._next_targets:
                self._next_targets = aimed_at(body.cands, self._peer, self._server)
                self._want_port()
                self._begin_round(now)
            case GoAhead(round=0) if self._birthday_plan.part == "easy":
                self._invited(body, now)
            case _:
                self._drop("signal of no use")

    # --- who opens first ----------------------------------------------------------------------------------------------

    def _plan(self, *, is_swapped: bool) -> Plan:
        return choose("tcp", self._role, self._view.hints, self._hints, is_swapped=is_swapped)

    def _swap(self, now: float) -> None:
        """Let the caller have opened first: it has by now, and a plain SYN of ours gets through.

        Ours that died on the way left before we could know.  Once the first phase is over this is of no use any more.
        """
        if self._phase > 0 or self._birthday is not None:
            self._drop("swap too late")
            return
        self.is_swapped, openers = True, self._plan(is_swapped=True).openers
        if openers == self.plan.openers:
            return
        self.plan = msgspec.structs.replace(self.plan, openers=openers)
        if self._phase == 0 or not (self._awaits_own_row or self._awaits_other_row):
            self._begin_phase(0, now)

    # --- more candidates ----------------------------------------------------------------------------------------------

    def _add(self, candidates: tuple[Candidate, ...], now: float) -> None:
        """Dial what has turned up on the other side, by the rules for what it has signed: there, and not too much.

        A plain SYN, since it is a way in that needs none of ours; unless the other side has yet to show that it is there.
        """
        named = tuple(candidate for candidate in candidates if candidate.proto == "tcp")
        aimed = aimed_at(named, self._peer, self._server) if self.targets and self.round == 0 else ()
        new = tuple(address for address in aimed if address not in self.targets)[: CANDIDATES_MAX - len(self.targets)]
        self.targets += new
        if new and self._is_trusted and self._phase != _NOT_BEGUN and self._birthday is None and self.plan.row is None:
            self._events.append(Dial(self._token, new, low=False, patience=self._ends_at - now, is_added=True))

    # --- the next round -----------------------------------------------------------------------------------------------

    @property
    def _can_go_round(self) -> bool:
        """Whether another round may be of use: to ports that are known, and of which a port was burnt perhaps."""
        is_punched = self.plan.method is Method.PUNCH and bool(self.targets) and self._signals is not None
        return is_punched and self.round + 1 < ROUNDS and self._birthday is None

    @property
    def _is_to_go_round(self) -> bool:
        """Whether we ask for it when the phases are over: the caller does, and the callee hears of it."""
        return self._role == "caller" and self._can_go_round and not self._wants_port

    def _want_port(self) -> None:
        if self._can_go_round and self._is_running and not self._wants_port:
            self._wants_port = True
            self._events.append(TakePort(self._token))

    def _begin_round(self, now: float) -> None:
        """Begin it once both have a fresh port, and know that of the other."""
        if not (self._has_port and self._next_targets and self._can_go_round):
            return
        self.round += 1
        self.is_swapped = self.round in self._swapped
        self.plan, self.targets = self._plan(is_swapped=self.is_swapped), self._next_targets
        self._phase, self._holds_back = _NOT_BEGUN, False
        self._begin(now)

    # --- the birthday -------------------------------------------------------------------------------------------------

    @property
    def _hopes_for_birthday(self) -> bool:
        return self._birthday_plan.part == "hard" and self._birthdays is not None and self._signals is not None

    def _invited(self, go: GoAhead, now: float) -> None:
        """Guess; or wait for the next one, if there may be no birthday just now."""
        if self._birthday is None and not self._begin_birthday(now):
            return
        if isinstance(self._birthday, EasySide):
            self._birthday.receive(go, now)

    def _begin_birthday(self, now: float) -> bool:
        """Begin our part, if there is one and it may be; what the first phase has sent is of no use any more."""
        here, part = self._birthdays, self._birthday_plan.part
        if here is None or self._signals is None or part is None or not self._may_begin_birthday:
            return False
        sockets = here.sockets()
        wanted = min(sockets, BIRTHDAY_HOLES) if part == "hard" else BIRTHDAY_PROBES
        flows = here.gate.enter(self._peer_key, wanted, now) if sockets else "too few descriptors"
        if isinstance(flows, str):
            self._drop(f"no birthday: {flows}")
            return False
        self._acts_at = None
        if self._birthday_plan.transport == "tcp":
            self._events.append(Dial(self._token, (), low=False, patience=self._ends_at - now))
        self._birthday = self._part(flows, sockets)
        self._birthday.start(now)
        if self._tried:
            self._birthday.connection_up()
        return True

    @property
    def _may_begin_birthday(self) -> bool:
        """Whether the other side has shown that it is there, and there is something to find."""
        return self._is_trusted and (not self._is_through if self._birthday_plan.transport == "udp" else bool(self.targets))

    def _part(self, flows: int, sockets: int) -> HardSide | EasySide:
        over: Transport = self._birthday_plan.transport
        if self._birthday_plan.part == "easy":
            most = min(sockets, BIRTHDAY_PROBES_OPEN)
            return EasySide(self._peer[0], self._round_trip, self._entropy, transport=over, probes=flows, open_most=most)
        target, ports = (self._peer, ()) if over == "udp" else (self.targets[0], self._view.ports)
        return HardSide(target, self._round_trip, ports=ports, transport=over, holes=flows)

    @property
    def _is_held(self) -> bool:
        return self._birthday is not None and self._birthday.state in {HardState.HOLDING, EasyState.HOLDING}

    def _collect(self, now: float) -> None:
        self._events += self._ipv6.events()
        self._datagrams += self._ipv6.datagrams_to_send()
        if self._birthday is not None:
            self._collect_birthday(self._birthday, now)
        if self._signals is not None:
            self._datagrams += self._signals.datagrams_to_send()

    def _collect_birthday(self, machine: HardSide | EasySide, now: float) -> None:
        for event in machine.events():
            match event:
                case Tell(body=body):
                    assert self._signals is not None
                    self._signals.tell(body, now)
                case BirthdayEnded():
                    self._events.append(self._left(event))
                case OpenHoles() | SendProbes():
                    self._events.append(msgspec.structs.replace(event, token=self._token))
                    if event.transport == "udp":
                        self._probe_by(event, now)
                case _:
                    self._events.append(event)

    def _probe_by(self, event: OpenHoles | SendProbes, now: float) -> None:
        """Send t=31: from each of the new holes, or from our port to each of the ports."""
        if isinstance(event, OpenHoles):
            holes = (Hole(self._token, number) for number in event.holes)
            self._datagrams += [Datagram(self._hole_probe(now), event.target, event.low, hole) for hole in holes]
        else:
            self._datagrams += [Datagram(self._hole_probe(now), (event.host, port)) for port in event.ports]

    def _hole_probe(self, now: float) -> bytes:
        mid = new_mid(self._entropy)
        self._guessed[mid] = now
        return encode(HoleProbe(mid=mid, token=self._token))

    def _left(self, ended: BirthdayEnded) -> BirthdayEnded:
        """Let others have theirs."""
        assert self._birthdays is not None
        self._birthday = None
        if self._birthday_plan.transport == "tcp" and self._may_be_over_udp:
            self.next_birthday = "udp"
        self._birthdays.gate.leave(ended.holes + ended.probes)
        return msgspec.structs.replace(ended, token=self._token)


def _is_known_port(plan: Plan) -> bool:
    return plan.method in {Method.CONNECT, Method.PUNCH}


def _signals(role: Role, token: str, server: Address, entropy: Entropy, keys: AttemptKeys, round_trip: float) -> Signals:
    ours, theirs = keys.caller_seal, keys.callee_seal
    if role == "callee":
        ours, theirs = theirs, ours
    return Signals(token, server, entropy, sends=ours, hears=theirs, round_trip=round_trip)


def _founding_plan(role: Role, view: LocalView) -> Plan:
    """Return the plan with a program of the founding protocol, of whose NATs nothing is known; as a callee it never dials."""
    own = NatHints(low=role == "callee" and view.can_open_low)
    return choose("tcp", role, own, NatHints())
