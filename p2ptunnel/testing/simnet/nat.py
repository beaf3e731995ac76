"""What stands between a host and the internet: translation, filtering, and connection tracking as Linux does it.

Rule: a NAT decides about one packet at a time and sends nothing itself.  Source: RFC 4787, RFC 5382; what Linux does beyond
them is measured (docs/protocol/machines.md).
"""

from __future__ import annotations

import random
from typing import Final

from p2ptunnel.testing.simnet.kinds import Kind
from p2ptunnel.testing.simnet.segment import ACK, RST, SYN, SYN_ACK, Segment
from p2ptunnel.types import Address

__all__ = ["Nat"]

_SHIFT: Final = {"udp": 0x0A5A, "tcp": 0x0C3C}
_FIRST_PORT: Final = {"udp": 20_000, "tcp": 40_000}
_REFUSED_MEMORY: Final = 30.0  # seconds that connection tracking keeps a datagram which nobody answered


class _Flow:
    """One tracked pair of endpoints; `inner` and `outer` are the sequence numbers that the two sides' SYNs have shown."""

    __slots__ = ("inner", "outer", "outside", "port", "remote")

    def __init__(self, port: int, outside: int, remote: Address) -> None:
        self.port = port
        self.outside = outside
        self.remote = remote
        self.inner: int | None = None
        self.outer: int | None = None


class _Table:
    """One transport's flows, and the doors through which strangers may start one."""

    __slots__ = (
        "_by_inside",
        "_by_outside",
        "_doors",
        "_kind",
        "_mapped",
        "_next_port",
        "_random",
        "_refused",
        "_shift",
        "_taken",
    )

    def __init__(self, kind: Kind, transport: str, rng: random.Random) -> None:
        self._kind = kind
        self._random = rng
        self._shift = _SHIFT[transport]
        self._next_port = _FIRST_PORT[transport]
        self._by_inside: dict[tuple[int, Address], _Flow] = {}
        self._by_outside: dict[tuple[int, Address], _Flow] = {}
        self._doors: dict[tuple[int, str], int] = {}
        self._mapped: dict[tuple[int, str], int] = {}
        self._taken: set[int] = set()
        self._refused: dict[tuple[int, Address], float] = {}

    def find(self, port: int, remote: Address) -> _Flow | None:
        """Return the flow from an inside port to `remote`, if there is one."""
        return self._by_inside.get((port, remote))

    def outward(self, port: int, remote: Address, now: float) -> _Flow:
        """Return the flow from an inside port to `remote`, begun if need be."""
        flow = self._by_inside.get((port, remote))
        if flow is None:
            outside = self._map(port, remote[0])
            if self._refused.get((outside, remote), now) > now:  # the router remembers that datagram as a flow of its own
                outside = self._draw_port()
            flow = self._add(port, outside, remote)
            if self._kind.filtering != "address-and-port-dependent":
                self._doors[self._door(outside, remote[0])] = port
        return flow

    def inward(self, outside: int, remote: Address) -> _Flow | None:
        """Return the flow that a packet from `remote` belongs to, begun if a door stands open; None if it may not come in."""
        flow = self._by_outside.get((outside, remote))
        if flow is None and self._doors:
            port = self._doors.get(self._door(outside, remote[0]))
            if port is not None:
                return self._add(port, outside, remote)
        return flow

    def refuse(self, outside: int, remote: Address, now: float) -> None:
        """Remember a datagram that the router's own stack took and refused."""
        self._refused[outside, remote] = now + _REFUSED_MEMORY

    def forget(self, flow: _Flow) -> None:
        """Drop a flow; doors stay open."""
        del self._by_inside[flow.port, flow.remote]
        del self._by_outside[flow.outside, flow.remote]

    def _add(self, port: int, outside: int, remote: Address) -> _Flow:
        flow = _Flow(port, outside, remote)
        self._by_inside[port, remote] = flow
        self._by_outside[outside, remote] = flow
        return flow

    def _door(self, outside: int, host: str) -> tuple[int, str]:
        return (outside, host if self._kind.filtering == "address-dependent" else "")

    def _map(self, port: int, host: str) -> int:
        if self._kind.mapping == "address-and-port-dependent":
            return self._allocate(port)
        key = (port, host if self._kind.mapping == "address-dependent" else "")
        outside = self._mapped.get(key)
        if outside is None:
            outside = self._mapped[key] = self._allocate(port)
        return outside

    def _allocate(self, port: int) -> int:
        if self._kind.allocation == "sequential":
            self._next_port += 1
            return self._next_port - 1
        if self._kind.allocation == "random":
            return self._draw_port()
        wanted = port ^ self._shift if self._kind.allocation == "shifted" else port
        if wanted in self._taken:
            return self._draw_port()
        self._taken.add(wanted)
        return wanted

    def _draw_port(self) -> int:
        while (port := self._random.randrange(1024, 65_536)) in self._taken:
            pass
        self._taken.add(port)
        return port


class Nat:
    """A NAT with what stands above it, or a host's own firewall, which translates nothing but tracks alike.

    Attributes:
        kind: How it behaves.
    """

    __slots__ = ("_barred", "_carrier", "_tcp", "_udp", "kind")

    def __init__(self, kind: Kind, rng: random.Random) -> None:
        """Begin without any flow; `rng` draws ports."""
        self.kind = kind
        self._carrier = None if kind.carrier is None else Nat(kind.carrier, rng)
        self._udp = _Table(kind, "udp", rng)
        self._tcp = _Table(kind, "tcp", rng)
        self._barred: set[tuple[int, str]] = set()

    def udp_out(self, port: int, remote: Address, now: float) -> int:
        """Return the outside port from which a datagram of the inside `port` leaves for `remote`."""
        outside = self._udp.outward(port, remote, now).outside
        return outside if self._carrier is None else self._carrier.udp_out(outside, remote, now)

    def udp_in(self, outside: int, remote: Address, now: float) -> int | None:
        """Return the inside port that a datagram from `remote` comes in to, None if it does not."""
        ours = outside if self._carrier is None else self._carrier.udp_in(outside, remote, now)
        if ours is None:
            return None
        flow = self._udp.inward(ours, remote)
        if flow is None and self.kind.unsolicited == "accept":
            self._udp.refuse(ours, remote, now)
        return None if flow is None else flow.port

    def tcp_out(self, port: int, remote: Address, segment: Segment, now: float) -> int | None:
        """Return the outside port from which `segment` leaves for `remote`, None if connection tracking calls it invalid."""
        if (port, remote[0]) in self._barred:
            return None
        flow = self._tcp.find(port, remote)
        if flow is None:
            if segment.kind not in (SYN, ACK):  # an ACK may pick up a connection from the middle; these may not
                return None
            flow = self._tcp.outward(port, remote, now)
        if segment.kind in (SYN, SYN_ACK):
            if flow.inner != segment.seq and flow.inner is not None and flow.outer is not None:
                return None
            flow.inner = segment.seq
        elif segment.kind == RST:
            if segment.seq != flow.inner and segment.ack != flow.outer:
                return None
            self._tcp.forget(flow)
        return flow.outside if self._carrier is None else self._carrier.tcp_out(flow.outside, remote, segment, now)

    def tcp_in(self, outside: int, remote: Address, segment: Segment) -> int | None:
        """Return the inside port that `segment` from `remote` comes in to; None refuses it, as `kind.unsolicited` says."""
        ours = outside if self._carrier is None else self._carrier.tcp_in(outside, remote, segment)
        flow = None if ours is None else self._tcp.inward(ours, remote)
        if flow is None or (flow.port, remote[0]) in self._barred:
            return None
        if segment.kind == SYN and self._is_unwanted(flow):
            if self.kind.is_guarded:
                self._barred.add((flow.port, remote[0]))
            return None
        if segment.kind in (SYN, SYN_ACK):
            if flow.outer != segment.seq and flow.outer is not None and flow.inner is not None:
                return None  # another SYN than the one whose answer was seen: invalid, and so is all that follows
            flow.outer = segment.seq
        elif segment.kind == RST:
            if segment.ack != flow.inner and segment.seq != flow.outer:
                return None  # answers a SYN that has been replaced since
            self._tcp.forget(flow)
        return flow.port

    def _is_unwanted(self, flow: _Flow) -> bool:
        """Tell whether a SYN would meet one of ours that is unanswered, and this NAT refuses that."""
        return not self.kind.simultaneous_open and flow.inner is not None and flow.outer is None
