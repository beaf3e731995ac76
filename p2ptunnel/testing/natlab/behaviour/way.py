"""What lies on the way of a site: hops that drop low TTLs and say so, and the firewall of IPv6."""

from __future__ import annotations

import select
import socket
import struct
from typing import Final

from p2ptunnel.testing.natlab.behaviour.sockets import ANSWER_TIME, Bench, address_of, answer_to, is_ready
from p2ptunnel.testing.natlab.host import Host

__all__ = ["measure_hops", "measure_ipv6"]

_FIRST_CONTACT_TIME: Final = 1.0
_HOPS_MAX: Final = 5
_IP_RECVERR: Final = 11
_OFFENDER: Final = struct.Struct("=16x4x4s")


def measure_hops(server: Host, inet: Host, host: Host) -> str:
    """Return how many hops away the internet is: the TTL at which `inet` says that a SYN's time was exceeded; or `-`."""
    with Bench() as bench:
        target = address_of(bench.listener(server, server.ip))
        for ttl in range(1, _HOPS_MAX + 1):
            opener = bench.tcp(host)
            opener.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
            opener.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
            opener.connect_ex(target)
            if _offender(opener) == inet.ip:
                return str(ttl)
    return "-"


def measure_ipv6(server: Host, host: Host) -> str:
    """Return what a stranger's SYN meets over IPv6; `none` if the host has no such address.

    Raises:
        OSError: The host does not get out over IPv6.
    """
    if host.ip6 is None or server.ip6 is None:
        return "none"
    with Bench() as bench:
        listener = bench.listener(server, server.ip6)
        outward = answer_to(bench.tcp(host, host.ip6), address_of(listener), _FIRST_CONTACT_TIME)
        if outward != "open":
            raise ConnectionError(f"no connection outwards over IPv6: {outward}")
        door = bench.listener(host, host.ip6)
        return answer_to(bench.tcp(server, server.ip6), address_of(door))


def _offender(opener: socket.socket) -> str:
    """Return who sent an ICMP error about this socket, empty if nobody did (ip(7), IP_RECVERR)."""
    if not is_ready(opener, select.POLLERR, ANSWER_TIME):
        return ""
    try:
        _, ancillary, _, _ = opener.recvmsg(1, 512, socket.MSG_ERRQUEUE)
    except BlockingIOError:
        return ""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, _IP_RECVERR):
            return socket.inet_ntoa(_OFFENDER.unpack_from(data)[0])
    return ""
