"""Birthday: a way through to a NAT whose ports nobody can know.  What both sides of it share.

The hard side, behind that NAT, opens many holes to the one port of the easy side, each from a socket of its own (`holes`); the
easy side guesses: plain SYNs from that port to random ports of the hard side's address (`guessing`).  With 512 holes one guess
in 126 hits, and 672 guesses miss them all once in 200 times; once in 75, since the first of them leave while holes are still
opened.  The first connection that stands is tried at once; everything else is closed when the call has chosen one.

Each hole is a flow in the hard side's router, each guess one in the easy side's, for two minutes after its socket is gone: no
system sends an RST for a SYN that nobody has answered.  So the flows are what a machine's birthdays share (`BirthdayGate`).

Rule: the machines say what to do with sockets and know none.  Source: docs/explanation/nat.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Final

from p2ptunnel.defaults import (
    BIRTHDAY_AFTER,
    BIRTHDAY_AFTER_ROUND_TRIPS,
    BIRTHDAY_FLOWS,
    BIRTHDAY_FLOWS_FEW,
    BIRTHDAY_FLOWS_PER_SECOND,
    BIRTHDAY_FLOWS_REMEMBERED,
    BIRTHDAY_HOLES_FIRST,
    BIRTHDAY_PAUSE,
    BIRTHDAY_PROBE_GRACE,
    BIRTHDAY_PROBES,
    BIRTHDAY_PROBES_OPEN,
    BIRTHDAY_RENEWAL,
    BIRTHDAY_TICK,
    BIRTHDAYS_OF_PEER_PER_HOUR,
    BIRTHDAYS_PER_HOUR,
    SYN_REPEAT,
)
from p2ptunnel.protocol.machine import Event
from p2ptunnel.types import Address, Transport
from p2ptunnel.wire.signal import SignalBody

__all__ = [
    "FLOWS_PER_TICK",
    "BirthdayEnded",
    "BirthdayGate",
    "OpenHoles",
    "SendProbes",
    "Tell",
    "birthday_wait",
    "next_tick",
    "probe_packets",
    "probe_patience",
    "round_length",
]

FLOWS_PER_TICK: Final = round(BIRTHDAY_FLOWS_PER_SECOND * BIRTHDAY_TICK)
_HOUR: Final = 3600.0


# --- what the machines ask for and report --------------------------------------------------------------------------------


class OpenHoles(Event, frozen=True):
    """Open `holes`, each from a socket and a port of its own, to `target`; with packets that die on the way, if `low`.

    A TCP hole is one SYN of a low `Dial`: the kernel's repetitions die like the first, or one RST after the other would end all
    holes one second later.  It is dialled once, and not again after an RST.
    """

    holes: range
    target: Address
    transport: Transport
    low: bool
    token: str = ""


class SendProbes(Event, frozen=True):
    """Send one plain SYN (UDP: one t=31) to each of `ports` of `host`, from the port that is being punched.

    A socket that nothing has answered in `patience` seconds is closed; what has been answered stays.
    """

    host: str
    ports: tuple[int, ...]
    transport: Transport
    patience: float
    token: str = ""


class Tell(Event, frozen=True):
    """Seal `body` and send it to the peer, by t=12; it takes the place of one of the same kind that nobody has acknowledged."""

    body: SignalBody


class BirthdayEnded(Event, frozen=True):
    """Close what this side opened and did not choose, by RST, in one tick; `why` in words, and what it has opened or sent."""

    why: str
    holes: int = 0
    probes: int = 0
    token: str = ""


# --- how often -----------------------------------------------------------------------------------------------------------


class _Begun:
    """A birthday that has begun."""

    __slots__ = ("at", "flows", "peer")

    def __init__(self, peer: Hashable, flows: int, at: float) -> None:
        self.peer = peer
        self.flows = flows
        self.at = at


class BirthdayGate:
    """Which birthdays may begin on this machine, and how many flows they may open.

    One at a time, 10 s between two with one peer, six an hour on one network.  Two of the six with one peer: whoever is let in
    takes no one else's.  And what routers still remember of them, hits and misses alike, stays within 704 flows at any time,
    whoever they were with: after a round that has missed the next one waits until that is forgotten.
    """

    def __init__(self) -> None:
        self._running: _Begun | None = None
        self._begun: deque[_Begun] = deque()  # whose flows are remembered
        self._on_network: deque[_Begun] = deque()  # within the last hour

    def enter(self, peer: Hashable, flows: int, now: float) -> int | str:
        """Begin one with `peer`; return how many flows it may open, or why it may not begin, in words.

        Who has begun one leaves.

        Args:
            peer: Its key.
            flows: How many it wants to open.
            now: Monotonic seconds.
        """
        self._forget(now)
        left = BIRTHDAY_FLOWS - sum(begun.flows for begun in self._begun)
        refusal = self._refusal(peer, now)
        if refusal is None and left < min(flows, BIRTHDAY_FLOWS_FEW):
            refusal = f"routers remember {BIRTHDAY_FLOWS - left} flows of the last birthdays"
        if refusal is not None:
            return refusal
        self._running = _Begun(peer, min(flows, left), now)
        self._begun.append(self._running)
        self._on_network.append(self._running)
        return self._running.flows

    def leave(self, flows: int) -> None:
        """End the one that was begun, which has opened so many."""
        if self._running is not None:
            self._running.flows = flows
            self._running = None

    def network_changed(self) -> None:
        """Count the hour anew: other routers are in between now.  Maybe not all of them, so what they remember still counts."""
        self._on_network.clear()

    def _refusal(self, peer: Hashable, now: float) -> str | None:
        if self._running is not None:
            return "another birthday is under way"
        if any(begun.peer == peer and now - begun.at < BIRTHDAY_PAUSE for begun in self._begun):
            return f"the last birthday with this peer began less than {BIRTHDAY_PAUSE:g} s ago"
        if len(self._on_network) >= BIRTHDAYS_PER_HOUR:
            return f"{BIRTHDAYS_PER_HOUR} birthdays in the last hour"
        if sum(begun.peer == peer for begun in self._on_network) >= BIRTHDAYS_OF_PEER_PER_HOUR:
            return f"{BIRTHDAYS_OF_PEER_PER_HOUR} birthdays with this peer in the last hour"
        return None

    def _forget(self, now: float) -> None:
        while self._begun and now - self._begun[0].at >= BIRTHDAY_FLOWS_REMEMBERED:
            self._begun.popleft()
        while self._on_network and now - self._on_network[0].at >= _HOUR:
            self._on_network.popleft()


# --- times ---------------------------------------------------------------------------------------------------------------


def birthday_wait(round_trip: float) -> float:
    """Return for how many seconds the hard side waits for an answer to its first SYN: who is open needs no birthday."""
    return max(BIRTHDAY_AFTER, BIRTHDAY_AFTER_ROUND_TRIPS * round_trip)


def probe_patience(round_trip: float) -> float:
    """Return for how many seconds a probe waits for an answer: two round trips; one, if kernels repeat its SYN meanwhile."""
    patience = 2 * round_trip + BIRTHDAY_PROBE_GRACE
    return patience if patience < SYN_REPEAT else max(round_trip, SYN_REPEAT - 2 * BIRTHDAY_PROBE_GRACE) + BIRTHDAY_PROBE_GRACE


def probe_packets(round_trip: float, transport: Transport) -> int:
    """Return how many packets a probe sends that nobody answers: all count, and kernels repeat SYNs."""
    return 1 + int(probe_patience(round_trip) / SYN_REPEAT) if transport == "tcp" else 1


def round_length(round_trip: float) -> float:
    """Return in how many seconds all probes of a round are sent and answered, late by the first holes and a go-ahead's way."""
    patience = probe_patience(round_trip)
    rate = min(BIRTHDAY_FLOWS_PER_SECOND, BIRTHDAY_PROBES_OPEN / patience)
    first = BIRTHDAY_HOLES_FIRST / BIRTHDAY_FLOWS_PER_SECOND
    return first + BIRTHDAY_PROBES / rate + patience + round_trip + BIRTHDAY_RENEWAL


def next_tick(due: float, now: float) -> float:
    """Return when the next flows may leave, after those that were `due`: a late timer makes fewer, not more of them at once."""
    return max(due, now - BIRTHDAY_TICK / 2) + BIRTHDAY_TICK
