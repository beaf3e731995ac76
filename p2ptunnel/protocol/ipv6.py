"""IPv6 beside whatever else an attempt tries: no NATs, so no ports to find out, only firewalls to open from both sides.

The server sees a peer over one family only, so nobody vouches for the IPv6 addresses that a peer names but the peer, who may
name somebody else's, our own or our neighbours'.  Rule: only what it has signed counts, global addresses only, of other
networks than ours, three at most; the callee sends there nothing that leaves its own network before the caller has shown that
it holds the attempt's key, and neither sends more than three SYNs to an address that does not answer.

UDP comes after TCP.  A callee's datagram that dies on the way opens its firewall with its first SYN; the caller probes, three
times and at one address only, when its first SYNs have come to nothing and no datagram has got through elsewhere.

A phase lasts until kernels have repeated their SYNs.  A new socket in the place of one whose SYN both firewalls have seen would
come with another sequence number, and be refused by them for minutes.  So the callee's last SYN comes while the caller's first
socket is still there.  Source: docs/explanation/nat.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from p2ptunnel.addresses import canonical, probe_refusal, source_of
from p2ptunnel.defaults import IPV6_CANDIDATES_MAX, IPV6_PHASE_MAX, PLAIN_MARGIN, SYN_REPEAT
from p2ptunnel.errors import InvalidAddressError
from p2ptunnel.protocol.machine import Datagram, Event, MachineBase
from p2ptunnel.protocol.punch import Dial, tcp_targets
from p2ptunnel.protocol.strategy import choose
from p2ptunnel.types import Address, Candidate, Role
from p2ptunnel.wire.messages import NatHints, Opener, encode

__all__ = ["Ipv6Approach", "ProbeBeside", "ipv6_candidates", "ipv6_targets", "ipv6_udp_target"]

_ONCE: Final = 0.95 * SYN_REPEAT  # seconds: a dial that ends by then has sent one SYN
_REPEATED: Final = 1.2 * SYN_REPEAT  # seconds: one that lasts so long has sent two
_LATER: Final = 0.1  # seconds by which the caller's first phase is longer: SYNs of two new sockets must not cross


class ProbeBeside(Event, frozen=True):
    """Probe the callee over UDP at `target` as well, a few times, unless a hole is open already."""

    target: Address


def ipv6_candidates(hosts: Iterable[str], port: int, *, has_udp: bool = False) -> tuple[Candidate, ...]:
    """Return the candidates of a port of ours on a machine with these addresses, three at most.

    Over UDP the first address is enough; it takes the place of the third over TCP, since a message has room for three.
    """
    over_tcp = tuple(Candidate("host", "tcp", host, port) for host in hosts)[: IPV6_CANDIDATES_MAX - has_udp]
    return (*over_tcp, *(Candidate("host", "udp", *candidate.address) for candidate in over_tcp[:1] if has_udp))


def ipv6_targets(
    theirs: tuple[Candidate, ...], ours: Iterable[Candidate], peer: Address, server: Address
) -> tuple[Address, ...]:
    """Return where to send SYNs over IPv6, best first; nowhere, if we have no address there.

    In our own networks a peer is found otherwise (`lan`), not by its word: what answers there may trust its neighbours.

    Args:
        theirs: The peer's candidates, signed.
        ours: Our own.
        peer: What `aim` returned.
        server: As we reach it.
    """
    near = {_network(candidate.host) for candidate in ours if ":" in candidate.host}
    if not near:
        return ()
    named = (_target(candidate) for candidate in theirs if (candidate.kind, candidate.proto) == ("host", "tcp"))
    far = (target for target in named if target is not None and _network(target[0]) not in near)
    unseen = tuple(dict.fromkeys(far))[:IPV6_CANDIDATES_MAX]
    seen = tcp_targets(theirs, peer, server) if ":" in peer[0] else ()
    return tuple(dict.fromkeys((*seen, *unseen)))


def ipv6_udp_target(theirs: tuple[Candidate, ...], targets: tuple[Address, ...], peer: Address) -> Address | None:
    """Return where to send datagrams over IPv6, None: nowhere, or where the server has seen the peer.

    Args:
        theirs: The peer's candidates, signed.
        targets: Where SYNs may go; no datagram goes to another host.
        peer: What `aim` returned.
    """
    hosts = {host for host, _ in targets}
    named = (_target(candidate) for candidate in theirs if (candidate.kind, candidate.proto) == ("host", "udp"))
    allowed = (target for target in named if target is not None and target[0] in hosts)
    return None if ":" in peer[0] else next(allowed, None)


def _network(host: str) -> int:
    """Return the /64 of an address: what is on one link (RFC 4291, 2.5.1)."""
    return source_of(canonical(host)).block


def _target(candidate: Candidate) -> Address | None:
    try:
        address = canonical(candidate.host)
    except InvalidAddressError:
        return None
    is_refused = probe_refusal(address, candidate.port, is_admitted=False) is not None
    return None if address.version == 4 or is_refused else (str(address), candidate.port)


class Ipv6Approach(MachineBase):
    """One side's way through over IPv6, from its start until somebody stops it.

    First one side, the callee if it can, opens its firewall with SYNs that die on the way, and the other sends plain ones; then
    both send plain ones, once.

    Args:
        role: Ours.
        token: The attempt's.
        targets: Where the other side's TCP is; empty: nothing is sent.
        ours: What the other side is told of us.
        theirs: What it says of itself.
        round_trip: Seconds between the two by way of the server.
        udp: Where the other side's UDP is; None: nowhere, or others see to it.
    """

    def __init__(
        self,
        role: Role,
        token: str,
        targets: tuple[Address, ...],
        *,
        ours: NatHints,
        theirs: NatHints,
        round_trip: float,
        udp: Address | None = None,
    ) -> None:
        super().__init__()
        self.targets: Final = targets
        self._udp: Final = udp
        self._role: Final = role
        self._token: Final = token
        self._plan: Final = choose("tcp", role, NatHints(low=ours.low), NatHints(low=theirs.low))
        self._half_way: Final = round_trip / 2 + PLAIN_MARGIN
        self._length: Final = min(_REPEATED + 1.25 * round_trip, IPV6_PHASE_MAX) + _LATER * (role == "caller")
        self._is_trusted = role == "caller"  # its callee has signed that it may be sent to; the other way round, later
        self._holds_back = False
        self._acts_at: float | None = None
        self._ends_at = 0.0

    def start(self, now: float, *, ends_at: float) -> None:
        """Begin; nothing is dialled for longer than until `ends_at`."""
        self._ends_at = ends_at
        if not self.targets:
            return
        self._acts_at = now + self._length
        if self._udp is not None and self._role == "callee":
            self._open_udp(self._udp, low=True)
        if self._plan.waits(0):  # the caller opens, or nobody can: our SYN must not get there before its own has left
            self._acts_at = now + self._half_way
        elif self._plan.sends_low(0):
            self._dial(now, low=True, patience=ends_at - now)
        else:
            self._dial(now, low=False, patience=self._length)

    def prove(self, now: float) -> None:
        """The other side holds the attempt's key: what was held back may go."""
        self._is_trusted = True
        if self._holds_back:
            self._holds_back = False
            self._begin_last_phase(now)

    def stop(self) -> None:
        """End everything; stopping twice is fine."""
        self._acts_at = None
        self._holds_back = False

    def handle_timer(self, now: float) -> None:
        """Begin the last phase, if it is due."""
        if self._acts_at is None or now < self._acts_at:
            return
        self._acts_at = None
        if self._is_trusted:
            self._begin_last_phase(now)
        else:
            self._holds_back = True

    def next_deadline(self) -> float | None:
        """Return when something is due."""
        return self._acts_at

    def _begin_last_phase(self, now: float) -> None:
        self._dial(now, low=False, patience=_ONCE)
        if self._udp is not None and self._role == "callee":
            self._open_udp(self._udp, low=False)
        elif self._udp is not None:
            self._events.append(ProbeBeside(self._udp))

    def _open_udp(self, target: Address, *, low: bool) -> None:
        self._datagrams.append(Datagram(encode(Opener()), target, opener=low))

    def _dial(self, now: float, *, low: bool, patience: float) -> None:
        self._events.append(Dial(self._token, self.targets, low, min(patience, self._ends_at - now), is_unseen=True))
