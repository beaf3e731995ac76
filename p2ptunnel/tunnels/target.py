"""The callee's end of a tunnel: the socket of what a service stands for, and the bytes between it and a stream.

Rule: a name is looked up once, and the connection goes to the numeric address that the look-up gave.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Awaitable, Collection, Hashable
from typing import Any, Final, TypeAlias

from p2ptunnel.abc import Stream
from p2ptunnel.addresses import IPAddress, canonical, scope_of
from p2ptunnel.defaults import TARGET_TIMEOUT
from p2ptunnel.errors import AccessDeniedError, InvalidAddressError, TargetRefusedError
from p2ptunnel.net.lookups import Lookups
from p2ptunnel.net.pump import pump
from p2ptunnel.tunnels.reach import covers, may_reach
from p2ptunnel.tunnels.spec import ServeSpec
from p2ptunnel.types import Address

__all__ = ["open_destination", "open_target", "serve_target"]

_Endpoint: TypeAlias = tuple[int, Any]
"""An address family, and an address of it in the form that sockets want."""

_REASONS: Final = {
    errno.EACCES: "permission denied",
    errno.ECONNREFUSED: "connection refused",
    errno.ECONNRESET: "connection reset",
    errno.EHOSTUNREACH: "host unreachable",
    errno.ENETUNREACH: "network unreachable",
    errno.ENOENT: "no such socket",
    errno.ENOTCONN: "too busy to accept",
    errno.EPERM: "permission denied",
    errno.ETIMEDOUT: "no answer",
}


async def open_target(spec: ServeSpec, *, asker: Hashable = None, timeout: float = TARGET_TIMEOUT) -> socket.socket:
    """Connect to what a service stands for.

    Args:
        spec: The service that was asked for and is granted.
        asker: Whose look-up of a name it is.
        timeout: Seconds for look-up and connection together.

    Returns:
        A connected, non-blocking socket, which is the caller's to close.

    Raises:
        LookupsBusyError: Too many names are being looked up.
        TargetRefusedError: Nobody answers there; `reason` says so in words that may be told to the peer.
    """
    return await _open(_addresses(spec.target, asker), spec.name, timeout)


async def open_destination(
    spec: ServeSpec,
    destination: Address,
    own: Collection[Address] = (),
    *,
    asker: Hashable = None,
    timeout: float = TARGET_TIMEOUT,
) -> socket.socket:
    """Connect to what a peer asks for through a service with `reach`; every address that a name resolves to must be reached.

    Args:
        spec: The service.
        destination: Asked for, and parsed once.
        own: Where this peer itself listens: nothing is connected to that.
        asker: Whose look-up of a name it is.
        timeout: Seconds for look-up and connection together.

    Returns:
        A connected, non-blocking socket, which is the caller's to close.

    Raises:
        AccessDeniedError: It is not reached, or one of its addresses is not.
        LookupsBusyError: Too many names are being looked up.
        TargetRefusedError: Nobody answers there.
    """
    return await _open(_reached(spec, destination, own, asker), spec.name, timeout)


async def _open(finding: Awaitable[list[_Endpoint]], name: str, timeout: float) -> socket.socket:
    deadline = asyncio.timeout(timeout)
    try:
        async with deadline:
            return await _dial(await finding)
    except OSError as error:
        reason = f"no answer in {timeout:g} s" if deadline.expired() else _reason(error)
        raise TargetRefusedError("this machine", name, reason) from error


async def serve_target(stream: Stream, sock: socket.socket) -> None:
    """Carry bytes between a peer's stream and the target's socket until both directions ended; both are spent then.

    Raises:
        ChannelError: The stream broke or was reset; the target saw a reset as well.
        OSError: The target broke; the peer saw a reset as well.
    """
    await pump(stream, sock)


async def _addresses(target: Address | str, asker: Hashable) -> list[_Endpoint]:
    if isinstance(target, str):
        return [(socket.AF_UNIX, target)]
    with contextlib.suppress(socket.gaierror):  # a name is no error here, it only takes longer
        return _look_up(target, socket.AI_NUMERICHOST)
    return await _lookups.find(target, asker)


async def _reached(spec: ServeSpec, destination: Address, own: Collection[Address], asker: Hashable) -> list[_Endpoint]:
    """Resolve a destination once; return the numeric addresses to connect to, each of which was checked."""
    host, port = destination
    if not covers(spec.reach, destination):  # before a look-up, which strangers to the grant would see
        raise AccessDeniedError("this machine", spec.name)
    endpoints: list[_Endpoint] = []
    for _, where in await _addresses(destination, asker):
        try:
            address = canonical(where[0])
        except InvalidAddressError:  # it has a zone
            raise AccessDeniedError("this machine", spec.name) from None
        if not may_reach(spec.reach, host, address, port) or _is_own(address, port, own):
            raise AccessDeniedError("this machine", spec.name)
        endpoints.append((socket.AF_INET if address.version == 4 else socket.AF_INET6, (str(address), port)))
    return endpoints


def _is_own(address: IPAddress, port: int, own: Collection[Address]) -> bool:
    """Tell whether one of our own listeners is there; one on every address is on this one as well."""
    listeners = (canonical(host) for host, number in own if number == port)
    return any(listener == address or scope_of(listener) == "unspecified" for listener in listeners)


def _look_up(address: Address, flags: int = 0) -> list[_Endpoint]:
    found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=flags)
    return [(family, where) for family, _, _, _, where in found]


_lookups: Final[Lookups[Address, list[_Endpoint]]] = Lookups(_look_up)
"""Of this process: its threads are one heap, however many peers it has."""


async def _dial(endpoints: list[_Endpoint]) -> socket.socket:
    """Connect to the first of `endpoints` that takes us; they are tried in the resolver's order."""
    *others, last = endpoints
    for endpoint in others:
        with contextlib.suppress(OSError):
            return await _connect(endpoint)
    return await _connect(last)


async def _connect(endpoint: _Endpoint) -> socket.socket:
    family, where = endpoint
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, where)
        sock.getpeername()  # ENOTCONN: a unix socket with a full backlog looks connected to asyncio
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def _reason(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return "no such host"
    return _REASONS.get(error.errno or 0) or os.strerror(error.errno or errno.EIO).lower()
