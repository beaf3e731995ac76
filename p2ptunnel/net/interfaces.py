"""What this machine knows of its own addresses, and of the names of others.

Rule: nothing here blocks the loop for longer than a system call.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Iterable
from typing import Final

from p2ptunnel.addresses import canonical, scope_of
from p2ptunnel.defaults import IPV6_CANDIDATES_MAX
from p2ptunnel.errors import InvalidAddressError, ResolveError
from p2ptunnel.net.netlink import InterfaceAddress, interface_addresses
from p2ptunnel.net.sockets import LINUX, family_of, is_loopback, prefer_lasting
from p2ptunnel.net.threads import in_thread
from p2ptunnel.types import clean

__all__ = [
    "global_ipv6",
    "has_route",
    "ipv4_networks",
    "is_on_link",
    "lan_hosts",
    "leave_alike",
    "local_addresses",
    "on_link",
    "resolve",
    "resolve_both",
    "source_address",
]

_SOMEWHERE_IPV4, _SOMEWHERE_IPV6 = "192.0.2.1", "2001:db8::1"
_SOMEWHERE: Final = {_SOMEWHERE_IPV4: 32, _SOMEWHERE_IPV6: 128}
"""Addresses for which there is a route where there is a default one (RFC 5737, 3849), and the length of one address."""

_PORT: Final = 9  # discard; connect() of a UDP socket sends nothing


def source_address(destination: str) -> str:
    """Return the address that packets of ours to `destination`, a numeric host, leave from; nothing is sent.

    Raises:
        InvalidAddressError: `destination` is not numeric.
        OSError: There is no route.
    """
    family = family_of(destination)
    if family is None:
        raise InvalidAddressError(clean(destination))
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        if family == socket.AF_INET6:
            prefer_lasting(probe)
        probe.connect((destination, _PORT))
        return str(probe.getsockname()[0])


def local_addresses() -> tuple[str, ...]:
    """Return the addresses at which others may reach this machine: no loopback, no link-local; lasting ones first.

    Where the system does not tell (off Linux, in some containers), only those that a default route would use.
    """
    usable = [address for address in _known_addresses() if _is_reachable(address)]
    return tuple(address.host for address in sorted(usable, key=lambda address: address.is_temporary))


def global_ipv6() -> tuple[str, ...]:
    """Return the IPv6 addresses at which the internet may reach this machine, 3 at most; none without a route.

    The one comes first that sockets of ours speak from, then lasting ones, then temporary ones.  Addresses that carry an IPv4
    address (6to4, Teredo) are left out: peers take them for that.
    """
    try:
        own = source_address(_SOMEWHERE_IPV6)
    except OSError:
        return ()
    found = dict.fromkeys(host for host in (own, *local_addresses()) if ":" in host and _is_global(host))
    return tuple(found)[:IPV6_CANDIDATES_MAX]


def ipv4_networks() -> tuple[str, ...]:
    """Return the IPv4 networks of our interfaces, in CIDR notation; one of prefix 0 has nobody in it, and is left out."""
    found = (address for address in _known_addresses() if ":" not in address.host and address.prefix > 0)
    return tuple(dict.fromkeys(str(ipaddress.ip_network((own.host, own.prefix), strict=False)) for own in found))


def has_route(host: str) -> bool:
    """Tell whether this machine can send to a numeric host at all."""
    try:
        source_address(host)
    except OSError:
        return False
    return True


def leave_alike(host: str, other: str) -> bool:
    """Tell whether packets of ours to two numeric hosts leave from one address; not so where a VPN has one of them."""
    try:
        return source_address(host) == source_address(other)
    except OSError:
        return False


def lan_hosts() -> tuple[str, ...]:
    """Return our IPv4 addresses in private and link-local ranges: where neighbours may look for us.

    A machine that has public ones only stands among strangers, and shows itself to none of them; off Linux, where nobody keeps
    strangers from the socket that is open on all interfaces, one public address is enough.
    """
    hosts = [address.host for address in _known_addresses() if ":" not in address.host]
    near = tuple(host for host in hosts if scope_of(canonical(host)) in {"private", "link-local"})
    return near if LINUX or not any(scope_of(canonical(host)) == "public" for host in hosts) else ()


def is_on_link(host: str) -> bool:
    """Tell whether a numeric host is this machine or in the network of one of its interfaces, so that no router is between."""
    return host in on_link((host,))


def on_link(hosts: Iterable[str]) -> frozenset[str]:
    """Return those of some numeric hosts that `is_on_link` is true of; the system is asked once."""
    near: set[str] = set()
    known: tuple[InterfaceAddress, ...] | None = None
    for host in hosts:
        if is_loopback(host):
            near.add(host)
        elif family_of(host) is not None:
            known = _known_addresses() if known is None else known
            if any(own.is_near(host.partition("%")[0]) for own in known):
                near.add(host)
    return frozenset(near)


async def resolve(host: str, *, family: int = socket.AF_UNSPEC) -> str:
    """Return the first numeric address of `host`, which may be numeric already.

    The look-up runs in a thread of its own that cannot keep the process from ending; cancelled, it is forgotten.

    Raises:
        ResolveError: The name has no address, or none of that family, or nobody answers.
    """
    if family_of(host) in ((family,) if family else (socket.AF_INET, socket.AF_INET6)):
        return host
    if not host.isprintable():
        raise ResolveError(clean(host), "not a host name")  # behind a NUL, getaddrinfo() sees nothing
    try:
        found = await in_thread(socket.getaddrinfo, host, None, family, socket.SOCK_DGRAM)
    except UnicodeError as error:  # a label longer than 63 characters
        raise ResolveError(clean(host), "not a host name") from error
    except OSError as error:
        raise ResolveError(clean(host), error.strerror or "no answer") from error
    return str(found[0][4][0])


async def resolve_both(host: str, *, grace: float | None = None) -> dict[socket.AddressFamily, str]:
    """Return the first numeric address of `host` in each family that it has one of, IPv4 before IPv6; as `resolve` does.

    Args:
        host: A name, or numeric already.
        grace: Seconds that the other family has once one is known, since some resolvers never answer for IPv6; None: no end.

    Raises:
        ResolveError: It has none at all, or nobody answers.
    """
    if (own := family_of(host)) is not None:
        return {own: host}
    asked = {family: asyncio.create_task(resolve(host, family=family)) for family in (socket.AF_INET, socket.AF_INET6)}
    try:
        waiting = set(asked.values())
        while waiting:
            is_known = any(task.done() and task.exception() is None for task in asked.values())
            done, waiting = await asyncio.wait(
                waiting, timeout=grace if is_known else None, return_when=asyncio.FIRST_COMPLETED
            )
            if not done:
                break
    finally:
        for task in asked.values():
            task.cancel()
        answers = await asyncio.gather(*asked.values(), return_exceptions=True)
    for answer in answers:
        if isinstance(answer, Exception) and not isinstance(answer, ResolveError):
            raise answer
    found = {family: answer for family, answer in zip(asked, answers, strict=True) if isinstance(answer, str)}
    if not found:
        raise next(answer for answer in answers if isinstance(answer, ResolveError))
    return found


def _is_reachable(address: InterfaceAddress) -> bool:
    parsed = ipaddress.ip_address(address.host)
    return not (parsed.is_loopback or parsed.is_link_local)


def _is_global(host: str) -> bool:
    address = canonical(host)
    return address.version == 6 and scope_of(address) == "public"


def _known_addresses() -> tuple[InterfaceAddress, ...]:
    if LINUX:
        with contextlib.suppress(OSError):  # Android and sandboxes forbid to ask
            return interface_addresses()
    found: list[InterfaceAddress] = []
    for destination, whole in _SOMEWHERE.items():
        with contextlib.suppress(OSError):  # no default route of that family
            found.append(InterfaceAddress(source_address(destination), whole))
    return tuple(found)
