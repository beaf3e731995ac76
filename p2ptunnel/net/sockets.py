"""Sockets as this package wants them, and the options that the standard library has no names for.

Rule: a host is numeric here.  The system call would look a name up, and the whole loop would stand still meanwhile.

Source: ip(7), ipv6(7), tcp(7), linux/filter.h; docs/explanation/nat.md.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import sys
from asyncio.trsock import TransportSocket
from typing import Final, Literal, TypeAlias

from p2ptunnel.types import Address

__all__ = [
    "ANY_IPV4",
    "ANY_IPV6",
    "LINUX",
    "RECVERR",
    "TELLS_UNSENT",
    "Progress",
    "can_open_low",
    "family_of",
    "forbid_fragments",
    "get_ttl",
    "is_half_open",
    "is_loopback",
    "is_sendable",
    "is_tcp",
    "keep_alive",
    "limit_segments",
    "limit_unsent",
    "local_address",
    "prefer_lasting",
    "progress",
    "reset_close",
    "set_min_ttl",
    "set_ttl",
    "share_port",
    "socket_address",
    "syn_repeats",
    "unacknowledged_bytes",
    "widen_receiving",
]

LINUX: Final = sys.platform == "linux"
ANY_IPV4: Final = "0.0.0.0"  # noqa: S104 - a punched port must be reachable on every interface
ANY_IPV6: Final = "::"
RECVERR: Final = {socket.AF_INET: (socket.IPPROTO_IP, 11), socket.AF_INET6: (socket.IPPROTO_IPV6, 25)}
"""The option, by family, that puts ICMP errors about a socket's packets into its error queue (Linux)."""

_IP_MTU_DISCOVER: Final = 10
_IPV6_MTU_DISCOVER: Final = 23
_PMTUDISC_PROBE: Final = 3  # DF stays set, but a forged "fragmentation needed" cannot make us fail with EMSGSIZE
_IP_MINTTL: Final = 21
_IPV6_MINHOPCOUNT: Final = 73
_IPV6_ADDR_PREFERENCES: Final = 72
_IPV6_PREFER_SRC_PUBLIC: Final = 2
_SO_RCVBUFFORCE: Final = 33
_SIOCOUTQ: Final = 0x5411
_TCP_INFO: Final[int | None] = getattr(socket, "TCP_INFO", None)
_NOTSENT_LOWAT: Final[int | None] = getattr(socket, "TCP_NOTSENT_LOWAT", None)
TELLS_UNSENT: Final = _NOTSENT_LOWAT is not None
"""Whether a socket counts as writable only when little of what it was given is unsent; see `limit_unsent`."""
_SO_REUSEPORT: Final[int | None] = getattr(socket, "SO_REUSEPORT", None)
_TCP_ESTABLISHED, _TCP_SYN_SENT, _TCP_SYN_RECV, _TCP_CLOSE_WAIT = 1, 2, 3, 8

_KEEPALIVE: Final = (
    ("TCP_KEEPIDLE", 15),  # seconds
    ("TCP_KEEPALIVE", 15),  # the same, by macOS's name
    ("TCP_KEEPINTVL", 5),  # seconds
    ("TCP_KEEPCNT", 3),
    ("TCP_USER_TIMEOUT", 10_000),  # milliseconds
)
"""A backstop behind the judge above, which is faster."""

Progress: TypeAlias = Literal["waiting", "up", "closed"]


def family_of(host: str) -> socket.AddressFamily | None:
    """Return the address family of a numeric host, None if `host` is anything else: a name, say."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.inet_pton(family, host.partition("%")[0] if family == socket.AF_INET6 else host)
    except (OSError, ValueError):  # ValueError: a NUL or a lone surrogate
        return None
    return family


def is_sendable(address: Address, family: int) -> bool:
    """Tell whether a socket of `family` can be pointed at `address` without a look-up and without an OverflowError."""
    host, port = address
    return 0 < port <= 65535 and family_of(host) == family


def socket_address(address: Address) -> tuple[str, int] | tuple[str, int, int, int]:
    """Return an address as sockets want it: Python takes the number 0 over a zone that stands in the host.

    Raises:
        OSError: There is no such interface.
    """
    host, zone = address[0].partition("%")[::2]
    return (host, address[1], 0, socket.if_nametoindex(zone)) if zone else address


def is_loopback(host: str) -> bool:
    """Tell whether a numeric host is this machine's loopback."""
    return host == "::1" or (host.startswith("127.") and family_of(host) is not None)


def can_open_low() -> bool:
    """Tell whether a TCP connection attempt survives that its low-TTL SYN dies on the way (IP_MINTTL; Linux only)."""
    return LINUX


def share_port(sock: socket.socket) -> None:
    """Let other sockets of ours have the same local port; every socket of the port must say so.

    Linux asks for SO_REUSEPORT whose socket it is, and for SO_REUSEADDR not: any user could then take the port's datagrams.
    """
    if not LINUX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if _SO_REUSEPORT is not None:
        sock.setsockopt(socket.SOL_SOCKET, _SO_REUSEPORT, 1)


def prefer_lasting(sock: socket.socket) -> None:
    """Let an IPv6 socket that is bound to no address speak from a lasting one, as long as there is one (RFC 5014; Linux).

    Systems prefer temporary ones; a peer that has opened its firewall for the other would not hear us.
    """
    if LINUX:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_ADDR_PREFERENCES, _IPV6_PREFER_SRC_PUBLIC)


def forbid_fragments(sock: socket.socket) -> None:
    """Set DF on every datagram and believe no ICMP about the path's MTU, which anybody can forge."""
    if not LINUX:
        return
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)


def widen_receiving(sock: socket.socket, room_bytes: int) -> None:
    """Let so many bytes wait to be read, as far as the system allows; beyond `net.core.rmem_max` it asks for CAP_NET_ADMIN.

    The kernel counts what a datagram takes of its memory: some 800 bytes for one of 200.
    """
    if LINUX:
        with contextlib.suppress(PermissionError):
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, room_bytes // 2)  # it doubles what it is told
            return
    with contextlib.suppress(OSError):  # other systems refuse what is too much, where Linux gives what there is
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room_bytes // 2)


def _ttl_option(sock: socket.socket) -> tuple[int, int]:
    if sock.family == socket.AF_INET6:
        return socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS
    return socket.IPPROTO_IP, socket.IP_TTL


def get_ttl(sock: socket.socket) -> int:
    """Return the TTL, or IPv6's hop limit, of what the socket sends."""
    return sock.getsockopt(*_ttl_option(sock))


def set_ttl(sock: socket.socket, ttl: int) -> None:
    """Set the TTL, or IPv6's hop limit, of everything that the socket sends from now on.

    Raises:
        OSError: `ttl` is not 1 to 255.
    """
    sock.setsockopt(*_ttl_option(sock), ttl)


def set_min_ttl(sock: socket.socket, ttl: int) -> None:
    """Ignore ICMP errors, and whatever else, by a TTL below `ttl`; 0 ignores nothing.

    IPv4 compares the TTL left in the packet of ours that the error quotes, IPv6 the hop limit of the error itself.
    """
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MINHOPCOUNT, ttl)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_MINTTL, ttl)


def limit_segments(sock: socket.socket, mss_bytes: int) -> None:
    """Announce a smaller MSS, and send no larger segments: one end that does so binds both directions.

    A connection through an MTU black hole otherwise moves nothing at all.  It works before connect(), and on a listener for
    connections whose SYN comes later.

    Args:
        sock: Not connected.
        mss_bytes: Without headers; 0 lifts the limit.
    """
    option: int | None = getattr(socket, "TCP_MAXSEG", None)
    if option is not None:
        with contextlib.suppress(OSError):  # some systems only tell it
            sock.setsockopt(socket.IPPROTO_TCP, option, mss_bytes)


def is_tcp(sock: socket.socket | TransportSocket) -> bool:
    """Tell whether a stream socket is the connection itself, and not one end of what carries its bytes inside this process."""
    return sock.family in (socket.AF_INET, socket.AF_INET6)


def local_address(sock: socket.socket) -> Address:
    """Return our end; where the connection is carried by something else, nobody knows it."""
    return sock.getsockname()[:2] if is_tcp(sock) else ("", 0)


def keep_alive(sock: socket.socket) -> None:
    """Let the kernel find a dead peer on its own, idle or with data under way, where the system has the options."""
    if not is_tcp(sock):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        option: int | None = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def limit_unsent(sock: socket.socket | TransportSocket, limit_bytes: int) -> None:
    """Let the kernel queue no more than this beyond what the path takes, where it can: a small frame waits behind all of it."""
    if _NOTSENT_LOWAT is not None and is_tcp(sock):
        sock.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, limit_bytes)


def unacknowledged_bytes(sock: socket.socket) -> int | None:
    """Return how much of what was written to a TCP connection its other end has not acknowledged, None where nobody tells."""
    if not LINUX:
        return None
    import fcntl

    try:
        return int.from_bytes(fcntl.ioctl(sock, _SIOCOUTQ, bytes(4)), sys.byteorder)
    except OSError:
        return None


def progress(sock: socket.socket) -> tuple[Progress, int]:
    """Tell how far a non-blocking connect() is, and the pending errno, which is cleared.

    The state decides: an errno of a socket that still waits is a soft one (some ICMP message) and ends nothing.
    """
    state = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 1)[0] if _TCP_INFO is not None else None
    error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if state is None:
        return _progress_without_tcp_info(sock, error), error
    if state in (_TCP_ESTABLISHED, _TCP_CLOSE_WAIT):
        return "up", error
    return ("waiting" if state in (_TCP_SYN_SENT, _TCP_SYN_RECV) else "closed"), error


def is_half_open(sock: socket.socket) -> bool:
    """Tell whether the peer's SYN has met ours, and only its acknowledgement is missing; False where nobody can tell."""
    return _TCP_INFO is not None and sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 1)[0] == _TCP_SYN_RECV


def _progress_without_tcp_info(sock: socket.socket, error: int) -> Progress:
    if error:
        return "closed"
    return "up" if select.select([], [sock], [], 0)[1] else "waiting"


def syn_repeats(sock: socket.socket) -> int | None:
    """Return how often the kernel has repeated the SYN, None when the socket no longer waits for an answer to it."""
    if _TCP_INFO is None:
        return None
    info = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 3)
    return info[2] if info[0] == _TCP_SYN_SENT else None


def reset_close(sock: socket.socket) -> None:
    """Close a TCP socket by RST: no TIME_WAIT keeps its pair of addresses; closing twice is fine."""
    with contextlib.suppress(OSError):  # it may be closed, or a listener
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
