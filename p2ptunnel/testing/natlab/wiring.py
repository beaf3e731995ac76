"""Cables and links between machines: every access line is point to point, with one /32 at its lower end."""

from __future__ import annotations

import os
from typing import Final

from p2ptunnel.testing.natlab.dataplane import DataPlane
from p2ptunnel.testing.natlab.engine.link import LinkSettings
from p2ptunnel.testing.natlab.host import Host
from p2ptunnel.testing.natlab.tun import open_tun

__all__ = ["DEFAULT_ROUTE", "WAN", "attach_prefix", "connect_line", "open_line", "open_tail", "plug_into_bridge"]

WAN: Final = "wan"
DEFAULT_ROUTE: Final = "0.0.0.0/0"
_DEFAULT_ROUTE_6: Final = "::/0"
_UPPER_LINK_LOCAL, _LOWER_LINK_LOCAL = "fe80::1", "fe80::2"


def connect_line(upper: Host, device: str, lower: Host, gateway: str, link: LinkSettings | None, plane: DataPlane) -> None:
    """Give `lower` a device `wan` with its first address, reachable from `upper` through `device`.

    Args:
        upper: The internet, or a router above.
        device: Name of the new device there; also the name of the link in the data plane.
        lower: A host or a router.
        gateway: Address of `upper` on this line.
        link: None for a plain cable, which is faster but has no delay and cannot be changed.
        plane: Where the link is made.
    """
    above, below = upper.namespace.netlink, lower.namespace.netlink
    if link is None:
        above.add_cable(device, lower.namespace.descriptor, WAN)
    else:
        plane.add_link(device, link, open_tun(upper.namespace, device), open_tun(lower.namespace, WAN))
    for netlink, end in ((above, device), (below, WAN)):
        netlink.set_up(end)
    for netlink, end in ((above, device), (below, WAN)):
        netlink.settle(end)
    above.add_address(device, f"{gateway}/32")
    for address in lower.ips:
        below.add_address(WAN, f"{address}/32")
        above.add_route(f"{address}/32", device)
    below.add_route(DEFAULT_ROUTE, WAN, via=gateway if link is None else None)


def open_line(upper: Host, device: str, address: str, gateway: str) -> int:
    """Make the upper end of a line whose lower end is a user-space NAT; return the TUN descriptor."""
    descriptor = open_tun(upper.namespace, device)
    netlink = upper.namespace.netlink
    try:
        netlink.set_up(device)
        netlink.add_address(device, f"{gateway}/32")
        netlink.add_route(f"{address}/32", device)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def open_tail(host: Host, device: str, prefix_length: int) -> int:
    """Make the device of a machine behind a user-space NAT; return the TUN descriptor."""
    descriptor = open_tun(host.namespace, device)
    netlink = host.namespace.netlink
    try:
        netlink.set_up(device)
        netlink.add_address(device, f"{host.ip}/{prefix_length}")
        netlink.add_route(DEFAULT_ROUTE, device)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def plug_into_bridge(router: Host, bridge: str, port: str, host: Host, device: str) -> None:
    """Connect a host to a port of a router's bridge, ready to carry packets at once."""
    above, below = router.namespace.netlink, host.namespace.netlink
    above.add_cable(port, host.namespace.descriptor, device)
    above.set_up(port)
    below.set_up(device)
    above.settle(port)
    below.settle(device)
    above.set_up(port, bridge=bridge)
    above.settle(bridge)


def attach_prefix(upper: Host, device: str, lower: Host, *destinations: str) -> None:
    """Carry IPv6 on a line: the first destination is the lower end's address, all are routed to it."""
    above, below = upper.namespace.netlink, lower.namespace.netlink
    above.add_address(device, f"{_UPPER_LINK_LOCAL}/64")
    below.add_address(WAN, f"{_LOWER_LINK_LOCAL}/64")
    below.add_address(WAN, destinations[0])
    below.add_route(_DEFAULT_ROUTE_6, WAN, via=_UPPER_LINK_LOCAL)
    for destination in destinations:
        above.add_route(destination, device, via=_LOWER_LINK_LOCAL)
