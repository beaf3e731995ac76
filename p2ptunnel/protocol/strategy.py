"""What each side of an attempt does, given what both have said of their NATs.

One table decides for a transport by the classes of the two mappings; who opens first, with SYNs that die on the way, follows
from what the two sides and their NATs can do.  Both sides have the same hints and so come to plans that fit.

Rule: a plan is a value; hints may be wrong, so a plan never leaves out what costs one packet, nor the only way there is.

Source: docs/explanation/nat.md.
"""

from __future__ import annotations

import enum
from typing import Final, Literal, TypeAlias

import msgspec

from p2ptunnel.protocol.prediction import predict, steps, window
from p2ptunnel.types import Address, Role, Transport
from p2ptunnel.wire.messages import NatHints, PortRow
from p2ptunnel.wire.signal import FreshPort

__all__ = ["METHODS", "Method", "Part", "Plan", "Shape", "choose", "choose_birthday", "shape_of"]

Part: TypeAlias = Literal["easy", "hard"]
Shape: TypeAlias = Literal["open", "eim", "seq", "hard"]
"""What the other side can do with a mapping: enter as a stranger, know its port, guess the next one, or none of these."""


class Method(enum.Enum):
    """How two sides get through to each other over one transport."""

    CONNECT = "one side listens"
    PUNCH = "both to the port that is known"
    PREDICT = "to the ports that come next"
    BIRTHDAY = "many holes, many guesses"
    NONE = "not directly"


METHODS: Final[dict[tuple[Shape, Shape], Method]] = {
    ("open", "open"): Method.CONNECT,
    ("open", "eim"): Method.CONNECT,
    ("open", "seq"): Method.CONNECT,
    ("open", "hard"): Method.CONNECT,
    ("eim", "eim"): Method.PUNCH,
    ("eim", "seq"): Method.PREDICT,
    ("eim", "hard"): Method.BIRTHDAY,
    ("seq", "seq"): Method.PREDICT,
    ("seq", "hard"): Method.NONE,
    ("hard", "hard"): Method.NONE,
}
"""By the shapes of the two, the easier one first."""

_Hints: TypeAlias = dict[Role, NatHints]
_SHAPES: Final[tuple[Shape, ...]] = ("open", "eim", "seq", "hard")


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What one side does over one transport.

    Attributes:
        method: How the two get through to each other.
        transport: Over which.
        role: Ours.
        openers: Who opens in each phase, with packets that die on the way; None, and after the last, nobody.
        is_listener: We are open: in phase 0 we do nothing but listen.
        part: Ours in a birthday, None if there is none.
        row: Where the other's NAT stands, if its ports are to be predicted.
        is_staggered: So are ours, and it is on us to make up for ports that others take (`prediction`).
        is_sealed: That was told under the attempt's key.
        is_doubted: Both NATs are said to refuse SYNs that meet; it is tried since there is nothing else.
    """

    method: Method
    transport: Transport
    role: Role
    openers: tuple[Role | None, ...] = ()
    is_listener: bool = False
    part: Part | None = None
    row: PortRow | None = None
    is_staggered: bool = False
    is_sealed: bool = False
    is_doubted: bool = False

    def dials(self, phase: int) -> bool:
        """Tell whether we send SYNs in a phase; where nothing can come of it, once all the same: hints may be wrong."""
        if self.method is Method.NONE:
            return phase == 0
        return phase > 0 or not self.is_listener

    def sends_low(self, phase: int) -> bool:
        """Tell whether our SYNs of a phase must die on the way."""
        return self.openers[phase : phase + 1] == (self.role,)

    def waits(self, phase: int) -> bool:
        """Tell whether our SYNs of a phase must leave after the other side's: a callee's, unless it is the one that opens."""
        is_met = self.method not in {Method.CONNECT, Method.NONE}
        return is_met and phase == 0 and self.role == "callee" and not self.sends_low(0)

    def targets(self, named: tuple[Address, ...], round_number: int) -> tuple[Address, ...]:
        """Return where to send SYNs, in this order: behind sequential NATs each must leave from its own port.

        Args:
            named: What the peer says are its addresses; only their hosts count where its ports are predicted.
            round_number: From 0.
        """
        if self.row is None:
            return named
        count = window(self.transport, round_number, is_busy=self.row.busy, is_sealed=self.is_sealed)
        ports = predict(self.row, steps(count, is_staggered=self.is_staggered))
        return tuple((host, port) for host in dict.fromkeys(host for host, _ in named) for port in ports)

    def with_row(self, told: FreshPort) -> Plan:
        """Return the plan with what the peer has told since, sealed; the same, if that is of no use here."""
        if self.row is None or told.proto != self.transport:
            return self
        return msgspec.structs.replace(self, row=told.row, is_sealed=True)


def choose(transport: Transport, role: Role, own: NatHints, other: NatHints, *, is_swapped: bool = False) -> Plan:
    """Return our plan; the other side, which has the same hints, comes to the one that fits.

    With `is_swapped` the caller opens first, if both can.
    """
    shapes = ours, theirs = shape_of(own, transport), shape_of(other, transport)
    easier, harder = sorted(shapes, key=_SHAPES.index)
    method = METHODS[easier, harder]
    hints: _Hints = {"caller": own, "callee": other} if role == "caller" else {"caller": other, "callee": own}
    is_doubted = transport == "tcp" and _is_doubted(method, own, other)
    if is_doubted:
        hints = {side: msgspec.structs.replace(said, crosses=None) for side, said in hints.items()}
    if not _is_possible(method, transport, hints):
        return Plan(method=Method.NONE, transport=transport, role=role)
    return Plan(
        method=method,
        transport=transport,
        role=role,
        openers=_openers(method, transport, hints, is_swapped=is_swapped),
        is_listener=ours == "open" and (theirs != "open" or role == "callee"),
        part=("hard" if ours == "hard" else "easy") if method is Method.BIRTHDAY else None,
        row=_row(other, transport) if method is Method.PREDICT and theirs == "seq" else None,
        is_staggered=ours == theirs == "seq" and role == "caller",
        is_doubted=is_doubted,
    )


def choose_birthday(over_tcp: Plan, own: NatHints, other: NatHints) -> Plan:
    """Return the plan whose `part` is ours in a birthday, if there is one: over UDP only where TCP is ruled out.

    What gets through then is QUIC's, so both sides must have that.
    """
    if over_tcp.method is not Method.NONE or not (own.quic and other.quic):
        return over_tcp
    over_udp = choose("udp", over_tcp.role, own, other)
    return over_udp if over_udp.method is Method.BIRTHDAY else over_tcp


def shape_of(hints: NatHints, transport: Transport) -> Shape:
    """Return what the other side can do with a mapping; one that is not known is taken for the usual one."""
    if hints.is_open:
        return "open"
    kind = _class(hints, transport)
    if kind == "seq" and _row(hints, transport) is not None:
        return "seq"
    return "hard" if kind in {"seq", "adm", "rnd"} else "eim"


def _is_possible(method: Method, transport: Transport, hints: _Hints) -> bool:
    """Tell whether both sides have the transport, and a NAT there is through which a SYN comes that meets one of ours.

    In a birthday it must be the hard side's: its holes are what the other's SYNs come through.
    """
    if "none" in {_class(side, transport) for side in hints.values()}:
        return False
    if method in {Method.CONNECT, Method.NONE}:
        return True
    met = [side for side in hints.values() if method is not Method.BIRTHDAY or shape_of(side, transport) == "hard"]
    return any(_crosses(side, transport) for side in met)


def _is_doubted(method: Method, own: NatHints, other: NatHints) -> bool:
    """Tell whether both are said to refuse what QUIC would not replace: a server that cannot dial out says it of any NAT."""
    if method not in {Method.PUNCH, Method.PREDICT} or own.crosses is not False or other.crosses is not False:
        return False
    return not (own.quic and other.quic) or choose("udp", "caller", own, other).method is Method.NONE


def _openers(method: Method, transport: Transport, hints: _Hints, *, is_swapped: bool) -> tuple[Role | None, ...]:
    """Return who opens in each phase: the callee before the caller, as the founding protocol has it, unless they have swapped.

    A side of random ports has nothing to open for, since no one knows the port.  Where one side listens, nobody opens at first.
    """
    order: tuple[Role, Role] = ("caller", "callee") if is_swapped else ("callee", "caller")
    able: tuple[Role, ...] = tuple(role for role in order if _can_open(hints[role], transport))
    return (None, *able) if method is Method.CONNECT else able


def _can_open(side: NatHints, transport: Transport) -> bool:
    return side.low and _crosses(side, transport) and shape_of(side, transport) != "hard"


def _crosses(side: NatHints, transport: Transport) -> bool:
    return transport == "udp" or side.crosses is not False


def _class(hints: NatHints, transport: Transport) -> str:
    return hints.tcp if transport == "tcp" else hints.udp


def _row(hints: NatHints, transport: Transport) -> PortRow | None:
    return hints.tcp_row if transport == "tcp" else hints.udp_row
