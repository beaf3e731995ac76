"""The laboratory: a private internet, a server, and sites behind NATs, for as long as the `with` block lasts.

Addresses are private or from documentation ranges, and no network of the laboratory is linked to the machine's own, so
that no packet can leave.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from p2ptunnel.errors import ConfigError, LaboratoryError
from p2ptunnel.testing.natlab.capability import capable
from p2ptunnel.testing.natlab.capture import Capture, capture
from p2ptunnel.testing.natlab.dataplane import DataPlane
from p2ptunnel.testing.natlab.engine.link import LinkSettings
from p2ptunnel.testing.natlab.host import Host
from p2ptunnel.testing.natlab.kinds import Kind, find_kind
from p2ptunnel.testing.natlab.rules import SECOND_HOP
from p2ptunnel.testing.natlab.site import Plan, Site, Uplink
from p2ptunnel.testing.natlab.sites import SITE_CLASSES, be_router
from p2ptunnel.testing.natlab.wiring import attach_prefix, connect_line

__all__ = ["SITES_MAX", "Lab"]

_SERVER_ADDRESSES: Final = ("203.0.113.1", "203.0.113.2")
_SERVER_ADDRESS_6: Final = "2001:db8:ffff::1"
_GATEWAY: Final = "203.0.113.254"
_GATEWAY_6: Final = "2001:db8:fffe::1"
SITES_MAX: Final = 250
"""So many a laboratory has at most, carriers' included."""


class Lab:
    """A private internet with a server; sites are added with `site`.

    Use it as a context manager: leaving the block kills the programs and removes all networks.  One thread at a time may
    add sites; what was made may be used from all threads.

    Args:
        server_delay: Seconds, one way, on the server's line.

    Attributes:
        inet: The internet: one router to which every line leads, and a silent one behind it on the way to everybody.
        server: A host with two IPv4 addresses and one IPv6 address.
        sites: In the order in which they were added, carriers' sites included.

    Raises:
        ConfigError: No line has such a delay.
        LaboratoryError: It cannot be built here; `capable` says so without raising.
    """

    def __init__(self, *, server_delay: float = 0.0) -> None:
        if reason := capable():
            raise LaboratoryError(reason)
        self.sites: list[Site] = []
        self._numbers = itertools.count(1)
        self._plane = DataPlane()
        server_link = _line(delay=server_delay) if server_delay else None
        self.inet = Host("inet", _GATEWAY)
        self.server = Host("server", *_SERVER_ADDRESSES, ip6=_SERVER_ADDRESS_6)
        try:
            self._build(server_link)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def site(
        self,
        kind: str | Kind,
        hosts: int = 1,
        delay: float = 0.0,
        jitter: float = 0.0,
        loss: float = 0.0,
        rate: float = 0.0,
        name: str | None = None,
        *,
        link: bool = False,
        upstream: Site | None = None,
        wan_address: str | None = None,
        lan: str | None = None,
        **overrides: Any,
    ) -> Site:
        """Add a site and return it, ready to carry packets.

        Args:
            kind: A name in `KINDS`, or a kind of your own.
            hosts: How many machines; 0 for a carrier's NAT.
            delay: Seconds, one way, on its line.
            jitter: Seconds, at most so much more per packet; the order is kept.
            loss: Share of packets lost, 0 to 1, each way.
            rate: Bits per second, each way; 0 for no limit.
            name: For messages.
            link: Whether the line can be changed while it is in use; with a delay, jitter, loss or rate it can anyway.
            upstream: The site above it; None for the internet, or for what the kind says.
            wan_address: Its outside address; None for the next free one.
            lan: Its inside network, such as `192.168.1.0/24`; None for one unlike any other site's.
            **overrides: Fields of `Kind` that differ.

        Raises:
            ConfigError: There is no such kind or field, or this router cannot do it.
            LaboratoryError: It could not be built.
        """
        chosen = (find_kind(kind) if isinstance(kind, str) else kind).but(**overrides)
        settings = _line(delay=delay, jitter=jitter, loss=loss, rate=rate)
        number = next(self._numbers)
        if number > SITES_MAX:
            raise LaboratoryError(f"a laboratory has at most {SITES_MAX} sites")
        name = name or f"{kind if isinstance(kind, str) else 'site'}-{number}"
        if upstream is None and chosen.carrier:
            upstream = self.site(chosen.carrier, hosts=0, name=f"{name}-carrier")
        plan = Plan(
            number=number,
            name=name,
            kind=chosen,
            wan_address=wan_address or _wan_address(number, is_carried=upstream is not None),
            lan=ipaddress.IPv4Network(lan or f"192.168.{number}.0/24"),
            link=settings if link or settings != LinkSettings() else None,
        )
        uplink = Uplink(self.inet, _GATEWAY) if upstream is None else upstream.uplink
        return self._add(SITE_CLASSES[chosen.router](plan, uplink, self._plane), hosts)

    def capture(
        self,
        where: Host | Site | None = None,
        filter: str = "",
        write: str | Path | None = None,
        *,
        snapshot_bytes: int = 1600,
    ) -> contextlib.AbstractContextManager[Capture]:
        """Record packets while the block lasts; when it begins, tcpdump listens, and all that came in it is recorded.

        Args:
            where: A host, or a site for its router; None for the internet, where every packet between sites passes.
            filter: What to record, in the language of pcap-filter(7).
            write: File for the packets, for Wireshark; None for their text only.
            snapshot_bytes: How much of each packet; 65 600 is all of what segmentation offload makes, but leaves room for few.

        Raises:
            LaboratoryError: tcpdump is missing, or refuses the filter.
        """
        return capture(self._machine(where), filter, write, snapshot_bytes)

    def close(self) -> None:
        """Kill all programs and remove all networks; closing twice is fine."""
        self._plane.close()
        for site in self.sites:
            site.close()
        self.server.close()
        self.inet.close()

    def _build(self, server_link: LinkSettings | None) -> None:
        be_router(self.inet)
        self.inet.nft(SECOND_HOP)
        self.inet.namespace.netlink.add_address("lo", f"{_GATEWAY_6}/128")  # time exceeded needs a global source
        connect_line(self.inet, "server", self.server, _GATEWAY, server_link, self._plane)
        attach_prefix(self.inet, "server", self.server, f"{_SERVER_ADDRESS_6}/128")

    def _machine(self, where: Host | Site | None) -> Host:
        if isinstance(where, Site):
            return where.router if where.kind.router == "kernel" else where.host
        return where or self.inet

    def _add(self, site: Site, hosts: int) -> Site:
        self.sites.append(site)
        try:
            site.build()
            for _ in range(hosts):
                site.add_host()
        except OSError as error:
            raise LaboratoryError(f"{site.name} cannot be built: {error}") from error
        return site


def _line(*, delay: float, jitter: float = 0.0, loss: float = 0.0, rate: float = 0.0) -> LinkSettings:
    try:
        return LinkSettings(delay=delay, jitter=jitter, loss=loss, rate=rate)
    except ValueError as error:
        raise ConfigError(f"no line can be like this: {error}") from error


def _wan_address(number: int, *, is_carried: bool) -> str:
    """Return an outside address: of a documentation range (RFC 5737), or of a carrier's (RFC 6598)."""
    return f"100.64.0.{number}" if is_carried else f"198.51.100.{number}"
