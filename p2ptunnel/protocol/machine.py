"""What every machine has in common.  Rule: time comes in as `now`, nothing here or beside it reads a clock or a socket.

A machine is driven by calls that take `now` (monotonic seconds) and afterwards asked for what it wants done:
`datagrams_to_send()`, `events()` and `next_deadline()`.  Remote input never raises out of a machine.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from p2ptunnel.types import Address

__all__ = ["Datagram", "Event", "Machine"]


class Datagram(msgspec.Struct, frozen=True):
    """One datagram to send; with `opener` it must die on the way, outside our own NATs (low TTL)."""

    data: bytes
    destination: Address
    opener: bool = False


class Event(msgspec.Struct, frozen=True):
    """Root of what machines report and ask for; names are past tense for facts, imperative for requests."""


class Machine(Protocol):
    """The five calls by which a driver (`net.udp`) or the in-memory network runs any machine of ours."""

    def receive_datagram(self, data: bytes, source: Address, now: float) -> None:
        """Take one datagram; whatever it holds, nothing is raised."""
        ...

    def handle_timer(self, now: float) -> None:
        """Do what is due at `now`; calling early is harmless."""
        ...

    def next_deadline(self) -> float | None:
        """Return the monotonic second at which `handle_timer` wants to be called, None for never."""
        ...

    def datagrams_to_send(self) -> list[Datagram]:
        """Return and forget the datagrams that wait, in send order."""
        ...

    def events(self) -> list[Event]:
        """Return and forget what happened, in order."""
        ...
