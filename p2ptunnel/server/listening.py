"""TCP listeners of servers, and what is said where there can be none."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from typing import Final

from p2ptunnel.errors import AddressInUseError, BindError
from p2ptunnel.net.sockets import share_port
from p2ptunnel.types import Address, format_address

__all__ = ["BACKLOG", "bind_error", "everywhere", "families_refusal", "listen_at", "listening_socket"]

BACKLOG: Final = 1024
_ANOTHER: Final = "--listen :7001"


def everywhere(port: int) -> tuple[Address, ...]:
    """Return where all of this machine is listened at: over IPv4, and over IPv6 where the system has it."""
    both = ("0.0.0.0", port), ("::", port)  # noqa: S104 - a server is there to be reached
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::", 0))
    except OSError:  # switched off, or not built in
        return both[:1]
    return both


def families_refusal(addresses: Sequence[Address]) -> str:
    """Return why one service cannot be at all of these addresses, empty if it can: one of each family."""
    families = [":" in host for host, _ in addresses]
    if not addresses or len(set(families)) < len(families):
        return f"{len(addresses)} addresses to listen on, of which {sum(families)} of IPv6"
    return ""


def listen_at(address: Address, *, instead: str = _ANOTHER) -> socket.socket:
    """Return a TCP listener; the host is numeric.

    Raises:
        AddressInUseError: Another program has the port.
        BindError: The address is not ours.
    """
    try:
        return listening_socket(address)
    except OSError as error:
        raise bind_error(address, error, error.strerror or str(error), instead) from error


def listening_socket(address: Address, *, is_dialled_from: bool = False) -> socket.socket:
    """Return a TCP listener; the host is numeric.

    Args:
        address: Where.
        is_dialled_from: Whether connections are to be made from the same port.

    Raises:
        OSError: The address cannot be had.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart need not wait for TIME_WAIT
        if is_dialled_from:
            share_port(sock)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def bind_error(address: Address, cause: BaseException | None, reason: str, instead: str = _ANOTHER) -> BindError:
    """Return the error of an address that cannot be had; `instead` is the flag by which another one is."""
    if isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE:
        return AddressInUseError(format_address(address), f"Is a server running there already? Another port: {instead}")
    return BindError(format_address(address), reason)
