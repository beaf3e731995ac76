"""Cables and links between machines: every access line is point to point, with one /32 at its lower end."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Final

from p2ptunnel.testing.natlab.dataplane import DataPlane
from p2ptunnel.testing.natlab.engine.link import LinkSettings
from p2ptunnel.testing.natlab.host import Host
from p2ptunnel.testing.natlab.tun import open_tun

__all__ = [
    "DEFAULT_ROUTE",
    "DEFAULT_ROUTE_6",
    "TAIL",
    "WAN",
    "attach_prefix",
    "connect_line",
    "open_line",
    "open_tail",
    "plug_in",
]

WAN: Final = "wan"
TAIL: Final = "eth0"
"""The device of a machine behind a router."""
DEFAULT_ROUTE, DEFAULT_ROUTE_6 = "0.0.0.0/0", "::/0"
_UPPER_LINK_LOCAL, _LOWER_LINK_LOCAL = "fe80::1", "fe80::2"


def connect_line(upper: Host, device: str, lower: Host, gateway: str, link: LinkSettings | None, plane: DataPlane) -> None:
    """Give `lower` a device `wan` with its addresses, reachable from `upper` through `device`.

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
        with open_tun(upper.namespace, device) as upper_end, open_tun(lower.namespace, WAN) as lower_end:
            plane.add_link(device, link, upper_end, lower_end)
    _keep_quiet(upper, device)
    _keep_quiet(lower, WAN)
    _bring_up((upper, device), (lower, WAN))
    above.add_address(device, f"{gateway}/32")
    for address in lower.ips:
        below.add_address(WAN, f"{address}/32")
        above.add_route(f"{address}/32", device)
    below.add_route(DEFAULT_ROUTE, WAN, via=gateway if link is None else None)


@contextlib.contextmanager
def open_line(upper: Host, device: str, address: str, gateway: str) -> Generator[int, None, None]:
    """Make the upper end of a line whose lower end is a user-space NAT; its TUN descriptor is open in the block."""
    with open_tun(upper.namespace, device) as descriptor:
        _keep_quiet(upper, device)
        netlink = upper.namespace.netlink
        netlink.set_up(device)
        netlink.add_address(device, f"{gateway}/32")
        netlink.add_route(f"{address}/32", device)
        yield descriptor


@contextlib.contextmanager
def open_tail(host: Host, device: str, prefix_length: int) -> Generator[int, None, None]:
    """Make the device of a machine behind a user-space NAT; its TUN descriptor is open in the block."""
    with open_tun(host.namespace, device) as descriptor:
        _keep_quiet(host, device)
        netlink = host.namespace.netlink
        netlink.set_up(device)
        netlink.add_address(device, f"{host.ip}/{prefix_length}")
        netlink.add_route(DEFAULT_ROUTE, device)
        yield descriptor


def plug_in(router: Host, bridge: str, port: str, host: Host, device: str) -> None:
    """Connect a host to a port of a router's bridge, ready to carry packets at once."""
    netlink = router.namespace.netlink
    netlink.add_cable(port, host.namespace.descriptor, device)
    _bring_up((router, port), (host, device))
    netlink.set_up(port, bridge=bridge)
    netlink.settle(bridge)


def attach_prefix(upper: Host, device: str, lower: Host, *destinations: str) -> None:
    """Carry IPv6 on a line: the first destination is the lower end's address, all are routed to it."""
    above, below = upper.namespace.netlink, lower.namespace.netlink
    for machine, end in ((upper, device), (lower, WAN)):
        _keep_quiet(machine, end, quiet=False)
    above.add_address(device, f"{_UPPER_LINK_LOCAL}/64")
    below.add_address(WAN, f"{_LOWER_LINK_LOCAL}/64")
    below.add_address(WAN, destinations[0])
    below.add_route(DEFAULT_ROUTE_6, WAN, via=_UPPER_LINK_LOCAL)
    for destination in destinations:
        above.add_route(destination, device, via=_LOWER_LINK_LOCAL)


def _bring_up(*ends: tuple[Host, str]) -> None:
    """Bring both ends of a cable up, and only then make their carriers count."""
    for machine, device in ends:
        machine.namespace.netlink.set_up(device)
    for machine, device in ends:
        machine.namespace.netlink.settle(device)


def _keep_quiet(machine: Host, device: str, *, quiet: bool = True) -> None:
    """Keep IPv6 off a device: the kernel would send on its own accord, and packets on lines are counted."""
    machine.namespace.configure(f"ipv6/conf/{device}/disable_ipv6", int(quiet))
