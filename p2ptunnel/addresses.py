"""Addresses by what they mean, whatever their spelling, and where packets and connections may go.

Rule: a decision is made on `canonical(host)`, and what is sent goes to that very value; nothing is parsed twice.  The table is
our own, since `is_private` and `is_global` change with Python and call `::127.0.0.1` a global address.
Source: IANA special-purpose address registries (RFC 6890); RFC 4291, 2765, 6052, 8215, 3056, 4380, 5214 for embedded addresses.
"""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, Literal, NamedTuple, TypeAlias

from p2ptunnel.errors import InvalidAddressError
from p2ptunnel.types import clean

__all__ = [
    "IPAddress",
    "IPNetwork",
    "Scope",
    "Source",
    "canonical",
    "lan_refusal",
    "probe_refusal",
    "scope_of",
    "source_of",
    "target_refusal",
]

IPAddress: TypeAlias = IPv4Address | IPv6Address
IPNetwork: TypeAlias = IPv4Network | IPv6Network

Scope: TypeAlias = Literal["public", "private", "loopback", "link-local", "unspecified", "multicast", "broadcast", "reserved"]
"""What a range is for; documentation ranges count as public, shared ones (100.64.0.0/10) and benchmarking as private."""


class Source(NamedTuple):
    """Whom a rate limit takes for one sender; the numbers of different blocks differ, also between IPv4 and IPv6.

    Attributes:
        block: One IPv4 address, or one /64 of IPv6: what a single host has.
        site: The same IPv4 address, or the /48: what a single customer may have.
    """

    block: int
    site: int


_Range: TypeAlias = tuple[int, int, Scope]


def _ranges(*table: tuple[str, Scope]) -> tuple[_Range, ...]:
    return tuple(_range(ip_network(text), scope) for text, scope in table)


def _range(network: IPNetwork, scope: Scope) -> _Range:
    return (int(network.network_address), int(network.broadcast_address), scope)


_IPV4: Final = _ranges(  # the first that fits counts; what is in none is public
    ("0.0.0.0/8", "unspecified"),
    ("10.0.0.0/8", "private"),
    ("100.64.0.0/10", "private"),  # between a provider's NAT and its customers
    ("127.0.0.0/8", "loopback"),
    ("169.254.0.0/16", "link-local"),
    ("172.16.0.0/12", "private"),
    ("192.0.0.0/24", "reserved"),
    ("192.88.99.0/24", "reserved"),  # the relays of 6to4
    ("192.168.0.0/16", "private"),
    ("198.18.0.0/15", "private"),  # benchmarks; some proxies number their clients' targets from it
    ("224.0.0.0/4", "multicast"),
    ("255.255.255.255/32", "broadcast"),
    ("240.0.0.0/4", "reserved"),
)
_IPV6: Final = _ranges(
    ("::/128", "unspecified"),
    ("::1/128", "loopback"),
    ("fc00::/7", "private"),
    ("fe80::/10", "link-local"),
    ("ff00::/8", "multicast"),
    ("2001::/23", "reserved"),  # protocol assignments; Teredo, within it, is an IPv4 address to us
    ("3ffe::/16", "reserved"),  # the 6bone
    ("2000::/3", "public"),
    ("::/0", "reserved"),
)

_METADATA: Final = frozenset(
    ip_address(text)
    for text in (
        "169.254.169.254",  # most clouds
        "169.254.170.2",  # their containers
        "169.254.170.23",
        "169.254.0.23",
        "169.254.42.42",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "fd00:ec2::254",
        "fd00:ec2::23",
        "fd00:c1::a9fe:a9fe",
        "fd00:42::42",
        "fd20:ce::254",
        "fe80::a9fe:a9fe",
    )
)
"""Where clouds hand credentials to whoever asks from inside."""

_AMPLIFIERS: Final = frozenset({1900, 3702, 5353, 11211})
"""UDP ports of 1024 and above whose services answer one small packet with many (SSDP, WS-Discovery, mDNS, memcached)."""

_IPV4_IN_LOW_BITS: Final = frozenset(
    int(IPv6Address(prefix)) >> 32
    for prefix in ("::", "::ffff:0:0", "::ffff:0:0:0", "64:ff9b::")  # compatible, mapped, translated, NAT64
)
_LOCAL_NAT64: Final = int(IPv6Address("64:ff9b:1::")) >> 80
_6TO4: Final = 0x2002
_TEREDO: Final = 0x2001_0000
_ISATAP: Final = frozenset({0x0000_5EFE, 0x0200_5EFE})
_LOW: Final = 0xFFFF_FFFF


def canonical(host: str) -> IPAddress:
    """Return the address that packets to a numeric host end up at: an IPv4 address inside an IPv6 one is taken out.

    Names and the short forms that `getaddrinfo` takes for addresses (`127.1`, `0x7f.1`, `2130706433`) are refused, as is a
    zone (`fe80::1%eth0`), since it says where to send and not whom.

    Raises:
        InvalidAddressError: It is no numeric address, or has a zone.
    """
    try:
        address = ip_address(host)
    except ValueError:
        raise InvalidAddressError(clean(host)) from None
    if isinstance(address, IPv4Address):
        return address
    if address.scope_id is not None:
        raise InvalidAddressError(clean(host))
    inner = _embedded(int(address))
    return address if inner is None else IPv4Address(inner)


def _embedded(value: int) -> int | None:
    """Return the IPv4 address that the 128 bits carry, None without one."""
    if value in {0, 1}:  # :: and ::1 are addresses of IPv6 itself
        return None
    if value >> 32 in _IPV4_IN_LOW_BITS or value >> 80 == _LOCAL_NAT64 or (value >> 32) & _LOW in _ISATAP:
        return value & _LOW
    if value >> 112 == _6TO4:
        return (value >> 80) & _LOW
    if value >> 96 == _TEREDO:
        return (value & _LOW) ^ _LOW
    return None


def scope_of(address: IPAddress) -> Scope:
    """Return what the range of a canonical address is for."""
    value = int(address)
    for first, last, scope in _IPV4 if address.version == 4 else _IPV6:
        if first <= value <= last:
            return scope
    return "public"


def probe_refusal(
    address: IPAddress,
    port: int,
    *,
    is_admitted: bool,
    on_loopback: bool = False,
    broadcasts: Collection[IPAddress] = (),
) -> str | None:
    """Return why no probe may go to a candidate that somebody named, None if it may.

    Args:
        address: Canonical.
        port: Of UDP or TCP.
        is_admitted: A peer that we admit has signed the candidate: private addresses are as good as public ones.
        on_loopback: The rendezvous server itself is reached over loopback: so are the peers that it names.
        broadcasts: The broadcast addresses of our own interfaces.
    """
    scope = scope_of(address)
    is_near = (scope == "loopback" and on_loopback) or (scope == "private" and is_admitted)
    if scope != "public" and not is_near:
        return f"a {scope} address"
    if address in broadcasts:
        return "a broadcast address"
    return _service_refusal(address, port)


def helper_refusal(address: IPAddress, port: int, server: IPAddress) -> str | None:
    """Return why a rendezvous server's word is not followed to another machine of its operator, None if it is.

    Nobody else has signed for it.  So it lies no deeper inside than the server itself, which cannot aim us at others.

    Args:
        address: Canonical.
        port: Of UDP or TCP.
        server: As we reach it; canonical.
    """
    scope, asked = scope_of(address), scope_of(server)
    is_near = scope == asked or (scope == "private" and asked == "loopback")
    return _service_refusal(address, port) if scope == "public" or is_near else f"a {scope} address"


def lan_refusal(address: IPAddress, port: int, *, is_on_link: bool, on_loopback: bool = False) -> str | None:
    """Return why no probe may go to an address that somebody in our network announced, None if it may.

    Nobody has signed it.  So it leads nowhere but into networks like ours: private ranges, and what is on our link.

    Args:
        address: Canonical.
        port: Of UDP and TCP.
        is_on_link: No router is between.
        on_loopback: We look for peers on loopback: a test does.
    """
    scope = scope_of(address)
    is_linked = is_on_link and scope in {"public", "link-local"}
    if not (is_linked or scope == "private" or (scope == "loopback" and on_loopback)):
        return f"a {scope} address"
    return _service_refusal(address, port)


def _service_refusal(address: IPAddress, port: int) -> str | None:
    if address in _METADATA:
        return "a metadata service"
    return port_refusal(port)


def port_refusal(port: int) -> str | None:
    """Return why no probe may go to a port, whatever the host; None if it may."""
    if not 1024 <= port <= 65535:
        return "a port below 1024" if port < 1024 else "no port"
    return "a port of amplifiers" if port in _AMPLIFIERS else None


def target_refusal(address: IPAddress, network: IPNetwork) -> str | None:
    """Return why nothing may be connected to that a grant covers by a network, None if it may.

    Loopback and link-local addresses, where services live that trust whoever reaches them, want a network of their own: one
    that is wider covers them by accident.

    Args:
        address: Canonical; what a name was resolved to.
        network: Of the grant.
    """
    if address not in network:
        return "not in the grant"
    if address in _METADATA:
        return "a metadata service"
    scope = scope_of(address)
    if scope in {"unspecified", "multicast", "broadcast", "reserved"}:
        return f"a {scope} address"
    is_named = scope_of(network.network_address) == scope_of(network.broadcast_address) == scope
    return None if is_named or scope not in {"loopback", "link-local"} else f"a {scope} address"


def source_of(address: IPAddress) -> Source:
    """Return whom a rate limit takes a canonical address for: itself, or its /64 and its /48."""
    value = int(address)
    if address.version == 4:
        mapped = 0xFFFF << 32 | value  # ::ffff:0:0/96 holds no other canonical address
        return Source(mapped, mapped)
    return Source(value >> 64 << 64, value >> 80 << 80)
