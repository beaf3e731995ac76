"""The network in memory: hosts behind their NATs, and links that delay, lose, double and reorder.

Rule: one virtual clock, one seeded generator, no I/O; the same seed gives the same run.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import Final, TypeVar

from p2ptunnel.testing.clock import FakeClock
from p2ptunnel.testing.simnet.kinds import Kind
from p2ptunnel.testing.simnet.nat import Nat
from p2ptunnel.testing.simnet.segment import RST, Segment
from p2ptunnel.types import Address

__all__ = ["TTL", "Host", "Network"]

_Packet = TypeVar("_Packet", bytes, Segment)

_HELD_BACK: Final = 0.05  # seconds by which a reordered packet is late, at most
TTL: Final = 64


def _drop_datagram(data: bytes, source: Address) -> None:
    """Stand in for a socket that nobody has opened."""


def _drop_segment(segment: Segment, source: Address) -> None:
    """Stand in for a TCP that nobody has opened."""


class Host:
    """One machine with one port, and more for TCP if need be, on one access link, behind at most one NAT.

    Attributes:
        address: The outside one; a NAT has it, if there is one.
        port: The inside one, of UDP and TCP alike.
        delay: Seconds that a packet takes between here and the middle of the internet, one way.
        nat: What stands in between, None for nothing.
        routers: How many of them take one from a packet's TTL: a firewall on the host itself does not.
        receive_udp: Gets each datagram with its source.
        receive_tcp: Gets each TCP segment with its source.
        more_udp: Gets datagrams for other ports of this host, by port.
        more_tcp: Gets segments for them.
        sent: Packets by host they were for, those included that never got there.
    """

    __slots__ = ("address", "delay", "more_tcp", "more_udp", "nat", "port", "receive_tcp", "receive_udp", "routers", "sent")

    def __init__(self, address: str, port: int, delay: float, nat: Nat | None) -> None:
        """Connect nothing yet: `Network.add` does."""
        self.address = address
        self.port = port
        self.delay = delay
        self.nat = nat
        self.routers = 0 if nat is None else nat.kind.routers
        self.receive_udp: Callable[[bytes, Address], None] = _drop_datagram
        self.receive_tcp: Callable[[Segment, Address], None] = _drop_segment
        self.more_udp: dict[int, Callable[[bytes, Address], None]] = {}
        self.more_tcp: dict[int, Callable[[Segment, Address], None]] = {}
        self.sent: Counter[str] = Counter()


class Network:
    """The internet of one run.

    Attributes:
        clock: The virtual time.
        random: Everything that is left to chance draws from it.
        packets: How many were sent.
        drops: How many ended on the way, by reason.
        numbers: Each once: for sockets and their sequence numbers.
    """

    def __init__(
        self, *, seed: int = 0, jitter: float = 0.0, loss: float = 0.0, duplicate: float = 0.0, reorder: float = 0.0
    ) -> None:
        """Begin with no host.

        Args:
            seed: Of everything random.
            jitter: Seconds that a packet may take longer.
            loss: Share of packets that get lost.
            duplicate: Share that arrives twice.
            reorder: Share that is held back for up to 50 ms, so that later ones overtake it.
        """
        self.clock = FakeClock()
        self.random = random.Random(seed)
        self.packets = 0
        self.drops: Counter[str] = Counter()
        self.numbers = count(1)
        self._hosts: dict[str, Host] = {}
        self._jitter = jitter
        self._loss = loss
        self._duplicate = duplicate
        self._reorder = reorder
        self._is_even = not (jitter or loss or duplicate or reorder)

    def add(self, address: str, port: int, *, delay: float = 0.0, kind: Kind | None = None) -> Host:
        """Connect a host; without `kind` nothing stands before it."""
        is_open = kind is None or (not kind.router and kind.filtering == "endpoint-independent")
        nat = None if kind is None or is_open else Nat(kind, self.random)
        host = self._hosts[address] = Host(address, port, delay, nat)
        return host

    def rtt(self, one: Host, other: Address) -> float:
        """Return the seconds from one host to another and back, jitter apart."""
        return 2 * (one.delay + self._hosts[other[0]].delay)

    def send_udp(
        self, sender: Host, data: bytes, destination: Address, *, ttl: int = TTL, source_port: int | None = None
    ) -> None:
        """Send a datagram, from another port than the host's own if one is given.

        Each router on the way, and the internet as a whole, takes one from its `ttl`.
        """
        self.packets += 1
        sender.sent[destination[0]] += 1
        if ttl <= sender.routers:
            self.drops["TTL over"] += 1
            return
        nat = sender.nat
        inside = sender.port if source_port is None else source_port
        port = inside if nat is None else nat.udp_out(inside, destination, self.clock.now)
        receiver = self._route(destination[0], ttl - sender.routers)
        if receiver is not None:
            delay, left = sender.delay + receiver.delay, ttl - sender.routers - 1
            self._carry(delay, self._udp_arrives, receiver, data, (sender.address, port), destination[1], left)

    def send_tcp(
        self, sender: Host, segment: Segment, destination: Address, *, ttl: int = TTL, source_port: int | None = None
    ) -> None:
        """Send a segment, as `send_udp` does; from another port than the host's own, if one is given."""
        self.packets += 1
        sender.sent[destination[0]] += 1
        if ttl <= sender.routers:
            self.drops["TTL over"] += 1
            return
        nat = sender.nat
        inside = sender.port if source_port is None else source_port
        port = inside if nat is None else nat.tcp_out(inside, destination, segment, self.clock.now)
        if port is None:
            self.drops["invalid"] += 1
            return
        receiver = self._route(destination[0], ttl - sender.routers)
        if receiver is not None:
            delay, left = sender.delay + receiver.delay, ttl - sender.routers - 1
            self._carry(delay, self._tcp_arrives, receiver, segment, (sender.address, port), destination[1], left)

    def forge_udp(self, data: bytes, source: Address, destination: Address) -> None:
        """Deliver a datagram in somebody else's name, at once and for certain: what an attacker off the path can do."""
        self._udp_arrives(self._hosts[destination[0]], data, source, destination[1], TTL)

    def _route(self, host: str, ttl: int) -> Host | None:
        if ttl <= 1:
            self.drops["TTL over"] += 1
            return None
        receiver = self._hosts.get(host)
        if receiver is None:
            self.drops["no such host"] += 1
        return receiver

    def _carry(
        self,
        delay: float,
        arrive: Callable[[Host, _Packet, Address, int, int], None],
        receiver: Host,
        packet: _Packet,
        source: Address,
        port: int,
        ttl: int,
    ) -> None:
        if self._is_even:
            self.clock.call_later(delay, arrive, receiver, packet, source, port, ttl)
            return
        for _ in range(2 if self.random.random() < self._duplicate else 1):
            if self.random.random() < self._loss:
                self.drops["lost"] += 1
                continue
            late = self._jitter * self.random.random()
            if self.random.random() < self._reorder:
                late += _HELD_BACK * self.random.random()
            self.clock.call_later(delay + late, arrive, receiver, packet, source, port, ttl)

    def _udp_arrives(self, receiver: Host, data: bytes, source: Address, port: int, ttl: int) -> None:
        nat = receiver.nat
        inside = port if nat is None else nat.udp_in(port, source, self.clock.now)
        receive = receiver.receive_udp if inside == receiver.port else receiver.more_udp.get(inside or 0)
        if receive is None:
            self.drops["filtered"] += 1
        elif ttl <= receiver.routers:
            self.drops["TTL over"] += 1
        else:
            receive(data, source)

    def _tcp_arrives(self, receiver: Host, segment: Segment, source: Address, port: int, ttl: int) -> None:
        nat = receiver.nat
        inside = port if nat is None else nat.tcp_in(port, source, segment)
        receive = receiver.receive_tcp if inside == receiver.port else receiver.more_tcp.get(inside or 0)
        if receive is not None:
            if ttl <= receiver.routers:  # the router has taken note of it all the same
                self.drops["TTL over"] += 1
            else:
                receive(segment, source)
            return
        self.drops["filtered"] += 1
        if segment.kind != RST and (nat is None or nat.kind.unsolicited != "drop"):
            self._refuse(receiver, segment, source, port)

    def _refuse(self, refuser: Host, segment: Segment, to: Address, port: int) -> None:
        """Answer by RST, in the name of the port that was asked for: no NAT of the refuser's takes notice."""
        self.packets += 1
        asker = self._hosts[to[0]]
        reset = Segment(RST, segment.ack, segment.seq)
        self._carry(refuser.delay + asker.delay, self._tcp_arrives, asker, reset, (refuser.address, port), to[1], TTL)
