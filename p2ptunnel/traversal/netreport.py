"""What a network does to packets, as values; and what follows from it, in words.  Rule: values in, values out."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from p2ptunnel.net.hops import is_public
from p2ptunnel.net.web import WebWay
from p2ptunnel.protocol.outlook import Expectation
from p2ptunnel.protocol.portmapping import PortMapProtocol, double_nat
from p2ptunnel.types import Address, format_address

__all__ = [
    "Filtering",
    "Lifetime",
    "NetReport",
    "PortMapReport",
    "Refusal",
    "TransportReport",
    "WebReport",
    "improvements",
    "nat_above",
    "verdict",
]

Filtering: TypeAlias = Literal["endpoint-independent", "address-dependent", "address-and-port-dependent", "unknown"]
"""Who may send in through a mapping (RFC 4787 5): anybody, hosts that we have sent to, or only those very ports of theirs."""

Refusal: TypeAlias = Literal["accept", "drop", "reset", "unknown"]
"""What a stranger's SYN gets: our listener, nothing, RST."""


class TransportReport(msgspec.Struct, frozen=True):
    """How one transport passes.

    Attributes:
        works: The server has answered over it.
        observed: How we look there; None: nobody told.
        mapping: In the words of RFC 4787 4.1.
        delta: The step from port to port of a NAT that takes the next one for each destination.
        port_preserved: Whether the outside port is the inside one.
        filtering: In the words of RFC 4787 5; `unknown` unless the server observes from two addresses.
        hairpin: Whether machines behind our NAT reach each other by its outside address; None: not known, or no NAT.
        problem: Why it does not work, in words.
    """

    works: bool
    observed: Address | None
    mapping: str
    delta: int
    port_preserved: bool | None
    filtering: Filtering = "unknown"
    hairpin: bool | None = None
    problem: str = ""


class PortMapReport(msgspec.Struct, frozen=True):
    """What the router says when it is asked for a way in, which is given back at once.

    Attributes:
        protocol: That it speaks; None: none of the three.
        external: The address that it gave, over TCP; None: it gave none.
        text: What it said, in words.
    """

    protocol: PortMapProtocol | None
    external: Address | None
    text: str


class WebReport(msgspec.Struct, frozen=True):
    """Whether the server is reached on TCP port 443, for its own port does not answer over TCP.

    Attributes:
        way: What gets through, `tls` or `websocket`, which is WebSocket inside TLS; None: neither does.
        proxy: The HTTP proxy that `https_proxy` names and that connected us; None: there was none on the way that we know of.
        observed: How we look there, or how the proxy does.
        rtt: Seconds to the server and back, once the connection is up.
        problem: Why neither gets through, in words.
    """

    way: WebWay | None = None
    proxy: Address | None = None
    observed: Address | None = None
    rtt: float | None = None
    problem: str = ""

    @property
    def words(self) -> str:
        """By what the server is reached, in words; empty where it is not."""
        if self.way is None:
            return ""
        inside = {"tls": "TLS", "websocket": "WebSocket"}[self.way]
        return f"{inside} by the proxy {format_address(self.proxy)}" if self.proxy else inside


class Lifetime(msgspec.Struct, frozen=True):
    """How long a silent port was remembered.

    Attributes:
        at_least: Seconds after which one was.
        below: Seconds after which one was not; None: all were.
    """

    at_least: float
    below: float | None


class NetReport(msgspec.Struct, frozen=True):
    """What `netcheck` found out; None is "not known".

    Attributes:
        server: Who was asked.
        local: Our end, as we see it.
        rtt: Seconds to the server and back, by the fastest way that there is.
        observers: How many of the server's addresses answered; mapping needs two, telling address-dependent apart three.
        udp: How UDP passes.
        tcp: How TCP passes.
        tcp_port_equals_udp: Whether both show the same outside port.
        behind_nat: Whether others see another address than ours.
        opener_ttl: How far a packet travels to leave our own NATs.
        can_open_low: Whether this system can send a SYN that dies on the way.
        hops: Who answered at each distance.
        descriptors: How many files this process may have open; None: no limit.
        verdict: One sentence.
        simultaneous_open: Whether a SYN gets in that meets one of ours (RFC 5382 REQ-2).
        strangers: What a SYN of a stranger gets.
        port_mapping: What the router says to PCP, NAT-PMP and UPnP; None: it was not asked, or nobody answered in time.
        double_nat: Whether another NAT stands above our router.
        double_nat_why: What says so.
        ipv4: Seconds to the server and back over IPv4.
        ipv6: Seconds to the server and back over IPv6; None also where the server has no such address.
        has_ipv6: Whether this machine has a global IPv6 address.
        mtu: Bytes of the largest packet on the way to the server, as far as this system knows.
        udp_lifetime: How long our NAT remembers a silent UDP port, as far as it was watched; None: not at all.
        expectations: What to expect of each kind of NAT at the other end; none after a brief look, and none where the server
            does not answer over TCP on its own port.
        improve: What would make it better here.
        web: Whether the server is reached on port 443; None: its own port answers over TCP, so that nobody asked.
    """

    server: Address
    local: Address
    rtt: float | None
    observers: int
    udp: TransportReport
    tcp: TransportReport
    tcp_port_equals_udp: bool | None
    behind_nat: bool | None
    opener_ttl: int | None
    can_open_low: bool
    hops: dict[int, str]
    descriptors: int | None
    verdict: str
    simultaneous_open: bool | None = None
    strangers: Refusal = "unknown"
    port_mapping: PortMapReport | None = None
    double_nat: bool | None = None
    double_nat_why: str = ""
    ipv4: float | None = None
    ipv6: float | None = None
    has_ipv6: bool = False
    mtu: int | None = None
    udp_lifetime: Lifetime | None = None
    expectations: tuple[Expectation, ...] = ()
    improve: tuple[str, ...] = ()
    web: WebReport | None = None

    @property
    def through_web(self) -> str:
        """By what the server is reached over TCP, in words, if only through what lets the web through; else empty."""
        return "" if self.tcp.works or self.web is None else self.web.words


def nat_above(hops: dict[int, str], observed: Address | None, mapped: PortMapReport | None) -> tuple[bool | None, str]:
    """Tell whether another NAT stands above our router, and what says so; None: nobody tells.

    Args:
        hops: Who answered at each distance.
        observed: How the server sees us.
        mapped: What our router said.
    """
    if mapped is not None and mapped.external is not None:
        why = double_nat(mapped.external[0], observed[0] if observed else "")
        return bool(why), why
    second = hops.get(2)
    if second is None:
        return None, ""
    if is_public(second):
        return False, ""
    return True, f"the second hop, {second}, has no public address either"


def verdict(report: NetReport) -> str:
    """Return what a person has to know, in one sentence."""
    if by := report.through_web:
        if not report.udp.works:
            return f"The server is reached on TCP port 443 only ({by}): expect the relay with every peer outside this network."
        return f"Over TCP the server is reached on port 443 only ({by}): expect QUIC over UDP or the relay, seldom direct TCP."
    if not report.tcp.works:
        return "The server cannot be reached over TCP: only peers that can open a TCP connection to you can be reached."
    return f"{_here(report)}: expect {_outlook(report.expectations)}." if report.expectations else f"{_here(report)}."


def _here(report: NetReport) -> str:
    return _nat_here(report) if report.udp.works else f"{_nat_here(report)}, with UDP blocked"


def _nat_here(report: NetReport) -> str:
    if not report.behind_nat:
        return "No NAT" if report.strangers in {"accept", "unknown"} else "No NAT, but a firewall"
    nat = "Behind two NATs" if report.double_nat else "Behind a NAT"
    if report.port_mapping is not None and report.port_mapping.external is not None and not report.double_nat:
        return f"{nat} that lets others in when it is asked by {report.port_mapping.protocol}"
    match report.tcp.mapping:
        case "endpoint-independent":
            does = "keep" if report.double_nat else "keeps"
            return f"{nat} that {does} one port for all destinations"
        case "not known":
            return f"{nat}, and the server has one address only (give it --alt-listen), so how it maps is not known"
        case _:
            return f"{nat} that {'take' if report.double_nat else 'takes'} another port for each destination"


def _outlook(expectations: tuple[Expectation, ...]) -> str:
    but = [
        f"{carrier} with a NAT that {' or '.join(kinds)}"
        for carrier, kinds in (
            ("QUIC", [each.words for each in expectations if each.carrier == "quic"]),
            ("the relay", [each.words for each in expectations if each.carrier == "relay"]),
        )
        if kinds
    ]
    return f"direct TCP, but {', and '.join(but)}" if but else "direct TCP with every kind of NAT at the other end"


def improvements(report: NetReport) -> tuple[str, ...]:
    """Return what would make it better, most useful first."""
    found = [each.improve for each in report.expectations if each.improve]
    if report.udp.works and not report.tcp.works:
        found.insert(0, "let TCP to the server through the firewalls on the way")
    if report.tcp.works and not report.udp.works:
        found.insert(0, "let UDP to the server through the firewalls on the way")
    if not report.tcp.works and not report.udp.works:
        found.insert(0, "let UDP and TCP to the server's own port through the firewalls on the way")
    if found and not report.has_ipv6:
        found.append("turn on IPv6, where the provider has it")
    return tuple(dict.fromkeys(found))
