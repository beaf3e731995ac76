"""Listening sockets of tunnels.  Rule: loopback unless another address was written out; no name is looked up."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from typing import Final

from p2ptunnel.defaults import FORWARD_BACKLOG
from p2ptunnel.errors import AddressInUseError, BindError, ConfigError
from p2ptunnel.tunnels.spec import EVERY_INTERFACE, LOOPBACK
from p2ptunnel.types import Address, clean, format_address

__all__ = ["listen_on"]

_REASONS: Final = {
    errno.EACCES: "ports below 1024 need more rights",
    errno.EADDRNOTAVAIL: "it is not an address of this machine",
}


def listen_on(address: Address) -> socket.socket:
    """Return a non-blocking TCP socket that listens on `address`.

    Args:
        address: A numeric host, `localhost` or `*`, and a port; 0 picks a free one.

    Raises:
        ConfigError: The host is none of these; nothing is looked up, so that what is exposed can be read off the text.
        AddressInUseError: Another program has it.
        BindError: It cannot be had for another reason.
    """
    host, port = _numeric(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and address[0] == EVERY_INTERFACE
    try:
        listener = socket.create_server((host, port), family=family, backlog=FORWARD_BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        raise _bind_error(format_address(address), error) from error
    listener.setblocking(False)
    return listener


def _numeric(address: Address) -> Address:
    host, port = address
    if host == EVERY_INTERFACE:
        return ("::" if socket.has_dualstack_ipv6() else "0.0.0.0", port)  # noqa: S104  # it was written out
    try:
        return (str(ipaddress.ip_address(LOOPBACK if host == "localhost" else host)), port)
    except ValueError as error:
        problem = f"{clean(host)!r} is not an address to listen on"
        raise ConfigError(problem, "Numeric, localhost, or * for every interface.") from error


def _bind_error(address: str, error: OSError) -> BindError:
    if error.errno == errno.EADDRINUSE:
        return AddressInUseError(address)
    reason = _REASONS.get(error.errno or 0) or os.strerror(error.errno or errno.EIO).lower()
    return BindError(address, reason)
