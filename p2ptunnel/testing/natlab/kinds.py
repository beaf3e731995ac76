"""How a site treats traffic, in the words of RFC 4787 (UDP) and RFC 5382 (TCP).  Rule: values only, no I/O.

The thirteen kinds of the matrix have short names; the others are exact user-space NATs and rarer routers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias, get_args

from p2ptunnel.errors import ConfigError

__all__ = [
    "KINDS",
    "MATRIX_KINDS",
    "PUNCHABLE",
    "Allocation",
    "Dependence",
    "IPv6",
    "Kind",
    "Refusal",
    "ResetEffect",
    "Router",
    "find_kind",
]

Router: TypeAlias = Literal["none", "kernel", "user"]
Dependence: TypeAlias = Literal["endpoint-independent", "address-dependent", "address-and-port-dependent"]
Allocation: TypeAlias = Literal["preserving", "shifted", "sequential", "random"]
Refusal: TypeAlias = Literal["drop", "reject", "accept"]
ResetEffect: TypeAlias = Literal["session", "mapping", "nothing"]
IPv6: TypeAlias = Literal["none", "open", "drop", "reject"]

_WORDS: Final[Mapping[str, tuple[str, ...]]] = {
    "router": get_args(Router),
    "mapping": get_args(Dependence),
    "filtering": get_args(Dependence),
    "allocation": get_args(Allocation),
    "unsolicited": get_args(Refusal),
    "inbound_reset": get_args(ResetEffect),
    "ipv6": get_args(IPv6),
}
_KERNEL_CANNOT: Final[Mapping[str, object]] = {
    "simultaneous_open": True,
    "is_guarded": False,
    "inbound_reset": "session",
    "tcp": True,
    "max_mappings": 0,
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How one site treats traffic.

    Attributes:
        router: `none`: a host with an address of the internet; `kernel`: a Linux router (nftables and conntrack);
            `user`: an exact NAT in the data plane process.
        mapping: What the outside port of a flow depends on (RFC 4787 4.1).
        filtering: Who may send in through a mapping (RFC 4787 5).  With `router="none"` anything but
            endpoint-independent is a stateful firewall on the host.
        allocation: How an outside port is chosen; `shifted` differs between UDP and TCP.
        unsolicited: What happens to a packet that no mapping wants: nothing, RST or ICMP, or it reaches the router's
            own stack, which refuses it and remembers it (`accept`, kernel only).
        simultaneous_open: Whether a SYN may come in on a session whose own SYN went out (RFC 5382 REQ-2).
        is_guarded: Whether a SYN that may not come in so ends all between that inside port and that host (user only).
        inbound_reset: What a RST from outside ends (user only).
        hairpinning: Whether inside hosts reach each other by outside addresses (RFC 4787 6).
        udp: False blocks it.
        tcp: False blocks it (user only).
        only_port: The one TCP port that may be reached outside, as from behind a web proxy's firewall; 0 for all (kernel only).
        only_host: The one address that TCP may reach outside: no peer, but a rendezvous server; empty for all (kernel only).
        ipv4: Whether hosts have IPv4 addresses; without, they have IPv6 only (kernel only).
        ipv6: Whether hosts have global IPv6 addresses, and how the firewall before them answers strangers.
        carrier: Name of a kind put above this one; empty for none.
        udp_timeout: Seconds without a packet after which a mapping is forgotten; a kernel counts whole seconds.  None,
            here and below: 120 for `user`, 30 and later 120 for `kernel`.
        tcp_opening_timeout: Seconds, while no session of a mapping is established; None: 75, or 120.
        tcp_timeout: Seconds, once one is; None: two hours and four minutes, or five days.
        max_mappings: Most mappings at a time; 0 for as many as there are ports (user only).

    Raises:
        ConfigError: A word is unknown, or the chosen router cannot do this.
    """

    router: Router
    mapping: Dependence = "endpoint-independent"
    filtering: Dependence = "address-and-port-dependent"
    allocation: Allocation = "preserving"
    unsolicited: Refusal = "drop"
    simultaneous_open: bool = True
    is_guarded: bool = False
    inbound_reset: ResetEffect = "session"
    hairpinning: bool = False
    udp: bool = True
    tcp: bool = True
    only_port: int = 0
    only_host: str = ""
    ipv4: bool = True
    ipv6: IPv6 = "none"
    carrier: str = ""
    udp_timeout: float | None = None
    tcp_opening_timeout: float | None = None
    tcp_timeout: float | None = None
    max_mappings: int = 0

    def __post_init__(self) -> None:
        """Refuse unknown words, and what the router cannot do."""
        for field, words in _WORDS.items():
            if getattr(self, field) not in words:
                raise ConfigError(f"{field} of a kind is one of {', '.join(words)}, not {getattr(self, field)!r}")
        if problem := _impossible(self):
            raise ConfigError(problem, "Use router='user', which can do all but IPv6 and accept.")

    def but(self, **changes: Any) -> Kind:
        """Return this kind with some fields changed.

        Raises:
            ConfigError: There is no such field, or the result is impossible.
        """
        known = {field.name for field in dataclasses.fields(self)}
        if unknown := sorted(changes.keys() - known):
            raise ConfigError(f"a kind has no {', '.join(unknown)}", f"It has {', '.join(sorted(known))}.")
        return dataclasses.replace(self, **changes)


def _impossible(kind: Kind) -> str:
    match kind.router:
        case "user":
            return _impossible_for_user(kind)
        case "kernel":
            return _impossible_for_kernel(kind)
        case "none":
            return _impossible_for_host(kind)


def _impossible_for_user(kind: Kind) -> str:
    if kind.ipv6 != "none" or not kind.ipv4:
        return "a user-space NAT speaks IPv4 only"
    if kind.only_port or kind.only_host:
        return "a user-space NAT lets out to every port and address"
    return "a user-space NAT has no stack of its own to accept with" if kind.unsolicited == "accept" else ""


def _impossible_for_host(kind: Kind) -> str:
    for field in dataclasses.fields(kind):
        if field.name not in ("router", "filtering") and getattr(kind, field.name) != field.default:
            return f"a host without a router cannot do {field.name}={getattr(kind, field.name)!r}"
    return ""


def _impossible_for_kernel(kind: Kind) -> str:
    for field, only in _KERNEL_CANNOT.items():
        if getattr(kind, field) != only:
            return f"a kernel cannot do {field}={getattr(kind, field)!r}"
    if not kind.ipv4 and kind.ipv6 == "none":
        return "a machine with neither IPv4 nor IPv6 has no network"
    if kind.mapping == "endpoint-independent":
        if kind.allocation in ("sequential", "random"):
            return f"a kernel cannot do endpoint-independent mapping with {kind.allocation} ports"
        if kind.filtering != "address-and-port-dependent" and kind.allocation != "preserving":
            return f"a kernel cannot do {kind.filtering} filtering with {kind.allocation} ports"
        return ""
    if kind.mapping == "address-dependent" or kind.filtering != "address-and-port-dependent":
        return f"a kernel cannot do {kind.mapping} mapping with {kind.filtering} filtering"
    if kind.allocation not in ("sequential", "random"):
        return f"a kernel cannot do {kind.mapping} mapping with {kind.allocation} ports"
    return ""


_KERNEL: Final = Kind(router="kernel")
_USER: Final = Kind(router="user")
_SYMMETRIC: Final[dict[str, Any]] = {"mapping": "address-and-port-dependent", "allocation": "random"}
_OPEN: Final[Dependence] = "endpoint-independent"

KINDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        # The thirteen of the matrix.
        "pub": Kind(router="none", filtering=_OPEN),
        "pubfw": Kind(router="none"),
        "fc": _KERNEL.but(filtering=_OPEN),
        "ar": _KERNEL.but(filtering="address-dependent"),
        "pr": _KERNEL,
        "prR": _KERNEL.but(unsolicited="reject"),
        "prO": _KERNEL.but(unsolicited="accept"),
        "shift": _KERNEL.but(allocation="shifted"),
        "symR": _KERNEL.but(**_SYMMETRIC),
        "symS": _KERNEL.but(mapping="address-and-port-dependent", allocation="sequential"),
        "noU": _KERNEL.but(udp=False),
        "noSO": _USER.but(simultaneous_open=False),
        "dbl": _USER.but(carrier="cgn"),
        # Exact user-space NATs.
        "user_full_cone": _USER.but(filtering=_OPEN),
        "user_addr_restricted": _USER.but(filtering="address-dependent"),
        "user_port_restricted": _USER,
        "user_port_restricted_reject": _USER.but(unsolicited="reject"),
        "user_shift": _USER.but(allocation="shifted"),
        "user_sym_random": _USER.but(**_SYMMETRIC),
        "user_sym_seq": _USER.but(mapping="address-and-port-dependent", allocation="sequential"),
        "user_sym_addr": _USER.but(mapping="address-dependent", allocation="random"),
        "user_no_udp": _USER.but(udp=False),
        "no_simopen_rst": _USER.but(simultaneous_open=False, unsolicited="reject"),
        "rst_kills": _USER.but(unsolicited="reject", inbound_reset="mapping"),
        "cgn": _USER.but(allocation="random"),
        "cgn_hairpin": _USER.but(allocation="random", filtering=_OPEN, hairpinning=True),
        "dbl_hairpin": _USER.but(carrier="cgn_hairpin"),
        # Rarer Linux routers.
        "fc_hairpin": _KERNEL.but(filtering=_OPEN, hairpinning=True),
        "pr_cgn": _KERNEL.but(carrier="cgn"),
        "v6_open": _KERNEL.but(**_SYMMETRIC, ipv6="open"),
        "v6_drop": _KERNEL.but(**_SYMMETRIC, ipv6="drop"),
        "v6_reject": _KERNEL.but(**_SYMMETRIC, ipv6="reject"),
    }
)
"""Every kind by its name."""

MATRIX_KINDS: Final = ("pub", "pubfw", "fc", "ar", "pr", "prR", "prO", "shift", "symR", "symS", "noU", "noSO", "dbl")
"""The kinds whose ordered pairs make the traversal matrix, in the order of its rows."""

PUNCHABLE: Final = ("pub", "pubfw", "fc", "ar", "pr", "prR", "prO", "shift")
"""The kinds that all connect to one another directly: no port has to be guessed."""


def find_kind(name: str) -> Kind:
    """Return the kind of that name.

    Raises:
        ConfigError: There is none.
    """
    if name not in KINDS:
        raise ConfigError(f"there is no kind {name!r}", f"There are {', '.join(KINDS)}.")
    return KINDS[name]
