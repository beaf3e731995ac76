"""What a router may say when it is asked for a way in, as values, and what that is worth.

Source: RFC 6886, RFC 6887; docs/explanation/nat.md.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import msgspec

from p2ptunnel.addresses import canonical, scope_of
from p2ptunnel.errors import ConfigError, InvalidAddressError
from p2ptunnel.protocol.machine import Event
from p2ptunnel.types import Address, Candidate, Transport, format_address

__all__ = [
    "EpochWatch",
    "NobodyMaps",
    "PortMapEvent",
    "PortMapProtocol",
    "PortMapped",
    "PortMapping",
    "PortRefused",
    "PortUnmapped",
    "double_nat",
    "mappable_port",
    "outside_refusal",
]

PortMapProtocol: TypeAlias = Literal["PCP", "NAT-PMP", "UPnP"]

_UNPRIVILEGED: Final = 1024


class PortMapping(msgspec.Struct, frozen=True, kw_only=True):
    """A way in that a router keeps open.

    Attributes:
        transport: Of both ports.
        local: Where what comes in arrives.
        external: Where it is sent to.
        lifetime: Seconds that the router has granted; it is renewed at half of that.
        protocol: How it was asked for.
        gateway: The router.
    """

    transport: Transport
    local: Address
    external: Address
    lifetime: float
    protocol: PortMapProtocol
    gateway: str

    @property
    def candidate(self) -> Candidate:
        """What peers are told."""
        return Candidate("mapped", self.transport, *self.external)

    def __str__(self) -> str:
        return f"{self.transport} {format_address(self.external)} by {self.protocol}"


class PortMapEvent(Event, frozen=True, kw_only=True):
    """Root of what becomes of a wish for a way in."""

    transport: Transport


class PortMapped(PortMapEvent, frozen=True, kw_only=True):
    """The router lets others in, or goes on doing so."""

    mapping: PortMapping

    def __str__(self) -> str:
        return str(self.mapping)


class PortRefused(PortMapEvent, frozen=True, kw_only=True):
    """The router has answered, and does not let others in; `code` is its own, 0 where we do not want what it gives."""

    protocol: PortMapProtocol
    code: int
    reason: str

    def __str__(self) -> str:
        return f"{self.transport} refused by {self.protocol}: {self.reason}{f' ({self.code})' if self.code else ''}"


class PortUnmapped(PortMapEvent, frozen=True, kw_only=True):
    """There is no way in, and no router has refused one: there is none, it is silent, or it has forgotten."""

    reason: str

    def __str__(self) -> str:
        return f"{self.transport} not mapped: {self.reason}"


class NobodyMaps(Event, frozen=True):
    """The router speaks neither PCP nor NAT-PMP."""

    reason: str


class EpochWatch:
    """Tells by a router's clock of seconds since it lost all it knew whether it has done so again (RFC 6887 8.5)."""

    def __init__(self) -> None:
        self._last: tuple[int, float] | None = None

    def take(self, epoch: int, now: float) -> bool:
        """Note what the router's clock shows at `now`; return whether it has restarted, or we have slept."""
        last, self._last = self._last, (epoch, now)
        if last is None:
            return False
        theirs, ours = epoch - last[0], now - last[1]
        return theirs < -1 or ours + 2 < theirs * 15 / 16 or theirs + 2 < ours * 15 / 16


def mappable_port(port: int) -> int:
    """Return `port`, if a router may be asked to let others in there.

    Raises:
        ConfigError: It is privileged, or no port.
    """
    if not _UNPRIVILEGED <= port <= 65535:
        raise ConfigError(f"port {port}: no router is asked to open a port below {_UNPRIVILEGED}", "Listen on another port.")
    return port


def outside_refusal(external: Address) -> str | None:
    """Return why an outside address that a router names is none to tell peers, None if it may be one."""
    host, port = external
    if not _UNPRIVILEGED <= port <= 65535:
        return "it gives a privileged port" if 0 < port < _UNPRIVILEGED else "it gives no port"
    try:
        scope = scope_of(canonical(host))
    except InvalidAddressError:
        return "it has no outside address"
    return None if scope in {"public", "private"} else f"its outside address is {scope}"


def double_nat(external: str, observed: str = "") -> str:
    """Return why another NAT stands above the router, in words; empty if nothing says so.

    Args:
        external: The outside address that the router names.
        observed: The address that the rendezvous server sees; empty if it is not known.

    Raises:
        InvalidAddressError: One of them is not numeric.
    """
    outside = canonical(external)
    if scope_of(outside) != "public":
        return f"the router's outside address {external} is {scope_of(outside)}"
    if observed and canonical(observed) != outside:
        return f"the router's outside address is {external}, others see {observed}"
    return ""
