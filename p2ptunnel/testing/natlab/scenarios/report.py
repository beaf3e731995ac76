"""What scenarios have found, as values and as text.  Rule: no I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from types import MappingProxyType
from typing import Final

import msgspec

from p2ptunnel.testing.chaos.report import percentile
from p2ptunnel.testing.natlab.attempt import Attempt

__all__ = ["SHARES", "Calls", "Switch", "Transfer", "Warm", "WarmCall", "summary"]


SHARES: Final = MappingProxyType({"p50": 0.5, "p95": 0.95, "max": 1.0})
"""The percentiles that are told, by name."""

_FIELDS: Final = ("connected", "first_byte", "proved", "direct_after")
_REASONS_MAX: Final = 5  # of calls that were relayed, the most frequent ones


class Calls(msgspec.Struct, frozen=True):
    """All calls in one network."""

    name: str
    summary: str
    attempts: tuple[Attempt, ...]

    @property
    def connected(self) -> int:
        """How many carried their bytes."""
        return sum(not attempt.error for attempt in self.attempts)

    @property
    def is_good(self) -> bool:
        """Whether all did."""
        return self.connected == len(self.attempts)

    def __str__(self) -> str:
        lines = [
            f"{self.name}: {self.summary}",
            f"  {self.connected} of {len(self.attempts)} connected{': ' if self.paths else ''}{self.paths}",
            f"  first byte  {_spread(attempt.first_byte for attempt in self.attempts)}",
            f"  direct      {_spread(attempt.direct_after for attempt in self.attempts)}",
        ]
        relayed = Counter(attempt.reason for attempt in self.attempts if attempt.reason)
        lines += [f"  {count} x {error}" for error, count in self.errors.most_common()]
        lines += [f"  {count} relayed: {reason}" for reason, count in relayed.most_common(_REASONS_MAX)]
        return "\n".join(lines)

    @property
    def figures(self) -> dict[str, object]:
        """What it comes to."""
        return {
            "connected": self.connected,
            "paths": dict(Counter(attempt.path for attempt in self.attempts if attempt.path)),
            "first_byte": summary(attempt.first_byte for attempt in self.attempts),
            "direct_after": summary(attempt.direct_after for attempt in self.attempts),
            "errors": dict(self.errors),
        }

    @property
    def errors(self) -> Counter[str]:
        """Why calls failed, and how many: a class of error by the first of its texts, since they name addresses."""
        errors = [attempt.error for attempt in self.attempts if attempt.error]
        texts = {error.partition(":")[0]: error for error in reversed(errors)}
        return Counter(texts[error.partition(":")[0]] for error in errors)

    @property
    def paths(self) -> str:
        """How many went over what in the end, in words."""
        paths = Counter(attempt.path for attempt in self.attempts if attempt.path)
        return ", ".join(f"{count} {path}" for path, count in paths.most_common())


class Switch(msgspec.Struct, frozen=True):
    """One change of path.

    Attributes:
        cause: What was done to the network just before.
        path: Kind and transport of the new path.
        at: Seconds since the transfer began.
        seconds: From the cause to the change.
        pause: Longest time without an arrival, from the cause until a second after the change.
    """

    cause: str
    path: str
    at: float
    seconds: float
    pause: float

    def __str__(self) -> str:
        return f"  {self.at:5.1f} s  {self.cause}: {self.path} after {self.seconds:.2f} s, longest pause {self.pause:.2f} s"


class Transfer(msgspec.Struct, frozen=True):
    """Bytes that flowed while their path changed.

    Attributes:
        size_bytes: How many there were to be.
        began_on: The path at the beginning.
        seconds: From the first byte to the callee's answer.
        is_equal: Whether what arrived is what was sent (SHA-256).
        switches: In order.
        error: What ended it, in words; empty if nothing did.
    """

    size_bytes: int
    began_on: str = ""
    seconds: float = 0.0
    is_equal: bool = False
    switches: tuple[Switch, ...] = ()
    error: str = ""

    @property
    def is_good(self) -> bool:
        """Whether everything arrived, and each change of the network was answered by one of path."""
        return self.is_equal and not self.error and [switch.path.split()[0] for switch in self.switches] == ["direct", "relay"]

    def __str__(self) -> str:
        verdict = self.error or f"sha256 {'equal' if self.is_equal else 'NOT EQUAL'}"
        lines = [
            f"transfer: {self.size_bytes / 1e6:.0f} MB while a direct path opens and is cut",
            f"  {self.seconds:.1f} s, {verdict}; began on {self.began_on or 'nothing'}",
        ]
        return "\n".join([*lines, *map(str, self.switches)])


class WarmCall(msgspec.Struct, frozen=True):
    """What became of one call, in seconds from `connect`.

    Attributes:
        connected: Until it returned.
        first_byte: Until the first byte was at the callee, by the callee's clock, which is the caller's.
        proved: Until the callee's key had been seen on a direct path, so that data might go there; None if that did not come.
        direct_after: Until a direct path was in use; None if that did not come.
        error: In words; empty if the callee has answered.
    """

    connected: float | None = None
    first_byte: float | None = None
    proved: float | None = None
    direct_after: float | None = None
    error: str = ""


class Warm(msgspec.Struct, frozen=True):
    """Calls one after the other, whose peers had all they need.

    Attributes:
        name: On the command line.
        summary: Of the network.
        confirmed: Those that waited until the callee had accepted the stream.
        unconfirmed: Those that did not, so that what was written went with the request.
        first_byte_goal: Seconds in which the first byte is to be there.
        proved_goal: Seconds in which the callee's key is to have been seen on a direct path.
        direct_goal: Seconds in which that is to be in use: the callee's answer is one round trip more.
    """

    name: str
    summary: str
    confirmed: tuple[WarmCall, ...]
    unconfirmed: tuple[WarmCall, ...]
    first_byte_goal: float
    proved_goal: float
    direct_goal: float

    @property
    def is_good(self) -> bool:
        """Whether every call came to an answer; goals are not asked for."""
        return not any(call.error for call in (*self.confirmed, *self.unconfirmed))

    @property
    def figures(self) -> dict[str, object]:
        """What it comes to."""
        return {
            name: {field: summary(getattr(call, field) for call in calls) for field in _FIELDS}
            for name, calls in (("confirmed", self.confirmed), ("unconfirmed", self.unconfirmed))
        }

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.summary}; {len(self.confirmed)} calls of each sort, one after the other"]
        for name, calls in (("confirm=True", self.confirmed), ("confirm=False", self.unconfirmed)):
            lines += [
                f"  {name}",
                f"    connect returned      {_spread(call.connected for call in calls)}",
                f"    first byte at callee  {_spread(call.first_byte for call in calls)}  goal {self.first_byte_goal:.3f} s",
                f"    direct path proved    {_spread(call.proved for call in calls)}  goal {self.proved_goal:.3f} s",
                f"    direct path in use    {_spread(call.direct_after for call in calls)}  goal {self.direct_goal:.3f} s",
            ]
        errors = Counter(call.error for call in (*self.confirmed, *self.unconfirmed) if call.error)
        return "\n".join([*lines, *(f"  {count} x {error}" for error, count in errors.most_common())])


def summary(values: Iterable[float | None]) -> dict[str, float]:
    """Return how many are known, and their percentiles in seconds, where there are any."""
    known = [value for value in values if value is not None]
    return {"count": len(known), **{name: percentile(known, share) for name, share in SHARES.items() if known}}


def _spread(values: Iterable[float | None]) -> str:
    found = summary(values)
    if not found["count"]:
        return "-"
    return f"p50 {found['p50']:.3f} s  p95 {found['p95']:.3f} s  max {found['max']:.3f} s  of {found['count']}"
