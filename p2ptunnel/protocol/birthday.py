"""Birthday: a way through to a NAT whose ports nobody can know.  What both sides of it share.

The hard side, behind that NAT, opens many holes to the one port of the easy side, each from a socket of its own (`holes`); the
easy side guesses: plain SYNs from that port to random ports of the hard side's address (`guessing`).  With 256 holes one guess
in 252 hits, and 1024 guesses miss them all once in 58 times.  The first connection that stands is tried at once; everything
else is closed when the call has chosen one.

Rule: the machines say what to do with sockets and know none.  Source: docs/explanation/nat.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Final

from p2ptunnel.defaults import (
    BIRTHDAY_PAUSE,
    BIRTHDAY_PROBE_GRACE,
    BIRTHDAY_PROBES,
    BIRTHDAY_PROBES_OPEN,
    BIRTHDAY_PROBES_PER_SECOND,
    BIRTHDAY_RENEWAL,
    BIRTHDAYS_OF_PEER_PER_HOUR,
    BIRTHDAYS_PER_HOUR,
    SYN_REPEAT,
)
from p2ptunnel.protocol.machine import Event
from p2ptunnel.types import Address, Transport
from p2ptunnel.wire.signal import SignalBody

__all__ = [
    "BirthdayEnded",
    "BirthdayGate",
    "OpenHoles",
    "SendProbes",
    "Tell",
    "probe_packets",
    "probe_patience",
    "round_length",
]

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
    """Close what this side opened and did not choose, by RST, in one tick; `why` in words, `probes` is what it sent."""

    why: str
    probes: int = 0
    token: str = ""


# --- how often -----------------------------------------------------------------------------------------------------------


class BirthdayGate:
    """Which birthdays may begin on this machine: one at a time, 10 s between two with one peer, six an hour on one network.

    Two of the six with one peer: whoever is let in takes no one else's.
    """

    def __init__(self) -> None:
        self._is_taken = False
        self._begun: deque[tuple[float, Hashable]] = deque()  # not longer ago than the pause
        self._on_network: deque[tuple[float, Hashable]] = deque()  # within the last hour

    def enter(self, peer: Hashable, now: float) -> str | None:
        """Begin one with `peer`, or return why not, in words; who has begun one leaves.

        Args:
            peer: Its key.
            now: Monotonic seconds.
        """
        self._forget(now)
        if self._is_taken:
            return "another birthday is under way"
        if any(other == peer for _, other in self._begun):
            return f"the last birthday with this peer began less than {BIRTHDAY_PAUSE:g} s ago"
        if len(self._on_network) >= BIRTHDAYS_PER_HOUR:
            return f"{BIRTHDAYS_PER_HOUR} birthdays in the last hour"
        if sum(other == peer for _, other in self._on_network) >= BIRTHDAYS_OF_PEER_PER_HOUR:
            return f"{BIRTHDAYS_OF_PEER_PER_HOUR} birthdays with this peer in the last hour"
        self._is_taken = True
        self._begun.append((now, peer))
        self._on_network.append((now, peer))
        return None

    def leave(self) -> None:
        """End the one that was begun."""
        self._is_taken = False

    def network_changed(self) -> None:
        """Count the hour anew: other routers are in between now.  The pause for one peer stays."""
        self._on_network.clear()

    def _forget(self, now: float) -> None:
        while self._begun and now - self._begun[0][0] >= BIRTHDAY_PAUSE:
            self._begun.popleft()
        while self._on_network and now - self._on_network[0][0] >= _HOUR:
            self._on_network.popleft()


# --- times ---------------------------------------------------------------------------------------------------------------


def probe_patience(round_trip: float) -> float:
    """Return for how many seconds a probe waits for an answer: two round trips; one, if kernels repeat its SYN meanwhile."""
    patience = 2 * round_trip + BIRTHDAY_PROBE_GRACE
    return patience if patience < SYN_REPEAT else max(round_trip, SYN_REPEAT - 2 * BIRTHDAY_PROBE_GRACE) + BIRTHDAY_PROBE_GRACE


def probe_packets(round_trip: float, transport: Transport) -> int:
    """Return how many packets a probe sends that nobody answers: all count, and kernels repeat SYNs."""
    return 1 + int(probe_patience(round_trip) / SYN_REPEAT) if transport == "tcp" else 1


def round_length(round_trip: float) -> float:
    """Return in how many seconds all probes of a round are sent and answered, the first of them late by a go-ahead's way."""
    patience = probe_patience(round_trip)
    rate = min(BIRTHDAY_PROBES_PER_SECOND, BIRTHDAY_PROBES_OPEN / patience)
    return BIRTHDAY_PROBES / rate + patience + round_trip + BIRTHDAY_RENEWAL
