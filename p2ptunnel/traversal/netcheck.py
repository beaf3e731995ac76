"""What this network does to packets: everything is asked side by side, and told as facts and one sentence."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine
from collections.abc import Mapping as MappingOf
from functools import partial
from typing import Any, Final, TypeAlias

import msgspec

from p2ptunnel.defaults import WEB_PORT
from p2ptunnel.errors import DialError, P2PTunnelError, RendezvousError, RendezvousTimeoutError, ServerKeyError
from p2ptunnel.net.dial import dial
from p2ptunnel.net.hops import Hops, is_public, opener_ttl
from p2ptunnel.net.interfaces import local_addresses, source_address
from p2ptunnel.net.portmap import PortMapper
from p2ptunnel.net.reflexive import Observation, observe_tcp, observe_udp
from p2ptunnel.net.sockets import ANY_IPV4, LINUX, can_open_low, is_loopback, reset_close
from p2ptunnel.net.udp import UdpSocket
from p2ptunnel.protocol.nat import Mapping, NatProfile, classify, describe
from p2ptunnel.protocol.outlook import expect
from p2ptunnel.protocol.portmapping import PortMapped, PortRefused
from p2ptunnel.trace import Tracer
from p2ptunnel.traversal.lifetime import mapping_lifetime
from p2ptunnel.traversal.netreport import (
    Filtering,
    NetReport,
    PortMapReport,
    TransportReport,
    WebReport,
    improvements,
    nat_above,
    verdict,
)
from p2ptunnel.traversal.port import take_number
from p2ptunnel.traversal.probing import (
    Crossing,
    Strangers,
    crosses,
    does_cross,
    filtering_udp,
    hairpins_tcp,
    hairpins_udp,
    strangers_tcp,
)
from p2ptunnel.traversal.throughweb import answers_soon, through_web
from p2ptunnel.types import Address, ServerSpec, format_address

__all__ = ["netcheck"]

_MTU: Final = {socket.AF_INET: (socket.IPPROTO_IP, 14), socket.AF_INET6: (socket.IPPROTO_IPV6, 24)}
_WHY_SILENT: Final = 1.0  # seconds for what only explains why TCP does not work
_dice: Final = random.SystemRandom()


class _Findings(msgspec.Struct, frozen=True):
    """What was asked beyond how we look; each as it stands while nobody has answered."""

    filtering: Filtering = "unknown"
    strangers: Strangers = Strangers()
    crosses: Crossing = Crossing()
    hairpin_udp: bool | None = None
    hairpin_tcp: bool | None = None
    port_mapping: PortMapReport | None = None
    other_rtt: float | None = None


async def netcheck(
    at: ServerSpec | Address,
    *,
    timeout: float = 5.0,
    brief: bool = False,
    other: Address | None = None,
    watch: float = 0.0,
    asks_router: bool = True,
) -> NetReport:
    """Ask the server's observers over UDP and TCP, have it try us, and ask the router and the hops on the way, all at once.

    A server that does not answer over TCP on its own port is asked on port 443 as well, as a call would.
    Cancelling leaves no socket, and no mapping at the router.

    Args:
        at: The rendezvous server; its address is numeric.
        timeout: Seconds for each question.
        brief: Only how we look, which takes a few round trips.
        other: The same server's address of the other family, if it has one.
        asks_router: Whether to ask our router for a way in; never for a server on loopback.
        watch: Seconds for which to watch how long our NAT remembers a silent UDP port; 0: not at all.

    Raises:
        RendezvousTimeoutError: It answers over neither transport, nor on port 443.
        ServerKeyError: It says itself that it has another key than was given for it.
        BindError: No port can be had.
    """
    spec = at if isinstance(at, ServerSpec) else ServerSpec(at)
    server = spec.address
    udp_socket, tcp_socket = take_number(_any(server), Tracer())
    number = udp_socket.address
    own_port = asyncio.get_running_loop().create_future()
    try:
        async with asyncio.TaskGroup() as group:
            hops = group.create_task(_ask_hops(server))
            udp = group.create_task(_observe_all(partial(_ask_udp, number), server, timeout))
            tcp = group.create_task(_observe_all(_telling(partial(_ask_tcp, number[1]), own_port), server, timeout))
            web = group.create_task(through_web(spec, own_port, timeout))
            why = group.create_task(_why_silent(server, own_port, timeout))
            lifetime = group.create_task(mapping_lifetime(server, watch)) if watch else None
            more = None if brief else group.create_task(_ask_more(server, hops, timeout, other, asks_router=asks_router))
    finally:
        udp_socket.close()
        tcp_socket.close()
    problem = "" if tcp.result() else why.result()
    reached = web.result()
    if not udp.result() and not tcp.result() and reached is not None and reached.way is None:
        error = RendezvousTimeoutError(format_address(server), timeout)
        error.hint = f"TCP: {problem}. TLS on port {WEB_PORT}: {reached.problem}. {error.hint}"
        raise error
    told = {seen[0].server_key for seen in (udp.result(), tcp.result()) if 0 in seen}
    if spec.key and told - {"", spec.key}:
        raise ServerKeyError(format_address(server))
    local = (source_address(server[0]), number[1])
    found = _Findings() if more is None else more.result()
    report = _report(server, local, udp.result(), tcp.result(), hops.result(), found, reached)
    report = msgspec.structs.replace(
        report,
        tcp=msgspec.structs.replace(report.tcp, problem=problem),
        udp_lifetime=None if lifetime is None else lifetime.result(),
    )
    if report.tcp.works and not brief:
        report = _with_outlook(report, udp.result(), tcp.result())
    return msgspec.structs.replace(report, verdict=verdict(report), improve=improvements(report))


# --- how we look ------------------------------------------------------------------------------------------------------

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


def _telling(ask: _Ask, own_port: asyncio.Future[bool]) -> _Ask:
    """Return what asks, and tells whether the first that was asked has answered: that is the server's own port."""

    async def asked(observer: Address, timeout: float) -> Observation | None:
        seen = await ask(observer, timeout)
        if not own_port.done():
            own_port.set_result(seen is not None)
        return seen

    return asked


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


async def _why_silent(server: Address, own_port: asyncio.Future[bool], timeout: float) -> str:
    """Return in words why the server does not answer over TCP; empty if it does."""
    if await answers_soon(own_port, timeout):
        return ""
    try:
        reset_close(await dial((_any(server), 0), server, rng=_dice, patience=_WHY_SILENT, redials=0))
    except DialError as error:
        return error.reason
    return "somebody takes the connection who does not speak our protocol, perhaps a captive portal or a proxy"


# --- what takes ports of its own ----------------------------------------------------------------------------------------


async def _ask_more(
    server: Address, hops: asyncio.Task[Hops], timeout: float, other: Address | None, *, asks_router: bool
) -> _Findings:
    """Ask all else at once; what has no answer in time stays unknown."""
    own = frozenset({*local_addresses(), source_address(server[0])})
    asking: dict[str, Coroutine[Any, Any, object]] = {
        "filtering": filtering_udp(server),
        "strangers": strangers_tcp(server),
        "crosses": _ask_crosses(server, hops),
        "hairpin_udp": hairpins_udp(server, own),
        "hairpin_tcp": hairpins_tcp(server, own),
    }
    if other is not None:
        asking["other_rtt"] = _ask_rtt(other, timeout)
    if asks_router and not is_loopback(server[0]):
        asking["port_mapping"] = _ask_router(server)
    return _Findings(**await _within(asking, timeout))


async def _within(asking: MappingOf[str, Coroutine[Any, Any, object]], timeout: float) -> dict[str, Any]:
    """Return the answers that came in time, by name; the rest is cancelled, and waited for."""
    tasks = {name: asyncio.create_task(work) for name, work in asking.items()}
    try:
        await asyncio.wait(tasks.values(), timeout=timeout)
    finally:
        for task in tasks.values():
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
    return {name: task.result() for name, task in tasks.items() if not task.cancelled()}


async def _ask_crosses(server: Address, hops: asyncio.Task[Hops]) -> Crossing:
    ttl = (await asyncio.shield(hops)).ttl
    return Crossing() if ttl is None or not can_open_low() else await crosses(server, ttl)


async def _ask_rtt(server: Address, timeout: float) -> float | None:
    seen = await _ask_udp((_any(server), 0), server, timeout)
    return None if seen is None else seen.rtt


async def _ask_router(server: Address) -> PortMapReport | None:
    """Ask the router for a way in to a port that nobody uses, and give it back."""
    with contextlib.closing(UdpSocket((_any(server), 0), shared=False)) as held:
        async with PortMapper(held.address, transports=("tcp",)) as mapper:
            await mapper.settle()
            match mapper.outcome("tcp"):
                case PortMapped(mapping=mapping):
                    return PortMapReport(mapping.protocol, mapping.external, str(mapping))
                case PortRefused() as refused:
                    return PortMapReport(refused.protocol, None, str(refused))
                case outcome:
                    return PortMapReport(None, None, str(outcome))


# --- what it comes to -------------------------------------------------------------------------------------------------


def _report(
    server: Address,
    local: Address,
    udp: _Observations,
    tcp: _Observations,
    hops: Hops,
    found: _Findings,
    web: WebReport | None,
) -> NetReport:
    nat = NatProfile(tcp=_mapping(tcp), udp=_mapping(udp))
    seen = nat.tcp.observed or nat.udp.observed or (None if web is None or web.proxy else web.observed)
    own = local_addresses()
    over_web = None if web is None else web.rtt
    rtt = min((observation.rtt for observation in (*udp.values(), *tcp.values())), default=over_web)
    behind_nat = None if seen is None else seen[0] not in {*own, local[0]}
    above, why = nat_above(hops.hops, seen, found.port_mapping) if behind_nat else (False if behind_nat is False else None, "")
    is_ipv6 = ":" in server[0]
    return NetReport(
        server=server,
        local=local,
        rtt=rtt,
        observers=max(len(udp), len(tcp)),
        udp=_transport(nat.udp, local, found.filtering, found.hairpin_udp),
        tcp=_transport(nat.tcp, local, found.strangers.filtering, found.hairpin_tcp),
        tcp_port_equals_udp=nat.tcp_equals_udp,
        behind_nat=behind_nat,
        opener_ttl=hops.ttl,
        can_open_low=can_open_low(),
        hops=hops.hops,
        descriptors=_descriptors(),
        verdict="",
        simultaneous_open=does_cross(found.strangers, found.crosses, nat.tcp.kind),
        strangers=found.strangers.refusal,
        port_mapping=found.port_mapping,
        double_nat=above,
        double_nat_why=why,
        ipv4=found.other_rtt if is_ipv6 else rtt,
        ipv6=rtt if is_ipv6 else found.other_rtt,
        has_ipv6=any(":" in host and is_public(host) for host in own),
        mtu=_mtu(server),
        web=web,
    )


def _with_outlook(report: NetReport, udp: _Observations, tcp: _Observations) -> NetReport:
    """Add what to expect of others."""
    is_open = {"unknown": None}.get(report.tcp.filtering, report.tcp.filtering != "address-and-port-dependent")
    nat = NatProfile(tcp=_mapping(tcp), udp=_mapping(udp), crosses=report.simultaneous_open, is_open=is_open)
    own = nat.hints(can_open_low=report.can_open_low, rtt=report.rtt or 0.0)
    mapped = report.port_mapping is not None and report.port_mapping.external is not None and not report.double_nat
    expectations = expect(own, descriptors=report.descriptors, has_mapping=mapped)
    return msgspec.structs.replace(report, expectations=expectations)


def _mapping(seen: _Observations) -> Mapping:
    first, second, third = (seen[number].address if number in seen else None for number in range(3))
    return classify(first, second, third, asked_third=2 in seen)


def _transport(mapping: Mapping, local: Address, filtering: Filtering, hairpin: bool | None) -> TransportReport:
    return TransportReport(
        works=mapping.observed is not None,
        observed=mapping.observed,
        mapping=describe(mapping.kind),
        delta=mapping.delta,
        port_preserved=mapping.is_preserved(local[1]),
        filtering=filtering,
        hairpin=hairpin,
    )


def _descriptors() -> int | None:
    """Return the soft limit of open files, None where there is none (Windows)."""
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _mtu(server: Address) -> int | None:
    """Return what the system takes for the largest packet on the way, None where it does not tell."""
    family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(server)
        return probe.getsockopt(*_MTU[family]) if LINUX else None
    return None


def _any(server: Address) -> str:
    return "::" if ":" in server[0] else ANY_IPV4
