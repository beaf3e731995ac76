"""A site: one or more machines, the router that hides them, and the line that leads up from it."""

from __future__ import annotations

import abc
import dataclasses
import ipaddress
from typing import Final, Literal, TypeAlias, TypedDict, Unpack

from p2ptunnel.errors import ConfigError
from p2ptunnel.testing.natlab.dataplane import DataPlane, Traffic, Way
from p2ptunnel.testing.natlab.engine.link import LinkSettings
from p2ptunnel.testing.natlab.host import Host
from p2ptunnel.testing.natlab.kinds import Kind
from p2ptunnel.testing.natlab.wiring import WAN, connect_line, open_tail
from p2ptunnel.types import Transport

__all__ = ["Direction", "LinkChanges", "Plan", "Site", "Uplink"]

Direction: TypeAlias = Literal["both", "up", "down"]

_WAYS: Final[dict[Direction, tuple[Way, ...]]] = {"both": ("up", "down"), "up": ("up",), "down": ("down",)}


class LinkChanges(TypedDict, total=False):
    """What `Site.link` takes; the fields of `LinkSettings`."""

    delay: float
    jitter: float
    loss: float
    burst: float
    duplicate: float
    reorder: float
    rate: float
    queue: int
    mtu: int
    icmp: bool
    down: bool


@dataclasses.dataclass(frozen=True)
class Uplink:
    """What stands above a site: a machine with the gateway's address, or a user-space NAT by its name."""

    machine: Host | None
    gateway: str = ""
    nat: str = ""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a site is to be.

    Attributes:
        number: 1 to 250, unlike any other site's.
        name: For messages.
        kind: How it treats traffic.
        wan_address: Its outside address.
        lan: Its inside network.
        link: None for a plain cable upwards.
    """

    number: int
    name: str
    kind: Kind
    wan_address: str
    lan: ipaddress.IPv4Network
    link: LinkSettings | None

    @property
    def device(self) -> str:
        """The name of its line, above it and in the data plane."""
        return f"s{self.number}"

    @property
    def gateway(self) -> str:
        """The router's inside address."""
        return str(self.lan[1])

    @property
    def prefix6(self) -> str:
        """The beginning of its global IPv6 addresses."""
        return f"2001:db8:{self.number:x}:"


class Site(abc.ABC):
    """One or more machines, the router that hides them, and the line that leads up from it.

    Attributes:
        name: For messages.
        kind: How it treats traffic.
        hosts: Its machines; one more with `add_host`.
        wan_address: Its outside address.
    """

    def __init__(self, plan: Plan, uplink: Uplink, plane: DataPlane) -> None:
        self.name = plan.name
        self.kind = plan.kind
        self.wan_address = plan.wan_address
        self.hosts: list[Host] = []
        self._plan = plan
        self._uplink = uplink
        self._plane = plane

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.wan_address}>"

    @property
    def host(self) -> Host:
        """Its first machine."""
        return self.hosts[0]

    @property
    def lan(self) -> ipaddress.IPv4Network:
        """Its inside network; the router has the first address."""
        return self._plan.lan

    @property
    def upper_end(self) -> tuple[Host, str] | None:
        """The machine above it and its line's device there; None below a user-space NAT."""
        above = self._uplink.machine
        return None if above is None else (above, self._plan.device)

    @property
    def router(self) -> Host:
        """The Linux router.

        Raises:
            ConfigError: There is none: its kind is not of the kernel's.
        """
        raise ConfigError(f"{self.name} has no Linux router")

    @property
    @abc.abstractmethod
    def uplink(self) -> Uplink:
        """What this site is to a site below it.

        Raises:
            ConfigError: Nothing can stand below it.
        """

    @abc.abstractmethod
    def build(self) -> None:
        """Make the router and the line upwards; `Lab.site` has done so."""

    @abc.abstractmethod
    def add_host(self) -> Host:
        """Add one more machine and return it."""

    @abc.abstractmethod
    def flush(self) -> None:
        """Let its router forget what it knows of connections, as after a reboot; static mappings stay."""

    @abc.abstractmethod
    def map_port(self, transport: Transport, outside_port: int, port: int, host: Host | None = None) -> None:
        """Add a static mapping to a machine (None for the first), as the owner of a router would by hand."""

    def link(self, direction: Direction = "both", /, **changes: Unpack[LinkChanges]) -> None:
        """Change how the line upwards treats the packets to come.

        Args:
            direction: `up` is towards the internet.
            **changes: See `LinkSettings`.

        Raises:
            ConfigError: The line is a plain cable, or no link can do this.
        """
        if not self._has_link:
            raise ConfigError(f"the line of {self.name} is a plain cable", "Make the site with link=True, or with a delay.")
        self._plane.change_link(self._plan.device, _WAYS[direction], changes)

    def stats(self) -> Traffic:
        """Return what its link and its NAT have done so far; all 0 for a plain cable without a NAT."""
        return self._plane.stats(self._plan.device) if self._has_link else Traffic()

    def close(self) -> None:
        """Remove it; closing twice is fine."""
        for host in self.hosts:
            host.close()

    def _connect_upwards(self, machine: Host) -> None:
        """Give a machine, the router or the only host, the site's line as its device `wan`."""
        plan, above = self._plan, self._uplink
        if above.machine is not None:
            connect_line(above.machine, plan.device, machine, above.gateway, plan.link, self._plane)
        else:
            with open_tail(machine, WAN, 32) as line:
                self._plane.add_router(above.nat, machine.ip, line, plan.device, plan.link or LinkSettings())

    @property
    def _has_link(self) -> bool:
        return self._plan.link is not None or self._uplink.machine is None
