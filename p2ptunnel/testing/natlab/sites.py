"""The three ways to make a site: without a router, behind a Linux router, behind a user-space NAT."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Mapping
from typing import Final

from p2ptunnel.errors import ConfigError
from p2ptunnel.testing.natlab.conntrack import count_connections, forget_connections
from p2ptunnel.testing.natlab.dataplane import DataPlane, Traffic
from p2ptunnel.testing.natlab.engine.link import LinkSettings
from p2ptunnel.testing.natlab.engine.table import NatSettings
from p2ptunnel.testing.natlab.host import Host
from p2ptunnel.testing.natlab.kinds import Router
from p2ptunnel.testing.natlab.rules import HOST_FIREWALL, flush_rules, mapping_rule, router_rules
from p2ptunnel.testing.natlab.site import Plan, Site, Uplink
from p2ptunnel.testing.natlab.wiring import DEFAULT_ROUTE, DEFAULT_ROUTE_6, TAIL, attach_prefix, open_line, open_tail, plug_in
from p2ptunnel.types import Transport

__all__ = ["CARRIER_GATEWAY", "SITE_CLASSES", "be_router"]

CARRIER_GATEWAY: Final = "100.64.255.254"
"""Address of a Linux router towards sites below it: it then is a carrier's NAT (RFC 6598)."""

_PROTOCOLS: Final[Mapping[Transport, int]] = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}
_TIMEOUTS: Final[Mapping[str, tuple[str, ...]]] = {
    "udp_timeout": ("udp_timeout", "udp_timeout_stream"),
    "tcp_opening_timeout": ("tcp_timeout_syn_sent", "tcp_timeout_syn_recv"),
    "tcp_timeout": ("tcp_timeout_established", "tcp_timeout_unacknowledged"),
}
_BRIDGE: Final = "lan"


class BareSite(Site):
    """A host with an address of the internet, perhaps with a firewall of its own."""

    @property
    def uplink(self) -> Uplink:
        """Refuse: a host forwards nothing."""
        raise ConfigError(f"{self.name} has no router for a site below it", "Put it below a kernel or user kind.")

    def build(self) -> None:
        """Do nothing: there is no router."""

    def add_host(self) -> Host:
        """Make the one machine."""
        if self.hosts:
            raise ConfigError(f"{self.name} is one machine with one address")
        host = Host(self.name, self.wan_address)
        self.hosts.append(host)
        self._connect_upwards(host)
        if self._is_guarded:
            host.nft(HOST_FIREWALL)
        return host

    def flush(self) -> None:
        """Let its firewall forget."""
        if self._is_guarded:
            with self.host.inside():
                forget_connections()

    def map_port(self, transport: Transport, outside_port: int, port: int, host: Host | None = None) -> None:
        """Refuse: there is nothing to map."""
        raise ConfigError(f"{self.name} has no router that could map {transport} port {outside_port}")

    @property
    def _is_guarded(self) -> bool:
        return self.kind.filtering != "endpoint-independent"


class KernelSite(Site):
    """Machines on a bridge of a Linux router; nftables and connection tracking make its kind."""

    def __init__(self, plan: Plan, uplink: Uplink, plane: DataPlane) -> None:
        super().__init__(plan, uplink, plane)
        self._router = Host(f"{self.name}-router", self.wan_address)

    @property
    def router(self) -> Host:
        """The Linux router."""
        return self._router

    @property
    def uplink(self) -> Uplink:
        """Be a carrier's router."""
        return Uplink(self.router, CARRIER_GATEWAY)

    def build(self) -> None:
        """Make the router's line upwards, its bridge and its rules."""
        router = self.router
        be_router(router)
        self._connect_upwards(router)
        netlink = router.namespace.netlink
        netlink.add_bridge(_BRIDGE)
        netlink.set_up(_BRIDGE)
        for family in ("iptables", "ip6tables"):  # else packets between neighbours would pass connection tracking
            router.namespace.configure(f"bridge/bridge-nf-call-{family}", 0, optional=True)
        netlink.add_address(_BRIDGE, f"{self._plan.gateway}/{self._plan.lan.prefixlen}")
        if self.kind.ipv6 != "none":
            self._carry_ipv6()
        router.nft(router_rules(self.kind, self.wan_address, str(self._plan.lan)))
        for timeout, settings in _TIMEOUTS.items():
            if (seconds := getattr(self.kind, timeout)) is not None:
                for setting in settings:
                    router.namespace.configure(f"netfilter/nf_conntrack_{setting}", int(seconds))

    def add_host(self) -> Host:
        """Make a machine and plug it into the bridge."""
        number = len(self.hosts) + 2
        has_ipv6 = self.kind.ipv6 != "none"
        ip6 = f"{self._plan.prefix6}:{number:x}" if has_ipv6 else None
        ips = [str(self._plan.lan[number])] if self.kind.ipv4 else []
        host = Host(f"{self.name}-{number}", *ips, ip6=ip6)
        self.hosts.append(host)
        plug_in(self.router, _BRIDGE, f"h{number}", host, TAIL)
        netlink = host.namespace.netlink
        if self.kind.ipv4:
            netlink.add_address(TAIL, f"{host.ip}/{self._plan.lan.prefixlen}")
            netlink.add_route(DEFAULT_ROUTE, TAIL, via=self._plan.gateway)
        if ip6 is not None:
            netlink.add_address(TAIL, f"{ip6}/64")
            netlink.add_route(DEFAULT_ROUTE_6, TAIL, via=f"{self._plan.prefix6}:1")
        return host

    def flush(self) -> None:
        """Empty connection tracking and the router's own maps."""
        with self.router.inside():
            forget_connections()
        if commands := flush_rules(self.kind):
            self.router.nft(commands)

    def map_port(self, transport: Transport, outside_port: int, port: int, host: Host | None = None) -> None:
        """Add a rule."""
        target = self.host if host is None else host
        self.router.nft(mapping_rule(self.wan_address, transport, outside_port, target.ip, port))

    def stats(self) -> Traffic:
        """Add the number of tracked connections."""
        with self.router.inside():
            return dataclasses.replace(super().stats(), mappings=count_connections())

    def close(self) -> None:
        """Remove the router too."""
        super().close()
        self.router.close()

    def _carry_ipv6(self) -> None:
        prefix = self._plan.prefix6
        if self._uplink.machine is None:
            raise ConfigError(f"{self.name} cannot have IPv6 below a user-space NAT")
        attach_prefix(self._uplink.machine, self._plan.device, self.router, f"{prefix}ffff::1/128", f"{prefix}:/64")
        self.router.namespace.netlink.add_address(_BRIDGE, f"{prefix}:1/64")


class UserSite(Site):
    """Machines behind an exact NAT in the data plane, each with a TUN device of its own."""

    @property
    def uplink(self) -> Uplink:
        """Be a NAT above another."""
        return Uplink(None, nat=self._plan.device)

    def build(self) -> None:
        """Make the NAT and its link upwards."""
        plan, above = self._plan, self._uplink
        fields = {field.name for field in dataclasses.fields(NatSettings)}
        kind = dataclasses.asdict(self.kind).items()
        words = {name: value for name, value in kind if name in fields and value is not None}
        settings = NatSettings(wan_address=self.wan_address, lan_address=plan.gateway, **words)
        link = plan.link or LinkSettings()
        if above.machine is None:
            self._plane.add_nat(plan.device, settings, link, upstream=above.nat)
        else:
            with open_line(above.machine, plan.device, self.wan_address, above.gateway) as line:
                self._plane.add_nat(plan.device, settings, link, upper=line)

    def add_host(self) -> Host:
        """Make a machine and put its device behind the NAT."""
        number = len(self.hosts) + 2
        host = Host(f"{self.name}-{number}", str(self._plan.lan[number]))
        self.hosts.append(host)
        with open_tail(host, TAIL, self._plan.lan.prefixlen) as tail:
            self._plane.add_host(self._plan.device, host.ip, tail)
        return host

    def flush(self) -> None:
        """Empty the NAT's table."""
        self._plane.flush(self._plan.device)

    def map_port(self, transport: Transport, outside_port: int, port: int, host: Host | None = None) -> None:
        """Add an entry to the NAT's table."""
        target = self.host if host is None else host
        self._plane.map_port(self._plan.device, _PROTOCOLS[transport], outside_port, target.ip, port)

    @property
    def _has_link(self) -> bool:
        return True


SITE_CLASSES: Final[Mapping[Router, type[Site]]] = {"none": BareSite, "kernel": KernelSite, "user": UserSite}


def be_router(host: Host) -> None:
    """Let a machine forward, and answer every packet whose TTL ends there: the kernel's limit would hide hops."""
    for key in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        host.namespace.configure(key, 1)
    for key in ("ipv4/icmp_ratelimit", "ipv4/icmp_ratemask", "ipv6/icmp/ratelimit"):
        host.namespace.configure(key, 0)
