"""The networks in which calls are made: where the caller is, where the callee is, and how both reach a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias

import msgspec

from p2ptunnel.errors import ConfigError
from p2ptunnel.testing.natlab.host import Host
from p2ptunnel.testing.natlab.lab import Lab
from p2ptunnel.testing.natlab.site import LinkChanges, Site

__all__ = ["DELAY", "NETWORKS", "Network", "ServerPlace", "find_network"]

ServerPlace: TypeAlias = Literal["usual", "ipv6", "none"]
Places: TypeAlias = Callable[[Lab], tuple[Host, Host]]
"""Makes the caller's machine and the callee's."""

DELAY: Final = 0.025
"""Seconds, one way, on the line of each home; the server has none."""

_BURST: Final = 5.0  # packets lost in a row, in the mean


class Network(msgspec.Struct, frozen=True):
    """One of them.

    Attributes:
        name: On the command line.
        summary: What it is, in words.
        places: Makes its two machines; called once for each pair of peers.
        server: Where the rendezvous server is.
        is_lossy: Whether packets are lost there.
    """

    name: str
    summary: str
    places: Places
    server: ServerPlace = "usual"
    is_lossy: bool = False


def _two(kind: str, other: str | None = None, **words: Any) -> Places:
    """Two sites."""

    def places(lab: Lab) -> tuple[Host, Host]:
        one, two = (lab.site(name, delay=DELAY, **words) for name in (kind, other or kind))
        return one.host, two.host

    return places


def _behind(carrier: str) -> Places:
    """Two homes behind one carrier's NAT."""

    def places(lab: Lab) -> tuple[Host, Host]:
        above = lab.site(carrier, hosts=0, delay=DELAY)
        one, two = (lab.site("pr", upstream=above, link=True) for _ in range(2))
        return one.host, two.host

    return places


def _one_home(lab: Lab) -> tuple[Host, Host]:
    site = lab.site("pr", hosts=2, delay=DELAY)
    return site.hosts[0], site.hosts[1]


def _lossy(**changes: float) -> Places:
    """Two port-restricted homes, of which the caller's has a line like this, both ways."""

    def places(lab: Lab) -> tuple[Host, Host]:
        caller, callee = lab.site("pr", delay=DELAY), lab.site("pr", delay=DELAY)
        _change(caller, LinkChanges(**changes))  # type: ignore[typeddict-item]
        return caller.host, callee.host

    return places


def _change(site: Site, changes: LinkChanges) -> None:
    site.link(**changes)


def _all() -> Iterator[Network]:
    yield Network("ports", "two port-restricted homes: 100 ms between the peers, 50 ms to the server", _two("pr"))
    yield Network("cgn", "two homes behind one carrier's NAT, which does not hairpin", _behind("cgn"))
    yield Network("cgn-hairpin", "two homes behind one carrier's NAT, which hairpins", _behind("cgn_hairpin"))
    yield Network("lan", "two machines in one home, and a server outside", _one_home)
    yield Network("lan-alone", "two machines in one home, and no server", _one_home, "none")
    yield Network("ipv6-drop", "IPv4 with random ports, and IPv6 behind firewalls that drop", _two("v6_drop"), "ipv6")
    yield Network("ipv6-reject", "the same with firewalls that reject", _two("v6_reject"), "ipv6")
    yield Network("ipv6-only", "IPv6 alone, behind firewalls that drop", _two("v6_drop", ipv4=False), "ipv6")
    yield Network("no-udp", "UDP is blocked on both sides", _two("noU"))
    yield Network("no-udp-caller", "UDP is blocked at the caller's", _two("noU", "pr"))
    yield Network("only-443", "everything but TCP port 443 is blocked", _two("pr", udp=False, only_port=443))
    for percent in (5, 10, 20):
        yield Network(
            f"loss-{percent}",
            f"{percent} % of packets are lost on the caller's line",
            _lossy(loss=percent / 100),
            is_lossy=True,
        )
    for percent in (8, 12, 25):
        summary = f"{percent} % are lost there, in bursts of {_BURST:g}"
        yield Network(f"burst-{percent}", summary, _lossy(loss=percent / 100, burst=_BURST), is_lossy=True)


NETWORKS: Final[Mapping[str, Network]] = MappingProxyType({network.name: network for network in _all()})
"""Every network by its name."""


def find_network(name: str) -> Network:
    """Return the network of that name.

    Raises:
        ConfigError: There is none.
    """
    if name not in NETWORKS:
        raise ConfigError(f"there is no scenario {name!r}", f"There are {', '.join(NETWORKS)}, warm and transfer.")
    return NETWORKS[name]
