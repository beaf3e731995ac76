"""How a simulated site treats traffic, in the words of RFC 4787 (UDP) and RFC 5382 (TCP).  Rule: values only.

Names and words are those of the laboratory's kinds, so that results can be compared cell by cell.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

import msgspec

from p2ptunnel.errors import ConfigError

__all__ = ["KINDS", "PUNCHABLE", "Allocation", "Dependence", "Kind", "Unsolicited", "find_kind"]

Dependence: TypeAlias = Literal["endpoint-independent", "address-dependent", "address-and-port-dependent"]
Allocation: TypeAlias = Literal["preserving", "shifted", "sequential", "random"]
Unsolicited: TypeAlias = Literal["drop", "reject", "accept"]


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """How one site treats traffic.

    Attributes:
        router: Whether addresses are translated; without, `filtering` is a stateful firewall on the host.
        mapping: What the outside port of a flow depends on (RFC 4787 4.1).
        filtering: Who may send in through a mapping (RFC 4787 5).
        allocation: How an outside port is chosen; `shifted` differs between UDP and TCP.
        unsolicited: What a packet gets that nobody asked for: nothing; RST; or, as `accept`, RST from the router's own
            stack, which also remembers a datagram.
        simultaneous_open: Whether a SYN may come in where our own went out and is unanswered (RFC 5382 REQ-2).
        is_guarded: Whether one that may not ends all between that inside port and that host, as guards against intruders do.
        carrier: A NAT above this one; None: there is none.
    """

    router: bool = True
    mapping: Dependence = "endpoint-independent"
    filtering: Dependence = "address-and-port-dependent"
    allocation: Allocation = "preserving"
    unsolicited: Unsolicited = "drop"
    simultaneous_open: bool = True
    is_guarded: bool = False
    carrier: Kind | None = None

    @property
    def routers(self) -> int:
        """How many stand between the host and the internet: a firewall on the host itself is none."""
        return int(self.router) + (self.carrier.routers if self.carrier else 0)


KINDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        "pub": Kind(router=False, filtering="endpoint-independent"),
        "pubfw": Kind(router=False),
        "fc": Kind(filtering="endpoint-independent"),
        "ar": Kind(filtering="address-dependent"),
        "pr": Kind(),
        "prR": Kind(unsolicited="reject"),
        "prO": Kind(unsolicited="accept"),
        "shift": Kind(allocation="shifted"),
        "symR": Kind(mapping="address-and-port-dependent", allocation="random"),
        "symS": Kind(mapping="address-and-port-dependent", allocation="sequential"),
        "noSO": Kind(simultaneous_open=False),
        "dbl": Kind(carrier=Kind(allocation="random")),
    }
)
"""Every kind by its name; of the laboratory's thirteen only `noU` is missing: these machines reach their server over UDP."""

PUNCHABLE: Final = ("pub", "pubfw", "fc", "ar", "pr", "prR", "prO", "shift")
"""The kinds of at most one router that all connect to one another directly: no port has to be guessed."""


def find_kind(name: str) -> Kind:
    """Return the kind of that name.

    Raises:
        ConfigError: There is none.
    """
    if name not in KINDS:
        raise ConfigError(f"there is no simulated kind {name!r}", f"There are {', '.join(KINDS)}.")
    return KINDS[name]
