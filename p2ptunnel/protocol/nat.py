"""What a NAT does, from what observers saw, in the words of RFC 4787 and RFC 5382.  Rule: values in, values out."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Final, Literal, TypeAlias

import msgspec

from p2ptunnel.types import Address
from p2ptunnel.wire.messages import NatHints, PortRow

__all__ = ["PORT_FIRST", "PORT_LAST", "PORT_RANGE", "Habits", "Mapping", "MappingClass", "NatProfile", "classify", "describe"]

MappingClass: TypeAlias = Literal["eim", "adm", "seq", "rnd", "none", "unknown"]

PORT_FIRST: Final = 1024
"""Where NATs begin, and where a sequential one goes on after the last port."""
PORT_LAST: Final = 65_535
PORT_RANGE: Final = PORT_LAST - PORT_FIRST + 1
_SEQUENTIAL_STEP_MAX: Final = 32
_RTT_MAX_MS: Final = 60_000
_WORDS: Final[dict[str, str]] = {
    "eim": "endpoint-independent",
    "adm": "address-dependent",
    "seq": "address-and-port-dependent, sequential ports",
    "rnd": "address-and-port-dependent, random ports",
    "none": "no answer",
    "unknown": "not known",
}


class Mapping(msgspec.Struct, frozen=True):
    """How the NAT maps one transport: its class, the last port seen, and the step between ports of a sequential one.

    is_busy: Its steps were not equal: flows of others took ports in between.
    """

    kind: MappingClass
    observed: Address | None = None
    last_port: int = 0
    delta: int = 0
    is_busy: bool = False

    @property
    def row(self) -> PortRow | None:
        """Where a sequential NAT stands, None of any other."""
        return PortRow(self.last_port, self.delta, self.is_busy) if self.kind == "seq" else None

    def is_preserved(self, local_port: int) -> bool | None:
        """Tell whether the outside port is the inside one (RFC 4787 4.2.1), None if nothing was seen."""
        return None if self.observed is None else self.last_port == local_port


class Habits(msgspec.Struct, frozen=True, kw_only=True):
    """What our NATs do with SYNs, whichever port of ours they are about; None: not known.

    crosses: One gets in that meets one of ours (simultaneous open; RFC 5382 REQ-2).  is_open: Strangers get in.
    opens_low: One of ours that is to die on the way does, and nobody answers it.
    """

    crosses: bool | None = None
    is_open: bool | None = None
    opens_low: bool | None = None

    @property
    def is_known(self) -> bool:
        """Whether anything of it is known."""
        return self != Habits()


class NatProfile(msgspec.Struct, frozen=True, kw_only=True):
    """What a side knows of the NATs before one port of its own; crosses, is_open: as in `Habits`."""

    tcp: Mapping = Mapping("unknown")
    udp: Mapping = Mapping("unknown")
    crosses: bool | None = None
    is_open: bool | None = None

    @property
    def tcp_equals_udp(self) -> bool | None:
        """Whether both transports show the same outside port, None unless both were seen."""
        if self.tcp.observed is None or self.udp.observed is None:
            return None
        return self.tcp.last_port == self.udp.last_port

    def hints(self, *, can_open_low: bool, rtt: float) -> NatHints:
        """Return what the other side is told: `extra.nat`.

        Args:
            can_open_low: We can send a SYN that dies on the way.
            rtt: Seconds to the rendezvous server and back.
        """
        return NatHints(
            tcp=_hint(self.tcp.kind),
            udp=_hint(self.udp.kind),
            low=can_open_low,
            rtt=min(round(rtt * 1000), _RTT_MAX_MS),
            tcp_row=self.tcp.row,
            udp_row=self.udp.row,
            crosses=self.crosses,
            is_open=self.is_open,
        )


def classify(first: Address | None, second: Address | None, third: Address | None, *, asked_third: bool = True) -> Mapping:
    """Classify a mapping from three observers, asked in this order from one local port.

    Args:
        first: As seen by the server's first address, first port; None for no answer.
        second: As seen by its first address, second port.
        third: As seen by its second address, first port.
        asked_third: False if the server has one address only: then address-dependent looks endpoint-independent.

    Returns:
        `none` without any answer; `unknown` if only one observer answered.

    Source: RFC 4787 4.1, RFC 5780 4.3; the steps of sequential NATs are measured (docs/explanation/nat.md).
    """
    seen = [address for address in (first, second, third) if address is not None]
    if not seen:
        return Mapping("none")
    last = seen[-1]
    if len(seen) == 1:
        return Mapping("unknown", last, last[1])
    ports = [port for _, port in seen]
    if len(set(seen)) == 1:
        return Mapping("eim", last, last[1])
    if asked_third and first is not None and first == second:
        return Mapping("adm", last, last[1])
    return _by_steps(ports, last)


def describe(kind: MappingClass) -> str:
    """Return the mapping class in RFC words."""
    return _WORDS[kind]


def _by_steps(ports: list[int], last: Address) -> Mapping:
    steps = [_step(earlier, later) for earlier, later in pairwise(ports)]
    small = all(0 < abs(step) <= _SEQUENTIAL_STEP_MAX for step in steps)
    if small and (all(step > 0 for step in steps) or all(step < 0 for step in steps)):
        step = math.gcd(*steps)  # ports in between went to flows of others
        return Mapping("seq", last, last[1], step if steps[0] > 0 else -step, is_busy=len(set(steps)) > 1)
    return Mapping("rnd", last, last[1])


def _step(earlier: int, later: int) -> int:
    """Return the way from one port to the next, the shorter one: 1024 comes after 65535."""
    half = PORT_RANGE // 2
    return (later - earlier + half) % PORT_RANGE - half


def _hint(kind: MappingClass) -> str:
    return "" if kind == "unknown" else kind
