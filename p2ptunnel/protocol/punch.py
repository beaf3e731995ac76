"""Hole punching: what the two agents of an attempt ask for and report, and the plan both follow.

The founding flow, with what it leaves open filled in: the callee opens first, with a SYN and a t=30 that die on the way (no NAT
ever sees an unsolicited packet that it would answer or remember), the caller answers with a plain SYN to the port that was
observed over TCP; if that opens nothing the roles swap, and last both send plain SYNs.  Rule: an agent says what to do with
sockets and knows none.  Source: wire document; docs/explanation/nat.md.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from p2ptunnel.addresses import canonical, probe_refusal, scope_of
from p2ptunnel.defaults import PHASE_MIN, PHASE_ROUND_TRIPS, SYN_REPEAT
from p2ptunnel.errors import InvalidAddressError
from p2ptunnel.identity.keys import PublicKey
from p2ptunnel.protocol.machine import Event
from p2ptunnel.protocol.nat import NatProfile
from p2ptunnel.types import Address, Candidate, Transport
from p2ptunnel.wire.messages import NatHints, RelayOffer

__all__ = [
    "AnswerProved",
    "CallFailed",
    "CallOffered",
    "ConnectionChosen",
    "Dial",
    "FailureKind",
    "HoleHeard",
    "HoleOpened",
    "LocalView",
    "Nominate",
    "ObserveRow",
    "PunchStarted",
    "StopDialing",
    "TakePort",
    "aim",
    "aimed_at",
    "own_candidates",
    "phase_length",
    "tcp_targets",
    "udp_targets",
]

FailureKind: TypeAlias = Literal[
    "rendezvous-silent", "another-server", "offline", "refused", "rate-limited", "timeout", "forged", "key-changed"
]


class LocalView(msgspec.Struct, frozen=True):
    """What a side knows of its own port when an attempt begins.

    candidates: TCP and UDP addresses at which others may find this port: as the server sees it, then as our router says.
    rtt: Seconds to the rendezvous server and back.
    can_open_low: It can send a SYN that dies on the way and survive the ICMP answer.
    nat: What the NATs before the port do.
    ports: Outside TCP ports that they have given lately, the last one last.
    can_quic: It can do QUIC over the punched UDP port.
    inside: Ways in that our router keeps where another NAT stands above it: for those behind that one, too.
    networks: Those of our interfaces over IPv4, as text.
    """

    candidates: tuple[Candidate, ...] = ()
    rtt: float = 0.0
    can_open_low: bool = True
    nat: NatProfile = NatProfile()
    ports: tuple[int, ...] = ()
    can_quic: bool = False
    inside: tuple[Candidate, ...] = ()
    networks: tuple[str, ...] = ()

    @property
    def hints(self) -> NatHints:
        """The wire's `extra.nat`; where our router keeps a way in over TCP and UDP, strangers get in."""
        hints = self.nat.hints(can_open_low=self.can_open_low, rtt=self.rtt)
        is_open = {"tcp", "udp"} == {candidate.proto for candidate in self.candidates if candidate.kind == "mapped"}
        return msgspec.structs.replace(hints, is_open=is_open or hints.is_open, quic=self.can_quic)


# --- what agents ask for and report ------------------------------------------------------------------------------------


class CallOffered(Event, frozen=True):
    """The server has introduced our signed call: it knows the callee, and under this token the relay knows both.

    offer: The relay, where it is not the server.
    """

    token: str
    offer: RelayOffer | None = None


class AnswerProved(Event, frozen=True):
    """The callee has signed its answer: whoever holds `key` takes a connection of ours by `selector`, 32 hex characters."""

    selector: str
    key: PublicKey


class PunchStarted(Event, frozen=True):
    """Both sides know of each other; `peer` is the other's UDP address as seen from outside."""

    token: str
    peer: Address


class Dial(Event, frozen=True):
    """Drop the SYNs of this attempt that wait for an answer and send new ones, in one tick, from this port to `targets`.

    What the peer has answered already (SYN_RECEIVED) stays: it comes up if it is left alone, and resetting it poisons the
    NATs' memory of this pair of ports.  low: They must die outside our own NATs.  patience: Seconds until the attempt ends;
    the next phase replaces them before.  is_unseen: Nobody but the peer itself says that it is there: a plain SYN that is
    refused is not sent again.  round: From the port of that round: those of an earlier one stay.  is_added: All others stay.
    is_beside: So do these, whatever is dialled later.

    All targets are of one family; the SYNs of the other stay.
    """

    token: str
    targets: tuple[Address, ...]
    low: bool
    patience: float
    is_unseen: bool = False
    round: int = 0
    is_added: bool = False
    is_beside: bool = False


class TakePort(Event, frozen=True):
    """Take a fresh port for the next round, listen there, and tell by `port_taken` what is known of it."""

    token: str


class ObserveRow(Event, frozen=True):
    """See which port our sequential NAT gives just now to a new TCP flow, and tell by `observed`: the SYNs wait for that."""

    token: str


class StopDialing(Event, frozen=True):
    """Close what is under way and every connection that was not chosen, by RST."""

    token: str


class HoleOpened(Event, frozen=True):
    """UDP passes both ways; `rtt` in seconds, None if the probe was repeated."""

    token: str
    remote: Address
    rtt: float | None


class HoleHeard(Event, frozen=True):
    """The caller has been heard, keyed, at that hole of a birthday: it may come there by QUIC."""

    token: str
    hole: int


class Nominate(Event, frozen=True):
    """Try to make a channel on this connection: preamble with `conkey`, then TLS."""

    connection: int
    conkey: str


class ConnectionChosen(Event, frozen=True):
    """The channel stands on this connection; the attempt is over."""

    token: str
    connection: int


class CallFailed(Event, frozen=True):
    """The attempt is over without a channel; `text` is cleaned."""

    kind: FailureKind
    code: int
    text: str
    retry_after: float = 0.0


def phase_length(own_rtt: float, other_rtt: float) -> float:
    """Return W, the length of a phase in seconds: 2.5 times the estimated round trip between the peers, at least 0.3 s.

    A phase that ends while a handshake is under way kills it, and poisons the NATs' memory of this pair of ports.  So a
    phase of about a second is long enough for the handshake of the SYN that the kernel repeats then, too.
    """
    round_trip = own_rtt + other_rtt
    length = max(PHASE_MIN, PHASE_ROUND_TRIPS * round_trip)
    return length if length < 0.9 * SYN_REPEAT else max(length, SYN_REPEAT + 1.25 * round_trip)


def aim(named: Address, candidates: tuple[Candidate, ...] | None, server: Address) -> Address | str:
    """Return where a peer is, in its one spelling, or why nothing may be sent there.

    The server names the address.  Of a peer that signs, the host must be one that it has signed, so that the server cannot aim
    us at others.  Nobody signs for a program of the founding protocol; its address may lie no deeper inside than the server's
    own: who is asked on loopback may name loopback, who is asked inside a private network may name addresses of such networks.

    Args:
        named: As the server has it.
        candidates: The peer's signed ones; None of a program of the founding protocol.
        server: As we reach it.
    """
    host, port = named
    try:
        address, asked = canonical(host), scope_of(canonical(server[0]))
        signed = None if candidates is None else {canonical(candidate.host) for candidate in candidates}
    except InvalidAddressError:
        return "no numeric address"
    if signed is not None and address not in signed:
        return "an address that the peer has not signed"
    is_near = signed is not None or asked in {"private", "loopback"}
    refusal = probe_refusal(address, port, is_admitted=is_near, on_loopback=asked == "loopback")
    return refusal or (str(address), port)


def own_candidates(proto: Transport, seen: Address, server: Address) -> tuple[Candidate, ...]:
    """Return the candidate of a port of ours that the server sees at `seen`; none, if no peer would send there."""
    candidate = Candidate("srflx", proto, *seen)
    return () if isinstance(aim(seen, (candidate,), server), str) else (candidate,)


def tcp_targets(candidates: tuple[Candidate, ...], peer: Address, server: Address) -> tuple[Address, ...]:
    """Return where to send SYNs: the peer's TCP candidates, or its UDP address if it names none (the founding protocol).

    Only ports are taken from candidates, never another host than the one the server has seen: nobody can aim us at others.

    Args:
        candidates: The peer's.
        peer: What `aim` returned.
        server: As we reach it.
    """
    named = tuple(candidate for candidate in candidates if candidate.proto == "tcp")
    return aimed_at(named, peer, server) or (peer,)


def udp_targets(candidates: tuple[Candidate, ...], peer: Address, server: Address) -> tuple[Address, ...]:
    """Return where to send datagrams: where the server has seen the peer, and the one way in that its router keeps open there.

    Args:
        candidates: The peer's.
        peer: What `aim` returned.
        server: As we reach it.
    """
    mapped = tuple(candidate for candidate in candidates if (candidate.kind, candidate.proto) == ("mapped", "udp"))
    return tuple(dict.fromkeys((peer, *aimed_at(mapped, peer, server)[:1])))


def aimed_at(named: tuple[Candidate, ...], peer: Address, server: Address) -> tuple[Address, ...]:
    """Return the addresses among `named` to which something may be sent: ports of the host at which the peer was seen.

    Args:
        named: Candidates of the peer's, that it has signed or sealed.
        peer: What `aim` returned.
        server: As we reach it.
    """
    aimed = (aim(candidate.address, named, server) for candidate in named)
    return tuple(dict.fromkeys(address for address in aimed if not isinstance(address, str) and address[0] == peer[0]))
