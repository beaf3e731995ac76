"""What happens to connections in the field, made to happen: each injector does one thing to one machine or one site.

That a router forgets its connections, as at a reboot, is `Site.flush`: TCP survives it where the outside port is the same
again.  Rule: an injector returns, or its block begins, when the fault is there.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Generator
from typing import Final

from p2ptunnel.errors import ConfigError, LaboratoryError
from p2ptunnel.testing.natlab.host import Host
from p2ptunnel.testing.natlab.site import Site
from p2ptunnel.testing.natlab.wiring import DEFAULT_ROUTE, TAIL

__all__ = ["change_address", "cut", "kill_tcp", "only_web", "part", "rebind"]

_REBINDING: Final = """
table ip rebinding {
 chain post {
  type nat hook postrouting priority 99; policy accept;
  oifname "wan" tcp flags & syn == 0 masquerade fully-random
 }
}
"""
"""For connections that go on, since those that begin have a SYN; it comes before the router's own rule at priority 100."""

_ONLY_WEB: Final = """
table inet only_web {
 chain out {
  type filter hook forward priority -10; policy accept;
  oifname "wan" tcp dport 443 accept
  oifname "wan" drop
 }
}
"""

_FIRST_SPARE: Final = 100
"""Machines count from 2; addresses that they change to count from here."""


def kill_tcp(host: Host, remote: str, port: int | None = None) -> int:
    """Destroy the TCP connections of a machine to a remote address; both ends see an error at once.

    Args:
        host: Its kernel resets them, whichever program they belong to; listening sockets stay.
        remote: IPv4 or IPv6 address.
        port: Of the remote end; None for all.

    Returns:
        How many there were.

    Raises:
        LaboratoryError: `ss` (package iproute2) refuses, or is missing.
    """
    wanted = ["dst", remote, *([] if port is None else ["and", "dport", "=", f":{port}"])]
    result = host.run(["ss", "--kill", "--tcp", "--numeric", "--no-header", *wanted], check=False)
    if result.returncode:
        raise LaboratoryError(f"ss on {host.name} says {result.stderr.strip()}")
    return len(result.stdout.splitlines())


def rebind(site: Site) -> None:
    """Let a router forget its connections, and give each TCP connection that goes on another outside port.

    What the far end sends to the old port finds nobody; what it receives from the new one is a stranger's.  New
    connections, and UDP, get their ports as the site's kind says.

    Raises:
        ConfigError: The site has no Linux router.
    """
    site.router.nft(_REBINDING)
    site.flush()


@contextlib.contextmanager
def cut(site: Site) -> Generator[None]:
    """Drop all that comes from a site and all that goes to it, silently, while the block lasts.

    Raises:
        LaboratoryError: It is cut already.
    """
    if (upper := site.upper_end) is None:
        site.link(down=True)
        try:
            yield
        finally:
            site.link(down=False)
        return
    machine, device = upper  # not in the site: a sender there would be told that its packet was dropped
    machine.nft(_cut_rules(device))
    try:
        yield
    finally:
        machine.nft(f"delete table inet cut_{device}\n")


@contextlib.contextmanager
def part(one: Site, other: Site) -> Generator[None]:
    """Drop all between two sites, silently, while the block lasts; each still reaches everybody else.

    Raises:
        ConfigError: One stands below a user-space NAT.
        LaboratoryError: They are parted already.
    """
    if one.upper_end is None or other.upper_end is None:
        raise ConfigError("what stands below a user-space NAT cannot be parted from one site only", "Use `cut`.")
    machine, device = one.upper_end
    table = f"inet part_{device}_{other.upper_end[1]}"
    ways = ((one.wan_address, other.wan_address), (other.wan_address, one.wan_address))
    machine.nft(
        f"create table {table}\n"
        f"add chain {table} between {{ type filter hook prerouting priority -300; policy accept; }}\n"
        + "".join(f"add rule {table} between ip saddr {source} ip daddr {target} drop\n" for source, target in ways)
    )
    try:
        yield
    finally:
        machine.nft(f"delete table {table}\n")


def only_web(site: Site) -> None:
    """Let nothing out of a site but TCP to port 443, as some offices do; all else is dropped silently from now on.

    Raises:
        ConfigError: The site has no Linux router.
    """
    site.router.nft(_ONLY_WEB)


def change_address(site: Site, host: Host | None = None) -> str:
    """Give a machine another IPv4 address of its network, as a new lease does; return it.

    What is bound to the old address stays so and reaches nobody.

    Args:
        site: Its router keeps what it knows of the old address.
        host: One of its machines; None for the first.

    Raises:
        ConfigError: The site has no Linux router: elsewhere an address is more than the machine's own affair.
    """
    if site.kind.router != "kernel":
        raise ConfigError(f"a machine of {site.name} cannot change its address", "Put it behind a kind of the kernel's.")
    machine = host or site.host
    in_use = {*machine.ips, *(ip for other in site.hosts for ip in other.ips)}
    address = next(ip for number in itertools.count(_FIRST_SPARE) if (ip := str(site.lan[number])) not in in_use)
    netlink, prefix_length = machine.namespace.netlink, site.lan.prefixlen
    netlink.remove_address(TAIL, f"{machine.ip}/{prefix_length}")
    netlink.add_address(TAIL, f"{address}/{prefix_length}")
    netlink.add_route(DEFAULT_ROUTE, TAIL, via=str(site.lan[1]))
    machine.ips[0] = address
    return address


def _cut_rules(device: str) -> str:
    table = f"inet cut_{device}"
    return (
        f"create table {table}\n"
        f"add chain {table} from {{ type filter hook prerouting priority -300; policy accept; }}\n"
        f"add chain {table} to {{ type filter hook postrouting priority -300; policy accept; }}\n"
        f'add rule {table} from iifname "{device}" drop\n'
        f'add rule {table} to oifname "{device}" drop\n'
    )
