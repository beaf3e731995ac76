"""The router that our packets to the internet pass first, and our own address on the way to it."""

from __future__ import annotations

import contextlib
import socket
import struct
from pathlib import Path
from typing import Final

import msgspec

from p2ptunnel.net.interfaces import source_address
from p2ptunnel.net.netlink import Route, find_route
from p2ptunnel.net.sockets import family_of, is_loopback

__all__ = ["ANYWHERE", "Gateway", "find_gateway"]

ANYWHERE: Final = ("192.88.99.1", "2001:10::1")
"""Addresses that no network will have again (RFC 7526, RFC 4843): packets to them take the default route, if any."""

_ROUTES: Final = Path("/proc/net/route")
_UP_BY_GATEWAY: Final = 0x3  # RTF_UP, RTF_GATEWAY


class Gateway(msgspec.Struct, frozen=True):
    """A router, and the address of ours that it knows us by; a link-local host has its zone."""

    host: str
    local: str


def find_gateway(local_host: str) -> Gateway | None:
    """Return the router of the default route, None if there is none or it cannot be known.

    Args:
        local_host: Numeric; `0.0.0.0` or `::` for the address that the system would use, and for the family.
    """
    if is_loopback(local_host):
        return None
    anywhere = ANYWHERE[":" in local_host]
    with contextlib.suppress(OSError):  # no route
        route = _default_route(anywhere)
        if route is not None and family_of(route.gateway) == family_of(anywhere):
            is_any = local_host in ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
            return Gateway(_with_zone(route), source_address(anywhere) if is_any else local_host)
    return None


def _default_route(anywhere: str) -> Route | None:
    try:
        return find_route(anywhere)
    except OSError:  # rtnetlink is forbidden in some containers, and on Android
        return None if ":" in anywhere else _route_of_file(_ROUTES.read_text(encoding="ascii"))


def _route_of_file(text: str) -> Route | None:
    """Return the default route of the kernel's table as text: hexadecimal numbers in the machine's own order."""
    for line in text.splitlines()[1:]:
        device, destination, gateway, flags, _, _, _, mask, *_ = line.split()
        if int(destination, 16) == int(mask, 16) == 0 and int(flags, 16) & _UP_BY_GATEWAY == _UP_BY_GATEWAY:
            return Route(device, socket.inet_ntoa(struct.pack("=I", int(gateway, 16))))
    return None


def _with_zone(route: Route) -> str:
    return f"{route.gateway}%{route.device}" if route.gateway.lower().startswith("fe80:") else route.gateway
