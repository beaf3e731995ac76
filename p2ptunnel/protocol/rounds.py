"""What earlier attempts with a peer say of the next one: burnt ports, which side had better open first, over what to guess.

A port on which an attempt failed is burnt for that peer's host: NATs on the way may remember its half-open connections, and
call all that follows invalid.  Who opened in vain lets the other side open first in the next round.

A birthday over TCP that has found nothing was bad luck, or a NAT of random ports that refuses SYNs that cross, which no server
can find out.  So the next one is over UDP, and the one after that over TCP again.

Rule: it orders, and picks ports; nothing is ever left out for what stands here.  Source: docs/explanation/nat.md.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

from p2ptunnel.defaults import BURNT_PAIRS_MAX, BURNT_SECONDS, SWAPPED_MAX
from p2ptunnel.types import Transport

__all__ = ["Rounds"]


class Rounds:
    """The memory of one machine, in one network; bounded, and pure: time comes in."""

    def __init__(self) -> None:
        self._burnt: Final[OrderedDict[tuple[int, str], float]] = OrderedDict()  # until when, the first to end first
        self._swapped: Final[OrderedDict[Hashable, None]] = OrderedDict()  # peers, by their keys
        self._over_udp: Final[OrderedDict[Hashable, None]] = OrderedDict()  # so, as many at most

    def is_burnt(self, port: int, host: str, now: float) -> bool:
        """Tell whether an attempt has failed between that local port and that host, less than 130 s ago."""
        self._forget(now)
        return (port, host) in self._burnt

    def is_number_burnt(self, port: int, now: float) -> bool:
        """Tell whether a local port is burnt for any host: who draws a fresh one draws again."""
        self._forget(now)
        return any(burnt == port for burnt, _ in self._burnt)

    def burn(self, port: int, host: str, now: float) -> None:
        """Take note that an attempt between that local port and that host has opened nothing."""
        self._forget(now)
        self._burnt[port, host] = now + BURNT_SECONDS
        self._burnt.move_to_end((port, host))
        if len(self._burnt) > BURNT_PAIRS_MAX:
            self._burnt.popitem(last=False)

    def is_swapped(self, peer: Hashable) -> bool:
        """Tell whether we are to open first when we call that peer next, instead of it."""
        return peer in self._swapped

    def ended(self, peer: Hashable, *, is_swapped: bool, is_open: bool) -> None:
        """Take note of a call of ours and of the order that it had: what opened nothing is the other way round next time."""
        self._swapped.pop(peer, None)
        if is_swapped == is_open:
            self._swapped[peer] = None
        if len(self._swapped) > SWAPPED_MAX:
            self._swapped.popitem(last=False)

    def guesses_over_udp(self, peer: Hashable) -> bool:
        """Tell whether TCP is to be counted out when we call that peer next, so that a birthday is over UDP."""
        return peer in self._over_udp

    def failed(self, peer: Hashable, *, next_over: Transport) -> None:
        """Take note of a call of ours that has failed, and over what the next one had better guess, if it comes to that."""
        self._over_udp.pop(peer, None)
        if next_over == "udp":
            self._over_udp[peer] = None
        if len(self._over_udp) > SWAPPED_MAX:
            self._over_udp.popitem(last=False)

    def network_changed(self) -> None:
        """Forget who should open first, and over what to guess: other NATs stand before us now."""
        self._swapped.clear()
        self._over_udp.clear()

    def _forget(self, now: float) -> None:
        while self._burnt and next(iter(self._burnt.values())) <= now:
            self._burnt.popitem(last=False)
