"""What this network does to packets, as facts and one sentence."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeAlias

import msgspec

from p2ptunnel.errors import P2PTunnelError, RendezvousError, RendezvousTimeoutError
from p2ptunnel.net.hops import Hops, opener_ttl
from p2ptunnel.net.interfaces import local_addresses, source_address
from p2ptunnel.net.portmap import PortMapper
from p2ptunnel.net.reflexive import Observation, observe_tcp, observe_udp
from p2ptunnel.net.sockets import ANY_IPV4, can_open_low, is_loopback
from p2ptunnel.protocol.nat import Mapping, NatProfile, classify, describe
from p2ptunnel.protocol.portmapping import PortMapEvent, PortMapped, double_nat
from p2ptunnel.trace import Tracer
from p2ptunnel.traversal.port import take_number
from p2ptunnel.types import Address, format_address

__all__ = ["NetReport", "TransportReport", "netcheck"]


class TransportReport(msgspec.Struct, frozen=True):
    """How one transport passes: RFC 4787 words in `mapping`; None is "not known"."""

    works: bool
    observed: Address | None
    mapping: str
    delta: int
    port_preserved: bool | None


class NetReport(msgspec.Struct, frozen=True):
    """What `netcheck` found out.

    observers: How many of the server's addresses answered; mapping needs two, telling address-dependent apart three.
    rtt: Seconds to the server and back.  opener_ttl: How far a packet travels to leave our own NATs.
    descriptors: How many files this process may have open.
    is_let_in: Whether our router lets others in when it is asked to, as far as peers can make use of that.  router: What it
    said, in words; empty if it was not asked.
    """

    server: Address
    local: Address
    rtt: float | None
    observers: int
    udp: TransportReport
    tcp: TransportReport
    tcp_port_equals_udp: bool | None
    behind_nat: bool | None
    opener_ttl: int | None
    can_open_low: bool
    hops: dict[int, str]
    descriptors: int | None
    is_let_in: bool | None
    router: str
    verdict: str


async def netcheck(server: Address, *, timeout: float = 5.0, asks_router: bool = False) -> NetReport:
    """Ask the server's observers over UDP and TCP from one fresh port, the hops on the way, and our router.

    Args:
        server: Numeric address of the rendezvous server.
        timeout: Seconds for each question.
        asks_router: Whether to ask our router for a way in, which is taken back at once; not for a server on loopback.

    Raises:
        RendezvousTimeoutError: It answers over neither transport.
        BindError: No port can be had.
    """
    udp_socket, tcp_socket = take_number(ANY_IPV4 if ":" not in server[0] else "::", Tracer())
    number = udp_socket.address
    try:
        async with asyncio.TaskGroup() as group:
            hops = group.create_task(_ask_hops(server))
            udp = group.create_task(_observe_all(partial(_ask_udp, number), server, timeout))
            tcp = group.create_task(_observe_all(partial(_ask_tcp, number[1]), server, timeout))
            router = group.create_task(_ask_router(number, timeout)) if asks_router and not is_loopback(server[0]) else None
    finally:
        udp_socket.close()
        tcp_socket.close()
    if not udp.result() and not tcp.result():
        raise RendezvousTimeoutError(format_address(server), timeout)
    local = (source_address(server[0]), number[1])
    report = _report(server, local, udp.result(), tcp.result(), hops.result())
    return report if router is None else _with_router(report, router.result())


_Ask: TypeAlias = Callable[[Address, float], Awaitable[Observation | None]]
_Observations: TypeAlias = dict[int, Observation]
"""By which observer: 0 the server itself, 1 its other port, 2 its other address."""


async def _observe_all(ask: _Ask, server: Address, timeout: float) -> _Observations:
    """Ask one after the other, so that a sequential NAT shows its steps."""
    first = await ask(server, timeout)
    if first is None:
        return {}
    seen = {0: first}
    for number, is_same_host in ((1, True), (2, False)):
        observer = next((other for other in first.others if (other[0] == server[0]) is is_same_host), None)
        answer = await ask(observer, timeout) if observer else None
        if answer is not None:
            seen[number] = answer
    return seen


async def _ask_hops(server: Address) -> Hops:
    try:
        return await opener_ttl(server)
    except OSError:  # no descriptor, no such address family
        return Hops(None, {})


async def _ask_udp(local: Address, observer: Address, timeout: float) -> Observation | None:
    try:
        return await observe_udp(local, observer, timeout=timeout)
    except (RendezvousError, OSError):
        return None


async def _ask_tcp(local_port: int, observer: Address, timeout: float) -> Observation | None:
    try:
        return await observe_tcp(local_port, observer, timeout=timeout)
    except (P2PTunnelError, OSError):
        return None


async def _ask_router(local: Address, timeout: float) -> tuple[PortMapEvent | None, ...]:
    """Return what has come of it over TCP and UDP."""
    async with PortMapper(local) as mapper:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await mapper.settle()
        return mapper.outcome("tcp"), mapper.outcome("udp")


def _with_router(report: NetReport, outcomes: tuple[PortMapEvent | None, ...]) -> NetReport:
    mapped = [outcome.mapping for outcome in outcomes if isinstance(outcome, PortMapped)]
    if len(mapped) < len(outcomes):
        failed = next(outcome for outcome in outcomes if not isinstance(outcome, PortMapped))
        return msgspec.structs.replace(report, is_let_in=False, router="no answer" if failed is None else str(failed))
    seen = report.tcp.observed or report.udp.observed
    why = double_nat(mapped[0].external[0], seen[0] if seen else "")
    if why:
        return msgspec.structs.replace(report, is_let_in=False, router=f"maps ports by {mapped[0].protocol}, but {why}")
    router = f"lets others in by {mapped[0].protocol}"
    is_reached = report.behind_nat and report.tcp.works and report.udp.works
    return msgspec.structs.replace(report, is_let_in=True, router=router, verdict=_LET_IN if is_reached else report.verdict)


def _report(server: Address, local: Address, udp: _Observations, tcp: _Observations, hops: Hops) -> NetReport:
    nat = NatProfile(tcp=_mapping(tcp), udp=_mapping(udp))
    seen = nat.tcp.observed or nat.udp.observed
    rtts = [observation.rtt for observation in (*udp.values(), *tcp.values())]
    report = NetReport(
        server=server,
        local=local,
        rtt=min(rtts, default=None),
        observers=max(len(udp), len(tcp)),
        udp=_transport(nat.udp, local),
        tcp=_transport(nat.tcp, local),
        tcp_port_equals_udp=nat.tcp_equals_udp,
        behind_nat=None if seen is None else seen[0] not in {*local_addresses(), local[0]},
        opener_ttl=hops.ttl,
        can_open_low=can_open_low(),
        hops=hops.hops,
        descriptors=_descriptors(),
        is_let_in=None,
        router="",
        verdict="",
    )
    return msgspec.structs.replace(report, verdict=_verdict(report, nat.tcp))


def _mapping(seen: _Observations) -> Mapping:
    first, second, third = (seen[number].address if number in seen else None for number in range(3))
    return classify(first, second, third, asked_third=2 in seen)


def _transport(mapping: Mapping, local: Address) -> TransportReport:
    preserved = mapping.is_preserved(local[1])
    return TransportReport(mapping.observed is not None, mapping.observed, describe(mapping.kind), mapping.delta, preserved)


_LET_IN: Final = (
    "Behind a NAT whose router lets others in when it is asked: while you serve, expect direct TCP with every peer that calls."
)


def _verdict(report: NetReport, tcp: Mapping) -> str:
    if not report.tcp.works:
        return "The server cannot be reached over TCP: only peers that can open a TCP connection to you can be reached."
    if not report.udp.works:
        return "UDP is blocked here: this version cannot call or answer without it."
    if not report.behind_nat:
        return "No NAT: expect direct TCP with every peer whose NAT keeps one port for all destinations."
    if tcp.kind == "unknown":
        return "Behind a NAT; the server has one address only, so how the NAT maps is not known (give it --alt-listen)."
    if tcp.kind == "eim":
        return "Behind a NAT that keeps one port for all destinations: expect direct TCP with peers whose NAT does the same."
    return (
        "Behind a NAT that takes another port for each destination: expect direct TCP only with peers without NAT or firewall."
    )


def _descriptors() -> int | None:
    """Return the soft limit of open files, None where there is none (Windows)."""
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
