"""What every machine has in common.  Rule: time comes in as `now`, nothing here or beside it reads a clock or a socket.

A machine is driven by calls that take `now` (monotonic seconds) and afterwards asked for what it wants done:
`datagrams_to_send()`, `events()` and `next_deadline()`.  Remote input never raises out of a machine: it is counted and dropped.
"""

from __future__ import annotations

from collections import Counter
from typing import Protocol

import msgspec

from p2ptunnel.defaults import MID_MAX
from p2ptunnel.identity.keys import PublicKey
from p2ptunnel.types import Address
from p2ptunnel.wire.messages import MalformedMessageError, Message, decode

__all__ = ["Datagram", "Entropy", "Event", "Hole", "Machine", "MachineBase", "new_mid", "new_secret"]


class Hole(msgspec.Struct, frozen=True):
    """A UDP socket of a birthday: which of those that the attempt of `token` has opened."""

    token: str
    number: int

    def __repr__(self) -> str:
        return f"Hole({self.number})"


class Datagram(msgspec.Struct, frozen=True):
    """One datagram to send; with `opener` it must die on the way, outside our own NATs (low TTL).

    It leaves from the machine's port, unless a `hole` is named.
    """

    data: bytes
    destination: Address
    opener: bool = False
    hole: Hole | None = None

    def __repr__(self) -> str:
        return f"Datagram({len(self.data)} bytes, {self.destination!r}, opener={self.opener})"


_SECRET_FIELDS = frozenset({"token", "conkey", "selector", "line", "offer"})


class Event(msgspec.Struct, frozen=True):
    """Root of what machines report and ask for; names are past tense for facts, imperative for requests."""

    def __repr__(self) -> str:
        facts = self.facts()
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in facts.items())})"

    def facts(self) -> dict[str, object]:
        """Return the fields that may be shown, as plain JSON values: no token, no conkey, no message."""
        shown = ((name, getattr(self, name)) for name in self.__struct_fields__ if name not in _SECRET_FIELDS)
        return {name: str(value) if isinstance(value, PublicKey) else value for name, value in shown}


class Entropy(Protocol):
    """Randomness, given from outside: `random.SystemRandom()` in earnest, `random.Random(seed)` in a simulation."""

    def random(self) -> float:
        """Return a float in [0, 1)."""
        ...

    def getrandbits(self, k: int, /) -> int:
        """Return an integer of `k` random bits."""
        ...


class Machine(Protocol):
    """The calls by which a driver (`net.udp`) or the in-memory network (`testing.simnet`) runs any machine of ours."""

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


class MachineBase:
    """The boxes every machine keeps: datagrams that wait, events that wait, counts of what was dropped."""

    def __init__(self) -> None:
        self.dropped: Counter[str] = Counter()
        self._datagrams: list[Datagram] = []
        self._events: list[Event] = []

    def datagrams_to_send(self) -> list[Datagram]:
        """Return and forget the datagrams that wait, in send order."""
        waiting, self._datagrams = self._datagrams, []
        return waiting

    def events(self) -> list[Event]:
        """Return and forget what happened, in order."""
        happened, self._events = self._events, []
        return happened

    def _decode(self, data: bytes) -> Message | None:
        try:
            return decode(data)
        except MalformedMessageError:
            self.dropped["malformed"] += 1
            return None

    def _drop(self, reason: str) -> None:
        self.dropped[reason] += 1


def new_mid(entropy: Entropy) -> int:
    """Return a message id nobody can guess: 53 bits."""
    return entropy.getrandbits(MID_MAX.bit_length())


def new_secret(entropy: Entropy) -> str:
    """Return 128 random bits as 32 hex characters: a token, a conkey."""
    return f"{entropy.getrandbits(128):032x}"
