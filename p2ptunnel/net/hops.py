"""The TTL with which a packet leaves our own NATs and gets no further: a traceroute in one round trip, without privilege.

Source: docs/explanation/nat.md; ip(7) and ipv6(7) on IP_RECVERR.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import random
import socket
import struct
from functools import partial
from typing import Final

import msgspec

from p2ptunnel.defaults import HOPS_MAX, HOPS_WAIT, PROBE_PAD_BYTES
from p2ptunnel.errors import InvalidAddressError
from p2ptunnel.net.interfaces import source_address
from p2ptunnel.net.sockets import LINUX, RECVERR, family_of, is_sendable, set_ttl
from p2ptunnel.net.watch import Watch
from p2ptunnel.protocol.machine import new_mid
from p2ptunnel.types import Address, format_address
from p2ptunnel.wire.messages import ProbeExtra, ReflexiveProbe, encode_padded

__all__ = ["Hops", "is_public", "opener_ttl"]

_TIME_EXCEEDED: Final = {(2, 11), (3, 3)}  # (origin, type) of a sock_extended_err: ICMP, ICMPv6
_ERROR_BYTES: Final = 16  # of sock_extended_err; the offender's sockaddr follows
_MSG_ERRQUEUE: Final = 0x2000
_SITE_PREFIX: Final = 48  # bits of an IPv6 address that one site has

_PRIVATE: Final = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",  # RFC 1918
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",  # RFC 6598, between a provider's NAT and its customers
        "192.0.0.0/29",  # RFC 7335, inside 464XLAT and DS-Lite
        "127.0.0.0/8",
        "169.254.0.0/16",
        "::/127",  # unspecified and loopback
        "fc00::/7",
        "fe80::/10",
    )
)


class Hops(msgspec.Struct, frozen=True):
    """What was learned.

    ttl: the opener's TTL, None if no hop answered.  hops: the address that answered at each distance.  rtt: seconds to the
    hop at `ttl` and back, 0 if that one was silent.
    """

    ttl: int | None
    hops: dict[int, str]
    rtt: float = 0.0


def is_public(host: str) -> bool:
    """Tell whether a numeric host is in no range that is used behind NATs; documentation addresses are public here."""
    address = ipaddress.ip_address(host.partition("%")[0])
    return not any(address in network for network in _PRIVATE)


async def opener_ttl(server: Address, *, wait: float = HOPS_WAIT) -> Hops:
    """Find the distance of the first hop outside our own NATs on the way to `server`.

    The first hop that answers from a public address; with IPv6, from outside our own /48.  If that one is silent, two hops
    behind the last private one: one for a silent NAT of the provider's.

    Args:
        server: Numeric; a port that nobody minds a few t=5 on.
        wait: Seconds for answers; less if all of those that matter have come.

    Raises:
        InvalidAddressError: `server` is not numeric.
    """
    family = family_of(server[0])
    if family is None or not is_sendable(server, family):
        raise InvalidAddressError(format_address(server))
    if not LINUX:
        return Hops(None, {})
    with contextlib.ExitStack() as stack:
        probes = _Probes(server, family, stack)
        with contextlib.suppress(TimeoutError):  # silent hops are the usual case
            async with asyncio.timeout(wait):
                await probes.enough
        return probes.result()


class _Probes:
    """One socket for each TTL: many routers quote so little of a packet that its payload could not tell them apart."""

    def __init__(self, server: Address, family: socket.AddressFamily, stack: contextlib.ExitStack) -> None:
        self._loop = asyncio.get_running_loop()
        self._server = server
        self._family = family
        self._outside = _Outside(server)
        self._hops: dict[int, str] = {}
        self._rtts: dict[int, float] = {}
        self.enough: asyncio.Future[None] = self._loop.create_future()
        for ttl in range(1, HOPS_MAX + 1):
            self._send(ttl, stack)

    def result(self) -> Hops:
        """Return what is known now."""
        ttl = _choose(self._hops, self._outside)
        return Hops(ttl, dict(sorted(self._hops.items())), self._rtts.get(ttl or 0, 0.0))

    def _send(self, ttl: int, stack: contextlib.ExitStack) -> None:
        sock = stack.enter_context(socket.socket(self._family, socket.SOCK_DGRAM))
        sock.setblocking(False)
        sock.setsockopt(*RECVERR[self._family], 1)
        set_ttl(sock, ttl)
        stack.callback(Watch(sock, partial(self._on_answer, sock, ttl, self._loop.time())).stop)
        probe = encode_padded(ReflexiveProbe(mid=new_mid(random.SystemRandom()), extra=ProbeExtra()), PROBE_PAD_BYTES)
        with contextlib.suppress(OSError):  # no route, a local firewall: a hop that does not answer
            sock.sendto(probe, self._server)

    def _on_answer(self, sock: socket.socket, ttl: int, sent_at: float) -> None:
        host = _offender(sock) or self._arrival(sock)
        if host is None or ttl in self._hops:
            return
        self._hops[ttl] = host
        self._rtts[ttl] = self._loop.time() - sent_at
        if not self.enough.done() and _is_enough(self._hops, self._outside):
            self.enough.set_result(None)

    def _arrival(self, sock: socket.socket) -> str | None:
        with contextlib.suppress(OSError):  # nothing there, or the error that the queue told of
            _, source = sock.recvfrom(2048)
            return self._server[0] if source[:2] == self._server else None
        return None


class _Outside:
    """Tells who is outside our NATs; the server itself does not count, since it may be anywhere."""

    def __init__(self, server: Address) -> None:
        self.server = server[0]
        self.is_ipv6 = ":" in self.server
        self._site: ipaddress.IPv6Network | None = None
        with contextlib.suppress(OSError):  # no route: nobody will answer anyway
            if self.is_ipv6:
                own = source_address(self.server).partition("%")[0]
                self._site = ipaddress.IPv6Network((own, _SITE_PREFIX), strict=False)

    def has(self, host: str) -> bool:
        """Tell whether `host` is outside."""
        inside = self._site is not None and ipaddress.ip_address(host.partition("%")[0]) in self._site
        return is_public(host) and not inside


def _is_enough(hops: dict[int, str], outside: _Outside) -> bool:
    """Tell whether what may still come cannot change the choice."""
    ends = [ttl for ttl, host in hops.items() if host == outside.server or outside.has(host)]
    return bool(ends) and all(ttl in hops for ttl in range(1, min(ends)))


def _choose(hops: dict[int, str], outside: _Outside) -> int | None:
    routers = {ttl: host for ttl, host in hops.items() if host != outside.server}
    reached = min((ttl for ttl in hops if ttl not in routers), default=HOPS_MAX)
    first = min((ttl for ttl, host in routers.items() if outside.has(host)), default=None)
    if first is not None:
        return first
    if not hops:
        return None
    silent = 1 if outside.is_ipv6 else 2  # IPv6 has no NAT of the provider's to get through
    return min(reached, max(routers, default=1) + silent)


def _offender(sock: socket.socket) -> str | None:
    """Return who says that the packet died there, None if the error queue has nothing of that kind."""
    try:
        _, ancillary, _, _ = sock.recvmsg(512, 512, _MSG_ERRQUEUE)
    except OSError:
        return None
    for level, kind, value in ancillary:
        if (level, kind) == RECVERR[sock.family] and struct.unpack_from("BB", value, 4) in _TIME_EXCEEDED:
            at, length = (4, 4) if sock.family == socket.AF_INET else (8, 16)
            return socket.inet_ntop(sock.family, value[_ERROR_BYTES + at : _ERROR_BYTES + at + length])
    return None
